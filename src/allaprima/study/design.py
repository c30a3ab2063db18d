"""Which pairs are shown, in what order, on which sides, and how often: all of it drawn from one seed, before anybody votes.

A pair's k votes are k slots. Slots lie pair by pair, so that wherever a study is stopped, all but the last few pairs have
all of their votes. The sides of a pair's slots alternate from a random first one, so that every pair is shown both ways.
Pairs that teach or test (`training`, `qualification`, `gold`) have an answer that is known, and every annotator sees each.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from allaprima.core.errors import SettingError
from allaprima.data.pictures import Entry, PictureSet

Kind = Literal["study", "gold", "training", "qualification"]
KNOWN: tuple[Kind, ...] = ("training", "qualification", "gold")
"""Kinds with a known answer, in the order in which they come."""
Side = Literal["a", "b"]


@dataclass(frozen=True)
class ImagePair:
    """Two pictures of a prompt. `expected`: answers that are known, by question; empty for a study's own pairs."""

    kind: Kind
    prompt: str
    seed: int | None
    methods: tuple[str, str]
    pictures: tuple[Path, Path]
    expected: Mapping[str, str] = field(default_factory=dict[str, str])
    why: str = ""
    """What training says about the answer."""
    distance: float | None = None
    band: int | None = None
    """Which fifth of the study's distances the pair lies in, 0 the most alike; None without distances."""


@dataclass(frozen=True)
class VoteSlot:
    """One vote that is wanted: the pair's place in the list, and which of its pictures stands on the left."""

    pair: int
    left: Side


@dataclass(frozen=True)
class Rules:
    """How a study runs. Raises `SettingError` for values out of range."""

    votes: int = 3
    gold_every: int = 10
    """An attention check after so many votes; 0 is none."""
    pass_share: float = 0.75
    """Of the qualification's expected answers that must be right."""
    lease_minutes: float = 30.0
    """A pair that was handed out and not voted on goes to somebody else after so long."""
    stop_alpha: float | None = None
    """Stop when the preference is known at this error rate, however often one looks; None: never early."""

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise SettingError(f"votes={self.votes}: 1 or more a pair are due, 3 for a majority.")
        if self.gold_every < 0:
            raise SettingError(f"gold_every={self.gold_every}: 0 (none) or more is due.")
        if not 0 <= self.pass_share <= 1:
            raise SettingError(f"pass_share={self.pass_share}: a share in [0, 1] is due.")
        if not self.lease_minutes > 0:
            raise SettingError(f"lease_minutes={self.lease_minutes}: above 0 is due.")
        if self.stop_alpha is not None and not 0 < self.stop_alpha < 1:
            raise SettingError(f"stop_alpha={self.stop_alpha}: an error rate between 0 and 1 is due, for example 0.05.")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


def matched(sets: Mapping[str, PictureSet], limit: int | None, seed: int) -> list[ImagePair]:
    """Every two methods' pictures of one prompt and seed, in a random order; at most `limit`, spread evenly over them.

    Raises `SettingError` for fewer than two sets, sets without prompts and seeds, or none in common.
    """
    if len(sets) < 2:
        raise SettingError(f"{len(sets)} folder: two or more are compared. Name another one.")
    found = {name: _by_key(s) for name, s in sets.items()}
    rng = np.random.default_rng([seed, 1])
    groups: list[list[ImagePair]] = []
    for a, b in itertools.combinations(sets, 2):
        common = [k for k in found[a] if k in found[b]]
        if not common:
            raise SettingError(
                f"{sets[a].name} and {sets[b].name} have no prompt and seed in common: paint both with the same prompts"
                " and --seed."
            )
        made = [_pair("study", (found[a][k], found[b][k]), (a, b)) for k in common]
        groups.append([made[i] for i in rng.permutation(len(made))])
    return _mixed(groups, limit, rng)


def alike(sets: Mapping[str, PictureSet], limit: int | None, seed: int) -> list[ImagePair]:
    """For the diversity questions: two pictures of one method and prompt, of different seeds, each picture once.

    Raises `SettingError` where a method has no prompt with two pictures.
    """
    rng = np.random.default_rng([seed, 1])
    groups: list[list[ImagePair]] = []
    for name, pictures in sets.items():
        by_prompt: dict[str, list[Entry]] = {}
        for key, entry in _by_key(pictures).items():
            by_prompt.setdefault(str(key[0]), []).append(entry)
        made = [
            _pair("study", (entries[i], entries[i + 1]), (name, name))
            for entries in by_prompt.values()
            for i in range(0, len(entries) - 1, 2)
        ]
        if not made:
            raise SettingError(f"{pictures.name} has no two pictures of a prompt: paint with --images-per-prompt 2.")
        groups.append([made[i] for i in rng.permutation(len(made))])
    return _mixed(groups, limit, rng)


def _by_key(pictures: PictureSet) -> dict[tuple[Any, ...], Entry]:
    if not pictures.seeded:
        raise SettingError(
            f"{pictures.name} does not say prompts and seeds: a folder of `allaprima generate` (with results.jsonl) is due."
        )
    return dict(zip(pictures.keys(True), pictures.entries, strict=True))


def _pair(kind: Kind, entries: tuple[Entry, Entry], methods: tuple[str, str]) -> ImagePair:
    return ImagePair(kind, entries[0].prompt or "", entries[0].seed, methods, (entries[0].path, entries[1].path))


def _mixed(groups: Sequence[Sequence[ImagePair]], limit: int | None, rng: np.random.Generator) -> list[ImagePair]:
    """One of each group in turn, so that any beginning of the list has about as many of each; which comes first is drawn."""
    if limit is not None and limit < 1:
        raise SettingError(f"pairs={limit}: 1 or more is due.")
    rounds = itertools.zip_longest(*groups)
    turned = [[row[i] for i in rng.permutation(len(row)) if row[i] is not None] for row in rounds]
    return [p for row in turned for p in row][:limit]


def slots_of(pairs: Sequence[ImagePair], votes: int, seed: int) -> list[VoteSlot]:
    """`votes` slots a pair, pair by pair. Sides of a pair alternate; over all pairs, lefts differ by one at most."""
    rng = np.random.default_rng([seed, 2])
    first = np.arange(len(pairs)) % 2
    rng.shuffle(first)
    return [VoteSlot(i, "a" if (first[i] + copy) % 2 == 0 else "b") for i in range(len(pairs)) for copy in range(votes)]


def with_bands(pairs: Sequence[ImagePair], distances: Sequence[float | None]) -> list[ImagePair]:
    """Pairs with their distances, and the fifth of all known distances that each lies in."""
    known = np.sort([d for d in distances if d is not None])
    if not len(known):
        return list(pairs)

    def band(d: float | None) -> int | None:
        return None if d is None else min(4, int(5 * np.searchsorted(known, d, side="left") / len(known)))

    return [replace(p, distance=d, band=band(d)) for p, d in zip(pairs, distances, strict=True)]
