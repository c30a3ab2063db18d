"""Retrieval by the judge, as `benchmarks.quality` does it, and for a judge that knows nothing."""

import pytest
import torch

from allaprima.core.errors import SettingError
from allaprima.evaluation.retrieval import JudgeEncoder, Retrieval
from allaprima.evaluation.reward_judge import RewardJudge

POOL = [f"caption {i}" for i in range(70)]


def encode(captions):
    return torch.stack([torch.randn(3, 8, generator=torch.Generator().manual_seed(int(c.split()[1]))) for c in captions])


def judge():
    torch.manual_seed(0)
    return RewardJudge(text_dim=8, widths=(8, 8, 16), dim=4).eval()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_the_sorted_logits(k):
    net, images = judge(), torch.rand(30, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    prompts = [POOL[(7 * i) % 70] for i in range(30)]
    found = Retrieval(JudgeEncoder(net, encode), POOL, k).score(images, prompts)
    with torch.no_grad():
        logits = net.logits(net.embed_images(images), net.embed_texts(encode(POOL)))
    truth = [float(POOL.index(p) in row.topk(k).indices) for row, p in zip(logits, prompts, strict=True)]
    assert found.tolist() == truth
    if k == 20:
        assert 0 < sum(truth) < 30


class Mute:
    name, fingerprint = "mute", "m"

    def embed_images(self, images):
        return torch.ones(len(images), 2)

    def embed_captions(self, captions):
        return torch.ones(len(captions), 2)


def test_a_judge_that_cannot_tell_captions_apart_finds_none():
    assert Retrieval(Mute(), POOL, 69).score(torch.rand(3, 3, 4, 4), POOL[:3]).tolist() == [0, 0, 0]


def test_nan_from_the_judge_is_passed_on_not_counted_as_a_miss():
    class Broken(Mute):
        def embed_images(self, images):
            return torch.tensor([[1.0, torch.nan], [1.0, 1.0]])

    assert Retrieval(Broken(), POOL).score(torch.rand(2, 3, 4, 4), POOL[:2]).isnan().tolist() == [True, False]


def test_bad_input_is_named():
    with pytest.raises(SettingError, match=r"'caption 71' is not in the pool.*Did you mean 'caption"):
        Retrieval(Mute(), POOL).score(torch.rand(1, 3, 4, 4), ["caption 71"])
    with pytest.raises(SettingError, match="'caption 3' is in the pool twice"):
        Retrieval(Mute(), [*POOL, "caption 3"])
    with pytest.raises(SettingError, match="k=70 among 70"):
        Retrieval(Mute(), POOL, 70)
