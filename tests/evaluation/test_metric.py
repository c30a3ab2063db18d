"""The interface: every metric streams, says what it is, and refuses what would make a wrong number."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import Pixels, pictures

from allaprima.core.errors import SettingError
from allaprima.evaluation import METRICS, make_metric
from allaprima.evaluation.metric import check_images


class BrightOracle:
    name, fingerprint, cost = "bright", "b1", 0.1

    def score(self, images, prompts):
        return images.mean((1, 2, 3)) * torch.tensor([float(len(p)) for p in prompts])


class Captions:
    """Captions are numbers: how bright a picture is, in eighths."""

    name, fingerprint = "captions", "c1"

    def embed_images(self, images):
        angle = images.mean((1, 2, 3))
        return torch.stack([angle.cos(), angle.sin()], 1)

    def embed_captions(self, captions):
        angle = torch.tensor([float(c) for c in captions], dtype=torch.float64)
        return torch.stack([angle.cos(), angle.sin()], 1)


POOL = [str(i / 8) for i in range(9)]
MAKE = {
    "frechet": lambda: make_metric("frechet", features=Pixels()),
    "kernel": lambda: make_metric("kernel", features=Pixels(), subsets=3, subset_size=12),
    "precision_recall": lambda: make_metric("precision_recall", features=Pixels()),
    "oracle_score": lambda: make_metric("oracle_score", oracle=BrightOracle()),
    "retrieval": lambda: make_metric("retrieval", judge=Captions(), captions=POOL, k=2),
    "preservation": lambda: make_metric("preservation", features=Pixels()),
    "dreamsim": lambda: make_metric("dreamsim", features=Pixels(dim=40)),
    "lpips": lambda: make_metric("lpips", features=Pixels()),
    "diversity": lambda: make_metric("diversity", features=Pixels()),
}
IMAGES, REFERENCES = pictures(12), pictures(12, seed=1)
PROMPTS = [POOL[i % 6] for i in range(12)]


def run(name, order, cuts):
    metric = MAKE[name]()
    for part in np.split(np.asarray(order), cuts):
        metric.update(IMAGES[part], [PROMPTS[i] for i in part], REFERENCES[part])
    return metric.compute()


def test_every_metric_but_clip_is_covered_here():
    assert {*MAKE, "clip_score"} == set(METRICS)


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(0, 12), max_size=5).map(sorted))
def test_any_split_into_batches_gives_the_same(name, cuts):
    whole, split = run(name, range(12), []), run(name, range(12), cuts)
    assert split.value == pytest.approx(whole.value, abs=1e-9)
    assert split.more == pytest.approx(dict(whole.more), abs=1e-9)
    assert split.protocol == whole.protocol
    if whole.per_picture is not None:
        assert np.allclose(split.per_picture, whole.per_picture, atol=1e-9)
        assert whole.value == pytest.approx(whole.per_picture.mean())


@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(12)))
def test_the_order_of_pictures_does_not_matter(name, order):
    whole, mixed = run(name, range(12), []), run(name, order, [5])
    assert mixed.value == pytest.approx(whole.value, abs=1e-9)
    if whole.per_picture is not None:
        assert np.allclose(mixed.per_picture, whole.per_picture[order], atol=1e-9)


@pytest.mark.parametrize("name", MAKE)
def test_the_protocol_is_json_and_says_what_a_reader_must_know(name):
    p = run(name, range(12), []).protocol
    assert json.loads(json.dumps(p)) == p
    assert p["pictures"] == 12 and p["formula"] and p["per"] in ("picture", "set", "prompt")
    assert isinstance(p["higher_is_better"], bool)
    source = p.get("features") or p.get("oracle") or p.get("judge")
    assert source["fingerprint"] in ("p1", "b1", "c1")


@pytest.mark.parametrize("name", MAKE)
def test_nothing_fed_is_no_value(name):
    metric = MAKE[name]()
    with pytest.raises(SettingError, match="at least"):
        metric.compute()
    metric.update(IMAGES[:0], [], REFERENCES[:0])
    with pytest.raises(SettingError, match="at least"):
        metric.compute()


BAD = [
    (IMAGES[:, 0], r"\(12, 4, 4\): \(B, 3, H, W\)"),
    (IMAGES.repeat(1, 2, 1, 1), r"\(12, 6, 4, 4\)"),
    ((IMAGES * 255).byte(), "torch.uint8: floats"),
    (IMAGES * 2 - 1, r"from -.* \[0, 1\] is due"),
    (IMAGES + torch.tensor(0.5), "to 1.49"),
    (torch.where(IMAGES > 0.99, torch.nan, IMAGES), "nan"),
]


@pytest.mark.parametrize(("images", "message"), BAD)
@pytest.mark.parametrize("name", MAKE)
def test_pictures_that_are_none_are_refused_and_nothing_is_added(name, images, message):
    metric = MAKE[name]()
    with pytest.raises(SettingError, match=message):
        metric.update(images, PROMPTS, REFERENCES)
    if "references" in metric.protocol():
        assert metric.protocol()["references"] == 0
    metric.update(IMAGES, PROMPTS, REFERENCES)
    assert metric.compute().value == pytest.approx(run(name, range(12), []).value, abs=1e-12)


@pytest.mark.parametrize("name", ["preservation", "dreamsim", "lpips"])
def test_references_one_a_picture(name):
    metric = MAKE[name]()
    with pytest.raises(SettingError, match="give `references`"):
        metric.update(IMAGES, PROMPTS)
    with pytest.raises(SettingError, match="5 references for 12 pictures"):
        metric.update(IMAGES, PROMPTS, REFERENCES[:5])
    with pytest.raises(SettingError, match=r"references from 0.* to 2"):
        metric.update(IMAGES, PROMPTS, REFERENCES * 2.2)


@pytest.mark.parametrize("name", ["oracle_score", "retrieval", "diversity"])
def test_prompts_one_a_picture(name):
    with pytest.raises(SettingError, match="3 prompts for 12 pictures"):
        MAKE[name]().update(IMAGES, PROMPTS[:3])


def test_a_score_that_is_no_number_is_named_by_its_place_in_all_that_was_fed():
    class Broken(BrightOracle):
        def score(self, images, prompts):
            return torch.where(images[:, 0, 0, 0] == IMAGES[7, 0, 0, 0], torch.nan, 1.0)

    metric = make_metric("oracle_score", oracle=Broken())
    metric.update(IMAGES[:5], PROMPTS[:5])
    with pytest.raises(SettingError, match="picture 7 the score nan"):
        metric.update(IMAGES[5:], PROMPTS[5:])
    assert metric.compute().per_picture.shape == (5,)


@pytest.mark.parametrize("name", ["frechet", "kernel", "precision_recall", "preservation", "diversity"])
def test_features_that_are_not_finite_are_refused(name):
    class Broken(Pixels):
        def features(self, images):
            x = super().features(images).clone()
            x[2, 1] = torch.inf
            return x

    with pytest.raises(SettingError, match="not finite for picture 2"):
        make_metric(name, features=Broken()).update(IMAGES, PROMPTS, REFERENCES)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(SettingError, match="Did you mean 'frechet'"):
        make_metric("frechett")


def test_zero_and_one_are_inside():
    assert check_images(torch.tensor([0.0, 1.0]).repeat(1, 3, 2, 1)).shape == (1, 3, 2, 2)
