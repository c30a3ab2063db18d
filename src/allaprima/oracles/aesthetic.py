"""LAION's aesthetic predictor, second version: a head on OpenAI's CLIP ViT-L/14, one number a picture, about 1 to 10.

https://github.com/christophschuhmann/improved-aesthetic-predictor: the projected image features, made unit length, through
five linear layers (`reward_head`). Prompts aren't looked at. Its folder, as `convert.aesthetic` writes it: `vision/`, the
vision half of the CLIP model in transformers' format, and `head.safetensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.files import read_json, weight_files
from allaprima.oracles.clip import unit
from allaprima.oracles.encoder import EncoderOracle, Step, identity, loaded, on_device, vision_flops
from allaprima.oracles.pixels import Pixels
from allaprima.oracles.reward_head import RewardHead
from allaprima.oracles.settings import EncoderSettings


class AestheticOracle(EncoderOracle):
    """How much people like a picture on average, whatever it shows; behind the oracle protocol."""

    name = "aesthetic"

    def __init__(
        self, vision: Any, head: RewardHead, fingerprint: str, settings: EncoderSettings, step: Step | None = None
    ) -> None:
        self.vision, self.fingerprint, self.settings, self._step = vision, fingerprint, settings, step
        # float32 whatever the network's dtype, as the published code applies it.
        self.head = head.float().to(settings.device).eval().requires_grad_(False)
        # OpenAI's own transform (Pillow, torchvision's crop), which the published scores were made with.
        how = "pillow" if settings.resize == "published" else "tensor"
        self.pixels = Pixels(int(vision.config.image_size), resize=how)

    @classmethod
    def from_folder(cls, folder: Path, settings: EncoderSettings | None = None, step: Step | None = None) -> AestheticOracle:
        """Load; raises `ModelError` or `UnsafeWeightsError` naming the file."""
        from transformers import CLIPVisionModelWithProjection

        settings = settings or EncoderSettings()
        read_json(folder / "vision" / "config.json")
        weight_files(folder / "vision")
        try:
            weights = load_file(folder / "head.safetensors")
            head = RewardHead.for_weights(weights)
            head.load_state_dict(weights)
        except (OSError, SafetensorError, RuntimeError, KeyError) as e:
            raise ModelError(f"{folder / 'head.safetensors'} cannot be read: {e}. Convert the published head again.") from e
        vision = loaded(CLIPVisionModelWithProjection, folder / "vision")
        due = head.layers[0].in_features
        if vision.config.projection_dim != due:
            raise ModelError(
                f"{folder}: the head reads {due} features, the vision model gives {vision.config.projection_dim}: the"
                " published head belongs to OpenAI's ViT-L/14."
            )
        return cls(
            on_device(vision, settings), head, identity("aesthetic", settings, folder, folder / "vision"), settings, step
        )

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one score, without the head's (some millionths)."""
        return vision_flops(self.vision.config)

    @torch.inference_mode()
    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        out = self.vision(pixel_values=self.pixels(images).to(self.vision.dtype))
        return self.head(unit(out.image_embeds))
