"""Sizes of a card's networks, from configs alone.

Weights: every tensor that is saved, at the dtype's size; what student and teacher share is counted once. Configs that come
with the package were counted beforehand (`cards/configs/sizes.json`; tests/models/test_sizes.py counts again), so that a
table of cards needs neither torch nor diffusers; any other is counted on torch's meta device (`models.components.meta`):
seconds more.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.cards.card import Card
from allaprima.models.cards.components import PARTS
from allaprima.models.cards.configs import config_of, counts, published

BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""By the name of a dtype. Everything is painted in float32 today."""


@dataclass(frozen=True)
class Part:
    """One network of a card."""

    whose: str
    """`student` or `teacher`; of a shared one, the teacher."""
    name: str
    source: str
    parameters: int | None
    """None where its config isn't known here."""
    numbers: int = 0
    """Parameters and saved buffers: what takes memory."""


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found."""

    parts: tuple[Part, ...]
    size: int
    """Bytes a number."""
    network: int | None
    """Bytes of the activations of the larger of both networks; None where they weren't asked for or aren't known."""
    decoder: int | None
    """Bytes of the activations of decoding one picture."""

    @property
    def unknown(self) -> tuple[Part, ...]:
        """Parts whose config isn't here."""
        return tuple(p for p in self.parts if p.parameters is None)

    @property
    def weights(self) -> int:
        """Bytes of all weights that are known."""
        return sum(p.numbers for p in self.parts) * self.size

    @property
    def total(self) -> int:
        """Weights, and the larger of what a network call and a decoding need beside them."""
        return self.weights + max(self.network or 0, self.decoder or 0)


def parts_of(card: Card) -> list[Part]:
    """The networks that a card loads, shared ones once. Raises `ModelError` for a family that isn't known."""
    if card.family not in PARTS:
        raise ModelError(f"card {card.name!r} is of the family {card.family!r}: sizes of {', '.join(PARTS)} are known.")
    family, student = PARTS[card.family], card.student
    base, networks = card.teacher.source or "", (family.component, *(s for s in family.shared if "tokenizer" not in s))
    found = [_part(card, "teacher", base, name) for name in networks]
    if card.teacher.refiner is not None:
        found.append(_part(card, "refiner", card.teacher.refiner, family.component))
    source = student.source or base
    if student.students:
        found += [_part(card, f"student {k}", f, family.component) for k, f in enumerate(student.students)]
    elif student.network is not None and not student.network.endswith(".safetensors"):
        found.append(_part(card, "student", student.network, "", family.component))
    else:
        found.append(_part(card, "student", source, family.component))
    others = [name for name in networks[1:] if name not in student.share]
    return [p for p in (*found, *(_part(card, "student", source, name) for name in others)) if p is not None]


def _part(card: Card, whose: str, source: str, component: str, name: str | None = None) -> Part | None:
    # A published model is as large as its bundled config says; its own, where it is here, would have to be counted.
    config = published(card, source, component)
    config = config_of(card, source, component) if config is None else config
    if config is None:
        return Part(whose, name or component, source, None)
    if not config:
        return None
    return Part(whose, name or component, source, *counted(as_text(config)))


@cache
def counted(config: str) -> tuple[int, int]:
    """Parameters, and saved numbers in all, of a component by its config as JSON."""
    known = counts().get(digest(config))
    # By name: whoever only reads this file's imports should see that torch isn't among them.
    return importlib.import_module("allaprima.models.components.meta").count(json.loads(config)) if known is None else known


def digest(config: str) -> str:
    """What a config is known by in `sizes.json`."""
    return hashlib.sha256(config.encode()).hexdigest()[:16]


def as_text(config: Mapping[str, Any]) -> str:
    """A config as JSON, always the same."""
    return json.dumps(dict(config), sort_keys=True)


def weights_of(card: Card, dtype: str = "float32") -> Estimate:
    """Without activations. Raises `SettingError` for an unknown dtype, `ModelError` for a family that isn't known."""
    if dtype not in BYTES:
        raise SettingError(f"dtype={dtype!r} is not known: {', '.join(BYTES)} are.")
    return Estimate(tuple(parts_of(card)), BYTES[dtype], None, None)
