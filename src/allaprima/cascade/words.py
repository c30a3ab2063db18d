"""Prompts of a batch as the painters read them, and what of `prompt_2`, `clip_skip`, `guidance_rescale` they can."""

from __future__ import annotations

from collections.abc import Sequence

from allaprima.cascade.job import Request
from allaprima.cascade.look import padded
from allaprima.cascade.painter import Negates, Painter, Rescales, Worded
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.core.words import given, negatives_of, words_of

NUMBERS = {1: "one prompt", 2: "two prompts, prompt and prompt_2", 3: "three prompts"}


def check_words(painter: Painter, request: Request) -> None:
    """Raise `PromptError` or `SettingError` for words that a painter can't read, or would read in part only."""
    more = given(request)
    if not more or not isinstance(painter, Worded):
        refuse_more(more, 1)
        painter.check_prompt(request.prompt)
        if request.negative_prompt:
            painter.check_prompt(request.negative_prompt)
        return
    refuse_more(more, painter.prompts_read)
    painter.check_words(words_of(request))
    if not negatives_of(request).empty:
        painter.check_words(negatives_of(request), negative=True)


def refuse_more(more: dict[str, str], read: int) -> None:
    """Raise `SettingError` for a prompt beyond those that are read."""
    for name, value in more.items():
        if int(name[-1]) > read:
            raise SettingError(
                f"{name}={value[:60]!r}: these models read {NUMBERS[read]} (two are read by sdxl and flux, three by sd3 with"
                f" T5). Leave {name} out, or say it in the prompt."
            )


def check_reading(student: Painter, teacher: Painter, settings: CascadeSettings) -> None:
    """Raise `SettingError` for a `clip_skip` or a `guidance_rescale` that these models don't have."""
    most = student.most_clip_skip if isinstance(student, Worded) else 0
    if settings.clip_skip > most:
        rule = f"0..{most} layers of these text encoders can be left out; give one of them"
        none = "only CLIP of the families sd, sdxl and sd3, run by torch, shows its earlier layers; leave it out"
        raise SettingError(f"clip_skip={settings.clip_skip!r} is too much: {rule if most else none}.")
    for name, painter, value in (
        ("student_guidance_rescale", student, settings.student_guidance_rescale),
        ("teacher_guidance_rescale", teacher, settings.teacher_guidance_rescale),
    ):
        if value and not (isinstance(painter, Rescales) and painter.rescales_guidance):
            raise SettingError(
                f"{name}={value!r}: models of sd and sdxl whose guidance is classifier-free have it, this one is another or"
                f" reads its scale. Set {name} to 0; the other model's can be given by its own name."
            )


def conditions(painter: Painter, requests: Sequence[Request], rows: int, clip_skip: int) -> tuple[Condition, Condition]:
    """What is wanted and what guidance leads away from, as `painter` reads it, filled up to `rows` rows.

    Layers are left out of what is wanted alone, as in diffusers' pipelines.
    """
    texts = padded([r.prompt for r in requests], rows)
    negatives = padded([r.negative_prompt for r in requests], rows)
    more = any(given(r) for r in requests)
    if isinstance(painter, Worded) and (more or clip_skip):
        filled = [*requests, *[requests[0]] * (rows - len(requests))]
        wanted = painter.worded([words_of(r) for r in filled], clip_skip)
        if more:
            return wanted, painter.worded([negatives_of(r) for r in filled])
    else:
        wanted = painter.condition(texts)
    return wanted, painter.negative(negatives) if isinstance(painter, Negates) else painter.condition(negatives)
