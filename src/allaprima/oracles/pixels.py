"""Pictures to an encoder's input, as the published code of each oracle does it.

Two roads that differ in more than speed: Pillow resizes 8-bit pictures and rounds to 8 bits after each of its two passes
(what CLIP, ImageReward, PickScore and the aesthetic predictor were published with), and torch resizes floats (HPSv2's code
turns pictures into tensors first, and lets bicubic overshoot stand). Crops differ too, where an odd number of pixels is
over: torchvision rounds half to even, transformers rounds down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.features.preprocess import Preprocess

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's, which BLIP, ImageReward and open_clip's ViT-H took over."""


@dataclass(frozen=True)
class Pixels:
    """Shortest edge to `side`, the middle `side` x `side`, normalised; bicubic with antialiasing."""

    side: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resize: Literal["pillow", "tensor"] = "pillow"
    clamped: bool = True
    """Of `tensor`: whether bicubic overshoot is cut to [0, 1]; Pillow always does."""
    crop: Literal["round", "floor"] = "round"
    """Where the crop begins: torchvision's `round((h - side) / 2)`, half to even, or transformers' `(h - side) // 2`."""

    def __call__(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, 3, side, side)` float32, where the pictures are."""
        x = self._pillow(images) if self.resize == "pillow" else self._tensor(images)
        top, left = (self._begin(n) for n in x.shape[-2:])
        x = x[..., top : top + self.side, left : left + self.side]
        mean, std = (x.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def _begin(self, length: int) -> int:
        over = length - self.side
        # Python's round is half to even, as torchvision's is.
        return round(over / 2) if self.crop == "round" else over // 2

    def _due(self, h: int, w: int) -> tuple[int, int]:
        short = min(h, w)
        return (self.side, int(self.side * w / short)) if h == short else (int(self.side * h / short), self.side)

    def _tensor(self, images: Tensor) -> Tensor:
        x = images.float()
        due = self._due(*x.shape[-2:])
        if due != tuple(x.shape[-2:]):
            x = F.interpolate(x, size=due, mode="bicubic", antialias=True, align_corners=False)
        return x.clamp(0, 1) if self.clamped else x

    def _pillow(self, images: Tensor) -> Tensor:
        h, w = self._due(*images.shape[-2:])
        # The picture as a PNG holds it (`data.images.to_pil`): what anyone scores who reads the file.
        pixels = (images.float().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().contiguous().numpy()
        resized = [np.asarray(Image.fromarray(p).resize((w, h), Image.Resampling.BICUBIC)) for p in pixels]
        return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(images.device).float() / 255

    @classmethod
    def of_folder(cls, folder: Path, resize: Literal["published", "tensor"] = "published") -> Pixels:
        """From a transformers CLIP folder's settings file, resized by Pillow and cropped as transformers does.

        Raises `ModelError` for other preprocessing than a bicubic shortest edge and a square crop of the same side.
        """
        made = Preprocess.from_folder(folder)
        side = made.shortest_edge
        # A file that leaves the crop out means transformers' default for CLIP, which is to crop.
        if side is None or made.mode != "bicubic" or made.crop not in ((side, side), None):
            raise ModelError(
                f"{folder}: {made.describe()} isn't how CLIP sees pictures: a bicubic shortest edge and a square centre of"
                " the same side are due. Copy the published preprocessor_config.json."
            )
        return cls(side, made.mean, made.std, "pillow" if resize == "published" else "tensor", crop="floor")
