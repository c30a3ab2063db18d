"""A student and a teacher that share what they can: text encoder, tokenizer and autoencoder are loaded once."""

from __future__ import annotations

from dataclasses import dataclass

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.families.sd import SDModel, load_sd

FAMILIES = {"sd": load_sd}
"""Loaders by the card's `family`."""


@dataclass(frozen=True)
class Pair:
    """Student and teacher."""

    student: SDModel
    teacher: SDModel


def load_pair(card: Card) -> Pair:
    """Load both models of a card; raises `ModelError` for an unknown family or broken folders."""
    if card.family not in FAMILIES:
        raise ModelError(f"card {card.name!r} is of the family {card.family!r}: {', '.join(FAMILIES)} can be loaded.")
    load = FAMILIES[card.family]
    teacher = load(card.path(card.teacher.source), card.text)
    return Pair(load(card.path(card.student.source), card.text, teacher, card.student.share), teacher)
