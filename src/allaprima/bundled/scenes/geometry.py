"""Shapes, colours and the grid of a scene: the facts that the renderer and the judge have in common.

A scene is 64x64 pixels, divided into 4x4 cells of 16 pixels. A cell holds at most one object. Coordinates are in pixels,
`y` grows downwards, and pixel `(i, j)` covers the square `[i, i + 1] x [j, j + 1]`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SIDE = 64
"""Pixels along a side of a scene."""
CELL = 16
"""Pixels along a side of a cell."""
CELLS = SIDE // CELL
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 40),
    "orange": (240, 120, 20),
    "yellow": (238, 212, 20),
    "green": (35, 150, 60),
    "blue": (35, 80, 215),
    "purple": (125, 40, 165),
    "pink": (245, 130, 190),
    "black": (25, 25, 30),
}
"""sRGB, 0 to 255."""
RGB: Floats = (np.array(list(COLOURS.values())) / 255).astype(np.float32)
COLOUR_NAMES = tuple(COLOURS)
BACKGROUND: Floats = np.array([0.95, 0.945, 0.93], np.float32)
RADII: dict[str, tuple[float, ...]] = {
    "circle": (4.75, 5.5, 6.0),
    "square": (4.75, 5.5, 6.0),
    "triangle": (4.75, 5.25, 5.75),
    "star": (4.5, 5.0, 5.5),
    "cross": (4.75, 5.5, 6.0),
    "heart": (4.75, 5.25, 5.75),
}
"""Radii in pixels that objects are drawn with."""
WINDOW = 20
"""Pixels along a side of the window that `coverage` computes."""
SUBPIXELS = 4
"""Positions are rounded to a quarter of a pixel."""
_SAMPLES = 8


def inside(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether points lie in a shape of radius 1 about the origin.

    Args:
        shape: One of `SHAPES`.
        x: Horizontal coordinates; `x` and `y` are broadcast against each other.
        y: Vertical coordinates, growing downwards.
    """
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.92
    if shape == "cross":
        across, along = 0.36, 1.08
        return ((np.abs(x) <= across) & (np.abs(y) <= along)) | ((np.abs(y) <= across) & (np.abs(x) <= along))
    if shape == "heart":
        u, v = x * 1.12, 0.12 - y * 1.12
        return (u * u + v * v - 1) ** 3 - 1.6 * u * u * v**3 <= 0
    if shape == "triangle":
        return (y <= 0.85) & (np.abs(x) <= (y + 1.05) / 1.9 * 1.12)
    corners = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2 == 0, 1.2, 0.53)
    px, py = radius * np.cos(corners), radius * np.sin(corners) + 0.08
    found = np.zeros(np.broadcast(x, y).shape, bool)
    for i in range(10):  # even-odd rule, edge by edge
        j = i - 1
        crosses = (py[i] > y) != (py[j] > y)
        found ^= crosses & (x < (px[j] - px[i]) * (y - py[i]) / (py[j] - py[i]) + px[i])
    return found


@cache
def coverage(shape: str, radius: float, offset_y: int, offset_x: int) -> Floats:
    """Return how much of each pixel of a window a shape covers, by 8x8 samples a pixel.

    Args:
        shape: One of `SHAPES`.
        radius: In pixels.
        offset_y: Position of the centre below the window's middle, in quarters of a pixel, 0 to 3.
        offset_x: Likewise to the right.

    Returns:
        `(WINDOW, WINDOW)` in [0, 1], read-only.
    """
    grid = (np.arange(WINDOW * _SAMPLES) + 0.5) / _SAMPLES - WINDOW / 2
    x, y = (grid[None] - offset_x / SUBPIXELS) / radius, (grid[:, None] - offset_y / SUBPIXELS) / radius
    samples = inside(shape, x, y).reshape(WINDOW, _SAMPLES, WINDOW, _SAMPLES)
    out = samples.mean((1, 3), dtype=np.float32)
    out.setflags(write=False)
    return out


def window_at(shape: str, radius: float, y: float, x: float) -> tuple[Floats, slice, slice]:
    """Return a shape's coverage where it lies on the canvas.

    Args:
        shape: One of `SHAPES`.
        radius: In pixels.
        y: Centre in pixels from the top; rounded to a quarter.
        x: Centre in pixels from the left; likewise.

    Returns:
        The part of the window inside the canvas, and the rows and columns it covers there.
    """
    fine_y, fine_x = round(y * SUBPIXELS), round(x * SUBPIXELS)
    whole_y, offset_y = divmod(fine_y, SUBPIXELS)
    whole_x, offset_x = divmod(fine_x, SUBPIXELS)
    top, left = whole_y - WINDOW // 2, whole_x - WINDOW // 2
    rows = slice(max(0, top), min(SIDE, top + WINDOW))
    columns = slice(max(0, left), min(SIDE, left + WINDOW))
    window = coverage(shape, radius, offset_y, offset_x)
    return window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left], rows, columns
