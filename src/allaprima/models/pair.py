"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.compatible import check_pair
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.families.registry import FamilyEntry
from allaprima.models.load import fingerprint, load_weights
from allaprima.models.lora import fuse_lora, fused_fingerprint
from allaprima.models.multi_student import MultiStudent, load_multi_student


@dataclass(frozen=True)
class Pair:
    """Student and teacher."""

    student: Family | MultiStudent
    teacher: Family


def load_pair(card: Card) -> Pair:
    """Load both models of a card; raises `ModelError` for an unknown family, broken folders, models that don't fit together.

    Sources that are hub ids are fetched where they aren't here, and only what is loaded.
    """
    if card.family not in FAMILIES:
        raise ModelError(
            f"card {card.name!r} is of the family {card.family!r}: {', '.join(FAMILIES)} can be loaded. Pipelines of"
            " diffusers of other kinds work through the image-level fallback, which hands over pictures, not latents."
        )
    family, student = FAMILIES[card.family], card.student
    odd = [name for name in student.share if name not in family.shared]
    if odd:
        raise ModelError(
            f"card {card.name!r}: student.share names {odd[0]!r}; of the family {card.family} {', '.join(family.shared)} can"
            " be shared."
        )
    if card.teacher.source is None or card.teacher.lora is not None or card.teacher.network is not None:
        raise ModelError(
            f"card {card.name!r} gives its teacher students or a lora (or a network alone): those are for the student. Give"
            " teacher.source alone."
        )
    base = card.path(card.teacher.source, family.needed())
    teacher = family.load(base, card.text)
    pair = Pair(_student(card, family, base, teacher), teacher)
    check_pair(card, pair.student, teacher)
    return pair


def _student(card: Card, family: FamilyEntry, base: Path, teacher: Family) -> Family | MultiStudent:
    """The student of a card whose teacher's folder is `base`."""
    student, needed = card.student, family.needed(card.student.share)
    if student.students:
        folders, partition = [card.path(f, needed) for f in student.students], card.path(student.partition or "")
        return load_multi_student(folders, partition, card.text, teacher, student.share, student.resident, card.family)
    # Adapters without a network of their own sit on the teacher's, read once more: theirs are multiplied into it.
    if student.network is not None and not student.network.endswith(".safetensors"):
        needed = tuple(name for name in needed if name != family.component)
    source = base if student.source is None else card.path(student.source, needed)
    if student.lora is None and student.network is None:
        return family.load(source, card.text, teacher, student.share)
    network, print_ = _network(card, family, source / family.component)
    if student.lora is not None:
        lora = card.path(student.lora)
        network, print_ = fuse_lora(network, lora), fused_fingerprint(print_, lora)
    # Fusing makes new weights, contiguous ones.
    network = network.to(memory_format=torch.channels_last) if family.component == "unet" else network
    model = family.load(source, card.text, teacher, student.share, network)
    return model.with_network(network, {**model.fingerprints, family.component: print_})


def _network(card: Card, family: FamilyEntry, folder: Path) -> tuple[Any, str]:
    """The student's network and its fingerprint; `folder`: that of its source's network."""
    if card.student.network is None:
        return family.load_network(folder), fingerprint(folder)
    place = card.path(card.student.network)
    if place.is_dir():
        return family.load_network(place), fingerprint(place)
    return load_weights(folder, place), fused_fingerprint((folder / "config.json").read_text(encoding="utf-8"), place)
