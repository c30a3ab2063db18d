"""A network's call as a list of tensors and a structure: what compilers take, and how what they give is put together again.

Everything in a call that is no tensor (flags, None, names) belongs to its structure, and so to the graph made of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.core.errors import ModelError

Plan = Any
"""JSON-ready: `{"t": i}` is tensor i; `{"l": [...]}` (a list), `{"u": [...]}` (a tuple) and `{"d": {...}}` hold plans;
`{"c": value}` is a constant."""


def flattened(value: Any, tensors: list[Tensor], drop: bool = False) -> Plan:
    """The plan of a value; its tensors are appended to `tensors`. Raises `ModelError` for what no plan can hold.

    `drop`: such things become None instead (a language model's cache, which nobody here reads).
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return {"t": len(tensors) - 1}
    if isinstance(value, Mapping):
        return {"d": {str(k): flattened(v, tensors, drop) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        # Some networks ask which of the two they were given.
        return {"l" if isinstance(value, list) else "u": [flattened(v, tensors, drop) for v in value]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"d": {f.name: flattened(getattr(value, f.name), tensors, drop) for f in dataclasses.fields(value)}}
    if value is None or isinstance(value, bool | int | float | str):
        return {"c": value}
    if drop:
        return {"c": None}
    raise ModelError(f"a call with a {type(value).__name__} can't be compiled: use backend='eager' for this model.")


class Output:
    """What a network said: by name, as an attribute or an item, or by place among what isn't None, as diffusers has it."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = dict(named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._named:
            raise AttributeError(name)
        return self._named[name]

    def __getitem__(self, key: str | int) -> Any:
        return self._named[key] if isinstance(key, str) else [v for v in self._named.values() if v is not None][key]


def rebuilt(structure: Plan, tensors: Sequence[Tensor], mapping: Callable[[Mapping[str, Any]], Any] = Output) -> Any:
    """Inverse of `planned`: mappings and dataclasses become what `mapping` makes of them."""
    if "t" in structure:
        return tensors[structure["t"]]
    if "l" in structure:
        return [rebuilt(p, tensors, mapping) for p in structure["l"]]
    if "u" in structure:
        return tuple(rebuilt(p, tensors, mapping) for p in structure["u"])
    if "d" in structure:
        return mapping({k: rebuilt(p, tensors, mapping) for k, p in structure["d"].items()})
    return structure["c"]


@dataclass(frozen=True)
class Call:
    """The arguments of one call."""

    structure: Plan
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Raises `ModelError` for arguments that can't be compiled."""
        tensors: list[Tensor] = []
        structure = {"args": flattened(tuple(args), tensors), "kwargs": flattened(dict(kwargs), tensors)}
        return cls(structure, tuple(tensors))

    @property
    def shape(self) -> list[Any]:
        """All that a compiled graph is made for, JSON-ready."""
        return [self.structure, [[list(x.shape), str(x.dtype)] for x in self.tensors]]

    def made(self, function: Callable[..., Any], tensors: Sequence[Tensor]) -> Any:
        """The same call with other tensors."""
        return function(*rebuilt(self.structure["args"], tensors, dict), **rebuilt(self.structure["kwargs"], tensors, dict))


class Flat(nn.Module):
    """A method of a network as a function of tensors, for one kind of call."""

    def __init__(self, network: Any, function: Callable[..., Any], call: Call) -> None:
        super().__init__()
        # Registered, so that a compiler finds the weights; the function is the network's own, or a method of it.
        self.network = network
        self._function, self._call = function, call

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the network says, as tensors in the order of `planned`."""
        found: list[Tensor] = []
        flattened(self._call.made(self._function, tensors), found)
        return tuple(found)


def other_inputs(call: Call) -> tuple[Tensor, ...]:
    """Tensors unlike those a graph was made with: what it took for a constant shows."""
    return tuple(0.9 * x if x.is_floating_point() else x.flip(0) for x in call.tensors)


@torch.no_grad()
def check_faithful(
    flat: nn.Module, run: Callable[[Sequence[Tensor]], list[Tensor]], call: Call, what: str, tolerance: float = 1e-3
) -> float:
    """The largest difference between a compiled graph and the network, relative to the largest output.

    Raises `ModelError` above `tolerance`: the graph is another function.
    """
    given = other_inputs(call)
    worst = 0.0
    for mine, due in zip(run(given), flat(*given), strict=True):
        scale = max(1e-6, float(due.abs().max())) if due.is_floating_point() else 1.0
        worst = max(worst, float((mine.float() - due.float()).abs().max()) / scale)
    if not worst <= tolerance:
        raise ModelError(
            f"{what} compiled says something else than the network: {worst:.2g} of its largest output. Use eager."
        )
    return worst
