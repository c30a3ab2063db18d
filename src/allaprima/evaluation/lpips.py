"""Distance of the LPIPS kind (arXiv 1801.03924, equation 1): differences of unit-length features at several layers.

`d(a, b) = sum_l mean_hw sum_c w_lc (u_l(a) - u_l(b))^2`, with `u_l` a layer's map divided by its length over channels.
Weights `w` are 1 unless LPIPS's trained linear layers are given, which belong to its own networks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from allaprima.core.errors import ModelError, SettingError
from allaprima.evaluation.metric import check_images
from allaprima.features.load import default_features
from allaprima.features.module import LayeredFeatures, describe_features


class LPIPSType:
    """Scorer; lower is nearer. Features: EfficientNet-Lite0's five stages, or any network with layers."""

    higher_is_better = False
    needs_prompts = False
    needs_references = True

    def __init__(self, features: LayeredFeatures | None = None, weights: Path | None = None) -> None:
        self.features = features or default_features()
        if not getattr(self.features, "layer_names", ()):
            raise SettingError(f"{self.features.name} shows no layers: a network with `layer_names` and `layers` is due.")
        self.name = f"lpips-type ({self.features.name})"
        self.weights = None if weights is None else _read_linear(weights, len(self.features.layer_names))
        self._weights_hash = None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest()[:16]

    def protocol(self) -> dict[str, Any]:
        """Says plainly which weights the layers have."""
        return {
            "formula": "sum over layers of mean over places of sum over channels of w (u(a) - u(b))^2, u of unit length",
            "paper": "arXiv 1801.03924, equation 1 (the kind of distance)",
            "weights": f"linear layers of file {self._weights_hash}"
            if self.weights
            else "uniform, 1 a channel: not LPIPS's",
            "layers": list(self.features.layer_names),
            "features": describe_features(self.features),
        }

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None) -> Tensor:
        """`(B, 3, H, W)` in [0, 1], twice -> `(B,)`."""
        if references is None:
            raise SettingError("references=None: pictures to compare with are due, one a picture.")
        maps_a = self.features.layers(check_images(images))
        maps_b = self.features.layers(check_images(references, "references"))
        total = torch.zeros(len(images), dtype=torch.float64)
        for i, (a, b) in enumerate(zip(maps_a, maps_b, strict=True)):
            if a.shape != b.shape:
                raise SettingError(f"layer {i}: maps of shapes {tuple(a.shape)}, {tuple(b.shape)}. Resize the references.")
            square = (_unit(a) - _unit(b)).square()
            if self.weights:
                if len(self.weights[i]) != a.shape[1]:
                    raise SettingError(f"layer {i} has {a.shape[1]} channels, its weights {len(self.weights[i])}.")
                square = square * self.weights[i].to(square).view(1, -1, 1, 1)
            total += square.sum(1).mean((1, 2)).double().cpu()
        return total


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)


def _read_linear(path: Path, layers: int) -> list[Tensor]:
    """`lin0.model.1.weight`, ... of shape `(1, C, 1, 1)` as LPIPS names them -> one `(C,)` a layer."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{path} cannot be read as LPIPS weights: {e}. A .safetensors file is due.") from e
    names = [f"lin{i}.model.1.weight" for i in range(layers)]
    if set(names) != set(found):
        raise ModelError(f"{path} holds {sorted(found)}: {names} are due, one for each layer of the network.")
    return [found[n].flatten().float() for n in names]
