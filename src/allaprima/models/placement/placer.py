"""A card's models put where a placement says: stand-ins for their networks, everything else as it is."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import SettingError
from allaprima.models.adapters.tiny_vae import TinyVAE
from allaprima.models.backends.backend import make_backend
from allaprima.models.backends.stand_in import Compiled, CompiledAutoencoder
from allaprima.models.backends.store import GraphStore, default_cache
from allaprima.models.components.loading import CLASSES, class_of, read_json
from allaprima.models.families.sdxl_refiner import BaseRefinerEnsemble
from allaprima.models.multi_student.model import MultiStudent
from allaprima.models.placement.device_config import DTYPES, DeviceConfig
from allaprima.models.placement.offloaded import (
    OffloadedAutoencoder,
    OffloadedModule,
    OneAtATime,
    dtype_of,
    prepared,
)

COMPILED = ("sd", "sdxl", "sd3", "flux")
"""Families whose networks compilers are known to take."""


def config_of(folder: Path) -> tuple[Any, Any]:
    """Return a network's class, and its config with the class's defaults, without its weights. Raises `ModelError`."""
    raw = read_json(folder / "config.json")
    name = class_of(raw, folder / "config.json")
    cls = getattr(importlib.import_module(CLASSES[name]), name)
    with torch.device("meta"):
        return cls, cls.from_config(raw).config


@dataclasses.dataclass(frozen=True)
class LazyModule:
    """What stands for a network that isn't read yet: its class and config say all that models ask of it meanwhile."""

    kind: Any
    config: Any
    read: Callable[[], Any]

    @classmethod
    def of(cls, network: Any) -> LazyModule:
        """For one that is in memory."""
        return cls(type(network), network.config, lambda: network)


def in_memory(network: Any) -> Any:
    """Return the network itself, read now if it waits."""
    return network.read() if isinstance(network, LazyModule) else network


