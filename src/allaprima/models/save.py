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
from allaprima.core.folder import fingerprint
from allaprima.models.card import Card
from allaprima.models.content import network_fingerprint, same
from allaprima.models.families.registry import FAMILIES
from allaprima.models.load import CLASSES
from allaprima.models.lora import lora_layers, save_lora
from allaprima.models.pipelines import family_of, index_of

KEPT = (".safetensors", ".json", ".txt", ".model", ".csv", ".yaml")
"""Endings of the files that are copied: weights, configs, vocabularies; never a pickle."""


def copy_folder(source: Path, to: Path) -> None:
    """The files of a component. Raises `ModelError` for a folder that isn't there."""
    if not source.is_dir():
        raise ModelError(f"{source} is not a folder any more: what was loaded from it can't be saved. Put it back.")
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in KEPT:
            shutil.copyfile(path, to / path.name)


def copy_pair(card: Card, to: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a card's student and teacher are, copied; returns their places as the new card has them."""
    entry, source = FAMILIES[card.family], card.path(card.teacher.source or "")
    names = ("scheduler", entry.component, *entry.shared)
    _copy_parts(source, to / "teacher", names)
    student, place = card.student, dict[str, Any]()
    if student.students:
        place["students"] = []
        for k, folder in enumerate(student.students):
            _copy_parts(card.path(folder), to / "students" / str(k), ("scheduler", entry.component))
            place["students"].append(f"students/{k}")
        partition = card.path(student.partition or "")
        shutil.copyfile(partition, to / "partition.safetensors")
        place |= {"partition": "partition.safetensors"} | (
            {} if student.resident is None else {"resident": student.resident}
        )
        missing = [n for n in entry.shared if n not in student.share and (card.path(student.students[0]) / n).is_dir()]
        _copy_parts(card.path(student.students[0]), to / "students" / "0", missing)
        return {**place, "share": list(student.share)}, {"source": "teacher"}
    mine = card.path(student.source or card.teacher.source or "")
    share = list(student.share)
    if student.lora is not None:
        place["lora"] = f"student/{Path(student.lora).name}"
        (to / "student").mkdir(parents=True)
        shutil.copyfile(card.path(student.lora), to / place["lora"])
    if mine.resolve() == source.resolve():
        if student.lora is None:
            place["source"] = "teacher"
    else:
        place["source"] = "student"
        own = [n for n in entry.shared if n not in share and (mine / n).is_dir()]
        # Equal to the byte: one copy serves both, under the same fingerprint.
        twice = [n for n in own if (source / n).is_dir() and fingerprint(mine / n) == fingerprint(source / n)]
        share += twice
        _copy_parts(mine, to / "student", ["scheduler", entry.component, *(n for n in own if n not in twice)])
    return {**place, "share": share}, {"source": "teacher"}


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
    """A network without the adapters that are on it."""
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
                _copy_tree(card.path(said[key]), to / "controls" / folder)
                said[key] = f"controls/{folder}"
        entries.setdefault("controls", {})[name] = said
    for key in ("knows", "keywords"):
        source = getattr(card, key)
        if source is not None:
            shutil.copyfile(card.path(source), to / f"{key}.txt")
            entries[key] = f"{key}.txt"
    if card.styles:
        entries["styles"] = list(card.styles)
    return entries


def _copy_tree(source: Path, to: Path) -> None:
    copy_folder(source, to)
    for folder in sorted(p for p in source.iterdir() if p.is_dir()):
        _copy_tree(folder, to / folder.name)


class _ByHand(yaml.SafeDumper):
    """Mappings in blocks, lists of words on one line, as people write cards."""

    def ignore_aliases(self, data: Any) -> bool:
        """Nothing is written as a reference."""
        return True


_ByHand.add_representer(list, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))
_ByHand.add_representer(tuple, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", list(v), flow_style=True))


def card_text(raw: dict[str, Any]) -> str:
    """A card as YAML, fields in the order given."""
    return yaml.dump(raw, Dumper=_ByHand, sort_keys=False, allow_unicode=True, width=120)


def put_in_place(made: Path, folder: Path) -> None:
    """Move what was written beside to where it belongs; of what is there, only entries of the same name are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(made.iterdir()):
        there = folder / path.name
        if there.is_dir():
            shutil.rmtree(there)
        shutil.move(path, there)
