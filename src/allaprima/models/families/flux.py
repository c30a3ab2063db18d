"""Family `flux`: FluxTransformer2DModel, CLIP's pooled text and T5's hidden states, rectified flow.

FLUX.1 dev reads its guidance scale, one network evaluation a step; schnell reads none: paint it at scale 1, or above with
classifier-free guidance (diffusers' `true_cfg_scale`) at two evaluations. Latents are maps here, and tokens of 2 by 2 only
inside `output`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.types import Condition
from allaprima.models.cards.card import TextSettings
from allaprima.models.families.family import Family
from allaprima.models.families.loading import load_fields
from allaprima.models.families.prompts import read_length, refuse_text_settings, refuse_unreadable, told_to
from allaprima.models.families.transformer import SIDE, ShiftedFamily, shifted

SHARED = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
"""What a student and a teacher may have in common."""
T5_LENGTH = 256
"""Tokens that T5 reads unless the card says otherwise."""


@dataclass(frozen=True, kw_only=True)
class FluxModel(ShiftedFamily):
    """A `Family` whose networks read `prompt_embeds (B, L, D)`, T5's, and `pooled (B, P)`, CLIP's."""

    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    text_pipeline = ("flux.pipeline_flux", "FluxPipeline")

    @staticmethod
    def output(network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)`, a velocity, of a network of this family: this model's, or one made from it."""
        height, width = x_t.shape[-2] // SIDE, x_t.shape[-1] // SIDE
        embeds, guidance = cond.tensors["prompt_embeds"], cond.get("guidance_scale")
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
        told: dict[str, Any] = {}
        if getattr(getattr(network, "module", network).config, "guidance_embeds", False):
            told["guidance"] = (torch.ones(len(x_t)) if guidance is None else guidance).float().to(x_t.device)
        out = network(
            hidden_states=packed(x_t), timestep=t.float().to(x_t.device), encoder_hidden_states=embeds,
            pooled_projections=cond.tensors["pooled"], txt_ids=torch.zeros(embeds.shape[1], 3).to(embeds),
            img_ids=places.to(x_t), **told,
        ).sample  # fmt: skip
        return unpacked(out, height, width)

    @property
    def channels(self) -> int:
        """Channels of a latent; the network reads those of a token's latents as one."""
        return self.transformer.config.in_channels // SIDE**2

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """For each tokenizer, the prompt's tokens and how many are read."""
        return [
            (len(self.tokenizer(prompt).input_ids), int(self.tokenizer.model_max_length)),
            (len(self.tokenizer_2(prompt).input_ids), read_length(self.text, T5_LENGTH)),
        ]

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for an empty prompt, or one that T5 would read in part only.

        CLIP gives one pooled vector, of a prompt's first tokens: what is beyond its 77 is T5's to read, as with diffusers.
        """
        refuse_unreadable(prompt, self._tokens(prompt)[1:])

    @property
    def prompts_read(self) -> int:
        """CLIP's and T5's."""
        return 2

    def check_prompts(self, inputs: PromptInputs, negative: bool = False) -> None:
        """As of every family; but what CLIP cuts off is T5's to read only where both are told the same."""
        if inputs.prompt_2:
            super().check_prompts(inputs, negative)
        else:
            self.check_prompt(inputs.prompt)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `pooled`, a row each."""
        return self.encode_prompts([PromptInputs(prompt) for prompt in prompts])

    @torch.inference_mode()
    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """As `condition`; CLIP reads `prompt`, T5 `prompt_2`."""
        embeds, pooled, _ = self._pipeline.encode_prompt(
            *told_to(inputs, 2), device=next(self.text_encoder.parameters()).device,
            max_sequence_length=read_length(self.text, T5_LENGTH),
        )  # fmt: skip
        return Condition({"prompt_embeds": embeds, "pooled": pooled})


def packed(x: Tensor) -> Tensor:
    """`(B, C, H, W) -> (B, H/2 * W/2, 4 C)`: 2 by 2 latents a token."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // SIDE, SIDE, w // SIDE, SIDE).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * SIDE**2)


def unpacked(x: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `packed`; `height`, `width` in tokens."""
    b, _, c = x.shape
    maps = x.reshape(b, height, width, c // SIDE**2, SIDE, SIDE).permute(0, 3, 1, 4, 2, 5)
    return maps.reshape(b, c // SIDE**2, height * SIDE, width * SIDE)


def load_flux(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> FluxModel:
    """Read a `flux` folder (`family.Load`)."""
    refuse_text_settings(text, "flux")
    config, fields = load_fields(folder, "transformer", SHARED, share, shared, network)
    return FluxModel(**fields, **shifted(folder, config), text=text)
