"""Every family through OpenVINO and ONNX Runtime, against torch: conditions, networks, decoders, pictures."""

import pytest
import tiny_folders
import torch

from allaprima.models.backends.backend import NAMES
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.models.placement.placer import ModelPlacer
from allaprima.pipeline import AdaptivePipeline, card_settings


def needs(name):
    for package in NAMES[name][2]:
        pytest.importorskip(package, reason=f"pip install 'allaprima[{name}]'")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NAMES))
@pytest.mark.parametrize("family", [*tiny_folders.FAMILIES, "flux"])
def test_a_family_says_what_it_says_in_torch(tmp_path, family, name):
    needs(name)
    path = tiny_folders.card(family, tmp_path)
    usual = load_pair(load_card(path))
    fast = load_pair(load_card(path), ModelPlacer(DeviceConfig(backend=name, cache=tmp_path / "cache")))
    assert fast.teacher.fingerprints["backend"].startswith(name)
    assert fast.student.fingerprint != usual.student.fingerprint
    due, cond = (p.student.condition(["red", "a red"]).tensors for p in (usual, fast))
    for k, v in due.items():
        torch.testing.assert_close(cond[k], v, atol=1e-4, rtol=0)
    settings = card_settings(load_card(path))
    pictures, scales = [], {"student_guidance": 1.0, "teacher_guidance": 1.0 if family == "flux" else 3.0, "batch_size": 2}
    for pair in (usual, fast):
        pipe = AdaptivePipeline(pair.student, pair.teacher, None, settings)
        found = pipe(["red", "a red"], seed=0, mode="refine-all", **scales).results
        pictures.append(torch.stack([r.image for r in found]))
    torch.testing.assert_close(pictures[1], pictures[0], atol=1e-4, rtol=0)
    alone = pipe(["a red"], seed=1, mode="refine-all", **scales).results[0].image
    assert torch.equal(alone, pictures[1][1]), "a picture doesn't depend on its mates"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NAMES))
def test_the_bundled_cascade_decides_alike(pipe, tmp_path, name):
    needs(name)
    fast = AdaptivePipeline.from_card("emoji", backend=name, cache=tmp_path)
    prints = fast.fingerprints()
    assert prints["backend"].startswith(name)
    assert all(prints[k] != pipe.fingerprints()[k] for k in prints)
    prompts = ["red apple, noto", "panda, fluent 3d", "house, twemoji", "rocket, noto"]
    told = {"seed": 3, "threshold": 0.7, "batch_size": 4, "teacher_steps": 3}
    mine, due = fast(prompts, **told), pipe(prompts, **told)
    assert mine.decisions == due.decisions
    assert len(set(due.decisions)) == 2, "some of both are due, or nothing is shown"
    torch.testing.assert_close(torch.tensor(mine.scores), torch.tensor(due.scores), atol=1e-4, rtol=0)
    for a, b in zip(mine.results, due.results, strict=True):
        torch.testing.assert_close(a.image, b.image, atol=1e-3, rtol=0)
    alone = fast(prompts[2], **{**told, "seed": 5})
    assert torch.equal(alone.results[0].image, mine.results[2].image)
