"""The judge's parts: embeddings that don't depend on padding or batch, and a folder that comes back as it was."""

import pytest
import torch

from allaprima.core.errors import ModelError
from allaprima.evaluation.reward_judge import RewardJudge
from allaprima.oracles.dual_encoder import pool_text


def small():
    torch.manual_seed(0)
    return RewardJudge(text_dim=8, widths=(8, 8, 16), dim=4).eval()


def test_padding_does_not_count_in_a_text():
    hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([hidden, torch.zeros(2, 4, 8)], dim=1)
    assert torch.allclose(pool_text(padded), hidden.mean(1), atol=1e-6)
    assert torch.allclose(small().embed_texts(padded), small().embed_texts(hidden.mean(1)), atol=1e-6)


def test_scores_are_the_diagonal_of_the_logits_and_independent_of_the_batch():
    judge, g = small(), torch.Generator().manual_seed(2)
    images, texts = torch.rand(5, 3, 64, 64, generator=g), torch.randn(5, 3, 8, generator=g)
    with torch.no_grad():
        seen, said = judge.embed_images(images), judge.embed_texts(texts)
        diagonal = judge.logits(seen, said).diagonal()
    assert torch.allclose(seen.norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose(judge.score(images, said), diagonal, atol=1e-5)
    assert torch.allclose(judge.score(images, said, batch=2), diagonal, atol=1e-5)


def test_a_folder_comes_back_and_a_broken_one_is_named(tmp_path):
    judge = small()
    judge.save_pretrained(tmp_path)
    again = RewardJudge.from_pretrained(tmp_path)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(judge.embed_images(x), again.embed_images(x), atol=1e-6)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded as a RewardJudge"):
        RewardJudge.from_pretrained(tmp_path)
