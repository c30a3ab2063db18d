"""Student, teacher and prompt encoder of a card, whether they are sampled step by step or called as a whole."""

from __future__ import annotations

from typing import Any

from allaprima.cascade.settings import CascadeSettings, make_sigma
from allaprima.core.errors import ModelError, SettingError
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.models.cards.card import Card, ModelSource, load_card
from allaprima.models.cards.hub import complete
from allaprima.models.external.diffusers_generator import DiffusersGenerator
from allaprima.models.external.openai_generator import OpenAIGenerator
from allaprima.models.families.registry import FAMILIES
from allaprima.models.loading.pair import load_pair, predicting
from allaprima.models.placement.placer import ModelPlacer
from allaprima.oracles.load import Encode

ANY = "any"
"""Family of a card whose models are pipelines that are called whole."""


def load_models(card: Card, placer: ModelPlacer | None = None) -> tuple[Any, Any, Encode]:
    """Student and teacher of a card, and what reads prompts for its oracle.

    Raises `ModelError`, and `SettingError` for a placement of models that are called whole.
    """
    if card.family != ANY and card.student.remote is None and card.teacher.remote is None:
        pair = load_pair(card, placer)
        return pair.student, pair.teacher, pair.student.encode
    if placer is not None and not placer.device_config.plain:
        raise SettingError(
            f"card {card.name!r} has models that are called whole, of the family {ANY!r} or on a server: where they run is"
            " theirs to say. Leave device, backend and the like out."
        )
    pair = None
    if card.family != ANY and card.teacher.source is not None and card.student.remote is None:
        pair = load_pair(card)
    student = pair.student if pair is not None and card.student.remote is None else _load_model(card, card.student)
    teacher = pair.teacher if pair is not None and card.teacher.remote is None else _load_model(card, card.teacher)
    encode: Encode = teacher.encode if card.student.remote is not None else student.encode
    if card.oracle.encoder is not None:
        other = card.beside(card.oracle.encoder)
        encode = load_pair(load_card(other if other.exists() else card.oracle.encoder)).student.encode
    return student, teacher, encode


def _load_model(card: Card, source: ModelSource) -> Any:
    """One model of a card by itself."""
    if source.remote is not None:
        return OpenAIGenerator(source.remote)
    more = next((n for n in ("lora", "network", "refiner") if getattr(source, n) is not None), None)
    if source.source is None or more is not None:
        given = "no source" if more is None else f"a {more}"
        raise ModelError(
            f"card {card.name!r}: a model beside a remote one, or of the family {ANY!r}, is one folder, its source; this one"
            f" has {given}. Give source alone."
        )
    if card.family == ANY:
        hub = card.hub(source.source)
        # Of a whole repository diffusers itself knows best what to fetch; but it would ask the hub for what is here, too.
        whole = hub is not None and str(hub) == hub.id and complete(hub) is None
        return DiffusersGenerator.from_pretrained(source.source if whole else card.path(source.source))
    if card.family not in FAMILIES:
        raise ModelError(
            f"card {card.name!r} is of the family {card.family!r}: {', '.join((*FAMILIES, ANY))} can be loaded."
        )
    entry = FAMILIES[card.family]
    return predicting(entry.load(card.path(source.source, entry.needed()), card.text), source.prediction)


def card_settings(card: Card) -> CascadeSettings:
    """Return the settings that a card names."""
    between = card.teacher.guidance_interval
    return CascadeSettings(
        student_steps=card.student.steps,
        student_solver=card.student.solver,
        student_guidance=card.student.guidance_scale,
        teacher_steps=card.teacher.steps,
        teacher_solver=card.teacher.solver,
        teacher_guidance=card.teacher.guidance_scale,
        teacher_last_time=card.teacher.last_time,
        teacher_guidance_interval=None if between is None else GuidanceInterval(*between, card.teacher.guidance_outside),
        strategy=card.cascade.strategy,
        sigma=make_sigma(card.cascade.sigma_is, card.cascade.sigma),
        height=card.height,
        width=card.width,
    )
