"""Drawing of scenes: an endless stream of pictures with captions, each made from its number alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from allaprima.bundled.scenes.geometry import (
    BACKGROUND,
    CELL,
    CELLS,
    COLOUR_NAMES,
    RADII,
    RGB,
    SIDE,
    Floats,
    window_at,
)
from allaprima.bundled.scenes.grammar import RELATIONS, SEEN_PAIRS, UNSEEN_PAIRS, Scene, draw_training_scene

JITTER = (-0.25, 0.0, 0.25)
"""Distances, in pixels, of an object's centre from its cell's."""
_PLACES = [(row, column) for row in range(CELLS) for column in range(CELLS)]
_BORDER = [place for place in _PLACES if not {0, CELLS - 1}.isdisjoint(place)]


@dataclass(frozen=True)
class DrawnObject:
    """An object of a layout; the centre is in pixels from the top left."""

    shape: str
    colour: str
    radius: float
    y: float
    x: float


def draw_layout(scene: Scene, rng: random.Random, apart: bool = False) -> list[DrawnObject]:
    """Place a scene's objects on the grid so that its relation holds by a whole cell.

    Args:
        scene: What to show.
        rng: Source of randomness.
        apart: Whether groups in a relation lie in the first and the last row or column.

    Returns:
        The objects, group by group. A colour the scene leaves open is drawn among those that training shows of the shape.
    """
    owners = [i for i, group in enumerate(scene.groups) for _ in range(group.count)]
    while True:
        places = rng.sample(_BORDER if apart and scene.relation else _PLACES, len(owners))
        if scene.relation is None or _holds(scene.relation, places, owners, CELLS - 1 if apart else 1):
            break
    objects: list[DrawnObject] = []
    for (row, column), owner in zip(places, owners, strict=True):
        group = scene.groups[owner]
        colour = group.colour or rng.choice([c for c in COLOUR_NAMES if (c, group.shape) not in UNSEEN_PAIRS])
        objects.append(_drawn(group.shape, colour, row, column, rng))
    return objects


def _holds(relation: str, places: list[tuple[int, int]], owners: list[int], cells: int) -> bool:
    dx, dy = RELATIONS[relation]
    first = [p for p, owner in zip(places, owners, strict=True) if owner == 0]
    second = [p for p, owner in zip(places, owners, strict=True) if owner == 1]
    return all((a[1] - b[1]) * dx + (a[0] - b[0]) * dy >= cells for a in first for b in second)


def render(objects: list[DrawnObject], brightness: float = 0.0) -> Floats:
    """Draw objects on a plain light background, antialiased.

    Args:
        objects: What to draw.
        brightness: Added to the background, within .03 of 0 in training.

    Returns:
        `(SIDE, SIDE, 3)` in [0, 1].
    """
    image = np.empty((SIDE, SIDE, 3), np.float32)
    image[:] = BACKGROUND + np.float32(brightness)
    for o in objects:
        window, rows, columns = window_at(o.shape, o.radius, o.y, o.x)
        under = image[rows, columns]
        under += window[..., None] * (RGB[COLOUR_NAMES.index(o.colour)] - under)
    return image


def render_scene(scene: Scene, rng: random.Random) -> Floats:
    """Draw one of a scene's many pictures, `(SIDE, SIDE, 3)` in [0, 1]."""
    return render(draw_layout(scene, rng), rng.uniform(-0.03, 0.03))


def crowded_picture(seed: int, index: int) -> Floats:
    """Return a picture without a caption whose cells each hold an object half the time: what an autoencoder learns from.

    Args:
        seed: Of the stream.
        index: Any number from 0 up; the same number gives the same picture.
    """
    rng = random.Random(f"crowded {seed} {index}")
    objects: list[DrawnObject] = []
    for row, column in _PLACES:
        if rng.random() < 0.5:
            colour, shape = rng.choice(SEEN_PAIRS)
            objects.append(_drawn(shape, colour, row, column, rng))
    return render(objects, rng.uniform(-0.03, 0.03))


def _drawn(shape: str, colour: str, row: int, column: int, rng: random.Random) -> DrawnObject:
    y, x = (CELL * (k + 0.5) + rng.choice(JITTER) for k in (row, column))
    return DrawnObject(shape, colour, rng.choice(RADII[shape]), y, x)


def training_pair(seed: int, index: int, mixture: str = "all") -> tuple[Scene, Floats]:
    """Return pair number `index` of the training stream: a scene and its picture.

    Args:
        seed: Of the stream.
        index: Any number from 0 up; the same number gives the same pair, on every machine.
        mixture: One of `grammar.MIXTURES`, of the kinds of captions.
    """
    rng = random.Random(f"scenes {seed} {index}")
    scene = draw_training_scene(rng, mixture=mixture)
    return scene, render(draw_layout(scene, rng, mixture != "all"), rng.uniform(-0.03, 0.03))


def training_stream(seed: int, start: int = 0) -> Iterator[tuple[Scene, Floats]]:
    """Yield the training stream from pair `start` on, without end."""
    while True:
        yield training_pair(seed, start)
        start += 1
