"""The exact judge: whether a picture shows what its caption asks for, and if not, what is wrong. No network is asked.

Objects are connected regions that differ from the background. Each has the palette's nearest colour and the shape whose
template, over sizes and quarter-pixel positions, overlaps it best. Then the caption's groups are counted and its relation
is checked. A picture is right when it shows the caption's objects, each well drawn, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from allaprima.bundled.scenes.geometry import COLOUR_NAMES, RGB, SHAPES, SIDE, Floats, coverage, window_at
from allaprima.bundled.scenes.grammar import RELATIONS, Group, Scene

FAULTS = ("malformed", "count", "shape", "colour", "relation")
"""What can be wrong, in the order in which it is looked for."""
FOREGROUND = 0.25
"""Distance in RGB from the background, of sqrt(3) at most, from which a pixel belongs to an object."""
SPECK, SMALLEST = 6, 20
"""Regions of fewer pixels than the first are ignored; of fewer than the second they make a picture malformed."""
LEAST_OVERLAP = 0.74
"""Intersection over union with the best template under which an object is malformed."""
COLOUR_TOLERANCE = 0.28
"""Distance in RGB from the palette's nearest colour over which an object is malformed."""
MARGIN = 8.0
"""Pixels by which a relation must hold between the centres of objects: half a cell."""
_SIZES = np.arange(4.0, 6.76, 0.25)


@dataclass(frozen=True)
class DetectedObject:
    """An object found in a picture.

    Args:
        shape: One of `SHAPES`, that of the best template.
        colour: One of `COLOUR_NAMES`, the nearest.
        y: Centre of mass in pixels from the top.
        x: Centre of mass in pixels from the left.
        overlap: Intersection over union with the best template, in [0, 1].
        well_drawn: Whether shape and colour are within the judge's tolerances.
        box: Left, top, right, bottom in pixels.
    """

    shape: str
    colour: str
    y: float
    x: float
    overlap: float
    well_drawn: bool
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Verdict:
    """What the judge says of a picture.

    Args:
        right: Whether the picture shows what was asked for.
        fault: The first of `FAULTS` that applies; None for a right picture.
        objects: What was found.
    """

    right: bool
    fault: str | None
    objects: tuple[DetectedObject, ...]


def _templates() -> list[tuple[str, float, float, float, float]]:
    """Shape, radius, area, and how far the centre of mass lies below and right of the centre, of every template."""
    rows: list[tuple[str, float, float, float, float]] = []
    for shape in SHAPES:
        for radius in _SIZES:
            window = coverage(shape, float(radius), 0, 0)
            area = float(window.sum())
            grid = np.arange(len(window)) + 0.5 - len(window) / 2
            rows.append(
                (shape, float(radius), area, float((window.sum(1) @ grid) / area), float((window.sum(0) @ grid) / area))
            )
    return rows


_TEMPLATES = _templates()


def detect(image: Any) -> tuple[list[DetectedObject], bool]:
    """Find the objects of a picture.

    Args:
        image: `(SIDE, SIDE, 3)` in [0, 1], an array or anything NumPy makes one of.

    Returns:
        The objects, and whether there are fragments or a background that no scene has.
    """
    image = np.asarray(image, np.float32)
    if image.shape != (SIDE, SIDE, 3):
        raise ValueError(f"the judge reads pictures of shape ({SIDE}, {SIDE}, 3), not {image.shape}.")
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    background = np.median(border, 0)
    strange = bool(background.min() < 0.8)
    distance = np.sqrt(((image - background) ** 2).sum(-1))
    labels, count = _regions(distance > FOREGROUND)
    objects: list[DetectedObject] = []
    for i, box in enumerate(ndimage.find_objects(labels, count), 1):
        region = labels == i
        area = int(region.sum())
        if area < SPECK:
            continue
        if area < SMALLEST:
            strange = True
            continue
        objects.append(_describe(image, background, distance, region, labels, box))
    return objects, strange


def _regions(mask: Any) -> tuple[Any, int]:
    """Numbers of the connected regions of a mask, neighbours at corners included, and how many there are."""
    found: Any = ndimage.label(mask, structure=np.ones((3, 3)))
    return found[0], int(found[1])


