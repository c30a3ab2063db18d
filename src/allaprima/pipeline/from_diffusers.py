"""The parts of an adaptive pipeline from two diffusers pipelines, or other image generators, that are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.constants import NATIVE_SOLVER
from allaprima.core.errors import ModelError
from allaprima.diffusion.noising import Strength
from allaprima.models.cards.card import TextSettings
from allaprima.models.external.diffusers_generator import DiffusersGenerator
from allaprima.models.external.image_generator import ImageGenerator
from allaprima.models.loading.from_pipelines import as_model, check_alike, family_of, settings_of, usual
from allaprima.oracles.load import load_oracle
from allaprima.oracles.oracle import Oracle

Level = Literal["auto", "steps", "images"]


@dataclass(frozen=True)
class PipelineParts:
    """What an adaptive pipeline is made of."""

    student: Any
    teacher: Any
    oracle: Oracle | None
    settings: CascadeSettings
    pipes: tuple[Any, Any] | None
    """Diffusers' pipelines that were taken apart for it."""


def latent_parts(
    student: Any, teacher: Any, oracle: Oracle | tuple[str, str | Path] | None, settings: CascadeSettings | None,
    text: TextSettings | None, changes: dict[str, Any],
) -> PipelineParts:  # fmt: skip
    """Two pipelines of one family, step by step (`AdaptivePipeline.from_pipelines`)."""
    families = family_of(student), family_of(teacher)
    if families[0] != families[1]:
        raise ModelError(
            f"a student of the family {families[0]} and a teacher of {families[1]} share no latents: use them whole, with"
            ' level="images".'
        )
    model = as_model(teacher, text)
    if getattr(model.network, "peft_config", None):
        raise ModelError("the teacher has LoRA adapters on it: call fuse_lora() and unload_lora_weights() first.")
    draft = as_model(student, text, getattr(model.fingerprints, "cache", None))
    check_alike(draft, model)
    made = CascadeSettings(**settings_of(student, teacher, draft, model, changes)) if settings is None else settings
    scorer = load_oracle(oracle[0], Path(oracle[1]), draft.encode) if isinstance(oracle, tuple) else oracle
    return PipelineParts(draft, model, scorer, made.changed(**changes), (student, teacher))


def generator_parts(
    student: Any, teacher: Any, oracle: Oracle | tuple[str, str | Path] | None, settings: CascadeSettings | None,
    changes: dict[str, Any],
) -> PipelineParts:  # fmt: skip
    """Two pipelines, or other painters of whole pictures, called as they are (`AdaptivePipeline.from_pipelines`)."""
    draft = student if isinstance(student, ImageGenerator) else DiffusersGenerator.of(student)
    model = teacher if isinstance(teacher, ImageGenerator) else DiffusersGenerator.of(teacher)
    scorer = load_oracle(oracle[0], Path(oracle[1]), draft.encode) if isinstance(oracle, tuple) else oracle
    made = settings
    if made is None:
        size = _size(draft) or _size(model) or (None, None)
        made = CascadeSettings(
            student_steps=4, student_guidance=1.0, student_solver=NATIVE_SOLVER, teacher_solver=NATIVE_SOLVER,
            sigma=Strength(0.5), batch_size=1, teacher_steps=int(_usual(model, "num_inference_steps", 30)),
            teacher_guidance=float(_usual(model, "guidance_scale", 1.0)),
            strategy="refine" if model.paints_over else "regenerate", height=size[0] or 512, width=size[1] or 512,
        )  # fmt: skip
    return PipelineParts(draft, model, scorer, made.changed(**changes), None)


def _usual(model: Any, name: str, default: Any) -> Any:
    return usual(model.text or model.image, name, default) if isinstance(model, DiffusersGenerator) else default


def _size(model: Any) -> tuple[int, int] | None:
    """Height and width that a pipeline paints unless told otherwise, where its parts say so."""
    pipe = (model.text or model.image) if isinstance(model, DiffusersGenerator) else None
    network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    side, factor = getattr(getattr(network, "config", None), "sample_size", None), getattr(pipe, "vae_scale_factor", None)
    if not isinstance(side, int) or not isinstance(factor, int):
        return None
    return side * factor, side * factor
