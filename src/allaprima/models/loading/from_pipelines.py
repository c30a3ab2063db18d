"""Diffusers' pipelines as models of ours: which family one is, and its parts in place, without a copy of any weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import ModelError, SettingError
from allaprima.diffusion.schedules import Flow
from allaprima.diffusion.solvers.tcd import ETA
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.fingerprints import ContentPrints
from allaprima.models.components.latents import downsampling
from allaprima.models.components.schedulers import solver_of
from allaprima.models.components.tokenizer_lock import one_at_a_time
from allaprima.models.families.family import Family, reads_guidance
from allaprima.models.families.flux import FluxModel
from allaprima.models.families.registry import FAMILIES
from allaprima.models.families.sd import SDModel, read_vp
from allaprima.models.families.sd3 import SD3Model, read_schedule
from allaprima.models.families.sdxl import SDXLModel
from allaprima.models.families.transformer import shifted

PIPELINES: Mapping[str, tuple[str, str]] = {
    "StableDiffusionPipeline": ("sd", "UNet2DConditionModel"),
    "StableDiffusionImg2ImgPipeline": ("sd", "UNet2DConditionModel"),
    "LatentConsistencyModelPipeline": ("sd", "UNet2DConditionModel"),
    "LatentConsistencyModelImg2ImgPipeline": ("sd", "UNet2DConditionModel"),
    "StableDiffusionXLPipeline": ("sdxl", "UNet2DConditionModel"),
    "StableDiffusionXLImg2ImgPipeline": ("sdxl", "UNet2DConditionModel"),
    "StableDiffusion3Pipeline": ("sd3", "SD3Transformer2DModel"),
    "StableDiffusion3Img2ImgPipeline": ("sd3", "SD3Transformer2DModel"),
    "FluxPipeline": ("flux", "FluxTransformer2DModel"),
    "FluxImg2ImgPipeline": ("flux", "FluxTransformer2DModel"),
}
"""Class of a pipeline -> family, and the class its network must have."""
WHERE = Path("the pipeline")
_MODELS: Mapping[str, tuple[Any, Callable[[Path, Mapping[str, Any]], dict[str, Any]]]] = {
    "sd": (SDModel, read_vp),
    "sdxl": (SDXLModel, read_vp),
    "sd3": (SD3Model, read_schedule),
    "flux": (FluxModel, shifted),
}
"""Family -> its model, and what reads a scheduler's config."""


def family_of(pipe: Any) -> str | None:
    """The family of a pipeline by its class and its network's config; None for one that isn't known.

    None too for inpainting networks and other relatives, which read more than latents, time and prompt.
    """
    name = next((cls.__name__ for cls in type(pipe).__mro__ if cls.__name__ in PIPELINES), None)
    if name is None:
        return None
    family, due = PIPELINES[name]
    network = getattr(pipe, FAMILIES[family].component, None)
    if type(network).__name__ != due or pipe.vae is None or pipe.text_encoder is None:
        return None
    config: Any = getattr(network, "config", None)
    channels = int(config.in_channels) // (4 if family == "flux" else 1)
    same = channels == int(getattr(pipe.vae.config, "latent_channels", channels))
    added = getattr(config, "addition_embed_type", None) == ("text_time" if family == "sdxl" else None)
    return family if same and added else None


def as_model(pipe: Any, text: TextSettings | None = None, cache: dict[int, tuple[Any, str]] | None = None) -> Family:
    """A pipeline's parts as a model of its family: the very objects. `cache`: of `ContentPrints`.

    `text`: how prompts are read, where it isn't as the pipeline does. Raises `ModelError` for an unknown family, parts that
    aren't float32, adapters on a text encoder, a schedule that can't be read.
    """
    family = family_of(pipe)
    if family is None:
        raise ModelError(
            f"{type(pipe).__name__} is of no family that is known step by step ({', '.join(FAMILIES)}): use it whole, with"
            ' level="images".'
        )
    entry = FAMILIES[family]
    parts = {name: getattr(pipe, name, None) for name in (entry.component, *entry.shared)}
    _check(parts, entry.component)
    for name, part in parts.items():
        if name.startswith("tokenizer") and part is not None:
            one_at_a_time(part)
    config: dict[str, Any] = dict(pipe.scheduler.config)
    known: dict[str, str] = {}
    common: dict[str, Any] = {**parts, "text": text or _text(pipe, family)}
    if family == "sdxl":
        common["zeros_for_empty"] = bool(pipe.config.get("force_zeros_for_empty_prompt", True))
        known["empty_prompt"] = "zeros" if common["zeros_for_empty"] else "encoded"
    prints = ContentPrints({**parts, "scheduler": pipe.scheduler}, known, cache)
    common["fingerprints"] = prints
    odd = "sigma_data" in config or "beta_start" not in config
    if family in ("sd", "sdxl") and odd:
        raise ModelError(f"{type(pipe.scheduler).__name__} of this config has a schedule that isn't known here.")
    model, read = _MODELS[family]
    return model(**common, **read(WHERE, config))


