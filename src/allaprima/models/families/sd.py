"""Family `sd`: UNet2DConditionModel, one text encoder with hidden states, any autoencoder, a VP schedule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import PromptError
from allaprima.core.types import Condition
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.schedule import DiscreteVP
from allaprima.models.card import TextSettings
from allaprima.models.load import fingerprint, load_component, load_tokenizer, read_json
from allaprima.models.lora import fuse_lora, fused_fingerprint


@dataclass(frozen=True)
class SDModel:
    """A text-to-image latent diffusion model: everything the cascade asks of a student or teacher."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    schedule: DiscreteVP
    prediction: str
    text: TextSettings
    fingerprints: Mapping[str, str]
    """Hash of each component, shared ones included: a draft's score depends on the decoder as much as on the UNet."""

    @property
    def fingerprint(self) -> str:
        """One hash of all components."""
        return hashlib.sha256(json.dumps(dict(self.fingerprints), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def denoiser(self) -> ClassifierFreeGuidance:
        """Guided denoiser: two network evaluations a call."""
        return ClassifierFreeGuidance(NetworkDenoiser(self._network, self.schedule, self.prediction))

    def _network(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.output(self.unet, x_t, t, cond)

    @staticmethod
    def output(network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)` of a network of this family: this model's, or one that is made from it."""
        return run_unet(network, x_t, t, cond.tensors["prompt_embeds"])

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent for a picture of this size, read off the UNet's training size."""
        size = self.unet.config.sample_size
        factor = max(1, round(height / size)) if height >= size else 1
        return self.unet.config.in_channels, height // factor, width // factor

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt, begin and end included."""
        return len(self.tokenizer(prompt).input_ids)

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for an empty or an over-long prompt: nothing is cut in silence."""
        if not prompt.strip():
            raise PromptError("the prompt is empty: say what to paint, for example 'red apple, noto'.")
        n = self.token_count(prompt)
        if n > self.text.max_length:
            raise PromptError(
                f"the prompt {prompt[:60]!r}... has {n} tokens; this text encoder reads {self.text.max_length}. Shorten it."
            )

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> hidden states `(B, L, D)`."""
        ids = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.text.max_length, truncation=True, return_tensors="pt"
        )
        mask = ids.attention_mask if self.text.attention_mask else None
        hidden = self.text_encoder(input_ids=ids.input_ids, attention_mask=mask).last_hidden_state
        return hidden * ids.attention_mask[..., None] if self.text.zero_padding else hidden

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> everything `output` reads of them, a row each."""
        return Condition({"prompt_embeds": self.encode(prompts)})

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures `(B, 3, H, W)` in [0, 1]."""
        scale = float(getattr(self.vae.config, "scaling_factor", 1.0) or 1.0)
        return (self.vae.decode(latents / scale).sample / 2 + 0.5).clamp(0, 1)


def run_unet(unet: Any, x_t: Tensor, t: Tensor, prompt_embeds: Tensor) -> Tensor:
    """A UNet's raw output `(B, C, H, W)`."""
    return unet(x_t.contiguous(memory_format=torch.channels_last), t.float(), prompt_embeds).sample


def load_unet(folder: Path) -> Any:
    """A UNet laid out as `run_unet` wants it."""
    return load_component(folder).to(memory_format=torch.channels_last)


def load_sd(
    folder: Path, text: TextSettings, share: SDModel | None = None, shared: Sequence[str] = (), unet: Any = None,
    lora: Path | None = None,
) -> SDModel:  # fmt: skip
    """Read an `sd` folder; the components named in `shared` are those of `share` instead of being loaded again.

    `unet`: taken as it is, in place of the folder's; it has no fingerprint then. `lora`: a file that is multiplied into the
    folder's.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    parts: dict[str, Any] = {}
    prints = {"scheduler": fingerprint(folder / "scheduler")}
    if unet is None:
        unet, prints["unet"] = load_unet(folder / "unet"), fingerprint(folder / "unet")
        if lora is not None:
            unet = fuse_lora(unet, lora).to(memory_format=torch.channels_last)
            prints["unet"] = fused_fingerprint(prints["unet"], lora)
    for name in ("vae", "text_encoder", "tokenizer"):
        if share is not None and name in shared:
            parts[name], prints[name] = getattr(share, name), share.fingerprints[name]
        else:
            parts[name] = load_tokenizer(folder / name) if name == "tokenizer" else load_component(folder / name)
            prints[name] = fingerprint(folder / name)
    kind = str(config.get("prediction_type", "epsilon"))
    return SDModel(unet, **parts, schedule=DiscreteVP.from_config(config), prediction=kind, text=text, fingerprints=prints)
