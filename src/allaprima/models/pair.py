"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.content import ContentPrints, content_fingerprint, scheduler_fingerprint, with_lora
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.load import fingerprint
from allaprima.models.lora import fuse_lora, fused_fingerprint, read_lora
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
    teacher = family.load(card.path(card.teacher.source), card.text)
    if not student.students:
        # Adapters without a network of their own sit on the teacher's, read once more: theirs are multiplied into it.
        source = card.path(student.source or card.teacher.source)
        lora = None if student.lora is None else card.path(student.lora)
        known: str | None = None
        if lora is None:
            model = family.load(source, card.text, teacher, student.share)
        else:
            model, known = _with_lora(card, source, lora, teacher)
        if card.fingerprints == "files":
            return Pair(model, teacher)
        whole = by_content(teacher, card.path(card.teacher.source), card.family)
        return Pair(by_content(model, source, card.family, known, whole), whole)
    folders, partition = [card.path(f) for f in student.students], card.path(student.partition or "")
    several = load_multi_student(folders, partition, card.text, teacher, student.share, student.resident, card.family)
    return Pair(several, teacher)


def _with_lora(card: Card, source: Path, lora: Path, teacher: Family) -> tuple[Family, str | None]:
    """The student, and its network's fingerprint by content if the card goes by that."""
    family = FAMILIES[card.family]
    folder = source / family.component
    network = family.load_network(folder)
    by_tensors = card.fingerprints == "content"
    known = with_lora(content_fingerprint(network), read_lora(lora, family.component)) if by_tensors else None
    network = fuse_lora(network, lora)
    # Fusing makes new weights, contiguous ones.
    network = network.to(memory_format=torch.channels_last) if family.component == "unet" else network
    model = family.load(source, card.text, teacher, card.student.share, network)
    print_ = fused_fingerprint(fingerprint(folder), lora)
    return model.with_network(network, {**model.fingerprints, family.component: print_}), known


def by_content(model: Family, folder: Path, family: str, network: str | None = None, beside: Family | None = None) -> Family:
    """A model of `folder` with fingerprints by content; `network`: the trained network's. Shared parts are hashed once."""
    entry = FAMILIES[family]
    parts = {name: getattr(model, name) for name in (entry.component, *entry.shared)}
    known = {"scheduler": scheduler_fingerprint(folder / "scheduler")}
    known |= {} if network is None else {entry.component: network}
    known |= {k: v for k, v in model.fingerprints.items() if k not in parts and k not in known}
    prints = None if beside is None else beside.fingerprints
    return model.with_network(model.network, ContentPrints(parts, known, getattr(prints, "cache", None)))
