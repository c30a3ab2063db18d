"""SDXL's refiner: a UNet for low noise that reads the second text encoder alone, and an aesthetic score (arXiv 2307.01952).

Alone it is a teacher that refines drafts (arXiv 2312.10835: drafts of SDXL-Turbo, 4 steps of the refiner); it was trained on
low noise and can't begin at pure noise. With its base it is one teacher (`BaseRefinerEnsemble`): the base from noise to a
share of the schedule, the refiner from there, what diffusers calls `denoising_end` and `denoising_start`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import ModelError, SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidedDenoiser
from allaprima.diffusion.schedules import expand
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.latents import downsampling
from allaprima.models.components.loading import fingerprint
from allaprima.models.families.family import Family, combined, guided
from allaprima.models.families.loading import ABSENT
from allaprima.models.families.prompts import clip_layers, text_side
from allaprima.models.families.sd import UNetFamily, run_unet
from allaprima.models.families.sdxl import SDXLModel, read_folder, words_of

AESTHETIC, NEGATIVE_AESTHETIC = 6.0, 2.5
"""Scores that the refiner is told for what is wanted and for what guidance leads away from: diffusers' defaults."""
SHARED = ("text_encoder_2", "tokenizer_2", "vae")
"""What a refiner has in common with its base."""


class AestheticGuidance:
    """Guidance that tells the two halves of a doubled pass different aesthetic scores."""

    def __init__(self, inner: GuidedDenoiser) -> None:
        self.inner = inner

    @property
    def evaluations_per_call(self) -> int:
        """As without scores."""
        return self.inner.evaluations_per_call

    def __call__(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return the guided clean prediction."""
        scores = {"aesthetic_score": AESTHETIC, "negative_aesthetic_score": NEGATIVE_AESTHETIC}
        given = {k: torch.full((len(x_t),), v, device=x_t.device) for k, v in scores.items()}
        return self.inner(x_t, t, Condition({**given, **cond.tensors}))

    def unguided(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return the same at scale 1, in one evaluation."""
        return self.inner.unguided(x_t, t, cond)


@dataclass(frozen=True, kw_only=True)
class RefinerModel(UNetFamily):
    """A `Family` whose network reads `prompt_embeds (B, L, D)` and `pooled (B, P)`, both of the second text encoder.

    In a cascade the student makes the condition, with what a refiner reads beside its own (`telling`): `refiner_embeds` and
    `refiner_pooled`. These are read where there are any.
    """

    text_encoder_2: Any
    tokenizer_2: Any
    zeros_for_empty: bool
    """As of `SDXLModel`; a refiner's own folder says no."""

    text_pipeline = ("stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img", "StableDiffusionXLImg2ImgPipeline")

    @property
    def refines_only(self) -> bool:
        """Sampling from pure noise is beyond it (`models.diffusion_model.DiffusionModel`)."""
        return True

    @property
    def denoiser(self) -> GuidedDenoiser:
        """Guided denoiser: two network evaluations a call."""
        return AestheticGuidance(guided(self))

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)` of a network of this kind: this model's, or one that is made from it.

        Raises `SettingError` for a condition that isn't a refiner's.
        """
        embeds = cond.tensors.get("refiner_embeds", cond.tensors["prompt_embeds"])
        pooled = cond.tensors.get("refiner_pooled", cond.tensors["pooled"])
        due = getattr(network, "module", network).config.cross_attention_dim
        if embeds.shape[-1] != due:
            raise SettingError(
                f"this condition has hidden states of {embeds.shape[-1]} numbers, the refiner reads {due}: its words come"
                " from the second text encoder alone. Let the student tell them: models.families.sdxl_refiner.telling."
            )
        score, factor = cond.tensors.get("aesthetic_score"), downsampling(self.vae.config)
        score = torch.full((len(x_t),), AESTHETIC) if score is None else score
        size = torch.tensor([float(x_t.shape[-2] * factor), float(x_t.shape[-1] * factor), 0.0, 0.0])
        ids = torch.cat([size.expand(len(x_t), -1), score.cpu().float()[:, None]], dim=1).to(x_t.device)
        return run_unet(network, x_t, t, embeds, cond.get("guidance_scale"), {"text_embeds": pooled, "time_ids": ids})

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """Its tokens, and how many are read."""
        return [(len(self.tokenizer_2(prompt).input_ids), int(self.tokenizer_2.model_max_length))]

    @cached_property
    def _pipeline(self) -> Any:
        return text_side(self.text_pipeline, self, requires_aesthetics_score=True, add_watermarker=False)

    @property
    def most_clip_skip(self) -> int:
        """As of `SDXLModel`, of its one encoder."""
        return max(0, clip_layers(self.text_encoder_2) - 1)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `pooled`, a row each."""
        return self.encode_prompts([PromptInputs(prompt) for prompt in prompts])

    @torch.inference_mode()
    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """As `condition`. Its one encoder is the base's second, and reads `prompt`: so does diffusers' pipeline."""
        device = next(self.text_encoder_2.parameters()).device
        return words_of(self._pipeline, [PromptInputs(w.prompt) for w in inputs], self.zeros_for_empty, device, clip_skip)


@dataclass(frozen=True)
class BaseRefinerEnsemble:
    """A base and its refiner as one teacher: which of the two a step asks is a matter of its time.

    Departure: a multistep solver keeps its history across the change, where diffusers' second pipeline starts without any.
    Steps of one batch on either side of it cost both networks' work; they are counted as one evaluation each.
    """

    base: SDXLModel
    refiner: RefinerModel
    share: float
    """Of the schedule that is the base's, from noise on (`denoising_end`)."""

    component = "unet"

    def __post_init__(self) -> None:
        mine, theirs = self.base.schedule.alphas_cumprod, self.refiner.schedule.alphas_cumprod
        if not torch.equal(mine, theirs) or self.base.prediction != self.refiner.prediction:
            raise ModelError(
                "base and refiner differ in their schedules or in what they predict: one teacher of both is not possible."
                " Use the refiner alone as the teacher."
            )

    def __getattr__(self, name: str) -> Any:
        """Autoencoder, encoders, schedule and the rest are the base's."""
        if name.startswith("__") or name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)

    @property
    def cutoff(self) -> float:
        """The lowest time that is the base's."""
        steps = self.base.schedule.num_train_timesteps
        return float(round(steps - self.share * steps))

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Hash of each component."""
        return {**self.base.fingerprints, "refiner": f"{self.refiner.fingerprint} from {self.cutoff:g}"}

    @property
    def fingerprint(self) -> str:
        """One hash of all components."""
        return combined(self.fingerprints)

    @property
    def denoiser(self) -> GuidedDenoiser:
        """Guided denoiser: two network evaluations a call."""
        model: Any = self
        return AestheticGuidance(guided(model))

    @property
    def rescales_guidance(self) -> bool:
        """As the base."""
        return self.base.rescales_guidance

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)`: of `network` at the base's times, of the refiner at the others."""
        early = (t >= self.cutoff).to(x_t.device)
        # Whole batches for both: a constant shape keeps a sample's bits, whoever is beside it.
        if bool(early.all()):
            return self.base.output(network, x_t, t, cond)
        late = self.refiner.output(self.refiner.unet, x_t, t, cond)
        if not bool(early.any()):
            return late
        return torch.where(expand(early.float(), x_t) > 0, self.base.output(network, x_t, t, cond), late)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Return what both read."""
        return dataclasses.replace(self.base, also=self.refiner).condition(prompts)

    def with_network(self, network: Any, fingerprints: Mapping[str, str]) -> Self:
        """Return the same with another base network; the refiner's hash is its own."""
        own = {k: v for k, v in fingerprints.items() if k != "refiner"}
        return dataclasses.replace(self, base=self.base.with_network(network, own))


