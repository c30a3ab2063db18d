"""Observation 2 of arXiv 2312.10835 (figure 5): similar samples are simple pictures.

The paper measures complexity with ICNet (arXiv 2208.13379), whose weights are on no registry and whose code has no licence.
A file of it in ONNX's format can be given; else stands what a picture's bytes say, plainly labelled: the bits a pixel that
lossless compression leaves. Edge density is measured beside it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allaprima.analysis.pairs import AnalyzedPairs, Observation, finding
from allaprima.core.errors import ModelError, SettingError
from allaprima.features.preprocess import Preprocess

BITS = "bits a pixel of the picture as a PNG (not ICNet: a stand-in)"
EDGES = "share of pixels on an edge (not ICNet: a stand-in)"
EDGE = 0.1
"""A pixel is on an edge when its luminance changes by this a pixel, luminance in [0, 1]."""
ICNET_SIDE = 512
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def compressed_bits(images: Tensor) -> Tensor:
    """`(B, 3, H, W)` uint8 -> `(B,)`: bits a pixel of the optimised PNG, which keeps every bit of the picture."""
    from PIL import Image

    _check(images)
    sizes: list[float] = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", optimize=True)
        sizes.append(8 * buffer.tell() / (image.shape[1] * image.shape[2]))
    return torch.tensor(sizes, dtype=torch.float64)


def edge_density(images: Tensor, edge: float = EDGE) -> Tensor:
    """`(B, 3, H, W)` uint8 -> `(B,)` in [0, 1]: pixels whose luminance gradient (central differences) is over `edge`."""
    _check(images)
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(1, 3, 1, 1)
    light = (images.double() / 255 * weights).sum(1)
    down, right = torch.gradient(light, dim=(1, 2))
    return ((down.square() + right.square()).sqrt() > edge).double().mean((1, 2))


def from_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """A network's complexity: ImageNet-normalised `(B, 3, 512, 512)` in, one number a picture in its first output.

    Raises `ModelError` for a file that can't be run, and without the extra `onnxruntime`.
    """
    try:
        import onnxruntime
    except ImportError as e:
        raise ModelError("icnet needs ONNX Runtime: `pip install 'allaprima[onnxruntime]'`.") from e
    try:
        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as e:
        raise ModelError(f"{path} can't be run as ONNX: {e}. Export ICNet with torch.onnx, or leave --icnet out.") from e
    prepare, name = Preprocess(size=(ICNET_SIDE, ICNET_SIDE), mean=_MEAN, std=_STD), session.get_inputs()[0].name

    def measure(images: Tensor) -> Tensor:
        said: list[float] = []
        for image in images:
            out = np.asarray(session.run(None, {name: prepare(image[None].float() / 255).numpy()})[0], dtype=np.float64)
            if out.size != 1:
                raise ModelError(f"{path} says {out.shape} of one picture: a single number is due. Export its score alone.")
            said.append(float(out.reshape(-1)[0]))
        return torch.tensor(said, dtype=torch.float64)

    return measure


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise SettingError(f"pictures of type {images.dtype} and shape {tuple(images.shape)}: uint8 (B, 3, H, W) is due.")


def observe(pairs: AnalyzedPairs) -> Observation:
    """Whether distance grows with complexity, and how far both differ in it."""
    found = (
        finding(
            pairs, "complexity-distance", 2, "pairs are more alike where the teacher's picture is simpler",
            "complexity_teacher", "distance", +1,
        ),
        finding(
            pairs, "complexity-gap", 2, "more distant pairs differ more in complexity",
            np.abs(pairs.gap("complexity")), "distance", +1,
        ),
    )  # fmt: skip
    more = pairs.mean(pairs.gap("complexity"))
    side = "more" if more.low > 0 else "less" if more.high < 0 else "neither more nor less"
    facts = [
        f"Complexity: teacher {pairs.mean('complexity_teacher')}, student {pairs.mean('complexity_student')}; the student's"
        f" pictures are {side} complex ({more})."
    ]
    if pairs.has("edges_teacher"):
        other = finding(pairs, "edges", 0, "", "edges_teacher", "distance", +1)
        facts.append(f"By {pairs.labels['edges']} the rank correlation with distance is {other.interval}.")
    return Observation(
        "complexity", "Image complexity",
        "Section 3, figure 5: more similar student and teacher samples are simpler images, and the two can differ much in"
        " complexity.",
        found, tuple(facts), {"student_minus_teacher": more}, f"Complexity: {pairs.labels['complexity']}.",
    )  # fmt: skip
