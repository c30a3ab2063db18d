"""Latents kept on disk: the same after a kill, the same rows at every step, refused when they belong elsewhere."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from allaprima.core.errors import TrainingError
from allaprima.core.types import Condition
from allaprima.data.captioned import Captioned
from allaprima.distill import training_data
from allaprima.distill.training_data import encode_data, read_data, read_latents


def pictures(n=7):
    for i in range(n):
        yield Captioned(Image.new("RGB", (8, 8), (i * 30, 0, 0)), f"caption {i % 3}", str(i))


def encode(images):
    return images[:, :1, ::4, ::4] * 2


def embed(captions):
    return Condition({"prompt_embeds": torch.tensor([[[float(c.split()[1])]] for c in captions])})


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(training_data, "SHARD", 3)


def test_latents_and_captions_come_back(tmp_path, small):
    encode_data(pictures(), encode, 8, 8, tmp_path, "x", batch_size=2)
    data = read_data(tmp_path, embed)
    assert data.latents.shape == (7, 1, 2, 2)
    assert data.captions == ("caption 0", "caption 1", "caption 2")
    latents, cond = data.rows(torch.tensor([5, 1]))
    assert latents[:, 0, 0, 0].tolist() == pytest.approx([(150 / 127.5 - 1) * 2, (30 / 127.5 - 1) * 2])
    assert cond.tensors["prompt_embeds"].flatten().tolist() == [2, 1]


def test_a_stopped_encoding_goes_on_at_its_last_whole_shard(tmp_path, small):
    calls = []

    def dies(images):
        calls.append(len(images))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        encode_data(pictures(), dies, 8, 8, tmp_path / "a", "x", batch_size=2)
    with pytest.raises(TrainingError, match="no whole set"):
        read_data(tmp_path / "a", embed)
    again = []
    encode_data(pictures(), lambda x: (again.append(len(x)), encode(x))[1], 8, 8, tmp_path / "a", "x", batch_size=2)
    assert sum(again) == 4, "the first shard of three was whole"
    encode_data(pictures(), encode, 8, 8, tmp_path / "b", "x", batch_size=2)
    a, b = (read_data(tmp_path / k, embed) for k in "ab")
    assert a.identity == b.identity
    assert torch.equal(a.latents, b.latents)


def test_parts_keep_their_captions(tmp_path):
    encode_data(pictures(), encode, 8, 8, tmp_path, "x")
    data = read_data(tmp_path, embed)
    part = data.keep(data.caption_of == 2)
    assert part.captions == ("caption 2",)
    assert part.rows(torch.arange(2))[1].tensors["prompt_embeds"].flatten().tolist() == [2, 2]
    assert part.identity != data.identity
    with pytest.raises(TrainingError, match="no picture is left"):
        data.keep(torch.zeros(7, dtype=torch.bool))


def test_draws_follow_the_generator(tmp_path):
    encode_data(pictures(), encode, 8, 8, tmp_path, "x")
    data = read_data(tmp_path, embed)
    a, b = (data.draw(5, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1].tensors["prompt_embeds"], b[1].tensors["prompt_embeds"])


def test_latents_made_elsewhere(tmp_path):
    save_file({"latents": torch.ones(2, 1, 2, 2), "prompt_embeds": torch.ones(2, 3, 4)}, tmp_path / "a.safetensors")
    assert len(read_latents(tmp_path / "a.safetensors")) == 2
    save_file({"latents": torch.ones(2, 1, 2, 2)}, tmp_path / "b.safetensors")
    with pytest.raises(TrainingError, match="prompt_embeds"):
        read_latents(tmp_path / "b.safetensors")


def test_refused(tmp_path):
    encode_data(pictures(), encode, 8, 8, tmp_path, "x")
    with pytest.raises(TrainingError, match="holds other data: 'x', now 'y'"):
        encode_data(pictures(), encode, 8, 8, tmp_path, "y")
    with pytest.raises(TrainingError, match="nothing can be trained on nothing"):
        encode_data(iter(()), encode, 8, 8, tmp_path / "z", "x")