def _describe(image: Floats, background: Any, distance: Any, region: Any, labels: Any, box: Any) -> DetectedObject:
    core: Any = ndimage.binary_erosion(region, border_value=1)
    if core.sum() < SPECK:
        core = region & (distance >= np.quantile(distance[region], 0.6))
    pixels = image[core]
    nearest = np.sqrt(((pixels[:, None] - RGB[None]) ** 2).sum(-1)).argmin(1)
    votes = np.bincount(nearest, minlength=len(RGB))
    colour = int(votes.argmax())
    off = float(np.sqrt(((np.median(pixels, 0) - RGB[colour]) ** 2).sum()))
    plain = votes[colour] >= 0.85 * len(pixels) and off < COLOUR_TOLERANCE
    # How much of each pixel the object covers: its place between the background's colour and the object's.
    near = ndimage.binary_dilation(region, np.ones((3, 3))) & (region | (labels == 0))
    direction = RGB[colour] - background
    covered = np.clip(((image - background) @ direction) / (direction @ direction), 0, 1) * near
    total = covered.sum()
    grid = np.arange(SIDE) + 0.5
    y, x = float(covered.sum(1) @ grid / total), float(covered.sum(0) @ grid / total)
    shape, overlap = _best_template(covered, float(total), y, x)
    rows, columns = box
    return DetectedObject(
        shape,
        COLOUR_NAMES[colour],
        y,
        x,
        overlap,
        bool(plain and overlap >= LEAST_OVERLAP),
        (columns.start, rows.start, columns.stop, rows.stop),
    )


def _best_template(covered: Floats, total: float, y: float, x: float) -> tuple[str, float]:
    """Return the shape that overlaps best, over the three sizes of nearest area, laid centre of mass on centre of mass."""
    best, found = SHAPES[0], -1.0
    for shape in SHAPES:
        rows = sorted((row for row in _TEMPLATES if row[0] == shape), key=lambda row: abs(row[2] - total))[:3]
        for _, radius, _, down, right in rows:
            window, ys, xs = window_at(shape, radius, y - down, x - right)
            common = float(np.minimum(covered[ys, xs], window).sum())
            overlap = common / (total + float(window.sum()) - common)
            if overlap > found:
                best, found = shape, overlap
    return best, found


def _matches(o: DetectedObject, group: Group) -> bool:
    return o.shape == group.shape and group.colour in (None, o.colour)


def judge(image: Any, scene: Scene) -> Verdict:
    """Say whether a picture is right.

    Args:
        image: `(SIDE, SIDE, 3)` in [0, 1].
        scene: What was asked for (`allaprima.bundled.scenes.reading.read` makes one of a prompt).
    """
    objects, strange = detect(image)
    return Verdict((fault := _fault(objects, strange, scene)) is None, fault, tuple(objects))


def _fault(objects: Sequence[DetectedObject], strange: bool, scene: Scene) -> str | None:
    if strange or not all(o.well_drawn for o in objects):
        return "malformed"
    if len(objects) != scene.objects:
        return "count"
    # Groups don't overlap, so that no object matches two of them.
    taken = [[o for o in objects if _matches(o, group)] for group in scene.groups]
    if any(len(found) != group.count for found, group in zip(taken, scene.groups, strict=True)):
        shapes = sorted(o.shape for o in objects)
        asked = sorted(group.shape for group in scene.groups for _ in range(group.count))
        return "colour" if shapes == asked else _count_or_shape(objects, scene)
    if scene.relation is not None:
        dx, dy = RELATIONS[scene.relation]
        for a in taken[0]:
            if any((a.x - b.x) * dx + (a.y - b.y) * dy < MARGIN for b in taken[1]):
                return "relation"
    return None


def _count_or_shape(objects: Sequence[DetectedObject], scene: Scene) -> str:
    """Return `count` where only the asked shapes are there, in wrong numbers, else `shape`."""
    return "count" if {o.shape for o in objects} == {group.shape for group in scene.groups} else "shape"
