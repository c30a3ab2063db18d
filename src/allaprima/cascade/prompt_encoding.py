"""Prompts of a batch as the painters read them, and what of `prompt_2`, `clip_skip`, `guidance_rescale` they can."""

from __future__ import annotations

from collections.abc import Sequence

from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.scoring import pad_texts
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.prompt_inputs import extra_prompts, negative_inputs, positive_inputs
from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.models.diffusion_model import DiffusionModel

NUMBERS = {1: "one prompt", 2: "two prompts, prompt and prompt_2", 3: "three prompts"}


def check_prompts(model: DiffusionModel, request: GenerationRequest) -> None:
    """Raise `PromptError` or `SettingError` for words that a painter can't read, or would read in part only."""
    more = extra_prompts(request)
    if not more:
        model.check_prompt(request.prompt)
        if request.negative_prompt:
            model.check_prompt(request.negative_prompt)
        return
    refuse_extra_prompts(more, model.prompts_read)
    model.check_prompts(positive_inputs(request))
    if not negative_inputs(request).empty:
        model.check_prompts(negative_inputs(request), negative=True)


def refuse_extra_prompts(more: dict[str, str], read: int) -> None:
    """Raise `SettingError` for a prompt beyond those that are read."""
    for name, value in more.items():
        if int(name[-1]) > read:
            raise SettingError(
                f"{name}={value[:60]!r}: these models read {NUMBERS[read]} (two are read by sdxl and flux, three by sd3 with"
                f" T5). Leave {name} out, or say it in the prompt."
            )


def check_prompt_settings(student: DiffusionModel, teacher: DiffusionModel, settings: CascadeSettings) -> None:
    """Raise `SettingError` for a `clip_skip` or a `guidance_rescale` that these models don't have."""
    most = student.most_clip_skip
    if settings.clip_skip > most:
        rule = f"0..{most} layers of these text encoders can be left out; give one of them"
        none = "only CLIP of the families sd, sdxl and sd3, run by torch, shows its earlier layers; leave it out"
        raise SettingError(f"clip_skip={settings.clip_skip!r} is too much: {rule if most else none}.")
    for name, model, value in (
        ("student_guidance_rescale", student, settings.student_guidance_rescale),
        ("teacher_guidance_rescale", teacher, settings.teacher_guidance_rescale),
    ):
        if value and not model.rescales_guidance:
            raise SettingError(
                f"{name}={value!r}: models of sd and sdxl whose guidance is classifier-free have it, this one is another or"
                f" reads its scale. Set {name} to 0; the other model's can be given by its own name."
            )


def encode_conditions(
    model: DiffusionModel, requests: Sequence[GenerationRequest], rows: int, clip_skip: int
) -> tuple[Condition, Condition]:
    """Return what is wanted and what guidance leads away from, as `model` reads it, filled up to `rows` rows.

    Layers are left out of what is wanted alone, as in diffusers' pipelines.
    """
    texts = pad_texts([r.prompt for r in requests], rows)
    negatives = pad_texts([r.negative_prompt for r in requests], rows)
    more = any(extra_prompts(r) for r in requests)
    if more or clip_skip:
        filled = [*requests, *[requests[0]] * (rows - len(requests))]
        wanted = model.encode_prompts([positive_inputs(r) for r in filled], clip_skip)
        if more:
            return wanted, model.encode_prompts([negative_inputs(r) for r in filled])
    else:
        wanted = model.condition(texts)
    return wanted, model.negative(negatives)