def _check(parts: Mapping[str, Any], component: str) -> None:
    for name, part in parts.items():
        if not isinstance(part, torch.nn.Module):
            continue
        odd = next((p.dtype for p in part.parameters() if p.dtype != torch.float32), None)
        if odd is not None:
            raise ModelError(
                f"{name} is of {odd}: step by step float32 is due. Call pipe.to(torch.float32), or use it whole."
            )
        if name != component and getattr(part, "peft_config", None):
            raise ModelError(f"{name} has LoRA adapters: call pipe.fuse_lora() and pipe.unload_lora_weights() first.")


def _text(pipe: Any, family: str) -> TextSettings:
    """How the pipeline itself reads prompts."""
    if family == "sd":
        mask = bool(getattr(pipe.text_encoder.config, "use_attention_mask", False))
        return TextSettings(max_length=int(pipe.tokenizer.model_max_length), attention_mask=mask)
    default = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return TextSettings() if default is None else TextSettings(max_sequence_length=int(default.default))


def check_alike(student: Family, teacher: Family) -> None:
    """Raise `ModelError` where the two don't read prompts alike or have other latents: one reading serves both.

    Equal by content will do; the same objects are not hashed.
    """
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3"):
        mine, theirs = getattr(student, name, None), getattr(teacher, name, None)
        if mine is not theirs and student.fingerprints[name] != teacher.fingerprints[name]:
            raise ModelError(
                f"the pipelines' {name} differ: step by step one reading of a prompt serves both. Give both the same, or use"
                ' them whole, with level="images".'
            )
    shapes = [tuple(m.latent_shape(*size_of(m))) for m in (student, teacher)]
    if shapes[0][0] != shapes[1][0]:
        raise ModelError(f"latents of {shapes[0][0]} and {shapes[1][0]} channels: these two can't go on with each other's.")


def size_of(model: Family) -> tuple[int, int]:
    """Height and width that a model was made for, as its network's config says."""
    config = model.network.config
    size = getattr(config, "sample_size", None) or 128
    height, width = (size, size) if isinstance(size, int) else size
    blocks = getattr(model.vae.config, "block_out_channels", None)
    factor = downsampling(model.vae.config) if blocks is not None else int(getattr(model.vae.config, "patch", 4))
    return height * factor, width * factor


def usual(pipe: Any, name: str, default: Any) -> Any:
    """The default of a pipeline's call."""
    found = inspect.signature(type(pipe).__call__).parameters.get(name)
    return default if found is None or found.default in (None, inspect.Parameter.empty) else found.default


def settings_of(
    student_pipe: Any, teacher_pipe: Any, student: Family, teacher: Family, said: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Settings that the pipelines suggest: schedulers as solvers, steps and scales as their calls have them, the size.

    A student takes 4 steps, without guidance unless its network reads it. `said`: what the caller gives instead; a scheduler
    isn't read where its solver is said. Raises what `models.components.schedulers.solver_of` does.
    """
    height, width = size_of(teacher)
    found: dict[str, Any] = {
        "student_steps": 4,
        "student_guidance": float(usual(student_pipe, "guidance_scale", 1.0)) if reads_guidance(student.network) else 1.0,
        "teacher_steps": int(usual(teacher_pipe, "num_inference_steps", 50)),
        "teacher_guidance": _scale(teacher_pipe, teacher),
        "height": height,
        "width": width,
    } | dict(said or {})
    flow = "euler" if isinstance(teacher.schedule, Flow) else "dpm_solver"
    for side, pipe, model, otherwise in (
        ("student", student_pipe, student, "consistency"), ("teacher", teacher_pipe, teacher, flow),
    ):  # fmt: skip
        if f"{side}_solver" not in found:
            eta, steps = float(usual(pipe, "eta", ETA)), int(found[f"{side}_steps"])
            found[f"{side}_solver"] = solver_of(pipe.scheduler, model.schedule, steps, otherwise, eta)
    return found


def _scale(pipe: Any, model: Family) -> float:
    """FLUX.1 schnell's call has a scale that its network doesn't read: none then."""
    if type(model.network).__name__ == "FluxTransformer2DModel" and not reads_guidance(model.network):
        return 1.0
    return float(usual(pipe, "guidance_scale", 1.0))


def index_of(pipe: Any) -> dict[str, Any]:
    """`model_index.json` of the parts that are kept. Raises `SettingError` for an unknown family."""
    family = family_of(pipe)
    if family is None:
        raise SettingError(f"{type(pipe).__name__} is of no known family.")
    entry = FAMILIES[family]
    index: dict[str, Any] = {"_class_name": next(n for n, (f, _) in PIPELINES.items() if f == family)}
    for name in (entry.component, "scheduler", *entry.shared):
        part = getattr(pipe, name, None)
        if part is None:
            index[name] = [None, None]
            continue
        module = type(part).__module__
        known = module.split(".")[0] in ("diffusers", "transformers")
        index[name] = [module.split(".")[0] if known else module, type(part).__name__]
    for name in ("safety_checker", "feature_extractor", "image_encoder"):
        if name in pipe.config:
            index[name] = [None, None]
    for name in ("force_zeros_for_empty_prompt", "requires_safety_checker"):
        if name in pipe.config:
            index[name] = False if name == "requires_safety_checker" else pipe.config[name]
    return index
