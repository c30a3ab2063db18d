"""What a diffusion model offers: a student or a teacher that is sampled step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidedDenoiser
from allaprima.diffusion.schedules import Schedule


class ModelDefaults(Protocol):
    """What holds for a model with one text encoder, one network and no controls; others say otherwise."""

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return what the networks read of prompts, a row each; `prompt_embeds (B, L, D)` is among it."""
        ...

    @property
    def prompts_read(self) -> int:
        """1, 2 or 3: `prompt_2` is read from 2 on, `prompt_3` from 3."""
        return 1

    @property
    def most_clip_skip(self) -> int:
        """How many of CLIP's last layers can be left out; 0 where none can."""
        return 0

    @property
    def rescales_guidance(self) -> bool:
        """Whether the denoiser heeds `guidance_rescale: (B,)` in its condition."""
        return False

    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """Return as `condition`, to the bit where a row has a prompt alone and no layer is left out."""
        return self.condition([row.prompt for row in inputs])

    def negative(self, prompts: Sequence[str]) -> Condition:
        """Return what guidance leads away from, with the tensors of `condition`."""
        return self.condition(prompts)

    @property
    def controls(self) -> tuple[int, ...]:
        """Channels of the image that each ControlNet reads: a request brings one for each."""
        return ()

    @property
    def refines_only(self) -> bool:
        """Whether it can't sample from pure noise (SDXL's refiner)."""
        return False

    @property
    def students(self) -> int:
        """How many students it is, one of which samples a prompt (`models.multi_student`)."""
        return 1

    def route(self, embeds: Tensor) -> Tensor:
        """Return the index of each prompt's student: `(B, L, D) -> (B,)`."""
        return torch.zeros(len(embeds), dtype=torch.long)


class DiffusionModel(ModelDefaults, Protocol):
    """A student or a teacher that is sampled step by step.

    A model of your own subclasses this and gives `condition`, `denoiser`, `schedule`, `latent_shape`, `check_prompt`,
    `encode` and `decode`; the others have defaults, for a model with one text encoder that reads no images. Families of
    `models.families` offer all of them (`families.family.FamilyBase`).
    """

    @property
    def denoiser(self) -> GuidedDenoiser:
        """Guided denoiser."""
        ...

    @property
    def schedule(self) -> Schedule:
        """Noise schedule."""
        ...

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape of one latent of an image of this size, in pixels."""
        ...

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for a prompt that can't be encoded."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return `prompt_embeds (B, L, D)` alone, which routers and vocabularies go by; a cascade doesn't ask for it."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return images `(B, 3, H, W)` in [0, 1]."""
        ...

    @property
    def reads_images(self) -> bool:
        """Whether images can be encoded, and so edited."""
        return type(self).encode_images is not DiffusionModel.encode_images

    def encode_images(self, images: Tensor) -> Tensor:
        """Return latents of images `(B, 3, H, W)` in [0, 1], which `decode` turns back."""
        raise SettingError("this model has no encode_images, so it can't edit images: use another.")

    def check_prompts(self, inputs: PromptInputs, negative: bool = False) -> None:
        """Raise `PromptError` for texts that an encoder reads in part only, or, but for a negative, an empty prompt."""
        if inputs.prompt or not negative:
            self.check_prompt(inputs.prompt)

    @property
    def preview_decoder(self) -> bool:
        """Whether there is a small autoencoder for drafts: they are scored by its images, accepted ones decoded again."""
        return False

    def decode_preview(self, latents: Tensor) -> Tensor:
        """Return images `(B, 3, H, W)` in [0, 1] to be scored."""
        return self.decode(latents)

    def schedule_at(self, height: int, width: int) -> Schedule:
        """Return the schedule for images of a size, in pixels."""
        return self.schedule
