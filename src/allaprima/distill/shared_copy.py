"""Copies of a network that share what is frozen: a base under adapters is in memory once, whatever is made of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn


def shared_copy(network: nn.Module) -> nn.Module:
    """A deep copy that has its own trainable parameters and buffers, and the same frozen parameters.

    Of a network that trains as a whole it is a deep copy.
    """
    return copy.deepcopy(network, {id(p): p for p in network.parameters() if not p.requires_grad})


def shared(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one in memory; of sharded ones this process's shares are compared."""
    here = [getattr(t, "_local_tensor", t).data_ptr() for t in (a, b)]
    return here[0] == here[1] and a.numel() > 0


def frozen(networks: Iterable[nn.Module]) -> set[int]:
    """Where in memory the frozen parameters of these networks are; by that they are known in their twins, too."""
    return {p.data_ptr() for network in networks for p in network.parameters() if not p.requires_grad}


def moving(network: nn.Module, still: set[int]) -> dict[str, Tensor]:
    """The tensors of a network's state but for the parameters at `still`: what a training can change."""
    # Sharded tensors have no place of their own; adapters are not sharded, so nothing of a sharded network is frozen.
    return {name: v for name, v in network.state_dict().items() if not still or v.data_ptr() not in still}
