"""The dual encoder as an oracle: a cosine that padding and batch mates don't change, found by its kind."""

import pytest
import torch

from allaprima.core.errors import ModelError
from allaprima.oracles.dual_encoder import DualEncoder
from allaprima.oracles.load import load_oracle


def encode(prompts):
    """Hidden states that differ by prompt, padded to six."""
    rows = [torch.randn(len(p.split()), 8, generator=torch.Generator().manual_seed(len(p))) for p in prompts]
    return torch.stack([torch.cat([r, torch.zeros(6 - len(r), 8)]) for r in rows])


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    DualEncoder(text_dim=8, widths=(8, 8, 16), dim=4).save_pretrained(tmp_path / "oracle")
    return tmp_path / "oracle"


def test_scores_are_cosines_and_don_t_depend_on_the_batch(folder):
    oracle = load_oracle("dual_encoder", folder, encode)
    images, prompts = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)), ["a", "red apple", "a big dog"]
    scores = oracle.score(images, prompts)
    net = oracle.encoder
    pairs = torch.nn.functional.cosine_similarity(net.embed_images(images), net.embed_texts(encode(prompts)))
    assert torch.allclose(scores, pairs, atol=1e-6)
    alone = torch.cat([oracle.score(images[i : i + 1], [p]) for i, p in enumerate(prompts)])
    assert torch.allclose(scores, alone, atol=1e-6)
    assert not torch.allclose(scores, oracle.score(images, prompts[::-1]), atol=1e-3), "the prompt matters"


def test_its_fingerprint_is_of_weights_and_shape(folder, tmp_path):
    first = load_oracle("dual_encoder", folder, encode).fingerprint
    assert load_oracle("dual_encoder", folder, encode).fingerprint == first
    torch.manual_seed(1)
    DualEncoder(text_dim=8, widths=(8, 8, 16), dim=4).save_pretrained(tmp_path / "other")
    assert load_oracle("dual_encoder", tmp_path / "other", encode).fingerprint != first
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be loaded as a DualEncoder"):
        load_oracle("dual_encoder", folder, encode)
