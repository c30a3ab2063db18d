"""Family `z-image`: ZImageTransformer2DModel, Qwen3's hidden states, AutoencoderKL, rectified flow.

Z-Image is painted with classifier-free guidance, Z-Image-Turbo, its few-step student of the same format, at scale 1. A scale
here is 1 more than diffusers' `guidance_scale` for this family, which counts from the conditional prediction: 0 there is 1,
no guidance, and 4 is 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.models.cards.card import TextSettings
from allaprima.models.families.family import Bottleneck, Family
from allaprima.models.families.loading import load_fields
from allaprima.models.families.prompts import read_length, refuse_text_settings
from allaprima.models.families.transformer import ShiftedFamily, shifted

SHARED = ("text_encoder", "tokenizer", "vae")
"""What a student and a teacher may have in common."""
LENGTH = 512
"""Tokens of a prompt that are read unless the card says otherwise, those of the chat around it included."""


@dataclass(frozen=True, kw_only=True)
class ZImageModel(ShiftedFamily):
    """A `Family` whose networks read `prompt_embeds (B, L, D)` as far as `prompt_mask (B, L)` goes."""

    text_encoder: Any
    tokenizer: Any
    text_pipeline = ("z_image.pipeline_z_image", "ZImagePipeline")

    @staticmethod
    def output(network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)`, a velocity, of a network of this family: this model's, or one made from it.

        The network's own time is 1 at a clean picture, and it says the way there. Rows are told one by one: a batch of its
        own is padded to the longest prompt in it, and a picture must not depend on its mates.
        """
        lengths = cond.tensors["prompt_mask"].sum(1).tolist()
        rows = [
            network(
                [x_t[i, :, None]], (1 - t[i : i + 1]).float().to(x_t.device),
                [cond.tensors["prompt_embeds"][i, :n]], return_dict=False,
            )[0][0]
            for i, n in enumerate(lengths)
        ]  # fmt: skip
        return -torch.stack(rows)[:, :, 0]

    def bottleneck(self, network: Any) -> Bottleneck:
        """Refused: the middle of this network is read row by row, and has the prompt's tokens behind the picture's."""
        raise ModelError(
            f"a discriminator's head needs the middle of {type(network).__name__}, which says tokens of picture and prompt"
            " in one row: adversarial training isn't known for the family z-image. Use another method."
        )

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """Tokens of a prompt and of the chat around it, and how many are read."""
        message = [{"role": "user", "content": prompt}]
        told = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return [(len(self.tokenizer(told).input_ids), read_length(self.text, LENGTH))]

    @torch.inference_mode()
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `prompt_mask`, a row each."""
        length, device = read_length(self.text, LENGTH), next(self.text_encoder.parameters()).device
        found, _ = self._pipeline.encode_prompt(
            list(prompts), device=device, do_classifier_free_guidance=False, max_sequence_length=length
        )
        rest = [length - len(row) for row in found]
        embeds = [pad(row, (0, 0, 0, n)) for row, n in zip(found, rest, strict=True)]
        masks = [pad(torch.ones(len(row), dtype=torch.long), (0, n)) for row, n in zip(found, rest, strict=True)]
        return Condition({"prompt_embeds": torch.stack(embeds), "prompt_mask": torch.stack(masks).to(device)})


def load_z_image(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> ZImageModel:
    """Read a `z-image` folder (`family.Load`), Z-Image's or Z-Image-Turbo's. Raises `ModelError` for its Omni relative."""
    refuse_text_settings(text, "z-image")
    config, fields = load_fields(folder, "transformer", SHARED, share, shared, network, check=_refuse_omni)
    return ZImageModel(**fields, **shifted(folder, config), text=text)


def _refuse_omni(folder: Path, config: Any) -> None:
    """Raise `ModelError` for the config of a network that reads pictures."""
    if getattr(config, "siglip_feat_dim", None) is not None:
        raise ModelError(
            f"{folder / 'transformer'} has siglip_feat_dim={config.siglip_feat_dim!r}: that is Z-Image-Omni, which"
            " reads pictures too, and those of text to image are known. Use Z-Image or Z-Image-Turbo."
        )
