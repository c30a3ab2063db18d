"""Scores of drafts by the oracle, padded to one batch shape, and which of two scores is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from allaprima.cascade.job import Job


class ImageScorer(Protocol):
    """What a cascade asks of an oracle."""

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return `(B,)`, higher is better."""
        ...


@runtime_checkable
class ControlScorer(Protocol):
    """What else an oracle offers that looks at the control images (`oracles.conditional`)."""

    def score_given(self, images: Tensor, prompts: Sequence[str], controls: Sequence[Tensor]) -> Tensor:
        """Return `(B,)`, higher is better; `controls`: `(B, C, H, W)`, one a ControlNet."""
        ...


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """Up to so many rows, copies of the first one: a constant shape keeps kernels, and so bits, the same."""
    missing = rows - len(x)
    return x if missing <= 0 else torch.cat([x, x[:1].expand(missing, *x.shape[1:])])


def pad_texts(texts: list[str], rows: int) -> list[str]:
    """Return the same for texts."""
    return texts + texts[:1] * (rows - len(texts))


def score_images(oracle: ImageScorer | None, jobs: Sequence[Job], images: Tensor, rows: int) -> list[float | None]:
    """Return the oracle's scores; an oracle that raises costs the pictures it raises for their score (nan), not the run."""
    if oracle is None:
        return [None] * len(jobs)
    try:
        scores = _scores(oracle, jobs, pad_rows(images, rows), pad_texts([j.request.prompt for j in jobs], rows), rows)
    except Exception as e:
        if len(jobs) > 1:
            return [score_images(oracle, [job], images[i : i + 1], rows)[0] for i, job in enumerate(jobs)]
        jobs[0].warning = f"the oracle failed: {type(e).__name__}: {e}"
        return [float("nan")]
    return [float(v) for v in scores[: len(jobs)]]


def _scores(oracle: ImageScorer, jobs: Sequence[Job], images: Tensor, prompts: list[str], rows: int) -> Tensor:
    if not isinstance(oracle, ControlScorer) or not jobs[0].request.controls:
        return oracle.score(images, prompts)
    controls = [torch.cat([j.cond.tensors[f"control_{k}"] for j in jobs]) for k in range(len(jobs[0].request.controls))]
    return oracle.score_given(images, prompts, [pad_rows(c, rows) for c in controls])


def beats(score: float | None, best: float | None, margin: float = 0.0) -> bool:
    """Whether a score is better; no number never beats one, and any number beats none."""
    if score is None or math.isnan(score):
        return False
    return best is None or math.isnan(best) or score > best + margin
