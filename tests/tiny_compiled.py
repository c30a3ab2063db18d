"""A tiny network with everything a compiled call may hold, and a backend that compiles nothing: what stands around both."""

import torch
from torch import nn


class TinyNet(nn.Module):
    """`(x, t, words=, scale=None, more=[...]) -> {"sample": ..., "other": None, "all": (...)}`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.line = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 3)
        self.config = {"kind": "tiny"}
        self.eval().requires_grad_(False)

    def forward(self, x, t, words, scale=None, more=()):
        h = self.conv(x) + t[:, None, None, None] + self.line(words)[:, :, None, None]
        for m in more:
            h = h + m
        return {"sample": torch.sin(h if scale is None else h * scale[:, None, None, None]), "other": None, "all": (h, x)}


def inputs(rows=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, 4, 4, generator=g)
    return x, torch.rand(rows, generator=g), torch.randn(rows, 4, generator=g)


class Saved:
    """A `Backend` that keeps the module as a trace."""

    signature, dtype, tolerance = "saved-1", "float32", 1e-3
    converted = loaded = 0

    def convert(self, module, inputs, folder):
        self.converted += 1
        self.module = module
        (folder / "graph").write_text("whole")

    def load(self, folder):
        self.loaded += 1
        assert (folder / "graph").read_text() == "whole"
        return lambda given: [x.clone() for x in self.module(*given)]
