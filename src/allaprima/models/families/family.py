"""What a family of models is: how its parts are read, told and asked. One file a family; this page says what each offers.

`models.diffusion_model.DiffusionModel` is the part of it that the cascade needs; distillation needs the rest. What a prompt
is to a network is one `Condition`, made by `condition` and read by `output`, and its tensors' names are nobody else's
business, but for `prompt_embeds (B, L, D)`, which every family has: prompts are routed by it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Denoiser
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.guidance import ClassifierFreeGuidance, EmbeddedGuidance, GuidedDenoiser
from allaprima.diffusion.schedules import Schedule
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.latents import decoded, downsampling, encoded
from allaprima.models.diffusion_model import DiffusionModel, ModelDefaults
from allaprima.models.families.prompts import refuse_unreadable, text_side


@dataclass(frozen=True)
class Bottleneck:
    """Where a network's middle is read, for a discriminator's head."""

    name: str
    """Of the module."""
    channels: int
    entry: int = 0
    """Which of its outputs, if it has several."""
    patch: int | None = None
    """Its outputs are tokens `(B, N, C)` of so many latents a side; None: they are maps `(B, C, h, w)`."""

    def maps(self, hidden: Tensor, x_t: Tensor) -> Tensor:
        """Return what the module said of `x_t: (B, ..., H, W)` as `(B, C, h, w)`."""
        if self.patch is None:
            return hidden
        return hidden.transpose(1, 2).unflatten(2, (x_t.shape[-2] // self.patch, x_t.shape[-1] // self.patch))


class Family(DiffusionModel, Protocol):
    """A text-to-image latent diffusion model whose network can be trained, exchanged and read inside."""

    @property
    def component(self) -> str:
        """Name of the trained network: of the folder it is saved in, and of the field that holds it."""
        ...

    @property
    def network(self) -> Any:
        """The trained network, diffusers' own class."""
        ...

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        ...

    @property
    def prediction(self) -> str:
        """What the network says (`diffusion.predictions.PREDICTIONS`)."""
        ...

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Hash of each component, shared ones included."""
        ...

    @property
    def fingerprint(self) -> str:
        """One hash of all components."""
        ...

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)` of a network of this family at times `t: (B,)`: this model's, or one made from it."""
        ...

    def bottleneck(self, network: Any) -> Bottleneck:
        """Where the middle of a network of this family is."""
        ...

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt, begin and end included, by the tokenizer that makes most of it."""
        ...

    def with_network(self, network: Any, fingerprints: Mapping[str, str]) -> Self:
        """Return the same with another network."""
        ...


class Load(Protocol):
    """Reads a model's folder; components named in `shared` are those of `share` instead of being loaded again."""

    def __call__(
        self, folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
    ) -> Family:
        """`network`: taken as it is, in place of the folder's; it has no fingerprint then. Raises `ModelError`."""
        ...


def combined(fingerprints: Mapping[str, str]) -> str:
    """One hash of all components."""
    return hashlib.sha256(json.dumps(dict(fingerprints), sort_keys=True).encode()).hexdigest()[:16]


def reads_guidance(network: Any) -> bool:
    """Whether a network reads its guidance scale: embedded beside the time, as LCM's UNets and FLUX.1 dev do."""
    config = getattr(getattr(network, "module", network), "config", None)
    return guidance_dim(network) is not None or bool(getattr(config, "guidance_embeds", False))


def guidance_dim(network: Any) -> int | None:
    """Width of the guidance embedding that a network reads beside the time; None if guidance stays outside of it."""
    # A wrapper of parallel training hides the config, but not the network.
    return getattr(getattr(getattr(network, "module", network), "config", None), "time_cond_proj_dim", None)


def guidance_for(network: Any, denoiser: Denoiser) -> GuidedDenoiser:
    """Return the guidance that a network's denoiser needs: embedded if the network reads it, classifier-free otherwise."""
    return EmbeddedGuidance(denoiser) if reads_guidance(network) else ClassifierFreeGuidance(denoiser)


