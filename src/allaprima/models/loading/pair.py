"""A student and a teacher that share what they can: text encoders, tokenizers and autoencoder are loaded once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.adapters.tiny_vae import with_tiny_vae
from allaprima.models.cards.card import Card, TextSettings
from allaprima.models.cards.compatibility import check_pair
from allaprima.models.cards.configs import config_of
from allaprima.models.components.fingerprints import ContentPrints, content_fingerprint, scheduler_fingerprint, with_lora
from allaprima.models.components.loading import check_weights, fingerprint, load_weights, read_json, weight_files
from allaprima.models.components.lora import adapted, check_lora, fuse_lora, fused_fingerprint, read_lora
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES as FAMILIES
from allaprima.models.families.registry import FamilyEntry
from allaprima.models.families.sdxl import is_refiner
from allaprima.models.families.sdxl_refiner import base_refiner_ensemble, telling
from allaprima.models.multi_student.model import MultiStudent, load_multi_student
from allaprima.models.placement.placer import ModelPlacer, in_memory


@dataclass(frozen=True)
class ModelPair:
    """Student and teacher."""

    student: Family | MultiStudent
    teacher: Family


def load_pair(card: Card, placer: ModelPlacer | None = None) -> ModelPair:
    """Load both models of a card; raises `ModelError` for an unknown family, broken folders, models that don't fit together.

    Sources that are hub ids are fetched where they aren't here, and only what is loaded.
    `placer`: puts them where its placement says, else torch has them on the CPU, in float32. Raises `SettingError` for what
    can't be placed so.
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
    placer = None if placer is None or placer.device_config.plain else placer
    if placer is not None:
        # Before anything is fetched.
        placer.check(card.family, _refines(card))
    base = card.path(card.teacher.source, family.needed())
    teacher: Any = predicting(_read(placer, family, base, card.text), card.teacher.prediction)
    if card.teacher.refiner is not None:
        refiner, load = card.path(card.teacher.refiner, family.needed()), partial(_read, placer, family)
        teacher = base_refiner_ensemble(teacher, refiner, card.teacher.refiner_from, load)
    if card.cascade.strategy == "regenerate" and getattr(teacher, "refines_only", False):
        raise ModelError(
            f"card {card.name!r}: cascade.strategy='regenerate' with a refiner as the only teacher, which can't paint from"
            " noise. Say refine, or give the base as teacher.source and the refiner as teacher.refiner."
        )
    if placer is not None:
        placer.check(card.family, getattr(teacher, "refines_only", False))
        if card.fingerprints == "content":
            raise SettingError(
                f"card {card.name!r} says fingerprints: content, which reads every tensor, and networks that are put"
                " elsewhere are read last. Leave the placement out, or say fingerprints: files."
            )
    elif card.fingerprints == "content":
        teacher = by_content(teacher, base, card.family)
    made = telling(_student(card, family, base, teacher, placer), teacher)
    check_pair(card, made, teacher)
    made = with_tiny_vae(card, made)
    return ModelPair(made, teacher) if placer is None else ModelPair(*placer.pair(made, teacher))


def _refines(card: Card) -> bool:
    """Whether a refiner is its teacher, or part of it, as far as configs say that are here or come with the package."""
    if card.teacher.refiner is not None:
        return True
    component, source = FAMILIES[card.family].component, card.teacher.source or ""
    known = config_of(card, source, component) if card.family == "sdxl" else None
    return bool(known) and is_refiner(SimpleNamespace(**dict(known or {})))


def _read(
    placer: ModelPlacer | None, family: FamilyEntry, folder: Path, text: TextSettings, share: Family | None = None,
    shared: Sequence[str] = (),
) -> Any:  # fmt: skip
    """A folder's model. For a placer its network is one that waits to be read: where it will be is for the end."""
    if placer is None:
        return family.load(folder, text, share, shared)
    part = folder / family.component
    waiting = placer.waiting(part, partial(family.load_network, part))
    weight_files(part)
    model = family.load(folder, text, share, shared, waiting)
    return model.with_network(model.network, {**model.fingerprints, family.component: fingerprint(part)})


def _student(
    card: Card, family: FamilyEntry, base: Path, teacher: Family, placer: ModelPlacer | None
) -> Family | MultiStudent:
    """The student of a card whose teacher's folder is `base`."""
    student = card.student
    if not student.students:
        return predicting(_single(card, family, base, teacher, placer), student.prediction)
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


def _single(card: Card, family: FamilyEntry, base: Path, teacher: Family, placer: ModelPlacer | None) -> Any:
    student = card.student
    needed = family.needed(student.share)
    if student.network is not None and not student.network.endswith(".safetensors"):
        needed = tuple(name for name in needed if name != family.component)
    source = base if student.source is None else card.path(student.source, needed)
    # A folder with a scheduler alone says how the teacher's network, with the LoRA, is painted with.
    alone = source != base and student.lora is not None and not (source / family.component).is_dir()
    # What sits on the teacher's network has everything else in common with it, too.
    share = student.share or (_common(family, teacher) if student.source is None or alone else ())
    by_tensors, known = card.fingerprints == "content", list[str]()
    if student.lora is None and student.network is None:
        model = _read(placer, family, source, card.text, teacher, share)
        return by_content(model, source, card.family, None, teacher) if by_tensors else model
    folder = (base if alone else source) / family.component
    # Adapters without a network of their own sit beside the teacher's weights, where both can be the same tensors.
    beside = student.network is None and (student.source is None or alone) and (placer is None or placer.shares)
    config, load, print_ = _network(card, family, folder)
    file = None if student.lora is None else card.path(student.lora)
    if file is not None:
        check_lora(file)
        print_ = fused_fingerprint(print_, file, student.lora_scale)

    def read() -> Any:
        network = in_memory(teacher.network) if beside else load()
        if file is not None:
            if by_tensors and not beside:
                # Of base and adapters, as of a network whose adapters aren't fused.
                adapters = read_lora(file, family.component, student.lora_scale)
                known.append(with_lora(content_fingerprint(network), adapters))
            network = (adapted if beside else fuse_lora)(network, file, student.lora_scale)
        # Fused weights and those of a file are contiguous ones; the teacher's own are left as they are.
        return network.to(memory_format=torch.channels_last) if family.component == "unet" and not beside else network

    network = read() if placer is None else placer.waiting(config, read)
    model = family.load(source, card.text, teacher, share, network)
    model = model.with_network(network, {**model.fingerprints, family.component: print_})
    return by_content(model, source, card.family, known[0] if known else None, teacher) if by_tensors else model


def _network(card: Card, family: FamilyEntry, folder: Path) -> tuple[Path, Callable[[], Any], str]:
    """Where the config of the student's network is, what reads it, and its fingerprint; `folder`: its source's network."""
    place = folder if card.student.network is None else card.path(card.student.network)
    if place == folder or place.is_dir():
        read_json(place / "config.json")
        weight_files(place)
        return place, partial(family.load_network, place), fingerprint(place)
    check_weights(place)
    print_ = fused_fingerprint((folder / "config.json").read_text(encoding="utf-8"), place)
    return folder, partial(load_weights, folder, place), print_


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
