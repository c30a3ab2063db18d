"""What is seen of a training while it runs: a bar with loss and throughput, sample grids, trackers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress as Bar
from torch import nn

from allaprima.cascade.settings import CascadeSettings
from allaprima.data.images import save_png, to_pil
from allaprima.data.sheet import SheetRow, contact_sheet
from allaprima.distill.devices import Devices
from allaprima.distill.loop import TrainingProgress
from allaprima.distill.methods.adapters import shown
from allaprima.distill.methods.common import SamplingDefaults
from allaprima.distill.training_data import TrainingData
from allaprima.models.cards.card import Card
from allaprima.models.families.family import Family
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline, card_settings

SAMPLES = 12


@torch.inference_mode()
def sample_grid(student: Any, use: SamplingDefaults, card: Card, prompts: Sequence[str], title: str) -> Any:
    """Return a contact sheet of a student's drafts, the same seeds each time: a PIL image."""
    settings = CascadeSettings(
        student_steps=use.steps, student_solver=use.solver, student_guidance=use.guidance, height=card.height,
        width=card.width,
    )  # fmt: skip
    out = AdaptivePipeline(student, student, settings=settings)(list(prompts), seed=0, mode="student-only")
    rows = [SheetRow(p, None, image, None, None, "accept") for p, image in zip(prompts, out.images, strict=True)]
    return contact_sheet(rows, title)


@torch.inference_mode()
def adapter_grid(card: Card, kind: str, data: TrainingData, mode: str) -> Any:
    """Return maps of a few pictures of the data beside what is painted with them, the same seeds each time: a PIL image."""
    g, count = torch.Generator().manual_seed(0), min(SAMPLES, len(data))
    index = [i * len(data) // count for i in range(count)]
    maps = [shown(data, kind, i, g) for i in index]
    prompts = [data.captions[int(data.caption_of[i])] for i in index]
    pair = load_pair(card)
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, card_settings(card), None, card).with_controlnets([kind])
    out = pipe(prompts, seed=0, mode=mode, control_image=maps)
    rows = [
        SheetRow(p, to_pil(m[:3]), image, None, None, mode.partition("-")[0])
        for p, m, image in zip(prompts, maps, out.images, strict=True)
    ]
    return contact_sheet(rows, f"{card.name}: {kind}, and what is painted with it")


@dataclass
class Watcher:
    """Told at every checkpoint; paints a grid when the last is old enough."""

    bar: Bar
    task: Any
    devices: Devices
    teacher: Family
    card: Card
    use: SamplingDefaults
    prompts: Sequence[str]
    folder: Path
    """Where grids go: `samples/step-000100.png`."""
    every: float
    """Seconds between grids; 0 is none."""
    last: TrainingProgress | None = None
    painted: float = field(default_factory=time.monotonic)

    def __call__(self, emas: Mapping[str, nn.Module], p: TrainingProgress) -> None:
        """Bar, then grid."""
        self.last = p
        rate = p.samples / p.seconds if p.seconds > 0 else 0.0
        self.bar.update(self.task, completed=p.step, description=f"training, loss {p.loss:.4g}, {rate:.1f} samples/s")
        if self.every and time.monotonic() - self.painted >= self.every:
            self._paint(emas["use"], p.step)
            self.painted = time.monotonic()

    def _paint(self, network: nn.Module, step: int) -> None:
        student = self.teacher.with_network(network.eval(), self.teacher.fingerprints)
        sheet = sample_grid(student, self.use, self.card, self.prompts, f"step {step}: drafts of {self.use.steps} steps")
        self.folder.mkdir(parents=True, exist_ok=True)
        save_png(sheet, self.folder / f"step-{step:06d}.png", {})
        self.devices.log_picture("samples", np.asarray(sheet.convert("RGB")), step)
