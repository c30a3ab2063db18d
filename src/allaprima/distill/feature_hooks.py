"""Taps: read what a network's inner modules say, without a change to the network.

For the head on a fake score's bottleneck (`mid_block`) and for the features that architecture-based students imitate.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from allaprima.core.errors import SettingError


class FeatureHooks:
    """`with FeatureHooks(unet, ["mid_block"]) as taps: unet(...); taps["mid_block"]`: what they said last, with gradient.

    A module that returns a tuple or list is read by its `entry`, the first unless said otherwise. Leaving the block takes
    the hooks off again. Raises `SettingError` for names that aren't there, or that haven't been run.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], entry: int = 0) -> None:
        modules = dict(network.named_modules())
        missing = [n for n in names if n not in modules]
        if missing:
            raise SettingError(f"no modules {missing} in {type(network).__name__}: choose among {list(modules)[1:20]}...")
        self._modules, self._entry = {n: modules[n] for n in names}, entry
        self._handles: list[Any] = []
        self.outputs: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.outputs:
            raise SettingError(f"tap {name!r} has heard nothing: run the network inside the with block first.")
        return self.outputs[name]

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self.outputs[name] = output[self._entry] if isinstance(output, tuple | list) else output

        return hook
