"""An oracle that looks at the map too: agreement is 1 with the picture the map came from and falls as that is disturbed."""

import pytest
import torch
from diffusers import ControlNetModel
from tiny_folders import SIZE, card

from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.conditioning.edit import ImageInput
from allaprima.core.errors import SettingError
from allaprima.data.control_maps import HOLE, MAPS, control_map, smooth, with_hole
from allaprima.data.images import as_tensor, to_pil
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.oracles.conditional import AGREEMENTS, ConditionalOracle
from allaprima.pipeline import AdaptivePipeline, card_settings


def picture(radius=20.0, size=64, shift=0):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    inside = ((x - size / 2 - shift) ** 2 + (y - size / 2) ** 2).sqrt() < radius
    made = torch.where(inside, torch.tensor([0.9, 0.2, 0.1])[:, None, None], torch.ones(3, 1, 1))
    return as_tensor(to_pil(made))


def mask(size=64):
    made = torch.zeros(1, size, size)
    made[:, : size // 2, : size // 2] = 1
    return made


def map_of(name, image):
    return with_hole(image, mask()) if name == HOLE else control_map(name, image)


@pytest.mark.parametrize("name", [*MAPS, HOLE])
def test_agreement_falls_with_distance(name):
    given = map_of(name, picture())
    same, near, far = (AGREEMENTS[name](p, given) for p in (picture(), picture(shift=4), picture(radius=9, shift=14)))
    assert same == pytest.approx(1.0, abs=0.02 if name == "colours" else 1e-6)
    assert same > near > far >= 0
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert AGREEMENTS[name](noise, given) < near


def test_what_is_missing_does_not_count_and_empty_edges_agree():
    given = with_hole(picture(), mask())
    other = torch.where(mask() == 1, torch.zeros(3, 1, 1), picture())
    assert AGREEMENTS[HOLE](other, given) == pytest.approx(1.0)
    flat = torch.full((3, 64, 64), 0.5)
    assert AGREEMENTS["canny"](flat, control_map("canny", flat)) == 1.0
    assert AGREEMENTS["canny"](flat, control_map("canny", picture())) == 0.0
    assert torch.equal(smooth(flat), as_tensor(to_pil(flat)))


class Flat:
    """A base oracle that says the same of everything."""

    name, fingerprint, cost = "flat", "f", 0.01

    def score(self, images, prompts):
        return torch.full((len(images),), 0.25)


def test_score_is_the_bases_plus_the_mean_agreement():
    oracle = ConditionalOracle(Flat(), ["colours", "low-resolution"], 2.0)
    images = torch.stack([picture(), picture(shift=10)])
    given = [torch.stack([control_map(m, picture())] * 2) for m in oracle.maps]
    one, other = oracle.score_given(images, ["a", "b"], given).tolist()
    assert one == pytest.approx(2.25, abs=0.05)
    assert other < one
    assert torch.equal(oracle.score(images, ["a", "b"]), torch.tensor([0.25, 0.25]))
    assert oracle.fingerprint != ConditionalOracle(Flat(), ["colours", "low-resolution"], 1.0).fingerprint
    with pytest.raises(SettingError, match="map='given'"):
        ConditionalOracle(Flat(), ["given"], 1.0)
    with pytest.raises(SettingError, match="weight -1"):
        ConditionalOracle(Flat(), ["canny"], -1)


def test_the_machine_shows_it_each_jobs_own_map(tmp_path):
    """Two requests of one batch with different maps: the one whose draft agrees less scores less, in either order."""
    made = load_card(card("sd", tmp_path))
    pair = load_pair(made)
    ControlNetModel.from_unet(pair.teacher.unet, conditioning_embedding_out_channels=(4, 8)).save_pretrained(
        tmp_path / "net"
    )
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, card_settings(made)).with_controlnets([tmp_path / "net"])
    settings = pipe.settings.changed(batch_size=2)
    oracle = ConditionalOracle(Flat(), ["low-resolution"], 1.0)
    heard = []

    class Listens(ConditionalOracle):
        def score_given(self, images, prompts, controls):
            heard.append((images.clone(), controls[0].clone()))
            return oracle.score_given(images, prompts, controls)

    maps = [torch.zeros(3, SIZE, SIZE), torch.ones(3, SIZE, SIZE)]
    requests = [GenerationRequest("red fox", 5, "", i, controls=(ImageInput.of(m),)) for i, m in enumerate(maps)]
    cascade = LatentCascade(
        pipe.student, pipe.teacher, Listens(Flat(), ["low-resolution"], 1.0), ThresholdPolicy(-9.0), settings
    )
    results = sorted(run(cascade, requests), key=lambda r: r.request.index)
    images, controls = heard[0]
    assert torch.equal(controls, torch.stack(maps))
    for r, image, m in zip(results, images, maps, strict=True):
        assert r.score == pytest.approx(0.25 + AGREEMENTS["low-resolution"](image, m), abs=1e-6)
