"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.families.sdxl_refiner import experts, telling
from allaprima.models.load import fingerprint
from allaprima.models.lora import fuse_lora, fused_fingerprint
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
    if card.teacher.source is None or card.teacher.lora is not None:
        raise ModelError(
            f"card {card.name!r} gives its teacher students or a lora: those are for the student. Give teacher.source alone."
        )
    if student.refiner is not None:
        raise ModelError(f"card {card.name!r} gives its student a refiner: that is for the teacher. Move it there.")
    teacher: Any = family.load(card.path(card.teacher.source), card.text)
    if card.teacher.refiner is not None:
        teacher = experts(teacher, card.path(card.teacher.refiner), card.teacher.refiner_from)
    if card.cascade.strategy == "regenerate" and getattr(teacher, "refines_only", False):
        raise ModelError(
            f"card {card.name!r}: cascade.strategy='regenerate' with a refiner as the only teacher, which can't paint from noise."
            " Say refine, or give the base as teacher.source and the refiner as teacher.refiner."
        )
    made = _student(card, teacher)
    return Pair(telling(made, teacher), teacher)


def _student(card: Card, teacher: Family) -> Family | MultiStudent:
    family, student = FAMILIES[card.family], card.student
    if not student.students:
        # Adapters without a network of their own sit on the teacher's, read once more: theirs are multiplied into it.
        source = card.path(student.source or card.teacher.source or "")
        if student.lora is None:
            return family.load(source, card.text, teacher, student.share)
        return _with_lora(card, source, card.path(student.lora), teacher)
    folders, partition = [card.path(f) for f in student.students], card.path(student.partition or "")
    return load_multi_student(folders, partition, card.text, teacher, student.share, student.resident, card.family)


def _with_lora(card: Card, source: Path, lora: Path, teacher: Family) -> Family:
    family = FAMILIES[card.family]
    folder = source / family.component
    network = fuse_lora(family.load_network(folder), lora)
    # Fusing makes new weights, contiguous ones.
    network = network.to(memory_format=torch.channels_last) if family.component == "unet" else network
    model = family.load(source, card.text, teacher, card.student.share, network)
    print_ = fused_fingerprint(fingerprint(folder), lora)
    return model.with_network(network, {**model.fingerprints, family.component: print_})
