"""Sizes from configs alone: published counts, a real model's own weights, and activations in closed form."""

from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml
from tiny_folders import card, model, refiner
from tiny_language import SIDE, sana
from tiny_language import card as sana_card

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.cards.card import load_card
from allaprima.models.cards.configs import bundled_config
from allaprima.models.cards.sizes import parts_of
from allaprima.models.cards.sources import sources_of
from allaprima.models.components.meta import meta
from allaprima.models.loading.estimate import estimate, peak
from allaprima.models.loading.pair import load_pair


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # What papers and announcements say: SD1's UNet (860M) and SDXL's (2.6B; both arXiv 2307.01952, table 1), SD3.5 Large
        # (8.1B), FLUX.1 (12B), the encoder of T5 v1.1 XXL (4.7B).
        ("sd-unet", 860e6), ("sdxl-unet", 2.6e9), ("sd3.5-large", 8.1e9), ("flux-dev", 12e9), ("t5-xxl", 4.7e9),
        # And what the hub lists: bytes of the files, 4 or 2 a number (9.04 GB, 1.25 GB, 5.23 GB), and SANA's page (1.6B).
        ("sdxl-refiner-unet", 9.04e9 / 4), ("dc-ae-f32c32", 1.25e9 / 4), ("gemma-2-2b", 5.23e9 / 2), ("sana1.5-1.6b", 1.6e9),
    ],
)  # fmt: skip
def test_published_sizes(name, published):
    n = sum(p.numel() for p in meta(bundled_config(name)).parameters())
    assert n == pytest.approx(published, rel=0.02)


def test_sdxls_text_encoders_together():
    both = sum(p.numel() for name in ("clip-l", "clip-g") for p in meta(bundled_config(name)).parameters())
    assert both == pytest.approx(817e6, rel=0.002)


def test_lcm_adds_its_projection_alone():
    plain, lcm = (sum(p.numel() for p in meta(bundled_config(n)).parameters()) for n in ("sd-unet", "sd-unet-lcm"))
    assert lcm - plain == 256 * 320


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_a_loaded_pair_has_what_was_estimated(family, tmp_path):
    c = load_card(card(family, tmp_path))
    pair = load_pair(c)
    nets = {
        id(m): m for m in (pair.student.network, pair.teacher.network, *map(pair.teacher.__getattribute__, _encoders(c)))
    }
    real = sum(t.numel() * t.element_size() for m in nets.values() for t in m.state_dict().values())
    found = estimate(c)
    assert not found.unknown
    assert found.weights == real
    assert estimate(c, "bfloat16").weights * 2 == real


@pytest.mark.parametrize("teacher", [{"source": "refiner"}, {"refiner": "refiner"}])
def test_a_refiner_counts(teacher, tmp_path):
    """Alone it has no first text encoder; after its base it is one network more."""
    path = card("sdxl", tmp_path)
    refiner(tmp_path / "refiner", tmp_path / "teacher")
    raw = yaml.safe_load(path.read_text())
    raw["teacher"] |= teacher
    raw["student"]["share"] = ["text_encoder_2", "tokenizer_2", "vae"] if "source" in teacher else raw["student"]["share"]
    path.write_text(yaml.safe_dump(raw))
    c = load_card(path)
    pair, found = load_pair(c), estimate(c, activations=True)
    more = [pair.teacher.refiner.network] if "refiner" in teacher else []
    shared = (pair.student.text_encoder, pair.student.text_encoder_2, pair.student.vae)
    nets = [pair.student.network, pair.teacher.network, *shared, *more]
    assert not found.unknown
    assert found.weights == sum(t.numel() * t.element_size() for m in nets for t in m.state_dict().values())
    assert found.network > 0
    assert [s.text for s in sources_of(c) if s.whose == "refiner of the teacher"] == list(teacher.values())[: len(more)]


