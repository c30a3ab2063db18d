"""Resizing, cropping and normalising of pictures before a network, as tensors, from transformers' own settings file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.files import read_json

RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's number of a filter -> torch's name of it; with antialiasing both are the same filter."""


@dataclass(frozen=True)
class Preprocess:
    """Pictures in [0, 1] -> a network's input. Sizes in pixels; `None` leaves a step out."""

    shortest_edge: int | None = None
    size: tuple[int, int] | None = None
    """Height and width, whatever the picture's shape."""
    crop: tuple[int, int] | None = None
    """Height and width of the centre that is kept."""
    mode: str = "bicubic"
    antialias: bool = True
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __call__(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, 3, h, w)`."""
        x = images.float()
        h, w = x.shape[-2:]
        due = self.size
        if self.shortest_edge is not None:
            short, side = min(h, w), self.shortest_edge
            due = (side, int(side * w / short)) if h == short else (int(side * h / short), side)
        if due is not None and due != (h, w):
            # Bicubic overshoots; pictures end at 0 and 1 as they do in 8 bits.
            x = F.interpolate(x, size=due, mode=self.mode, antialias=self.antialias, align_corners=False).clamp(0, 1)
        if self.crop is not None:
            ch, cw = self.crop
            top, left = (x.shape[-2] - ch) // 2, (x.shape[-1] - cw) // 2
            x = x[..., top : top + ch, left : left + cw]
        mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def describe(self) -> dict[str, Any]:
        """JSON-ready."""
        resize = "none"
        if self.shortest_edge is not None:
            resize = f"shortest edge to {self.shortest_edge} px"
        elif self.size is not None:
            resize = f"to {self.size[0]}x{self.size[1]} px"
        if resize != "none":
            resize += f", {self.mode}{', antialias' if self.antialias else ''}, clamped to [0, 1]"
        return {
            "resize": resize,
            "centre_crop": list(self.crop) if self.crop else None,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_folder(cls, folder: Path) -> Preprocess:
        """From `preprocessor_config.json` (or `processor_config.json`); raises `ModelError` for what isn't known."""
        if (folder / "preprocessor_config.json").exists() or not (folder / "processor_config.json").exists():
            return cls.from_config(read_json(folder / "preprocessor_config.json"))
        return cls.from_config(read_json(folder / "processor_config.json").get("image_processor", {}))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocess:
        """From transformers' image processor settings."""
        mode = RESAMPLE.get(int(config.get("resample", 3)))
        if mode is None:
            raise ModelError(f"resample={config['resample']} in the preprocessor's settings: {RESAMPLE} are known.")
        size: Any = config.get("size") if config.get("do_resize", True) else None
        edge: int | None = None
        exact: tuple[int, int] | None = None
        if isinstance(size, int):
            edge = size
        elif size and "shortest_edge" in size:
            edge = int(size["shortest_edge"])
        elif size and {"height", "width"} <= set(size):
            exact = (int(size["height"]), int(size["width"]))
        elif size:
            raise ModelError(f"size={size} in the preprocessor's settings: shortest_edge, or height and width, are known.")
        crop = _pair(config.get("crop_size")) if config.get("do_center_crop", False) else None
        least = exact or ((edge, edge) if edge is not None else None)
        if crop and least and (crop[0] > least[0] or crop[1] > least[1]):
            raise ModelError(f"crop_size={crop} is larger than size={size} in the preprocessor's settings: mend the file.")
        normal = config.get("do_normalize", True)
        mean: Sequence[float] = config.get("image_mean", (0.5,) * 3) if normal else (0.0,) * 3
        std: Sequence[float] = config.get("image_std", (0.5,) * 3) if normal else (1.0,) * 3
        return cls(edge, exact, crop, mode, True, tuple(map(float, mean)), tuple(map(float, std)))


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))
