"""The Inception-v3 network (arXiv 1512.00567) that published FIDs are made with, given its weights as safetensors.

It is TensorFlow's network of 2015-12-05 and differs from today's Inception: average pools leave the padding out of the
mean, and the last block pools by maximum. Names are those of the PyTorch port's weights (`pytorch-fid`), which this
project does not ship: convert that file once and give its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.features.preprocess import Preprocess

Kernel = int | tuple[int, int]
Conv = tuple[str, int, Kernel] | tuple[str, int, Kernel, int]
"""Name, channels out, kernel, stride (1 if left out: then the size is kept; with stride 2 nothing is padded)."""
Step = Conv | tuple[Conv, Conv]
"""A convolution, or two of the same input side by side."""


class _Conv(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: Kernel, stride: int = 1, pads: bool = True) -> None:
        super().__init__()
        k = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (k[0] // 2, k[1] // 2) if pads and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(c_in, c_out, k, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Mixed(nn.Module):
    """Branches side by side, then a pool: kept in size and followed by `branch_pool`, or halved and left as it is."""

    def __init__(self, c_in: int, branches: Sequence[Sequence[Step]], pool: Literal["mean", "max"], pooled: int = 0) -> None:
        super().__init__()
        self.pool, self.pooled = pool, pooled
        self.branches: list[list[tuple[str, ...]]] = []
        self.dim = pooled or c_in
        for branch in branches:
            c, names = c_in, list[tuple[str, ...]]()
            for step in branch:
                convs = [step] if isinstance(step[0], str) else list(step)
                for name, *spec in convs:  # pyright: ignore[reportGeneralTypeIssues]
                    self.add_module(str(name), _Conv(c, *spec))  # pyright: ignore[reportArgumentType]
                names.append(tuple(str(conv[0]) for conv in convs))  # pyright: ignore[reportIndexIssue]
                c = sum(int(conv[1]) for conv in convs)  # pyright: ignore[reportIndexIssue, reportArgumentType]
            self.branches.append(names)
            self.dim += c
        if pooled:
            self.branch_pool = _Conv(c_in, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: list[Tensor] = []
        for branch in self.branches:
            h = x
            for names in branch:
                h = torch.cat([self.get_submodule(n)(h) for n in names], 1)
            out.append(h)
        if not self.pooled:
            return torch.cat([*out, F.max_pool2d(x, 3, 2)], 1)
        mean = self.pool == "mean"
        h = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if mean else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*out, self.branch_pool(h)], 1)


def _a(c_in: int, pooled: int) -> _Mixed:
    five: list[Step] = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    three: list[Step] = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    return _Mixed(c_in, [[("branch1x1", 64, 1)], five, three], "mean", pooled)


def _b(c_in: int) -> _Mixed:
    three: list[Step] = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)]
    return _Mixed(c_in, [[("branch3x3", 384, 3, 2)], three], "max")


def _c(c_in: int, c: int) -> _Mixed:
    row, column = (1, 7), (7, 1)
    one: list[Step] = [("branch7x7_1", c, 1), ("branch7x7_2", c, row), ("branch7x7_3", 192, column)]
    outs: list[tuple[int, Kernel]] = [(c, 1), (c, column), (c, row), (c, column), (192, row)]
    two: list[Step] = [(f"branch7x7dbl_{i + 1}", *spec) for i, spec in enumerate(outs)]
    return _Mixed(c_in, [[("branch1x1", 192, 1)], one, two], "mean", 192)


def _d(c_in: int) -> _Mixed:
    three: list[Step] = [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)]
    outs: list[tuple[int, Kernel]] = [(192, 1), (192, (1, 7)), (192, (7, 1))]
    seven: list[Step] = [(f"branch7x7x3_{i + 1}", *spec) for i, spec in enumerate(outs)]
    return _Mixed(c_in, [three, [*seven, ("branch7x7x3_4", 192, 3, 2)]], "max")


def _e(c_in: int, pool: Literal["mean", "max"]) -> _Mixed:
    def fork(name: str) -> Step:
        return ((f"{name}a", 384, (1, 3)), (f"{name}b", 384, (3, 1)))

    three: list[Step] = [("branch3x3_1", 384, 1), fork("branch3x3_2")]
    double: list[Step] = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")]
    return _Mixed(c_in, [[("branch1x1", 320, 1)], three, double], pool, 192)


class Inception(nn.Module):
    """`(B, 3, 299, 299)` in [-1, 1] -> `(B, 2048)`, the mean over the last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, pads=False)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, pads=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(768, 128), _c(768, 160), _c(768, 160), _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "mean"), _e(2048, "max")

    def forward(self, x: Tensor) -> Tensor:
        for name, module in self.named_children():
            # The stem pools before the layers named 3b and, four on, before the first mixed block.
            x = module(F.max_pool2d(x, 3, 2) if name in ("Conv2d_3b_1x1", "Mixed_5b") else x)
        return x.mean((2, 3))


class InceptionFeatures:
    """The network with its own resizing: bilinear without antialiasing to 299 px, then [-1, 1]."""

    name = "inception-fid"
    dim = 2048

    def __init__(self, net: Inception, fingerprint: str) -> None:
        self.net, self.fingerprint = net.eval().requires_grad_(False), fingerprint
        self.preprocess = Preprocess(size=(299, 299), mode="bilinear", antialias=False, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.preprocessing: Mapping[str, Any] = self.preprocess.describe()

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, 2048)`."""
        return self.net(self.preprocess(images))

    @classmethod
    def from_file(cls, path: Path) -> InceptionFeatures:
        """Weights of the FID network; raises `ModelError` naming what is missing, `UnsafeWeightsError` for a pickle."""
        if path.suffix != ".safetensors":
            raise UnsafeWeightsError(f"{path} is no .safetensors file: convert the weights once, with `safetensors.torch`.")
        try:
            weights = load_file(path)
        except (SafetensorError, OSError) as e:
            raise ModelError(f"{path} cannot be read: {e}. Copy or convert it again.") from e
        head = weights.get("fc.weight")
        if head is not None and len(head) != 1008:
            raise ModelError(
                f"{path} has {len(head)} classes; the network of published FIDs has 1008. Convert the weights of"
                " `pytorch-fid` (pt_inception-2015-12-05), not torchvision's."
            )
        net = Inception()
        body = {k: v.float() for k, v in weights.items() if not k.startswith(("fc.", "AuxLogits."))}
        counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
        try:
            net.load_state_dict({**counters, **body})
        except RuntimeError as e:
            raise ModelError(f"{path} holds no Inception weights: {e}. Convert those of `pytorch-fid`.") from e
        return cls(net, hashlib.sha256(path.read_bytes()).hexdigest()[:16])
