"""Methods of distillation, one file each; `METHODS` names them without importing what they need."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodEntry:
    """Where a method is and what it does."""

    module: str
    options: str
    """Name of the module's class of options."""
    summary: str
    paper: str
    adapter: bool = False
    """Whether it trains a ControlNet beside the frozen base, and looks at pictures for that."""

    def load(self) -> tuple[Any, Any]:
        """Import the method. Returns its module and its class of options."""
        module = importlib.import_module(self.module)
        return module, getattr(module, self.options)


METHODS: Mapping[str, MethodEntry] = {
    "consistency": MethodEntry(
        "allaprima.distill.methods.consistency",
        "ConsistencyOptions",
        "a few-step student that jumps to where the teacher's trajectory ends",
        "arXiv 2312.10835, appendix A",
    ),
    "tsm": MethodEntry(
        "allaprima.distill.methods.tsm",
        "ScoreMatchingOptions",
        "a smaller network that says what the teacher says; the start of a small one-step student",
        "arXiv 2410.23274, stage 1",
    ),
    "architecture": MethodEntry(
        "allaprima.distill.methods.architecture",
        "ArchitectureOptions",
        "a smaller network (network=base, small, tiny) that learns the task, the teacher's outputs and its hidden states",
        "arXiv 2305.15798",
    ),
    "distribution_matching": MethodEntry(
        "allaprima.distill.methods.matching",
        "MatchingOptions",
        "a one- or few-step student whose pictures are distributed as the teacher's",
        "arXiv 2410.23274, stage 2; arXiv 2405.14867",
    ),
    "adversarial": MethodEntry(
        "allaprima.distill.methods.matching",
        "MatchingOptions",
        "the same with a discriminator on the fake score's bottleneck",
        "arXiv 2410.23274, stage 3; arXiv 2405.14867",
    ),
    "controlnet": MethodEntry(
        "allaprima.distill.methods.controlnet",
        "ControlNetOptions",
        "a ControlNet for the teacher, which its students take unchanged",
        "arXiv 2302.05543",
        adapter=True,
    ),
    "conditional": MethodEntry(
        "allaprima.distill.methods.conditional",
        "ConditionalOptions",
        "a net on the frozen teacher that heeds a picture and paints in few steps (super-resolution, inpainting, edges)",
        "arXiv 2310.01407",
        adapter=True,
    ),
}