class ModelPlacer:
    """Makes stand-ins; of what student and teacher share it makes one."""

    def __init__(self, device_config: DeviceConfig) -> None:
        self.device_config = device_config.resolved()
        self._room = OneAtATime() if self.device_config.offload == "model" else None
        self._made: dict[tuple[int, str], Any] = {}
        self._models: dict[int, tuple[Any, Any]] = {}

    @cached_property
    def store(self) -> GraphStore:
        """Of compiled graphs."""
        return GraphStore(
            make_backend(self.device_config.backend, self.device_config.dtype), self.device_config.cache or default_cache()
        )

    @cached_property
    def signature(self) -> str:
        """The placement's."""
        return self.device_config.signature

    @property
    def compiles(self) -> bool:
        """Whether a backend other than torch runs the networks."""
        return self.device_config.backend != "eager"

    @property
    def elsewhere(self) -> bool:
        """Whether the parts beside the diffusion networks need stand-ins."""
        return self.compiles or self.device_config.device != "cpu" or self.device_config.dtype != "float32"

    @property
    def shares(self) -> bool:
        """Whether a student's adapters can sit beside the teacher's own weights: graphs hold their own, devices too."""
        p = self.device_config
        return not self.compiles and p.device_of(True) == p.device_of(False)

    def check(self, family: str, refiner: bool = False) -> None:
        """Raise `SettingError` for what can't be placed so."""
        if not self.compiles:
            return
        what = None if family in COMPILED else f"the family {family!r}"
        what = "SDXL's refiner" if refiner else what
        if what is not None:
            raise SettingError(
                f"backend={self.device_config.backend!r} isn't known to run {what}: models of {', '.join(COMPILED)} are."
                " Leave it out for torch; device and dtype can be said of it."
            )

    def waiting(self, folder: Path, read: Callable[[], Any]) -> LazyModule:
        """For a network whose config is in `folder`. Once read it is kept; a compiler reads it again for a new graph."""
        return LazyModule(*config_of(folder), read if self.compiles else cache(read))

    def pair(self, student: Any, teacher: Any) -> tuple[Any, Any]:
        """Both where they should be.

        The student first: its adapters sit beside weights that were read and are nowhere yet.
        """
        mine = self.model(student, False)
        return mine, self.model(teacher, True)

    def network(self, network: LazyModule, print_: str, teacher: bool, name: str = "network") -> Any:
        """Return a stand-in for a diffusion network, or a ControlNet, which is read at once unless it can wait."""
        p = self.device_config
        if self.compiles:
            made: Any = Compiled(name, print_, network.read, self.store, network.config)
            made.kind = network.kind
            return made
        device = p.device_of(teacher)
        made = OffloadedModule(
            lambda: prepared(network.read(), name, device, p, self._room), network.config, device, DTYPES[p.dtype], None,
            self._room,
        )  # fmt: skip
        made.kind = network.kind
        if not (teacher and p.lazy_teacher):
            _ = made.held
        return made

    def part(self, module: Any, name: str, print_: str) -> Any:
        """Return a text encoder or an autoencoder, or what stands for it."""
        if module is None or (not self.elsewhere and name != "vae"):
            return module
        if isinstance(module, TinyVAE):
            return TinyVAE(self.part(module.full, name, print_), self.part(module.draft, name, f"{print_}.draft"))
        key = id(module), print_
        if key not in self._made:
            self._made[key] = self._stand_in(module, name, print_)
        return self._made[key]

    def _stand_in(self, module: Any, name: str, print_: str) -> Any:
        if self.compiles:
            if name == "vae":
                return CompiledAutoencoder(module, name, print_, self.store)
            return Compiled(name, print_, lambda: module, self.store, module.config, whole_rows=True)
        p, device = self.device_config, torch.device(self.device_config.device)
        held, dtype = prepared(module, name, device, p, self._room), dtype_of(module, p)
        if not self.elsewhere:
            return held
        if name == "vae":
            return OffloadedAutoencoder(held, device, dtype, self._room)
        return OffloadedModule(lambda: held, held.config, device, dtype, None, self._room)

    def model(self, model: Any, teacher: bool) -> Any:
        """Return a model with its networks and its other parts where they should be,
        and the placement in its fingerprints."""
        if id(model) not in self._models:
            # The model is kept: another could have its id.
            self._models[id(model)] = model, self._model(model, teacher)
        return self._models[id(model)][1]

    def _model(self, model: Any, teacher: bool) -> Any:
        if isinstance(model, BaseRefinerEnsemble):
            base, refiner = self.model(model.base, teacher), self.model(model.refiner, teacher)
            return dataclasses.replace(model, base=base, refiner=refiner)
        if isinstance(model, MultiStudent):
            return self._several(model)
        changed: dict[str, Any] = {}
        if isinstance(model.network, LazyModule):
            print_ = model.fingerprints[model.component]
            changed[model.component] = self.network(model.network, print_, teacher)
        for f in dataclasses.fields(model):
            if f.name == "vae" or f.name.startswith("text_encoder"):
                changed[f.name] = self.part(getattr(model, f.name), f.name, model.fingerprints.get(f.name, ""))
        # A student of a refiner's has it for its prompts.
        if getattr(model, "also", None) is not None:
            changed["also"] = self.model(model.also, True)
        return dataclasses.replace(model, **changed, fingerprints=self.signed(model.fingerprints))

    def _several(self, several: MultiStudent) -> MultiStudent:
        name, prints = several.shell.component, several.fingerprints

        def change(number: int, load: Callable[[], Any]) -> Any:
            return self.network(LazyModule.of(load()), prints[f"{name}.{number}"], False)

        return dataclasses.replace(
            several, shell=self.model(several.shell, False), networks=several.networks.through(change)
        )

    def signed(self, prints: Any) -> dict[str, str]:
        """Fingerprints with the placement's, unless it changes no bit."""
        signature = self.signature
        return {**prints, **({} if signature == DeviceConfig().signature else {"backend": signature})}

    def method(self, module: Any, name: str | None, print_: str) -> Callable[..., Any]:
        """Return an oracle's network, or one of its methods: `oracles` say what theirs are."""
        if self.compiles:
            return Compiled("oracle", print_, lambda: module, self.store, None, name)
        p, device = self.device_config, torch.device(self.device_config.device)
        dtype = DTYPES[p.dtype]
        held = module.to(device, dtype)
        return OffloadedModule(
            lambda: held, None, device, dtype, None if name is None else lambda m, *a: getattr(m, name)(*a)
        )
