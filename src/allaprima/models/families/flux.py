"""Family `flux`: FluxTransformer2DModel, CLIP's pooled text and T5's hidden states, rectified flow.

FLUX.1 dev reads its guidance scale, one network evaluation a step; schnell reads none: paint it at scale 1, or above with
classifier-free guidance (diffusers' `true_cfg_scale`) at two evaluations. Latents are maps here, and tokens of 2 by 2 only
inside `output`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.diffusion.schedule import Flow
from allaprima.models.card import TextSettings
from allaprima.models.families.family import (
    Bottleneck,
    Family,
    FamilyBase,
    load_parts,
    refuse_size,
    refuse_text_settings,
    refuse_unreadable,
)
from allaprima.models.latents import downsampling
from allaprima.models.load import fingerprint, load_component, read_json

SHARED = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
"""What a student and a teacher may have in common."""
SIDE = 2
"""Latents a token, along one side."""


@dataclass(frozen=True)
class Shift:
    """The resolution shift of a scheduler's config: one number, or a line through two numbers of tokens, exponentiated."""

    constant: float
    """Of all sizes, unless `line` is given."""
    line: tuple[float, float, float, float] | None = None
    """Fewest tokens, most tokens, and the logarithm of the shift at either (`base_shift`, `max_shift`)."""

    def at(self, tokens: int) -> float:
        """The shift for a picture of so many tokens."""
        if self.line is None:
            return self.constant
        few, many, low, high = self.line
        return math.exp(low + (high - low) * (tokens - few) / (many - few))


@dataclass(frozen=True)
class FluxModel(FamilyBase):
    """A `Family` whose networks read `prompt_embeds (B, L, D)`, T5's, and `pooled (B, P)`, CLIP's."""

    transformer: Any
    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    schedule: Flow
    """At the largest size that the shift is given for; `schedule_at` knows the others."""
    shift: Shift
    prediction: str
    text: TextSettings
    fingerprints: Mapping[str, str]
    """Hash of each component, shared ones included."""

    component = "transformer"

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

    @staticmethod
    def bottleneck(network: Any) -> Bottleneck:
        """The picture's tokens after the middle two-stream block (a block says the prompt's first)."""
        config, middle = network.config, (len(network.transformer_blocks) - 1) // 2
        width = int(config.num_attention_heads * config.attention_head_dim)
        return Bottleneck(f"transformer_blocks.{middle}", width, entry=1, patch=SIDE)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent for a picture of this size. Raises `SettingError` for one that isn't whole tokens."""
        factor = downsampling(self.vae.config)
        refuse_size(height, width, factor * SIDE)
        return self.transformer.config.in_channels // SIDE**2, height // factor, width // factor

    def schedule_at(self, height: int, width: int) -> Flow:
        """The schedule for pictures of a size: larger ones spend more steps at high noise."""
        factor = downsampling(self.vae.config) * SIDE
        return Flow(self.shift.at((height // factor) * (width // factor)))

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """For each tokenizer, the prompt's tokens and how many are read."""
        return [
            (len(self.tokenizer(prompt).input_ids), int(self.tokenizer.model_max_length)),
            (len(self.tokenizer_2(prompt).input_ids), self.text.max_sequence_length),
        ]

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt, begin and end included, by the tokenizer that makes most of it."""
        return max(n for n, _ in self._tokens(prompt))

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for an empty prompt, or one that T5 would read in part only.

        CLIP gives one pooled vector, of a prompt's first tokens: what is beyond its 77 is T5's to read, as with diffusers.
        """
        refuse_unreadable(prompt, self._tokens(prompt)[1:])

    @cached_property
    def _pipeline(self) -> Any:
        """Diffusers' pipeline of the text side alone: `encode_prompt` is theirs."""
        from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

        nothing: Any = None
        return FluxPipeline(
            nothing, nothing, self.text_encoder, self.tokenizer, self.text_encoder_2, self.tokenizer_2, nothing
        )

    @torch.inference_mode()
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `pooled`, a row each."""
        nothing: Any = None
        embeds, pooled, _ = self._pipeline.encode_prompt(
            list(prompts), nothing, device=next(self.text_encoder.parameters()).device,
            max_sequence_length=self.text.max_sequence_length,
        )  # fmt: skip
        return Condition({"prompt_embeds": embeds, "pooled": pooled})

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> hidden states `(B, L, D)`."""
        return self.condition(prompts).tensors["prompt_embeds"]


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
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    prints = {"scheduler": fingerprint(folder / "scheduler")}
    if network is None:
        network, prints["transformer"] = load_component(folder / "transformer"), fingerprint(folder / "transformer")
    parts, more = load_parts(folder, ("vae", *SHARED[:-1]), share, shared)
    shift = read_shift(folder, config)
    most = shift.constant if shift.line is None else math.exp(shift.line[3])
    return FluxModel(
        network, **parts, schedule=Flow(most), shift=shift, prediction="flow_prediction", text=text,
        fingerprints={**prints, **more},
    )  # fmt: skip


def read_shift(folder: Path, config: Mapping[str, Any]) -> Shift:
    """Of a FlowMatchEulerDiscreteScheduler. Raises `ModelError` for a grid that isn't known."""
    odd = [k for k in ("shift_terminal", "invert_sigmas", "stochastic_sampling", "use_karras_sigmas") if config.get(k)]
    if odd or config.get("time_shift_type", "exponential") != "exponential":
        name = odd[0] if odd else "time_shift_type"
        raise ModelError(
            f"{folder / 'scheduler'} has {name}={config[name]!r}: a shift, constant or by size, is what is known. Leave it"
            " out if the model was trained without."
        )
    if not config.get("use_dynamic_shifting"):
        return Shift(float(config.get("shift", 1.0)))
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    few, many, low, high = (float(config.get(k) or v) for k, v in zip(names, (256, 4096, 0.5, 1.15), strict=True))
    return Shift(1.0, (few, many, low, high))
