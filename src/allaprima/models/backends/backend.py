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
    """A compiler and runtime for CPUs, in float32."""

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


def make_backend(name: str) -> Backend:
    """A backend by name. Raises `SettingError` for an unknown one, and where its extra isn't installed."""
    if name not in NAMES:
        raise SettingError(f"backend={name!r} is not known: eager, {', '.join(NAMES)} are.")
    module, kind, needs = NAMES[name]
    for package in needs:
        try:
            importlib.import_module(package)
        except ImportError as e:
            raise SettingError(f"backend={name!r} needs {package} ({e}): pip install 'allaprima[{name}]'.") from e
    return getattr(importlib.import_module(module), kind)()
