"""What stands where a network was: called alike, it computes elsewhere and answers on the CPU in float32."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.models.backends.flat import Call, rebuilt
from allaprima.models.backends.store import Graph, GraphStore

MOST_ROWS = 16
"""Rows a call of a text encoder, which is asked for any number of prompts."""


class StandIn(nn.Module):
    """In place of a network: its config, and one parameter without an element, which says CPU and float32."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.here = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def dtype(self) -> torch.dtype:
        """What it takes and gives."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where it takes and gives it."""
        return torch.device("cpu")


class Compiled(StandIn):
    """A network, or one method of it, by graphs of a backend: one for each kind of call, made when it first comes.

    `network`: loads it, or hands it over; asked for where a graph isn't there yet. `whole_rows`: calls are brought to a few
    numbers of rows, copies of the first filling them up; for what is asked for any number of rows.
    """

    def __init__(
        self, name: str, fingerprint: str, network: Callable[[], Any], store: GraphStore, config: Any = None,
        method: str | None = None, whole_rows: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self.name, self.fingerprint, self.store = name, fingerprint, store
        self._network, self._method, self._whole_rows = network, method, whole_rows
        self._graphs: dict[str, Graph] = {}
        self._lock = threading.Lock()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network would say."""
        call = Call.of(args, kwargs)
        if not self._whole_rows:
            return self._said(call)
        rows = len(call.tensors[0])
        size = min(MOST_ROWS, 1 << (rows - 1).bit_length())
        parts: list[tuple[Tensor, ...]] = []
        structure: Any = None
        for begin in range(0, rows, size):
            n = min(size, rows - begin)
            part = tuple(_filled(x[begin : begin + n], size) for x in call.tensors)
            graph = self._graph(Call(call.structure, part))
            parts.append(tuple(x[:n] for x in graph.run(part)))
            structure = graph.outputs
        return rebuilt(structure, [torch.cat(x) for x in zip(*parts, strict=True)])

    def _said(self, call: Call) -> Any:
        graph = self._graph(call)
        return rebuilt(graph.outputs, graph.run(call.tensors))

    def _graph(self, call: Call) -> Graph:
        shape = repr(call.shape)
        with self._lock:
            if shape not in self._graphs:
                name = self.name if self._method is None else f"{self.name}.{self._method}"
                self._graphs[shape] = self.store.graph(name, self.fingerprint, call, self._module)
            return self._graphs[shape]

    def _module(self) -> tuple[Any, Callable[..., Any]]:
        network = self._network()
        return network, network if self._method is None else getattr(network, self._method)


def _filled(x: Tensor, size: int) -> Tensor:
    return x if len(x) == size else torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])])


class CompiledAutoencoder:
    """An autoencoder whose decoder is compiled; pictures are read by torch, which happens once an edit."""

    def __init__(self, vae: Any, name: str, fingerprint: str, store: GraphStore) -> None:
        self.config, self._vae = vae.config, vae
        self.decoder = Compiled(name, fingerprint, lambda: vae, store, vae.config, "decode")

    def decode(self, latents: Tensor, **told: Any) -> Any:
        """Latents as the autoencoder knows them -> something with `sample`."""
        return self.decoder(latents, **told)

    def encode(self, images: Tensor) -> Any:
        """Return the autoencoder's own."""
        return self._vae.encode(images)
