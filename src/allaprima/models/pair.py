"""A student and a teacher that share what they can: text encoder, tokenizer and autoencoder are loaded once."""

from __future__ import annotations

from dataclasses import dataclass

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.families.sd import SDModel, load_sd
from allaprima.models.multi_student import MultiStudent, load_multi_student

FAMILIES = {"sd": load_sd}
"""Loaders by the card's `family`."""


@dataclass(frozen=True)
class Pair:
    """Student and teacher."""

    student: SDModel | MultiStudent
    teacher: SDModel


def load_pair(card: Card) -> Pair:
    """Load both models of a card; raises `ModelError` for an unknown family, broken folders, an unfit partition."""
    if card.family not in FAMILIES:
        raise ModelError(f"card {card.name!r} is of the family {card.family!r}: {', '.join(FAMILIES)} can be loaded.")
    load, student = FAMILIES[card.family], card.student
    if card.teacher.source is None or card.teacher.lora is not None:
        raise ModelError(
            f"card {card.name!r} gives its teacher students or a lora: those are for the student. Give teacher.source alone."
        )
    teacher = load(card.path(card.teacher.source), card.text)
    if not student.students:
        # Adapters without a network of their own sit on the teacher's, read once more: theirs are multiplied into it.
        source = card.path(student.source or card.teacher.source)
        lora = None if student.lora is None else card.path(student.lora)
        return Pair(load(source, card.text, teacher, student.share, lora=lora), teacher)
    folders, partition = [card.path(f) for f in student.students], card.path(student.partition or "")
    return Pair(load_multi_student(folders, partition, card.text, teacher, student.share, student.resident), teacher)
