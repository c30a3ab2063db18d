"""CLIP score on a tiny random CLIP folder against transformers' own forward pass and picture processing."""

import json

import numpy as np
import pytest
import torch

from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.evaluation import make_metric
from allaprima.evaluation.clip_score import CLIPScore

PROMPTS = ["a cat", "a bad cab", "", "abc " * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    path = tmp_path_factory.mktemp("clip") / "tiny"
    path.mkdir()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16}))
    (path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
                "resample": 3, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.27, 0.28],
                "image_processor_type": "CLIPImageProcessor",
            }
        )
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(tokens), "max_position_embeddings": 16, "eos_token_id": 53, "bos_token_id": 52}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(path, safe_serialization=True)
    return path


def test_equals_transformers_own_logits(folder):
    from transformers import AutoTokenizer, CLIPModel

    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.48, 0.45, 0.4]).view(3, 1, 1), torch.tensor([0.26, 0.27, 0.28]).view(3, 1, 1)
    tokens = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    assert tokens["input_ids"].shape == (4, 16)
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        out = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=(images - mean) / std
        )
        cosines = out.logits_per_image / model.logit_scale.exp()
    scorer = CLIPScore(folder)
    found = torch.stack([scorer.score(images, [p] * 4) for p in PROMPTS], 1)
    assert torch.allclose(found, 100 * cosines.clamp(min=0), atol=1e-3)
    # Both signs are there, or the floor at 0 would not be seen.
    assert 0 < int((cosines < 0).sum()) < 16
    metric = make_metric("clip_score", folder=folder)
    metric.update(images, PROMPTS)
    assert metric.compute().value == pytest.approx(float(found.diagonal().mean()), rel=1e-5)
    assert metric.protocol()["features"]["fingerprint"] == scorer.fingerprint


@pytest.mark.parametrize("size", [(48, 48), (64, 40), (33, 80)])
def test_resizing_is_transformers_own_but_for_8_bit_rounding(folder, size):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    # Away from 0 and 255, where Pillow clips between its two passes and we only after both.
    g = torch.Generator().manual_seed(1)
    bytes_ = torch.randint(80, 176, (1, 3, *size), generator=g, dtype=torch.uint8)
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(bytes_[0].permute(1, 2, 0).numpy(), return_tensors="pt")
    mine = CLIPScore(folder).preprocess(bytes_.float() / 255)
    assert mine.shape == theirs["pixel_values"].shape
    assert np.abs(mine - theirs["pixel_values"]).max() < 1.5 / 255 / 0.26


def test_it_is_a_judge_for_retrieval(folder):
    metric = make_metric("retrieval", judge=CLIPScore(folder), captions=["a", "b", "c"], k=2)
    metric.update(torch.rand(2, 3, 40, 32), ["a", "c"])
    assert metric.compute().value in (0, 0.5, 1)


def test_a_folder_that_is_none_is_named(folder, tmp_path):
    with pytest.raises(ModelError, match="not a folder"):
        CLIPScore(tmp_path / "none")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeWeightsError, match="a pickle"):
        CLIPScore(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"preprocessor_config.json is missing"):
        CLIPScore(tmp_path)
