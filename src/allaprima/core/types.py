"""The types every room passes around: samples and times, a bundle of conditions, the denoiser.

Shapes are jaxtyping annotations: checked by beartype in the tests (tests/conftest.py), not looked at in production.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from allaprima.core.errors import SettingError

Samples = Float[Tensor, " b *d"]
"""`(B, ...)`: latents of the batch, noisy or clean; within one call every `Samples` has the same shape."""

Times = Float[Tensor, " b"]
"""`(B,)`: one number a sample (a time, alpha, sigma, a guidance scale), as many as there are samples."""


@dataclass(frozen=True)
class Condition:
    """A stackable, indexable bundle: one sample is one row of every tensor."""

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        sizes = {k: (v.shape[0] if v.ndim else None) for k, v in self.tensors.items()}
        if len(set(sizes.values())) > 1 or None in sizes.values():
            raise SettingError(f"a condition's tensors must have the same number of rows; these have {sizes}.")

    def __len__(self) -> int:
        return 0 if not self.tensors else next(iter(self.tensors.values())).shape[0]

    def get(self, name: str) -> Shaped[Tensor, " b ..."] | None:
        """Return a tensor by name, or None."""
        return self.tensors.get(name)

    def rows(self, index: Shaped[Tensor, " n"] | slice | Sequence[int]) -> Condition:
        """Return some of the samples, in this order."""
        chosen = index if isinstance(index, slice | Tensor) else torch.tensor(list(index), dtype=torch.long)
        return Condition({k: v[chosen] for k, v in self.tensors.items()})

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """One bundle after another; all must hold the same names."""
        if not parts or any(p.tensors.keys() != parts[0].tensors.keys() for p in parts):
            raise SettingError(f"conditions to join must hold the same tensors: {[sorted(p.tensors) for p in parts]}.")
        return Condition({k: torch.cat([p.tensors[k] for p in parts]) for k in parts[0].tensors})

    def to(self, device: torch.device | str) -> Condition:
        """Return the same bundle on another device."""
        return Condition({k: v.to(device) for k, v in self.tensors.items()})

    def clone(self) -> Condition:
        """Return the same bundle in memory of its own: what inference mode made can be trained with after."""
        return Condition({k: v.clone() for k, v in self.tensors.items()})

    def float(self) -> Condition:
        """Return the same bundle with floating-point tensors in float32."""
        return Condition({k: v.float() if v.is_floating_point() else v for k, v in self.tensors.items()})

    def replaced(self, mask: Bool[Tensor, " b"], other: Condition) -> Condition:
        """Rows where `mask` is true are `other`'s, which has one row or as many as this one."""

        def choose(name: str, mine: Tensor) -> Tensor:
            chosen = mask.to(mine.device).reshape(-1, *[1] * (mine.ndim - 1))
            return torch.where(chosen, other.tensors[name].to(mine.device), mine)

        return Condition({k: choose(k, v) for k, v in self.tensors.items()})


@runtime_checkable
class Denoiser(Protocol):
    """The one currency: `(x_t: (B,C,H,W), t: (B,), cond of B rows) -> x0_hat: (B,C,H,W)`."""

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """Return the clean sample predicted from `x_t` at times `t`."""
        ...
