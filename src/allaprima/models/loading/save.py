"""Models into one folder that a card can name: `teacher/`, `student/`, `oracle/`, `controls/`; what is shared, once.

Copied file by file where models were read from a card (their bytes, and so their fingerprints, stay), written anew where
they are diffusers' pipelines in memory. Each function returns what the card says of the place, relative to it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file

from allaprima.core.errors import ModelError
from allaprima.core.files import fingerprint
from allaprima.models.cards.card import Card, ModelSource
from allaprima.models.components.fingerprints import network_fingerprint, same
from allaprima.models.components.loading import CLASSES
from allaprima.models.components.lora import lora_layers, save_lora
from allaprima.models.families.registry import FAMILIES
from allaprima.models.families.sdxl_refiner import SHARED
from allaprima.models.loading.from_pipelines import family_of, index_of

KEPT = (".safetensors", ".json", ".txt", ".model", ".csv", ".yaml", ".jinja")
"""Endings of the files that are copied: weights, configs, vocabularies, chat templates; never a pickle."""


def copy_folder(source: Path, to: Path) -> None:
    """Copy the files of a component. Raises `ModelError` for a folder that isn't there."""
    if not source.is_dir():
        raise ModelError(f"{source} is not a folder any more: what was loaded from it can't be saved. Put it back.")
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in KEPT:
            shutil.copyfile(path, to / path.name)


def copy_pair(card: Card, to: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a card's student and teacher are, copied; returns their places as the new card has them."""
    entry, student, place = FAMILIES[card.family], card.student, dict[str, Any]()
    source = card.path(card.teacher.source or "", entry.needed())
    names = ("scheduler", entry.component, *entry.shared)
    _copy_parts(source, to / "teacher", names)
    theirs = _copy_refiner(card, source, to) | _said(card.teacher, "prediction")
    if student.students:
        place["students"] = []
        for k, folder in enumerate(student.students):
            of = card.path(folder, entry.needed(student.share))
            _copy_parts(of, to / "students" / str(k), ("scheduler", entry.component))
            place["students"].append(f"students/{k}")
        partition = card.path(student.partition or "")
        shutil.copyfile(partition, to / "partition.safetensors")
        place |= {"partition": "partition.safetensors"} | (
            {} if student.resident is None else {"resident": student.resident}
        )
        first = card.path(student.students[0], entry.needed(student.share))
        missing = [n for n in entry.shared if n not in student.share and (first / n).is_dir()]
        _copy_parts(first, to / "students" / "0", missing)
        return {**place, "share": list(student.share)}, {"source": "teacher", **theirs}
    mine = source if student.source is None else card.path(student.source, entry.needed(student.share))
    share = list(student.share)
    if student.lora is not None:
        place |= {"lora": _copy_file(card.path(student.lora), to / "student")} | _said(student, "lora_scale")
    if student.network is not None:
        place["network"] = _copy_network(card.path(student.network), to / "student")
    place |= _said(student, "prediction")
    if mine.resolve() == source.resolve():
        # Without a source adapters sit beside the teacher's weights, and a network alone among its parts.
        if student.source is not None or (student.lora is None and student.network is None):
            place["source"] = "teacher"
    else:
        place["source"] = "student"
        own = [n for n in entry.shared if n not in share and (mine / n).is_dir()]
        # Equal to the byte: one copy serves both, under the same fingerprint.
        twice = [n for n in own if _alike(mine / n, source / n)]
        share += twice
        _copy_parts(mine, to / "student", ["scheduler", entry.component, *(n for n in own if n not in twice)])
    return {**place, "share": share}, {"source": "teacher", **theirs}


def _said(source: ModelSource, name: str) -> dict[str, Any]:
    """Return a field that isn't as it is where nobody says anything."""
    return source.model_dump(include={name}, exclude_defaults=True)


def _copy_refiner(card: Card, base: Path, to: Path) -> dict[str, Any]:
    """Return the refiner of a card's teacher, without what is its base's to the byte."""
    if card.teacher.refiner is None:
        return {}
    needed = FAMILIES[card.family].needed()
    folder = card.path(card.teacher.refiner, needed)
    own = [n for n in needed if (folder / n).is_dir() and (n not in SHARED or not _alike(folder / n, base / n))]
    _copy_parts(folder, to / "refiner", own)
    return {"refiner": "refiner", **_said(card.teacher, "refiner_from")}


def _alike(a: Path, b: Path) -> bool:
    return b.is_dir() and fingerprint(a) == fingerprint(b)


def _copy_file(file: Path, to: Path) -> str:
    """One file into a folder of the new card's; returns its place there."""
    to.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, to / file.name)
    return f"{to.name}/{file.name}"


