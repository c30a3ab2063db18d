"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

from dataclasses import dataclass

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.multi_student import MultiStudent, load_multi_student


@dataclass(frozen=True)
class Pair:
    """Student and teacher."""

    student: Family | MultiStudent
    teacher: Family


def load_pair(card: Card) -> Pair:
    """Load both models of a card; raises `ModelError` for an unknown family, broken folders, an unfit partition."""
    if card.family not in FAMILIES:
        raise ModelError(f"card {card.name!r} is of the family {card.family!r}: {', '.join(FAMILIES)} can be loaded.")
    family, student = FAMILIES[card.family], card.student
    odd = [name for name in student.share if name not in family.shared]
    if odd:
        raise ModelError(
            f"card {card.name!r}: student.share names {odd[0]!r}; of the family {card.family} {', '.join(family.shared)} can"
            " be shared."
        )
    if card.teacher.source is None:
        raise ModelError(
            f"card {card.name!r} gives its teacher students: only a student can be several. Give teacher.source."
        )
    teacher = family.load(card.path(card.teacher.source), card.text)
    if student.source is not None:
        return Pair(family.load(card.path(student.source), card.text, teacher, student.share), teacher)
    folders, partition = [card.path(f) for f in student.students], card.path(student.partition or "")
    several = load_multi_student(folders, partition, card.text, teacher, student.share, student.resident, card.family)
    return Pair(several, teacher)
