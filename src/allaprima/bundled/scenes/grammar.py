"""The captions of scenes: what they mean, how they are written, and which are kept for testing.

A caption is made of one to three groups of alike objects, `two red circles`, and perhaps a relation between two groups,
`two red circles left of a blue star`. Its kind is one of GenEval's (arXiv 2310.11513): single, two, count, bind (two
coloured objects), position, and two harder ones, three and combo (counts with a second group or a relation).

`Scene.caption()` writes a caption as the models know it; `allaprima.bundled.scenes.reading` understands other phrasings.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from allaprima.bundled.scenes.geometry import COLOUR_NAMES, SHAPES

KINDS = ("single", "two", "count", "bind", "position", "three", "combo")
SHARES = (0.06, 0.06, 0.18, 0.14, 0.28, 0.12, 0.16)
"""Shares of the kinds among training captions."""
RELATION_SHARES = (0.02, 0.02, 0.06, 0.05, 0.55, 0.05, 0.25)
"""Shares in the stages of a training that are to teach relations."""
RELATIONS: dict[str, tuple[int, int]] = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Direction `(x, y)`, `y` growing downwards, in which each object of the first group lies from each of the second."""
EVEN, FIRST = (1.0, 1.0, 1.0, 1.0), (0.45, 0.05, 0.45, 0.05)
"""Weights of the relations; the second are nearly always those in which the first group is to the left or above."""
MIXTURES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "all": (SHARES, EVEN),
    "relations": (RELATION_SHARES, EVEN),
    "first": (RELATION_SHARES, FIRST),
}
"""Shares of the kinds and weights of the relations, by the stage of a training.

In the usual mixture relations are not learned in 900,000 samples: which side an object is on depends on the relation and on
its place in the caption together, and neither alone says anything. In the other two, groups in a relation lie at opposite
sides of the grid (`renderer.draw_layout`), where a relation says most about where objects are; in `first` the place in the
caption alone says nearly as much.
"""
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
MOST_OBJECTS = 4
MOST_GROUPS = 3
UNSEEN_PAIRS = frozenset(
    {
        ("yellow", "circle"),
        ("purple", "square"),
        ("green", "triangle"),
        ("blue", "star"),
        ("red", "cross"),
        ("black", "heart"),
    }
)
"""Combinations of colour and shape that no training picture shows."""
PAIRS = tuple((colour, shape) for shape in SHAPES for colour in COLOUR_NAMES)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in UNSEEN_PAIRS)
COLOURLESS = 0.12
"""Share of the groups of count, position, three and combo captions that name no colour."""
ALIKE = 0.2
"""Share of captions with several groups where two of them may have a shape or a colour in common."""


@dataclass(frozen=True)
class Group:
    """Objects that a caption describes alike.

    Args:
        count: How many, 1 to `MOST_OBJECTS`.
        colour: One of `COLOUR_NAMES`; None where the caption leaves it open.
        shape: One of `SHAPES`.
    """

    count: int
    colour: str | None
    shape: str

    def text(self) -> str:
        """Return the group in words, such as `two red circles`."""
        noun = self.shape if self.count == 1 else PLURALS[self.shape]
        number = "an" if self.count == 1 and (self.colour or noun)[0] in "aeiou" else NUMBERS[self.count]
        return " ".join(word for word in (number, self.colour, noun) if word)

    def overlaps(self, other: Group) -> bool:
        """Return whether one object could belong to both groups."""
        open_colour = self.colour is None or other.colour is None or self.colour == other.colour
        return self.shape == other.shape and open_colour