def _copy_network(source: Path, to: Path) -> str:
    """Return a network alone: its folder, or its one file."""
    if not source.is_dir():
        return _copy_file(source, to)
    copy_folder(source, to / "network")
    return f"{to.name}/network"


def _copy_parts(source: Path, to: Path, names: Any) -> None:
    for name in names:
        if (source / name).is_dir():
            copy_folder(source / name, to / name)
    if (source / "model_index.json").is_file():
        to.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / "model_index.json", to / "model_index.json")


def write_pair(student: Any, teacher: Any, to: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two pipelines of one family, written; returns their places as the card has them. Raises `ModelError`."""
    entry = FAMILIES[family_of(teacher) or ""]
    for name in (entry.component, "scheduler", *entry.shared):
        _write(getattr(teacher, name), to / "teacher" / name)
    (to / "teacher" / "model_index.json").write_text(json.dumps(index_of(teacher), indent=2) + "\n", encoding="utf-8")
    place, share, component = dict[str, Any](), list[str](), entry.component
    mine, theirs = getattr(student, component), getattr(teacher, component)
    layers = lora_layers(mine)
    base = mine is theirs or network_fingerprint(mine) == network_fingerprint(theirs)
    scheduler = same(student.scheduler, teacher.scheduler)
    others = [n for n in entry.shared if not same(getattr(student, n), getattr(teacher, n))]
    share = [n for n in entry.shared if n not in others]
    if layers is not None:
        place["lora"] = f"student/{save_lora(mine, to / 'student').name}"
    if not (base and scheduler and not others):
        place["source"] = "student"
        _write(student.scheduler, to / "student" / "scheduler")
        for name in others:
            _write(getattr(student, name), to / "student" / name)
        _write_base(mine, to / "student" / component) if layers is not None else _write(mine, to / "student" / component)
    elif layers is None:
        place["source"] = "teacher"
    return {**place, "share": share}, {"source": "teacher"}


def _write(part: Any, to: Path) -> None:
    if part is None:
        return
    if hasattr(part, "state_dict") and hasattr(part, "parameters"):
        if type(part).__name__ not in CLASSES:
            raise ModelError(f"{to.name} is a {type(part).__name__}, which cards can't name: {', '.join(CLASSES)} they can.")
        # One file's limit is diffusers' own: larger networks are written in shards.
        part.save_pretrained(to, safe_serialization=True) if hasattr(part, "save_config") else part.save_pretrained(to)
    else:
        part.save_pretrained(to)


def _write_base(network: Any, to: Path) -> None:
    """Write a network without the adapters that are on it."""
    network.save_config(to)
    state = {k.replace(".base_layer.", "."): v.contiguous() for k, v in network.state_dict().items() if ".lora_" not in k}
    save_file(state, to / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


def copy_beside(card: Card, to: Path) -> dict[str, Any]:
    """ControlNets and word lists of a card; returns its entries for them."""
    entries: dict[str, Any] = {}
    for name, control in card.controls.items():
        said = control.model_dump(exclude_defaults=True)
        for key, folder in (("source", name), ("student", f"{name}-student")):
            if said.get(key) is not None:
                copy_tree(card.path(said[key]), to / "controls" / folder)
                said[key] = f"controls/{folder}"
        entries.setdefault("controls", {})[name] = said
    for key in ("knows", "keywords"):
        source = getattr(card, key)
        if source is not None:
            shutil.copyfile(card.beside(source), to / f"{key}.txt")
            entries[key] = f"{key}.txt"
    if card.styles:
        entries["styles"] = list(card.styles)
    return entries


def copy_tree(source: Path, to: Path) -> None:
    """Copy a folder and those below it, as `copy_folder` does."""
    copy_folder(source, to)
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        copy_tree(folder, to / folder.name)


class _ByHand(yaml.SafeDumper):
    """Mappings in blocks, lists of words on one line, as people write cards."""

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is written as a reference."""
        return True


_ByHand.add_representer(list, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))
_ByHand.add_representer(tuple, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", list(v), flow_style=True))


def card_text(raw: dict[str, Any]) -> str:
    """Return a card as YAML, fields in the order given."""
    return yaml.dump(raw, Dumper=_ByHand, sort_keys=False, allow_unicode=True, width=120)


def put_in_place(made: Path, folder: Path) -> None:
    """Move what was written beside to where it belongs; of what is there, only entries of the same name are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(made.iterdir()):
        there = folder / path.name
        if there.is_dir():
            shutil.rmtree(there)
        shutil.move(path, there)
