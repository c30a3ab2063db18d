"""What a backend is: something that makes a fast function of a torch module, for one shape, and can keep it on disk."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from allaprima.core.errors import SettingError

Run = Callable[[Sequence[Tensor]], list[Tensor]]
"""Inputs to outputs, in order; outputs are memory of their own."""


class Backend(Protocol):
    """A compiler and runtime for CPUs; what it takes and gives is float32."""

    @property
    def dtype(self) -> str:
        """What it computes in: `float32` or `bfloat16`."""
        ...

    @property
    def tolerance(self) -> float:
        """The largest difference from the network that is no other function, as a share of the largest output."""
        ...

    @property
    def signature(self) -> str:
        """Name and version, for fingerprints: another version may round otherwise."""
        ...

    def convert(self, module: nn.Module, inputs: Sequence[Tensor], folder: Path) -> None:
        """Write the module's graph for inputs of these shapes into a folder."""
        ...

    def load(self, folder: Path) -> Run:
        """Read what `convert` wrote. Anything may be raised by a folder that is broken."""
        ...


NAMES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "openvino": ("allaprima.models.backends.openvino", "OpenVino", ("openvino",)),
    "onnxruntime": ("allaprima.models.backends.onnx", "OnnxRuntime", ("onnxruntime", "onnx", "onnxscript")),
}
"""Module and class of each backend, and what it imports; its extra has its own name."""
DTYPES: Mapping[str, tuple[str, ...]] = {"openvino": ("float32", "bfloat16"), "onnxruntime": ("float32",)}
"""What each can compute in."""


def make_backend(name: str, dtype: str = "float32") -> Backend:
    """Return a backend by name.

    Raises `SettingError` for an unknown one, where its extra isn't installed, and for a dtype that it can't compute in.
    """
    if name not in NAMES:
        raise SettingError(f"backend={name!r} is not known: eager, {', '.join(NAMES)} are.")
    module, kind, needs = NAMES[name]
    for package in needs:
        try:
            importlib.import_module(package)
        except ImportError as e:
            raise SettingError(f"backend={name!r} needs {package} ({e}): pip install 'allaprima[{name}]'.") from e
    if dtype not in DTYPES[name]:
        raise SettingError(f"dtype={dtype!r}: backend={name!r} computes in {' or '.join(DTYPES[name])}.")
    return getattr(importlib.import_module(module), kind)(dtype)
