"""What a feature network is to the metrics, and how any torch module becomes one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.features.preprocess import Preprocess


class Features(Protocol):
    """A frozen network `pictures -> vectors`. A picture's features don't depend on the others of its batch."""

    name: str
    fingerprint: str
    """Hash of the weights: two numbers can be compared only if it is the same."""
    dim: int
    preprocessing: Mapping[str, Any]
    """JSON-ready: what happens to a picture in [0, 1] before the network (size, resizing, normalisation)."""

    def features(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, dim)`."""
        ...


@runtime_checkable
class LayeredFeatures(Features, Protocol):
    """Features that also show their intermediate maps."""

    layer_names: Sequence[str]

    def layers(self, images: Tensor) -> list[Tensor]:
        """`(B, 3, H, W)` in [0, 1] -> one `(B, C, h, w)` for each of `layer_names`."""
        ...


def describe_features(net: Features) -> dict[str, Any]:
    """JSON-ready: what a metric's protocol records of its network."""
    return {
        "name": net.name,
        "fingerprint": net.fingerprint,
        "dim": net.dim,
        "preprocessing": dict(net.preprocessing),
    }


def weights_hash(module: nn.Module) -> str:
    """Hash of a module's parameters and buffers, by name, type and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class ModuleFeatures:
    """Any module `(B, 3, h, w) -> (B, D)` or `(B, D, h, w)` (averaged over places); layers are submodules by name."""

    def __init__(
        self, name: str, module: nn.Module, dim: int, preprocess: Preprocess | None = None, layer_names: Sequence[str] = ()
    ) -> None:
        self.name, self.dim = name, dim
        self.layer_names: Sequence[str] = tuple(layer_names)
        self.module = module.eval().requires_grad_(False)
        self.preprocess = preprocess or Preprocess()
        self.preprocessing: Mapping[str, Any] = self.preprocess.describe()
        self.fingerprint = weights_hash(module)
        known = dict(module.named_modules())
        missing = [n for n in self.layer_names if n not in known]
        if missing:
            raise SettingError(f"layer {missing[0]!r} is no submodule of {name}: {', '.join(k for k in known if k)} are.")

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, dim)`."""
        out = self.module(self.preprocess(images))
        return out.mean((2, 3)) if out.ndim == 4 else out

    @torch.inference_mode()
    def layers(self, images: Tensor) -> list[Tensor]:
        """Return outputs of the named submodules, in the order of the names."""
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda _module, _inputs, output: found.__setitem__(name, output)

        modules = dict(self.module.named_modules())
        hooks = [modules[n].register_forward_hook(keep(n)) for n in self.layer_names]
        try:
            self.module(self.preprocess(images))
        finally:
            for hook in hooks:
                hook.remove()
        return [found[n] for n in self.layer_names]
