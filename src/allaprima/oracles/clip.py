"""Oracles on a CLIP model (arXiv 2103.00020) in transformers' folder format: CLIP score, PickScore, HPSv2.

All three are `c cos(image, text)` of a CLIP model and differ in its weights, in `c`, and in how pictures are made its size:

- `clip`: `c = 100`, as CLIP score (arXiv 2104.08718) is usually given, without its floor at 0: below it order matters too;
- `pickscore` (arXiv 2305.01569): `c = exp(logit_scale)`, a ViT-H/14 fine-tuned on what people picked, 100 after training;
- `hpsv2` (arXiv 2306.09341): `c = 1`, another ViT-H/14; its code resizes tensors and lets bicubic overshoot stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.files import read_json, weight_files
from allaprima.oracles.encoder import (
    EncoderOracle,
    Step,
    identity,
    loaded,
    loaded_tokenizer,
    on_device,
    tokens_of,
    transformer_flops,
    vision_flops,
)
from allaprima.oracles.pixels import Pixels
from allaprima.oracles.settings import EncoderSettings

KINDS = ("clip", "pickscore", "hpsv2")


class CLIPOracle(EncoderOracle):
    """A CLIP model behind the oracle protocol; `kind` is one of `KINDS`."""

    def __init__(
        self, kind: str, model: Any, tokenizer: Any, pixels: Pixels, fingerprint: str, settings: EncoderSettings,
        step: Step | None = None,
    ) -> None:  # fmt: skip
        self.name, self.fingerprint, self.settings = kind, fingerprint, settings
        self.model, self.tokenizer, self.pixels, self._step = model, tokenizer, pixels, step
        self.length = int(model.config.text_config.max_position_embeddings)
        """Tokens the text encoder reads, both marks included."""

    @classmethod
    def from_folder(
        cls, kind: str, folder: Path, settings: EncoderSettings | None = None, step: Step | None = None
    ) -> CLIPOracle:
        """Load; raises `ModelError` or `UnsafeWeightsError` naming the file."""
        from transformers import CLIPModel

        settings = settings or EncoderSettings()
        kept = read_json(folder / "config.json").get("model_type")
        if kept != "clip":
            raise ModelError(f"{folder} holds a {kept!r} model; the oracle {kind!r} is a CLIP model. Check oracle.source.")
        weight_files(folder)
        pixels = pixels_for(kind, folder, settings)
        model = loaded(CLIPModel, folder)
        side = int(model.config.vision_config.image_size)
        if pixels.side != side:
            raise ModelError(
                f"{folder}: pictures of {pixels.side} px for a model that reads {side}. Mend the preprocessor's."
            )
        words, due = loaded_tokenizer(folder), int(model.config.text_config.vocab_size)
        if len(words) != due:
            # Without its files transformers makes a tokenizer up, of three marks.
            raise ModelError(f"{folder}: the tokenizer has {len(words)} tokens, the model {due}. Copy the published files.")
        return cls(kind, on_device(model, settings), words, pixels, identity(kind, settings, folder), settings, step)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one score."""
        text = self.model.config.text_config
        words = transformer_flops(text.num_hidden_layers, text.hidden_size, text.intermediate_size, self.length)
        return vision_flops(self.model.config.vision_config) + words

    @cached_property
    def scale(self) -> float:
        """What the cosine is multiplied by."""
        return {"clip": 100.0, "hpsv2": 1.0}.get(self.name) or float(self.model.logit_scale.float().exp())

    @torch.inference_mode()
    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.scale * (self.embed_images(images) * self.embed_texts(prompts)).sum(1)

    def embed_images(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, D)` float32, unit length."""
        return unit(self.model.get_image_features(pixel_values=self.pixels(images).to(self.model.dtype)))

    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """`(B, D)` float32, unit length."""
        return unit(
            self.model.get_text_features(**tokens_of(self.tokenizer, prompts, self.length, self.name, self.settings))
        )


def pixels_for(kind: str, folder: Path, settings: EncoderSettings) -> Pixels:
    """How a kind sees pictures: HPSv2 by its own code, the others by their folder's settings."""
    if kind != "hpsv2":
        return Pixels.of_folder(folder, settings.resize)
    side = int(read_json(folder / "config.json").get("vision_config", {}).get("image_size", 224))
    return Pixels(side, resize="tensor", clamped=settings.resize != "published")


def unit(out: Any) -> Tensor:
    """Features in float32, unit length: of a tensor, or (transformers 5) of an output with `pooler_output`."""
    return F.normalize((out if isinstance(out, Tensor) else out.pooler_output).float(), dim=-1)