def guided(model: Family) -> GuidedDenoiser:
    """Return a model's guided denoiser."""

    def network(x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return model.output(model.network, x_t, t, cond)

    return guidance_of(model, network)


def guidance_of(model: Family, network: Callable[[Tensor, Tensor, Condition], Tensor], told: Any = None) -> GuidedDenoiser:
    """Return what guides a network, given as its raw output: the family's own `guidance` if it has one, else `guidance_for`.

    `told`: the network itself, where it isn't the model's.
    """
    own = getattr(model, "guidance", None)
    if own is not None:
        return own(network)
    return guidance_for(model.network if told is None else told, NetworkDenoiser(network, model.schedule, model.prediction))


@dataclass(frozen=True, kw_only=True)
class FamilyBase(ModelDefaults):
    """What every family answers alike. A family adds its parts, named as in its folder, and what it makes of them."""

    vae: Any
    schedule: Any
    prediction: str
    text: TextSettings
    fingerprints: Mapping[str, str]
    """Hash of each component, shared ones included: a draft's score depends on the decoder as much as on the network."""

    component: ClassVar[str]
    """Name of the trained network: of the folder it is saved in, and of the field that holds it."""
    text_pipeline: ClassVar[tuple[str, str]]
    """The pipeline whose `encode_prompt` reads prompts: module below `diffusers.pipelines`, and class."""

    @property
    def network(self) -> Any:
        """The trained network."""
        return getattr(self, self.component)

    @property
    def fingerprint(self) -> str:
        """One hash of all components."""
        return combined(self.fingerprints)

    @property
    def denoiser(self: Any) -> GuidedDenoiser:
        """Guided denoiser: two network evaluations a call, one if the network has guidance embedded."""
        return guided(self)

    @property
    def side(self) -> int:
        """Latents that the network reads as one, along one side: more than 1 where it reads tokens of several."""
        return 1

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.network.config.in_channels

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent for a picture of this size. Raises `SettingError` for one that no whole latents make."""
        factor = downsampling(self.vae.config)
        refuse_size(height, width, factor * self.side)
        return self.channels, height // factor, width // factor

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """For each tokenizer, the prompt's tokens and how many are read."""
        raise NotImplementedError

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt, begin and end included, by the tokenizer that makes most of it."""
        return max(n for n, _ in self._tokens(prompt))

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for an empty or an over-long prompt: nothing is cut in silence."""
        refuse_unreadable(prompt, self._tokens(prompt))

    def check_prompts(self, inputs: PromptInputs, negative: bool = False) -> None:
        """Raise `PromptError` for words that an encoder reads in part only, or, but for a negative, an empty prompt."""
        if not negative:
            refuse_unreadable(inputs.prompt, [])
        for place, text in enumerate(inputs.per_encoder[: self.prompts_read]):
            if text:
                refuse_unreadable(text, [self._tokens(text)[place]])

    @cached_property
    def _pipeline(self) -> Any:
        """Diffusers' pipeline of the text side alone: `encode_prompt` is theirs."""
        return text_side(self.text_pipeline, self)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> everything `output` reads of them, a row each."""
        raise NotImplementedError

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> hidden states `(B, L, D)`."""
        return self.condition(prompts).tensors["prompt_embeds"]

    @property
    def reads_images(self) -> bool:
        """Whether images can be encoded, and so edited."""
        return True

    def schedule_at(self, height: int, width: int) -> Schedule:
        """Return the schedule for images of a size, in pixels."""
        return self.schedule

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] -> latents `(B, C, h, w)`."""
        return encoded(self.vae, images * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures `(B, 3, H, W)` in [0, 1]."""
        return decoded(self.vae, latents)

    @property
    def preview_decoder(self) -> bool:
        """Whether `decode_preview` is another autoencoder's (`models.adapters.tiny_vae`)."""
        return hasattr(self.vae, "draft")

    def decode_preview(self, latents: Tensor) -> Tensor:
        """Latents -> pictures to be scored, by the draft's autoencoder if there is one."""
        return decoded(self.vae.draft, latents) if self.preview_decoder else self.decode(latents)

    def with_network(self, network: Any, fingerprints: Mapping[str, str]) -> Self:
        """Return the same with another network."""
        return dataclasses.replace(self, **{self.component: network}, fingerprints=fingerprints)


def refuse_size(height: int, width: int, factor: int) -> None:
    """Raise `SettingError` for a picture's size that isn't a multiple of `factor`."""
    if height % factor or width % factor or min(height, width) < factor:
        raise SettingError(f"{width}x{height} can't be painted by this model: multiples of {factor} are due, both sides.")