@dataclass(frozen=True)
class Scene:
    """What a caption asks for: these objects and no others, in this relation.

    Args:
        groups: One to `MOST_GROUPS` groups that don't overlap, `MOST_OBJECTS` objects together at most.
        relation: One of `RELATIONS`, between the objects of two groups; None for anywhere.
    """

    groups: tuple[Group, ...]
    relation: str | None = None

    def caption(self) -> str:
        """Return the caption as the models know it."""
        texts = [group.text() for group in self.groups]
        if self.relation is not None:
            return f"{texts[0]} {self.relation} {texts[1]}"
        return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        counts = [group.count for group in self.groups]
        if len(counts) == 1:
            return "single" if counts == [1] else "count"
        if len(counts) == 3:
            return "three"
        if max(counts) > 1:
            return "combo"
        if self.relation is not None:
            return "position"
        return "two" if all(group.colour is None for group in self.groups) else "bind"

    @property
    def objects(self) -> int:
        """How many objects the scene shows."""
        return sum(group.count for group in self.groups)

    @property
    def has_unseen_pair(self) -> bool:
        """Whether a group has a colour and shape that no training picture shows."""
        return any((group.colour, group.shape) in UNSEEN_PAIRS for group in self.groups)

    @property
    def is_held_out(self) -> bool:
        """Whether the caption belongs to the tenth of bind, position, three and combo captions kept for testing."""
        if self.kind in ("single", "two", "count"):
            return False
        return int(hashlib.md5(self.caption().encode(), usedforsecurity=False).hexdigest(), 16) % 10 == 0

    def is_well_formed(self) -> bool:
        """Return whether the scene keeps the rules of its class."""
        clear = not any(a.overlaps(b) for a, b in combinations(self.groups, 2))
        fits = 1 <= len(self.groups) <= MOST_GROUPS and 1 <= self.objects <= MOST_OBJECTS
        return clear and fits and (self.relation is None or len(self.groups) == 2)


