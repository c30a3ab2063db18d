"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.draft_vae import with_draft_vae
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.load import fingerprint
from allaprima.models.lora import fuse_lora, fused_fingerprint
from allaprima.models.multi_student import MultiStudent, load_multi_student
from allaprima.models.place import Placer, load_placed


@dataclass(frozen=True)
class Pair:
    """Student and teacher."""

    student: Family | MultiStudent
    teacher: Family


def load_pair(card: Card, placer: Placer | None = None) -> Pair:
    """Load both models of a card; raises `ModelError` for an unknown family, broken folders, an unfit partition.

    `placer`: puts them where its placement says, else torch has them on the CPU, in float32.
    """
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
    if placer is not None and not placer.placement.plain:
        return Pair(*load_placed(card, placer))
    teacher = family.load(card.path(card.teacher.source), card.text)
    return Pair(with_draft_vae(card, _student(card, teacher)), teacher)


def _student(card: Card, teacher: Family) -> Family | MultiStudent:
    family, student = FAMILIES[card.family], card.student
    if not student.students:
        # Adapters without a network of their own sit on the teacher's, read once more: theirs are multiplied into it.
        source = card.path(student.source or card.teacher.source)
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
