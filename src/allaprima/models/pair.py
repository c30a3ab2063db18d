"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import ModelError
from allaprima.models.card import Card
from allaprima.models.compatible import check_pair
from allaprima.models.content import ContentPrints, content_fingerprint, scheduler_fingerprint, with_lora
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.families.registry import FamilyEntry
from allaprima.models.families.sdxl_refiner import experts, telling
from allaprima.models.load import fingerprint, load_weights
from allaprima.models.lora import adapted, fuse_lora, fused_fingerprint, read_lora
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
            f"card {card.name!r} is of the family {card.family!r}: {', '.join(FAMILIES)} can be loaded step by step."
            " Pipelines of diffusers of other kinds are called whole, with family: any, by AdaptivePipeline and `generate`."
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
    if student.refiner is not None:
        raise ModelError(f"card {card.name!r} gives its student a refiner: that is for the teacher. Move it there.")
    base = card.path(card.teacher.source, family.needed())
    teacher: Any = predicting(family.load(base, card.text), card.teacher.prediction)
    if card.teacher.refiner is not None:
        teacher = experts(teacher, card.path(card.teacher.refiner, family.needed()), card.teacher.refiner_from)
    if card.cascade.strategy == "regenerate" and getattr(teacher, "refines_only", False):
        raise ModelError(
            f"card {card.name!r}: cascade.strategy='regenerate' with a refiner as the only teacher, which can't paint from"
            " noise. Say refine, or give the base as teacher.source and the refiner as teacher.refiner."
        )
    if card.fingerprints == "content":
        teacher = by_content(teacher, base, card.family)
    made = telling(_student(card, family, base, teacher), teacher)
    check_pair(card, made, teacher)
    return Pair(made, teacher)


def _student(card: Card, family: FamilyEntry, base: Path, teacher: Family) -> Family | MultiStudent:
    """The student of a card whose teacher's folder is `base`."""
    student = card.student
    if not student.students:
        return predicting(_single(card, family, base, teacher), student.prediction)
    if student.prediction is not None:
        raise ModelError(
            f"card {card.name!r}: student.prediction={student.prediction!r} with several students: their schedulers' folders"
            " say what they predict. Leave it out."
        )
    if card.fingerprints == "content":
        raise ModelError(
            f"card {card.name!r}: fingerprints: content with several students, which are known by their files. Leave it out."
        )
    needed = family.needed(student.share)
    folders, partition = [card.path(f, needed) for f in student.students], card.path(student.partition or "")
    return load_multi_student(folders, partition, card.text, teacher, student.share, student.resident, card.family)


def _single(card: Card, family: FamilyEntry, base: Path, teacher: Family) -> Any:
    student = card.student
    # What sits on the teacher's network has everything else in common with it, too.
    share = student.share or (() if student.source is not None else _common(family, teacher))
    needed = family.needed(share)
    if student.network is not None and not student.network.endswith(".safetensors"):
        needed = tuple(name for name in needed if name != family.component)
    source = base if student.source is None else card.path(student.source, needed)
    by_tensors, known = card.fingerprints == "content", None
    if student.lora is None and student.network is None:
        model = family.load(source, card.text, teacher, share)
        return by_content(model, source, card.family, None, teacher) if by_tensors else model
    beside = student.source is None and student.network is None
    if beside:
        # Adapters without a network of their own sit beside the teacher's weights.
        network, print_ = teacher.network, fingerprint(source / family.component)
    else:
        network, print_ = _network(card, family, source / family.component)
    if student.lora is not None:
        file, scale = card.path(student.lora), student.lora_scale
        if by_tensors and not beside:
            # Of base and adapters, as of a network whose adapters aren't fused.
            known = with_lora(content_fingerprint(network), read_lora(file, family.component, scale))
        network = (adapted if beside else fuse_lora)(network, file, scale)
        print_ = fused_fingerprint(print_, file, scale)
    # Fused weights and those of a file are contiguous ones; the teacher's own are left as they are.
    network = network.to(memory_format=torch.channels_last) if family.component == "unet" and not beside else network
    model = family.load(source, card.text, teacher, share, network)
    model = model.with_network(network, {**model.fingerprints, family.component: print_})
    return by_content(model, source, card.family, known, teacher) if by_tensors else model


def _network(card: Card, family: FamilyEntry, folder: Path) -> tuple[Any, str]:
    """The student's network and its fingerprint; `folder`: that of its source's network."""
    if card.student.network is None:
        return family.load_network(folder), fingerprint(folder)
    place = card.path(card.student.network)
    if place.is_dir():
        return family.load_network(place), fingerprint(place)
    return load_weights(folder, place), fused_fingerprint((folder / "config.json").read_text(encoding="utf-8"), place)


def predicting(model: Any, prediction: str | None) -> Any:
    """The model with what a card says it predicts."""
    if prediction is None:
        return model
    prints = {**model.fingerprints, "prediction": prediction}
    return dataclasses.replace(model, prediction=prediction, fingerprints=prints)


def _common(family: FamilyEntry, teacher: Family) -> tuple[str, ...]:
    return tuple(name for name in family.shared if name in teacher.fingerprints)


def by_content(model: Any, folder: Path, family: str, network: str | None = None, beside: Any = None) -> Any:
    """A model of `folder` with fingerprints by content.

    `network`: the trained network's, where it isn't what its tensors say (adapters were multiplied in). Parts that are
    `beside`'s, too, are hashed once.
    """
    entry = FAMILIES[family]
    # A refiner has no first text encoder.
    parts = {name: getattr(model, name) for name in (entry.component, *entry.shared) if hasattr(model, name)}
    known = {"scheduler": scheduler_fingerprint(folder / "scheduler")}
    known |= {} if network is None else {entry.component: network}
    known |= {k: v for k, v in model.fingerprints.items() if k not in parts and k not in known}
    prints = None if beside is None else beside.fingerprints
    return model.with_network(model.network, ContentPrints(parts, known, getattr(prints, "cache", None)))