def _pairs(rng: random.Random, count: int, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Draw combinations of colour and shape for one caption; most captions use each colour and shape once."""
    alike = rng.random() < ALIKE
    while True:
        drawn = rng.sample(pairs, count)
        if alike or (len({c for c, _ in drawn}) == count and len({s for _, s in drawn}) == count):
            return drawn


def draw_scene(
    rng: random.Random,
    kind: str | None = None,
    pairs: Sequence[tuple[str, str]] = SEEN_PAIRS,
    mixture: str = "all",
) -> Scene:
    """Draw a scene.

    Args:
        rng: Source of randomness.
        kind: One of `KINDS`; by default drawn by the mixture.
        pairs: Combinations of colour and shape to draw from.
        mixture: One of `MIXTURES`.
    """
    shares, relations = MIXTURES[mixture]
    kind = kind or rng.choices(KINDS, shares)[0]
    while True:
        scene = _draw(rng, kind, pairs, relations)
        if scene.is_well_formed() and scene.kind == kind:
            return scene


def _draw(rng: random.Random, kind: str, pairs: Sequence[tuple[str, str]], weights: Sequence[float]) -> Scene:
    if kind == "single":
        return Scene((Group(1, *rng.choice(pairs)),))
    if kind == "two":
        return Scene(tuple(Group(1, None, shape) for shape in rng.sample(SHAPES, 2)))
    counts: Sequence[int] = {"count": (rng.choice((2, 3, 4)),), "bind": (1, 1), "position": (1, 1)}.get(kind, (1, 1, 1))
    relation = rng.choices(tuple(RELATIONS), weights)[0] if kind == "position" else None
    if kind == "three" and rng.random() < 0.15:
        counts = rng.choice(((2, 1, 1), (1, 2, 1), (1, 1, 2)))
    if kind == "combo":
        counts = rng.choice(((2, 1), (1, 2), (2, 2), (3, 1), (1, 3)))
        relation = rng.choices((*RELATIONS, None), (*weights, sum(weights) / 4))[0]
    groups = [Group(n, colour, shape) for n, (colour, shape) in zip(counts, _pairs(rng, len(counts), pairs), strict=True)]
    if kind != "bind":
        groups = [replace(g, colour=None) if rng.random() < COLOURLESS else g for g in groups]
    return Scene(tuple(groups), relation)


def draw_training_scene(rng: random.Random, kind: str | None = None, mixture: str = "all") -> Scene:
    """Draw a scene whose caption may be trained on: no unseen pair, not held out."""
    while True:
        scene = draw_scene(rng, kind, mixture=mixture)
        if not scene.is_held_out:
            return scene


def draw_test_scene(rng: random.Random, kind: str, unseen_pair: bool) -> Scene:
    """Draw a scene for testing.

    Args:
        rng: Source of randomness.
        kind: One of `KINDS`.
        unseen_pair: True asks for a colour and shape that training never shows together. Else captions of bind, position,
            three and combo are held-out ones; those of single, two and count are too few to hold out.
    """
    while True:
        scene = draw_scene(rng, kind, PAIRS)
        if kind == "two":
            return scene
        if scene.has_unseen_pair == unseen_pair and (unseen_pair or kind in ("single", "count") or scene.is_held_out):
            return scene


def held_out_scenes(count: int, seed: int = 0, unseen_share: float = 0.25) -> list[Scene]:
    """Return different test scenes, the kinds in turn; the same for the same arguments.

    Args:
        count: How many.
        seed: Another seed gives other scenes.
        unseen_share: Share of them with an unseen pair of colour and shape.
    """
    rng, found, repeats = random.Random(f"held out {seed}"), dict[str, Scene](), 0
    while len(found) < count:
        kind = KINDS[len(found) % len(KINDS)]
        scene = draw_test_scene(rng, kind, rng.random() < unseen_share)
        # "single" and "two" know a few dozen captions: where they run out, captions repeat under other seeds.
        repeats = repeats + 1 if scene.caption() in found else 0
        key = scene.caption() if repeats < 100 else f"{scene.caption()} #{len(found)}"
        found.setdefault(key, scene)
    return list(found.values())


def altered(scene: Scene, rng: random.Random) -> Scene | None:
    """Return a scene that differs in one thing: colour, shape, count, relation, or colours swapped; None if none was found.

    Args:
        scene: Where to start.
        rng: Source of randomness.
    """
    ways = (
        ["colour", "shape", "count"]
        + ["relation"] * 3 * (scene.relation is not None)
        + ["swap"] * 2 * (len(scene.groups) > 1)
    )
    for _ in range(50):
        other = _altered(scene, rng.choice(ways), rng)
        if other is not None and other != scene and other.is_well_formed():
            return other
    return None


def _altered(scene: Scene, way: str, rng: random.Random) -> Scene | None:
    groups, i = list(scene.groups), rng.randrange(len(scene.groups))
    if way == "relation":
        assert scene.relation is not None
        other = OPPOSITE[scene.relation] if rng.random() < 0.7 else rng.choice(list(RELATIONS))
        return replace(scene, relation=other)
    if way == "swap":
        a, b = rng.sample(range(len(groups)), 2)
        if groups[a].colour == groups[b].colour:
            return None
        groups[a], groups[b] = replace(groups[a], colour=groups[b].colour), replace(groups[b], colour=groups[a].colour)
        if {*groups} == {*scene.groups}:
            return None
    elif way == "colour":
        if groups[i].colour is None:
            return None
        groups[i] = replace(groups[i], colour=rng.choice(COLOUR_NAMES))
    elif way == "shape":
        groups[i] = replace(groups[i], shape=rng.choice(SHAPES))
    else:
        groups[i] = replace(groups[i], count=groups[i].count + rng.choice((-1, 1)))
        if groups[i].count < 1:
            return None
    if {*groups} == {*scene.groups}:
        return None
    return replace(scene, groups=tuple(groups))


def words() -> Iterator[str]:
    """Yield every word of every caption once, in a fixed order."""
    yield from ("a", "an", "two", "three", "four", "and", ",", "left", "right", "of", "above", "below")
    yield from COLOUR_NAMES
    yield from SHAPES
    yield from PLURALS.values()


def benchmark_scenes(count: int = 700) -> list[Scene]:
    """Return the scenes that results are reported on: held out, none of which calibrations or trainings see.

    Captions of single, two and count are too few to hold out.
    """
    return held_out_scenes(count)


def validation_scenes(count: int = 700, apart_from: int = 1400) -> list[Scene]:
    """Return held-out scenes for calibrations: in the kinds that are held out, none of the first test scenes is among them.

    Args:
        count: How many.
        apart_from: How many test scenes they are kept apart from.
    """
    taken = {scene.caption() for scene in benchmark_scenes(apart_from) if scene.kind not in ("single", "two", "count")}
    found = [scene for scene in held_out_scenes(3 * count, seed=1) if scene.caption() not in taken]
    return list(dict.fromkeys(found))[:count]
