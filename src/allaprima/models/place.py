"""A card's models put where a placement says: stand-ins for their networks, everything else as it is."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.backends.backend import make_backend
from allaprima.models.backends.stand_in import Compiled, CompiledAutoencoder
from allaprima.models.backends.store import Store, default_cache
from allaprima.models.card import Card
from allaprima.models.draft_vae import TwoAutoencoders, with_draft_vae
from allaprima.models.families.family import Family
from allaprima.models.families.registry import FAMILIES
from allaprima.models.load import CLASSES, fingerprint, read_json, weight_files
from allaprima.models.lora import attach_lora, fuse_lora, fused_fingerprint, switch_lora
from allaprima.models.multi_student import MultiStudent, load_multi_student
from allaprima.models.placed import OneAtATime, Placed, PlacedAutoencoder, dtype_of, prepared
from allaprima.models.placement import DTYPES, Placement


def config_of(folder: Path) -> Any:
    """A network's config with its class's defaults, without its weights. Raises `ModelError` for a broken folder."""
    weight_files(folder)
    raw = read_json(folder / "config.json")
    name = str(raw.get("_class_name"))
    if name not in CLASSES:
        raise ModelError(f"{folder / 'config.json'} names the class {name!r}: {', '.join(CLASSES)} can be loaded.")
    cls = getattr(importlib.import_module(CLASSES[name]), name)
    with torch.device("meta"):
        return cls.from_config(raw).config


class Placer:
    """Makes stand-ins; of what student and teacher share it makes one."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement.resolved()
        self._room = OneAtATime() if self.placement.offload == "model" else None
        self._made: dict[tuple[int, str], Any] = {}

    @cached_property
    def store(self) -> Store:
        """Of compiled graphs."""
        return Store(make_backend(self.placement.backend), self.placement.cache or default_cache())

    @cached_property
    def signature(self) -> str:
        """The placement's."""
        return self.placement.signature

    @property
    def compiles(self) -> bool:
        """Whether a backend other than torch runs the networks."""
        return self.placement.backend != "eager"

    @property
    def elsewhere(self) -> bool:
        """Whether the parts beside the diffusion networks need stand-ins."""
        return self.compiles or self.placement.device != "cpu" or self.placement.dtype != "float32"

    def network(self, load: Callable[[], Any], config: Any, print_: str, teacher: bool, name: str = "network") -> Any:
        """A stand-in for a diffusion network, or a ControlNet; `load` reads it, at once unless it can wait."""
        p = self.placement
        if self.compiles:
            return Compiled(name, print_, load, self.store, config)
        device = p.device_of(teacher)
        placed = Placed(
            lambda: prepared(load(), name, device, p, self._room), config, device, DTYPES[p.dtype], None, self._room
        )
        if not (teacher and p.lazy_teacher):
            _ = placed.held
        return placed

    def shared_base(self, network: Any) -> tuple[Placed, Placed]:
        """Stand-ins for a network with adapters attached: with them, and without."""
        p = self.placement
        device = p.device_of(False)
        held = prepared(network, "network", device, p, self._room)

        def before(on: bool, called: Any) -> None:
            switch_lora(network, on)
            if self._room is not None:
                self._room(called)

        with_, without = (
            Placed(lambda: held, network.config, device, DTYPES[p.dtype], None, partial(before, on)) for on in (True, False)
        )
        _ = with_.held, without.held
        return with_, without

    def part(self, module: Any, name: str, print_: str) -> Any:
        """A text encoder or an autoencoder, or what stands for it."""
        if module is None or (not self.elsewhere and name != "vae"):
            return module
        if isinstance(module, TwoAutoencoders):
            return TwoAutoencoders(self.part(module.full, name, print_), self.part(module.draft, name, f"{print_}.draft"))
        key = id(module), print_
        if key not in self._made:
            self._made[key] = self._stand_in(module, name, print_)
        return self._made[key]

    def _stand_in(self, module: Any, name: str, print_: str) -> Any:
        if self.compiles:
            if name == "vae":
                return CompiledAutoencoder(module, name, print_, self.store)
            return Compiled(name, print_, lambda: module, self.store, module.config, whole_rows=True)
        p, device = self.placement, torch.device(self.placement.device)
        held, dtype = prepared(module, name, device, p, self._room), dtype_of(module, p)
        if not self.elsewhere:
            return held
        if name == "vae":
            return PlacedAutoencoder(held, device, dtype, self._room)
        return Placed(lambda: held, held.config, device, dtype, None, self._room)

    def model(self, model: Any, network: Any) -> Any:
        """A model with `network` and its other parts where they should be, and the placement in its fingerprint."""
        parts = {
            f.name: self.part(getattr(model, f.name), f.name, model.fingerprints.get(f.name, ""))
            for f in dataclasses.fields(model)
            if f.name == "vae" or f.name.startswith("text_encoder")
        }
        return dataclasses.replace(
            model, **parts, **{model.component: network}, fingerprints=self.signed(model.fingerprints)
        )

    def signed(self, prints: Any) -> dict[str, str]:
        """Fingerprints with the placement's, unless it changes no bit."""
        signature = self.signature
        return {**prints, **({} if signature == Placement().signature else {"backend": signature})}

    def method(self, module: Any, name: str | None, print_: str) -> Callable[..., Any]:
        """An oracle's network, or one of its methods: `oracles` say what theirs are."""
        if self.compiles:
            return Compiled("oracle", print_, lambda: module, self.store, None, name)
        p, device = self.placement, torch.device(self.placement.device)
        dtype = DTYPES[p.dtype]
        held = module.to(device, dtype)
        return Placed(lambda: held, None, device, dtype, None if name is None else lambda m, *a: getattr(m, name)(*a))


