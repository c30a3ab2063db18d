"""Preservation, DreamSim-type, LPIPS-type and diversity against plain formulas."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_fakes import Pixels, pictures
from safetensors.torch import save_file

from allaprima.core.errors import ModelError, SettingError
from allaprima.evaluation.diversity import Diversity
from allaprima.evaluation.dreamsim import DreamSimType
from allaprima.evaluation.lpips import LPIPSType
from allaprima.evaluation.preservation import Preservation

A, B = pictures(5), pictures(5, seed=1)


def test_preservation_is_the_cosine_of_features():
    x, y = A.flatten(1)[:, :4].numpy(), B.flatten(1)[:, :4].numpy()
    truth = [(p @ q) / np.linalg.norm(p) / np.linalg.norm(q) for p, q in zip(x, y, strict=True)]
    assert np.allclose(Preservation(Pixels()).score(A, [], B), truth, rtol=1e-12)
    assert np.allclose(Preservation(Pixels()).score(A, [], A), 1)


def test_dreamsim_type_sees_224_pixels_and_is_one_minus_the_cosine():
    class Watching(Pixels):
        def features(self, images):
            assert images.shape[-2:] == (224, 224) and float(images.min()) >= 0 and float(images.max()) <= 1
            return F.adaptive_avg_pool2d(images, 2).flatten(1)

    net = Watching(dim=12)
    found = DreamSimType(net).score(A, [], B)
    u, v = (
        F.normalize(net.features(F.interpolate(x.float(), (224, 224), mode="bicubic", antialias=True).clamp(0, 1)), dim=1)
        for x in (A, B)
    )
    assert torch.allclose(found, (1 - (u * v).sum(1)).double(), atol=1e-6)
    assert torch.allclose(DreamSimType(net).score(A, [], A), torch.zeros(5).double(), atol=1e-6)


def test_a_distance_is_called_dreamsim_only_with_its_weights():
    assert DreamSimType(Pixels()).name == "dreamsim-type (pixels)"
    assert "not its weights" in DreamSimType(Pixels()).protocol()["paper"]
    theirs = Pixels()
    theirs.name = "dreamsim"
    assert DreamSimType(theirs).name == "dreamsim"


def lpips_by_hand(a, b, weights):
    total = 0.0
    for step, w in zip((1, 2), weights, strict=True):
        x, y = a[:, ::step, ::step], b[:, ::step, ::step]
        cells = list(itertools.product(range(x.shape[1]), range(x.shape[2])))
        for i, j in cells:
            u, v = x[:, i, j] / np.linalg.norm(x[:, i, j]), y[:, i, j] / np.linalg.norm(y[:, i, j])
            total += (w * (u - v) ** 2).sum() / len(cells)
    return total


def test_lpips_type_is_the_papers_sum_with_uniform_and_with_given_weights(tmp_path):
    rows = list(zip(A.numpy(), B.numpy(), strict=True))
    uniform = LPIPSType(Pixels())
    assert np.allclose(uniform.score(A, [], B), [lpips_by_hand(a, b, np.ones((2, 3))) for a, b in rows], rtol=1e-6)
    assert float(uniform.score(A, [], A).abs().max()) == 0
    assert "uniform" in uniform.protocol()["weights"]
    w = np.array([[0.5, 2, 0], [1, 0.25, 3]], dtype=np.float32)
    path = tmp_path / "lin.safetensors"
    save_file({f"lin{i}.model.1.weight": torch.from_numpy(w[i]).view(1, 3, 1, 1) for i in range(2)}, path)
    weighted = LPIPSType(Pixels(), path)
    assert np.allclose(weighted.score(A, [], B), [lpips_by_hand(a, b, w) for a, b in rows], rtol=1e-6)
    assert "linear layers of file" in weighted.protocol()["weights"]


def test_lpips_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "lin.safetensors"
    save_file({"lin0.model.1.weight": torch.ones(1, 3, 1, 1)}, path)
    with pytest.raises(ModelError, match="one for each layer"):
        LPIPSType(Pixels(), path)
    save_file({f"lin{i}.model.1.weight": torch.ones(1, 5, 1, 1) for i in range(2)}, path)
    with pytest.raises(SettingError, match="3 channels, its weights 5"):
        LPIPSType(Pixels(), path).score(A, [], B)
    path.write_bytes(b"no")
    with pytest.raises(ModelError, match="cannot be read as LPIPS"):
        LPIPSType(Pixels(), path)
    with pytest.raises(SettingError, match="maps of shapes"):
        LPIPSType(Pixels()).score(A, [], B.repeat(1, 1, 2, 2))
    blind = Pixels()
    blind.layer_names = ()
    with pytest.raises(SettingError, match="shows no layers"):
        LPIPSType(blind)


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 5), min_size=1, max_size=4),
    distance=st.sampled_from(["cosine", "squared_euclidean"]),
    seed=st.integers(0, 50),
)
def test_diversity_is_the_mean_over_pairs(sizes, distance, seed):
    images = pictures(sum(sizes), seed)
    prompts = [f"p{i}" for i, n in enumerate(sizes) for _ in range(n)]
    order = np.random.default_rng(seed).permutation(len(prompts))
    metric = Diversity(Pixels(), distance)
    metric.update(images[order], [prompts[i] for i in order])
    x = images.flatten(1)[:, :4].numpy()

    def between(p, q):
        if distance == "cosine":
            return 1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q)
        return ((p - q) ** 2).sum()

    truth = {
        p: np.mean(
            [between(*x[list(pair)]) for pair in itertools.combinations([i for i, q in enumerate(prompts) if q == p], 2)]
        )
        for p in set(prompts)
    }
    found = metric.compute()
    assert found.per_prompt == pytest.approx(truth, abs=1e-12)
    assert found.value == pytest.approx(np.mean(list(truth.values())), abs=1e-12)


def test_diversity_of_one_picture_again_is_zero_and_of_one_alone_an_error():
    metric = Diversity(Pixels())
    metric.update(A[:1].repeat(3, 1, 1, 1), ["a", "a", "a"])
    assert metric.compute().value == pytest.approx(0, abs=1e-12)
    metric.update(A[:1], ["alone"])
    with pytest.raises(SettingError, match="1 pictures of prompt 'alone'"):
        metric.compute()
    with pytest.raises(SettingError, match="distance='euclid'"):
        Diversity(Pixels(), "euclid")
