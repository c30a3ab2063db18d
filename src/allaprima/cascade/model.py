"""What the machine asks of a student, a teacher and an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidedDenoiser
from allaprima.diffusion.schedules import Schedule


class DiffusionModel(Protocol):
    """What the machine asks of a student or teacher model; `models.families.family` says all that a family offers."""

    @property
    def denoiser(self) -> GuidedDenoiser:
        """Guided denoiser."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Noise schedule."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent."""
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for a prompt that can't be painted."""
        ...

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the networks read of prompts, a row each; `prompt_embeds (B, L, D)` is among it."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """`prompt_embeds (B, L, D)` alone, which routers, vocabularies and banks go by; the machine doesn't ask for it."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1]."""
        ...


@runtime_checkable
class EncodesImages(Protocol):
    """What else a painter says that can edit pictures."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] -> latents, which `decode` turns back."""
        ...


@runtime_checkable
class EncodesNegatives(Protocol):
    """What else a painter says that reads negative prompts in another way than prompts (`models.families.sana`)."""

    def negative(self, prompts: Sequence[str]) -> Condition:
        """What guidance leads away from, with the tensors of `condition`."""
        ...


@runtime_checkable
class EncodesPromptInputs(Protocol):
    """What else a painter says that tells its text encoders apart, or reads their earlier layers."""

    @property
    def prompts_read(self) -> int:
        """1, 2 or 3: `prompt_2` is read from 2 on, `prompt_3` from 3."""
        ...

    @property
    def most_clip_skip(self) -> int:
        """How many of CLIP's last layers can be left out; 0 where none can."""
        ...

    def check_prompts(self, inputs: PromptInputs, negative: bool = False) -> None:
        """Raise `PromptError` for words that an encoder reads in part only, or, but for a negative, an empty prompt."""
        ...

    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """As `condition`, to the bit where a row has a prompt alone and no layer is left out."""
        ...


@runtime_checkable
class RescalesGuidance(Protocol):
    """What else a painter says whose denoiser heeds `guidance_rescale: (B,)` in its condition."""

    @property
    def rescales_guidance(self) -> bool:
        """Whether it does."""
        ...


@runtime_checkable
class HasPreviewDecoder(Protocol):
    """What else a painter says that may have a second, small autoencoder for drafts (`models.adapters.tiny_vae`)."""

    @property
    def preview_decoder(self) -> bool:
        """Whether it has one: drafts are scored by its pictures then, and accepted ones decoded again."""
        ...

    def decode_preview(self, latents: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1]."""
        ...


@runtime_checkable
class ScheduleBySize(Protocol):
    """What else a painter says whose schedule depends on the size (`models.families.flux`)."""

    def schedule_at(self, height: int, width: int) -> Schedule:
        """The schedule for pictures of a size, in pixels."""
        ...


@runtime_checkable
class HasControlNets(Protocol):
    """What else a painter says that has ControlNets (`models.adapters.controlnet`)."""

    @property
    def controls(self) -> tuple[int, ...]:
        """Channels of the picture that each of them reads: a request brings one for each."""
        ...


@runtime_checkable
class RefinerOnly(Protocol):
    """What else a teacher says that can't paint from pure noise (SDXL's refiner)."""

    @property
    def refines_only(self) -> bool:
        """True."""
        ...


@runtime_checkable
class MultiStudentModel(Protocol):
    """What else a painter says that is several students, of which one paints a prompt (`models.multi_student.model`)."""

    @property
    def students(self) -> int:
        """How many."""
        ...

    def route(self, embeds: Tensor) -> Tensor:
        """`(B, L, D) -> (B,)`, whose each prompt is."""
        ...


@runtime_checkable
class ControlScorer(Protocol):
    """What else an oracle says that looks at the pictures which control (`oracles.conditional`)."""

    def score_given(self, images: Tensor, prompts: Sequence[str], controls: Sequence[Tensor]) -> Tensor:
        """`(B,)`, higher is better; `controls`: `(B, C, H, W)`, one a ControlNet."""
        ...


class ImageScorer(Protocol):
    """What the machine asks of an oracle."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`(B,)`, higher is better."""
        ...