def load_placed(card: Card, placer: Placer) -> tuple[Family | MultiStudent, Family]:
    """Student and teacher of a card that `models.pair` found in order. Raises `ModelError`, `SettingError`."""
    entry, source = FAMILIES[card.family], card.path(card.teacher.source or "")
    p, side = placer.placement, card.student
    bare = _bare(card, source)
    if p.share_base:
        return _on_one_base(card, placer, bare, source)
    load = partial(entry.load_network, source / entry.component)
    teacher = placer.model(bare, placer.network(load, bare.network.config, bare.fingerprints[entry.component], True))
    if side.students:
        folders, partition = [card.path(f) for f in side.students], card.path(side.partition or "")
        several = load_multi_student(folders, partition, card.text, bare, side.share, side.resident, card.family)
        return _several(placer, with_draft_vae(card, several)), teacher
    mine = card.path(side.source or card.teacher.source or "")
    student, base = _bare(card, mine, bare), partial(entry.load_network, mine / entry.component)
    if side.lora is None:
        load = base
    else:
        file = card.path(side.lora)
        load = partial(_fused, base, file, entry.component)
        print_ = fused_fingerprint(student.fingerprints[entry.component], file)
        student = student.with_network(student.network, {**student.fingerprints, entry.component: print_})
    student: Any = with_draft_vae(card, student)
    network = placer.network(load, student.network.config, student.fingerprints[entry.component], False)
    return placer.model(student, network), teacher


def _fused(base: Callable[[], Any], file: Path, component: str) -> Any:
    network = fuse_lora(base(), file)
    # Fusing makes new weights, contiguous ones.
    return network.to(memory_format=torch.channels_last) if component == "unet" else network


def _bare(card: Card, source: Path, teacher: Family | None = None) -> Any:
    """A model whose network is a config and no weights."""
    entry = FAMILIES[card.family]
    folder = source / entry.component
    shell = _Shell(config_of(folder))
    model = entry.load(source, card.text, teacher, () if teacher is None else card.student.share, shell)
    return model.with_network(shell, {**model.fingerprints, entry.component: fingerprint(folder)})


@dataclasses.dataclass(frozen=True)
class _Shell:
    config: Any


def _several(placer: Placer, several: Any) -> MultiStudent:
    name = several.shell.component

    def change(number: int, load: Callable[[], Any]) -> Any:
        network = load()
        return placer.network(lambda: network, network.config, several.fingerprints[f"{name}.{number}"], False)

    shell = placer.model(several.shell, several.shell.network)
    return dataclasses.replace(several, shell=shell, networks=several.networks.through(change))


def _on_one_base(card: Card, placer: Placer, bare: Any, source: Path) -> tuple[Family, Family]:
    entry, side = FAMILIES[card.family], card.student
    mine = card.path(side.source or card.teacher.source or "")
    if side.lora is None or mine.resolve() != source.resolve():
        raise SettingError(
            f"share_base: the student of card {card.name!r} is no LoRA on the teacher's own network, so they have no base in"
            " common. Leave share_base out."
        )
    file = card.path(side.lora)
    network = attach_lora(entry.load_network(source / entry.component), file)
    painting, teaching = placer.shared_base(network)
    teacher = placer.model(bare, teaching)
    prints = {**bare.fingerprints, entry.component: fused_fingerprint(bare.fingerprints[entry.component], file)}
    student: Any = with_draft_vae(card, bare.with_network(bare.network, prints))
    return placer.model(student, painting), teacher
