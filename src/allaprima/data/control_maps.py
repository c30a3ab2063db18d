"""Pictures that control what is painted, made from pictures: edges, flat colours, few pixels, a hole.

Others (depth, poses, segmentations) are given. All are `(C, H, W)` in [0, 1] of `(3, H, W)` in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.data.images import as_tensor, to_pil

COLOURS = 8
FACTOR = 4
"""Of `low-resolution`: pixels a side that become one."""


def canny(image: Tensor, sigma: float = 1.0) -> Tensor:
    """Edges (Canny 1986, scikit-image's): white on black. `sigma`: blur, in pixels."""
    try:
        from skimage.feature import canny as edges
    except ImportError as e:
        raise SettingError("edges need scikit-image: pip install 'allaprima[control]', or give the map itself.") from e
    # Luma of ITU-R 601, as Pillow and OpenCV have it.
    grey = (image * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0).numpy()
    found = torch.from_numpy(np.asarray(edges(grey, sigma=sigma, low_threshold=0.05, high_threshold=0.15)))
    return found.float()[None].repeat(3, 1, 1)


def colours(image: Tensor, count: int = COLOURS) -> Tensor:
    """Areas of few flat colours, like a segmentation's: what is small is smoothed away, then `count` colours are left."""
    return as_tensor(
        _median(image).quantize(count, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    )


def smooth(image: Tensor) -> Tensor:
    """Areas without what is small: what `colours` takes its colours of."""
    return as_tensor(_median(image))


def _median(image: Tensor) -> Image.Image:
    return to_pil(image).filter(ImageFilter.MedianFilter(5))


def low_resolution(image: Tensor, factor: int = FACTOR) -> Tensor:
    """Means of `factor` by `factor` pixels, brought back to size by bicubic interpolation: super-resolution's input."""
    whole = to_pil(image)
    small = whole.resize((max(1, whole.width // factor), max(1, whole.height // factor)), Image.Resampling.BOX)
    return as_tensor(small.resize(whole.size, Image.Resampling.BICUBIC))


def with_hole(image: Tensor, mask: Tensor) -> Tensor:
    """`(4, H, W)`: the picture with grey where `mask (1, H, W)` is 1, and the mask."""
    return torch.cat([image * (1 - mask) + 0.5 * mask, mask])


def random_mask(height: int, width: int, g: torch.Generator) -> Tensor:
    """`(1, H, W)` of one to three rectangles, each a quarter to two thirds of a side: holes to learn on."""
    mask = torch.zeros(1, height, width)
    for _ in range(1 + int(torch.randint(3, (1,), generator=g))):
        u = torch.rand(4, generator=g).tolist()
        h, w = (max(1, round(side * (0.25 + 0.42 * x))) for side, x in ((height, u[0]), (width, u[1])))
        top, left = round((height - h) * u[2]), round((width - w) * u[3])
        mask[:, top : top + h, left : left + w] = 1
    return mask


MAPS: Mapping[str, Callable[[Tensor], Tensor]] = {"canny": canny, "colours": colours, "low-resolution": low_resolution}
"""What is computed from the picture alone, by name."""
HOLE = "hole"
"""The map that needs a mask as well; of four channels."""
GIVEN = "given"
"""The map that is no map of ours: whatever picture comes is what the network reads."""


def control_map(name: str, image: Tensor) -> Tensor:
    """Return the map of that name. Raises `SettingError` for one that isn't computed here."""
    if name not in MAPS:
        raise SettingError(f"map={name!r} is not computed here, {', '.join(MAPS)} are: give the map itself.")
    return MAPS[name](image)


def training_map(name: str, image: Tensor, g: torch.Generator) -> Tensor:
    """Return what a network that learns the map of that name is shown; holes are drawn."""
    return with_hole(image, random_mask(image.shape[-2], image.shape[-1], g)) if name == HOLE else control_map(name, image)


def channels_of(name: str) -> int:
    """Of a map."""
    return 4 if name == HOLE else 3
