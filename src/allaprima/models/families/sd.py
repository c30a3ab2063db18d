"""Family `sd`: UNet2DConditionModel, one text encoder with hidden states, any autoencoder, a VP schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.data.grammars import canonical_prompt
from allaprima.diffusion.guidance import guidance_embedding
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.models.backends.stand_in import Compiled
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.loading import load_component
from allaprima.models.families.family import Bottleneck, Family, FamilyBase, guidance_dim, reads_guidance
from allaprima.models.families.loading import load_fields
from allaprima.models.families.prompts import clip_layers

SHARED = ("text_encoder", "tokenizer", "vae")
"""What a student and a teacher may have in common."""


@dataclass(frozen=True, kw_only=True)
class UNetFamily(FamilyBase):
    """A family whose network is a UNet with a VP schedule."""

    unet: Any
    schedule: DiscreteVP
    component = "unet"

    @property
    def rescales_guidance(self) -> bool:
        """Whether guidance is classifier-free: a network that reads its scale says no two halves."""
        return not reads_guidance(self.network)

    @staticmethod
    def bottleneck(network: Any) -> Bottleneck:
        """Return the mid block."""
        return Bottleneck("mid_block", int(network.config.block_out_channels[-1]))


@dataclass(frozen=True, kw_only=True)
class SDModel(UNetFamily):
    """A `Family` whose networks read `prompt_embeds (B, L, D)`."""

    text_encoder: Any
    tokenizer: Any

    @staticmethod
    def output(network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)` of a network of this family: this model's, or one that is made from it."""
        return run_unet(network, x_t, t, cond.tensors["prompt_embeds"], cond.get("guidance_scale"))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent for a picture of this size.

        By the autoencoder's halvings where diffusers' own says them, else read off the UNet's training size.
        """
        if hasattr(self.vae.config, "block_out_channels"):
            return super().latent_shape(height, width)
        size = self.unet.config.sample_size
        factor = max(1, round(height / size)) if height >= size else 1
        return self.channels, height // factor, width // factor

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """Its tokens, and how many are read."""
        prompt = canonical_prompt(self.text.grammar, prompt)
        return [(len(self.tokenizer(prompt).input_ids), self.text.max_length)]

    @property
    def most_clip_skip(self) -> int:
        """How many of CLIP's last layers can be left out, where torch runs it: all leaves what its embeddings say."""
        return 0 if isinstance(self.text_encoder, Compiled) else clip_layers(self.text_encoder)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> hidden states `(B, L, D)`."""
        return self._encode(prompts, 0)

    @torch.inference_mode()
    def _encode(self, prompts: Sequence[str], clip_skip: int) -> Tensor:
        sentences = [canonical_prompt(self.text.grammar, prompt) for prompt in prompts]
        ids = self.tokenizer(
            sentences, padding="max_length", max_length=self.text.max_length, truncation=True, return_tensors="pt"
        )
        mask = ids.attention_mask if self.text.attention_mask else None
        if clip_skip:
            said = self.text_encoder(input_ids=ids.input_ids, attention_mask=mask, output_hidden_states=True)
            # An earlier layer's, with the norm that the last one's get.
            hidden = normed(self.text_encoder, said.hidden_states[-clip_skip - 1])
        else:
            hidden = self.text_encoder(input_ids=ids.input_ids, attention_mask=mask).last_hidden_state
        return hidden * ids.attention_mask[..., None] if self.text.zero_padding else hidden

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> everything `output` reads of them, a row each."""
        return Condition({"prompt_embeds": self.encode(prompts)})

    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """As `condition`, `clip_skip` of CLIP's last layers left out."""
        return Condition({"prompt_embeds": self._encode([w.prompt for w in inputs], clip_skip)})


def final_norm(encoder: Any) -> Any:
    """Return the norm after CLIP's last layer, wherever this version of transformers has it."""
    held = getattr(encoder, "held", encoder)
    return getattr(held, "text_model", held).final_layer_norm


def normed(encoder: Any, hidden: Tensor) -> Tensor:
    """Hidden states `(B, L, D)` through it, where the encoder is, and back."""
    norm = final_norm(encoder)
    there = hidden.to(norm.weight.dtype)
    # Weights that are fetched for each call (sequential offload) are nowhere before: what fetches them moves the rest.
    there = there if norm.weight.is_meta else there.to(norm.weight.device)
    return norm(there).to(hidden)


def run_unet(
    unet: Any, x_t: Tensor, t: Tensor, prompt_embeds: Tensor, guidance: Tensor | None = None,
    added: Mapping[str, Tensor] | None = None, more: Mapping[str, Any] | None = None,
) -> Tensor:  # fmt: skip
    """Return a UNet's raw output `(B, C, H, W)`.

    `guidance: (B,)`: scales, for a UNet that reads them; without any they are 1. `added`: what some read beside the prompt's
    hidden states. `more`: whatever else its forward takes (`adapters.controlnet`).
    """
    told: dict[str, Any] = {}
    if (dim := guidance_dim(unet)) is not None:
        # Not "no embedding": the UNet would then leave its projection out, which is no scale it was taught.
        scale = torch.ones(len(x_t), device=x_t.device) if guidance is None else guidance.to(x_t.device)
        told["timestep_cond"] = guidance_embedding(scale, dim).to(x_t.dtype)
    if added is not None:
        # A UNet may note things in the mapping it is given.
        told["added_cond_kwargs"] = dict(added)
    told |= more or {}
    x_t, t = x_t.contiguous(memory_format=torch.channels_last), t.float().to(x_t.device)
    return unet(x_t, t, prompt_embeds, **told).sample


def load_unet(folder: Path) -> Any:
    """Return a UNet laid out as `run_unet` wants it."""
    return load_component(folder).to(memory_format=torch.channels_last)


def load_sd(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> SDModel:
    """Read an `sd` folder (`family.Load`)."""
    config, fields = load_fields(folder, "unet", SHARED, share, shared, network, load_unet)
    return SDModel(**fields, **read_vp(folder, config), text=text)


def read_vp(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a scheduler's config says of a `UNetFamily`, as its fields.

    Raises `ModelError` for a network that predicts noise from nothing but noise: it says nothing of the picture then.
    """
    kind, schedule = str(config.get("prediction_type", "epsilon")), DiscreteVP.from_config(config)
    if kind == "epsilon" and getattr(schedule, "zero_terminal", False):
        raise ModelError(
            f"{folder / 'scheduler'}: rescale_betas_zero_snr with prediction_type='epsilon': where there is no signal the"
            " noise says nothing about the picture. A network for it predicts v_prediction or sample."
        )
    return {"schedule": schedule, "prediction": kind}
