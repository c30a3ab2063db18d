"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.families.registry import FamilyEntry
from allaprima.models.families.sdxl_refiner import experts, telling
from allaprima.models.load import filled, fingerprint
from allaprima.models.lora import adapted, fuse_lora, fused_fingerprint
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
    if card.teacher.source is None or card.teacher.lora is not None or card.teacher.weights is not None:
        raise ModelError(
            f"card {card.name!r} gives its teacher students or a lora: those are for the student. Give teacher.source alone."
        )
    if student.refiner is not None:
        raise ModelError(f"card {card.name!r} gives its student a refiner: that is for the teacher. Move it there.")
    teacher: Any = _predicting(family.load(card.path(card.teacher.source), card.text), card.teacher.prediction)
    if card.teacher.refiner is not None:
        teacher = experts(teacher, card.path(card.teacher.refiner), card.teacher.refiner_from)
    if card.cascade.strategy == "regenerate" and getattr(teacher, "refines_only", False):
        raise ModelError(
            f"card {card.name!r}: cascade.strategy='regenerate' with a refiner as the only teacher, which can't paint from"
            " noise. Say refine, or give the base as teacher.source and the refiner as teacher.refiner."
        )
    made = _student(card, teacher)
    return Pair(telling(made, teacher), teacher)


def _student(card: Card, teacher: Family) -> Family | MultiStudent:
    student = card.student
    if not student.students:
        return _predicting(_single(card, teacher), student.prediction)
    if student.prediction is not None:
        raise ModelError(
            f"card {card.name!r}: student.prediction={student.prediction!r} with several students: their schedulers' folders"
            " say what they predict. Leave it out."
        )
    folders, partition = [card.path(f) for f in student.students], card.path(student.partition or "")
    return load_multi_student(folders, partition, card.text, teacher, student.share, student.resident, card.family)


def _single(card: Card, teacher: Family) -> Any:
    family, student = FAMILIES[card.family], card.student
    source = card.path(student.source or card.teacher.source or "")
    # What sits on the teacher's network has everything else in common with it, too.
    share = student.share or (() if student.source is not None else _common(family, teacher))
    folder = source / family.component
    if student.lora is not None:
        file, scale = card.path(student.lora), student.lora_scale
        own = None if student.source is None else fuse_lora(family.load_network(folder), file, scale)
        # Without a source of their own, adapters sit beside the teacher's weights.
        network = adapted(teacher.network, file, scale) if own is None else own
        base = fingerprint(folder)
        print_ = fused_fingerprint(base, file, scale)
    elif student.weights is not None:
        file = card.path(student.weights)
        network, print_ = filled(folder, file), fused_fingerprint(fingerprint(folder), file)
    else:
        return family.load(source, card.text, teacher, share)
    # Fused weights and those of a file are contiguous ones; the teacher's own are left as they are.
    beside = student.lora is not None and student.source is None
    network = network.to(memory_format=torch.channels_last) if family.component == "unet" and not beside else network
    model = family.load(source, card.text, teacher, share, network)
    return model.with_network(network, {**model.fingerprints, family.component: print_})


def _predicting(model: Any, prediction: str | None) -> Any:
    """The model with what a card says it predicts."""
    if prediction is None:
        return model
    prints = {**model.fingerprints, "prediction": prediction}
    return dataclasses.replace(model, prediction=prediction, fingerprints=prints)


def _common(family: FamilyEntry, teacher: Family) -> tuple[str, ...]:
    return tuple(name for name in family.shared if name in teacher.fingerprints)
