"""Family `qwen-image`: QwenImageTransformer2DModel, Qwen2.5-VL's hidden states, AutoencoderKLQwenImage, rectified flow.

Classifier-free guidance keeps every token's length (`diffusion.guidance.TokenGuidance`). Its few-step students are LoRA
files with a scheduler of their own (Qwen-Image-Lightning): a card's student names the file and a folder with `scheduler`.
Latents are maps here, and tokens of 2 by 2 only inside `output`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidedDenoiser, TokenGuidance
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.latents import mean_of, to_autoencoder, to_network
from allaprima.models.families.family import Family
from allaprima.models.families.flux import packed, unpacked
from allaprima.models.families.loading import load_fields
from allaprima.models.families.prompts import read_length, refuse_text_settings
from allaprima.models.families.transformer import SIDE, ShiftedFamily, shifted

SHARED = ("text_encoder", "tokenizer", "vae")
"""What a student and a teacher may have in common."""
LENGTH, MOST = 512, 1024
"""Tokens of a prompt that are read unless the card says otherwise, and at most."""
NOTHING = " "
"""What an empty prompt is read as: the model's authors guide away from a space."""


@dataclass(frozen=True, kw_only=True)
class QwenImageModel(ShiftedFamily):
    """A `Family` whose networks read `prompt_embeds (B, L, D)` and `prompt_embeds_mask (B, L)`.

    Departure: diffusers pads prompts to the longest of a batch, here all have L tokens, of which the mask hides the rest, so
    that a picture doesn't depend on its mates.
    """

    text_encoder: Any
    tokenizer: Any
    text_pipeline = ("qwenimage.pipeline_qwenimage", "QwenImagePipeline")

    @staticmethod
    def output(network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)`, a velocity, of a network of this family: this model's, or one made from it."""
        height, width = x_t.shape[-2] // SIDE, x_t.shape[-1] // SIDE
        out = network(
            hidden_states=packed(x_t), timestep=t.float().to(x_t.device), img_shapes=[[(1, height, width)]] * len(x_t),
            encoder_hidden_states=cond.tensors["prompt_embeds"],
            encoder_hidden_states_mask=cond.tensors["prompt_embeds_mask"],
        ).sample  # fmt: skip
        return unpacked(out, height, width)

    def guidance(self, network: Callable[[Tensor, Tensor, Condition], Tensor]) -> GuidedDenoiser:
        """What guides a network of this family, given as its raw output."""
        return TokenGuidance(network, self.schedule, self.prediction, SIDE)

    @property
    def channels(self) -> int:
        """Channels of a latent; the network reads those of a token's latents as one."""
        return self.transformer.config.in_channels // SIDE**2

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] -> latents `(B, C, h, w)`, the mean: a film of one frame to the autoencoder."""
        with torch.inference_mode():
            found = mean_of(self.vae.encode(images[:, :, None] * 2 - 1))
        return to_network(self.vae.config, found[:, :, 0])

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures `(B, 3, H, W)` in [0, 1]."""
        with torch.inference_mode():
            film = self.vae.decode(to_autoencoder(self.vae.config, latents)[:, :, None]).sample
        return (film[:, :, 0] / 2 + 0.5).clamp(0, 1)

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """Tokens that the network reads of a prompt, its own and the few that end the template behind it, and at most."""
        told = self._pipeline.prompt_template_encode.format(prompt)
        count = len(self.tokenizer(told).input_ids) - int(self._pipeline.prompt_template_encode_start_idx)
        return [(count, read_length(self.text, LENGTH))]

    @torch.inference_mode()
    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `prompt_embeds_mask`, a row each; each is read alone: none moves another."""
        length, device = read_length(self.text, LENGTH), next(self.text_encoder.parameters()).device
        told = [prompt if prompt.strip() else NOTHING for prompt in prompts]
        read: dict[str, tuple[Tensor, Tensor]] = {}
        for prompt in dict.fromkeys(told):
            embeds, _ = self._pipeline.encode_prompt([prompt], device=device, max_sequence_length=length)
            rest = length - embeds.shape[1]
            mask = torch.ones(1, embeds.shape[1], dtype=torch.long, device=device)
            read[prompt] = pad(embeds, (0, 0, 0, rest)), pad(mask, (0, rest))
        embeds, masks = zip(*(read[prompt] for prompt in told), strict=True)
        return Condition({"prompt_embeds": torch.cat(embeds), "prompt_embeds_mask": torch.cat(masks)})


def load_qwen_image(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> QwenImageModel:
    """Read a `qwen-image` folder (`family.Load`). Raises `ModelError` for its editing and layered relatives."""
    refuse_text_settings(text, "qwen-image", MOST)
    config, fields = load_fields(folder, "transformer", SHARED, share, shared, network, check=_refuse_relatives)
    return QwenImageModel(**fields, **shifted(folder, config, terminal=True), text=text)


def _refuse_relatives(folder: Path, config: Any) -> None:
    """Raise `ModelError` for the config of an editing or a layered network."""
    odd = ("guidance_embeds", "zero_cond_t", "use_additional_t_cond", "use_layer3d_rope")
    name = next((n for n in odd if getattr(config, n, False)), None)
    if name is not None:
        raise ModelError(
            f"{folder / 'transformer'} has {name}=True: that is an editing or a layered model, and those of text to image"
            " are known. Use Qwen-Image itself."
        )
