"""Family `z-image`: ZImageTransformer2DModel, Qwen3's hidden states, AutoencoderKL, rectified flow.

Z-Image is painted with classifier-free guidance, Z-Image-Turbo, its few-step student of the same format, at scale 1. A scale
here is 1 more than diffusers' `guidance_scale` for this family, which counts from the conditional prediction: 0 there is 1,
no guidance, and 4 is 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.diffusion.schedule import Flow
from allaprima.models.card import TextSettings
from allaprima.models.families.family import (
    Bottleneck,
    Family,
    FamilyBase,
    load_parts,
    read_length,
    refuse_size,
    refuse_text_settings,
    refuse_unreadable,
)
from allaprima.models.families.shift import Shift, read_shift
from allaprima.models.latents import downsampling
from allaprima.models.load import fingerprint, load_component, read_json

SHARED = ("text_encoder", "tokenizer", "vae")
"""What a student and a teacher may have in common."""
LENGTH = 512
"""Tokens of a prompt that are read unless the card says otherwise, those of the chat around it included."""
SIDE = 2
"""Latents a token, along one side."""


@dataclass(frozen=True)
class ZImageModel(FamilyBase):
    """A `Family` whose networks read `prompt_embeds (B, L, D)` as far as `prompt_mask (B, L)` goes."""

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
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

    @staticmethod
    def bottleneck(network: Any) -> Bottleneck:
        """Refused: the middle of this network is read row by row, and has the prompt's tokens behind the picture's."""
        raise ModelError(
            f"a discriminator's head needs the middle of {type(network).__name__}, which says tokens of picture and prompt"
            " in one row: adversarial training isn't known for the family z-image. Use another method."
        )

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent for a picture of this size. Raises `SettingError` for one that isn't whole tokens."""
        factor = downsampling(self.vae.config)
        refuse_size(height, width, factor * SIDE)
        return self.transformer.config.in_channels, height // factor, width // factor

    def schedule_at(self, height: int, width: int) -> Flow:
        """The schedule for pictures of a size: larger ones may spend more steps at high noise."""
        factor = downsampling(self.vae.config) * SIDE
        return self.shift.flow((height // factor) * (width // factor))

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt and of the chat around it."""
        message = [{"role": "user", "content": prompt}]
        told = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)
        return len(self.tokenizer(told).input_ids)

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for an empty or an over-long prompt: nothing is cut in silence."""
        refuse_unreadable(prompt, [(self.token_count(prompt), read_length(self.text, LENGTH))])

    @cached_property
    def _pipeline(self) -> Any:
        """Diffusers' pipeline of the text side alone: `encode_prompt` is theirs."""
        from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline

        nothing: Any = None
        return ZImagePipeline(nothing, nothing, self.text_encoder, self.tokenizer, nothing)

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

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> hidden states `(B, L, D)`."""
        return self.condition(prompts).tensors["prompt_embeds"]


def load_z_image(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> ZImageModel:
    """Read a `z-image` folder (`family.Load`), Z-Image's or Z-Image-Turbo's. Raises `ModelError` for its Omni relative."""
    refuse_text_settings(text, "z-image")
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    prints = {"scheduler": fingerprint(folder / "scheduler")}
    if network is None:
        network, prints["transformer"] = load_component(folder / "transformer"), fingerprint(folder / "transformer")
    if getattr(network.config, "siglip_feat_dim", None) is not None:
        raise ModelError(
            f"{folder / 'transformer'} has siglip_feat_dim={network.config.siglip_feat_dim!r}: that is Z-Image-Omni, which"
            " reads pictures too, and those of text to image are known. Use Z-Image or Z-Image-Turbo."
        )
    parts, more = load_parts(folder, ("vae", *SHARED[:-1]), share, shared)
    shift = read_shift(folder, config)
    return ZImageModel(
        network, **parts, schedule=shift.largest, shift=shift, prediction="flow_prediction", text=text,
        fingerprints={**prints, **more},
    )  # fmt: skip