def test_sana_and_sprint_are_estimated(tmp_path):
    sana(tmp_path / "teacher")
    sana(tmp_path / "student", seed=1, sprint=True)
    found = []
    for factor in (1, 2):
        size = {"height": factor * SIDE, "width": factor * SIDE}
        c = load_card(sana_card(tmp_path, "sana", {}, {}, **size))
        found.append(estimate(c, activations=True))
    pair = load_pair(c)
    nets = (pair.student.network, pair.teacher.network, pair.teacher.text_encoder, pair.teacher.vae)
    assert found[0].weights == sum(t.numel() * t.element_size() for m in nets for t in m.state_dict().values())
    assert found[1].decoder == pytest.approx(4 * found[0].decoder, rel=0.1)
    assert found[1].network > 1.5 * found[0].network


def _encoders(c):
    from allaprima.models.families.registry import FAMILIES

    absent = ("text_encoder_3",)
    return [n for n in FAMILIES[c.family].shared if "tokenizer" not in n and n not in absent]


def test_what_is_shared_counts_once(tmp_path):
    path = card("sd", tmp_path)
    shared = estimate(load_card(path)).weights
    model("sd", tmp_path / "own")
    raw = yaml.safe_load(path.read_text())
    raw["student"] |= {"source": "own", "share": ["tokenizer"]}
    path.write_text(yaml.safe_dump(raw))
    c = load_card(path)
    apart = estimate(c)
    assert [(p.whose, p.name) for p in apart.parts if p.whose == "student"] == [
        ("student", "unet"), ("student", "text_encoder"), ("student", "vae")
    ]  # fmt: skip
    own = sum(p.numbers for p in parts_of(c) if p.whose == "student" and p.name != "unet")
    assert apart.weights - shared == own * 4


def test_the_bundled_pair_is_as_large_as_its_files():
    files = Path(str(resources.files("allaprima"))) / "bundled" / "emoji" / "weights"
    parts = [files / p for p in ("student/unet", "teacher/unet", "teacher/vae", "teacher/text_encoder")]
    stored = sum(f.stat().st_size for p in parts for f in p.glob("*.safetensors"))
    numbers = sum(p.numbers for p in estimate(load_card("emoji")).parts)
    # The headers, and what is stored in half precision.
    assert stored / 4 <= numbers * 1.02 <= stored / 2 * 1.1


def test_activations_of_a_stack_of_layers_in_closed_form():
    net = torch.nn.Sequential(*[torch.nn.Linear(100, 100, bias=False, device="meta") for _ in range(5)])
    x = torch.empty(7, 100, device="meta")
    assert peak(net, lambda: net(x)) == 2 * 7 * 100 * 4, "one layer's input and output, whatever the depth"
    wide = torch.nn.Sequential(torch.nn.Linear(100, 300, device="meta"), torch.nn.Linear(300, 10, device="meta"))
    assert peak(wide, lambda: wide(x)) == 7 * (300 + 10) * 4


def test_attention_keeps_no_matrix():
    q = torch.empty(1, 1, 4096, 8, device="meta")
    most = peak(torch.nn.Identity(), lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert most == 4096 * 8 * 4


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_activations_of_each_family_grow_with_the_picture(family, tmp_path):
    path = card(family, tmp_path)
    found = []
    # SD3's tiny network has places for 16 pixels and no more.
    for size in (8, 16) if family == "sd3" else (16, 32):
        raw = yaml.safe_load(path.read_text()) | {"height": size, "width": size}
        path.write_text(yaml.safe_dump(raw))
        e = estimate(load_card(path), activations=True)
        assert e.total == e.weights + max(e.network, e.decoder)
        found.append(e)
    assert found[1].decoder == pytest.approx(4 * found[0].decoder, rel=0.1)
    assert found[1].network > found[0].network * (1 if family == "sd3" else 1.5)


def test_a_size_that_a_network_has_no_places_for_is_named(tmp_path):
    path = card("sd3", tmp_path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"height": 32, "width": 32}))
    with pytest.raises(ModelError, match=r"SD3Transformer2DModel can't be called .*pos_embed_max_size"):
        estimate(load_card(path), activations=True)


def test_an_unknown_dtype_is_named():
    with pytest.raises(SettingError, match="dtype='fp8' is not known: float32"):
        estimate(load_card("emoji"), "fp8")