def load_either(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> Any:
    """Read an `sdxl` folder (`family.Load`): an `SDXLModel`, or a `RefinerModel` where the UNet is a refiner's.

    A refiner's folder without `model_index.json` takes an empty prompt as what the encoder says of it.
    """
    refiner, read = read_folder(folder, text, share, shared, network)
    return RefinerModel(**read) if refiner else SDXLModel(**read)


def base_refiner_ensemble(
    base: Any, folder: Path, share: float, load: Callable[..., Any] = load_either
) -> BaseRefinerEnsemble:
    """Return `base` with the refiner in `folder`; what both have is in memory once. Raises `ModelError` for anything else.

    `load`: reads a folder of this family (`family.Load`).
    """
    same = [n for n in SHARED if not (folder / n).is_dir() or fingerprint(folder / n) == base.fingerprints.get(n, ABSENT)]
    refiner = load(folder, base.text, base, same)
    if not isinstance(refiner, RefinerModel) or not isinstance(base, SDXLModel):
        raise ModelError(
            f"{folder} beside a base: a refiner of the family sdxl on a base of it is due. Check teacher.refiner."
        )
    return BaseRefinerEnsemble(base, refiner, share)


def telling(student: Any, teacher: Any) -> Any:
    """Return the student, whose conditions hold what a refiner reads, too, where the teacher is or has one."""
    refiner = teacher.refiner if isinstance(teacher, BaseRefinerEnsemble) else teacher
    if not isinstance(refiner, RefinerModel):
        return student
    if hasattr(student, "shell"):
        return dataclasses.replace(student, shell=telling(student.shell, refiner))
    if not isinstance(student, SDXLModel):
        raise ModelError(
            f"a refiner is the teacher of a {type(student).__name__}: its student must be a base of the family sdxl"
            " (SDXL-Turbo, SDXL-Lightning or any other)."
        )
    return dataclasses.replace(student, also=refiner)
