"""Labels to fine-tune an oracle on, and how often a scorer agrees with them.

Two kinds: `PreferencePairs` (two pictures of a prompt and which is preferred) and `Gains` (a draft and what the teacher
would gain). Both split by prompt: pictures of one prompt never stand on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.distill.losses.preference import bradley_terry_loss, gain_loss

ROUNDS = 1000
"""Bootstrap rounds of an interval, unless told otherwise."""


@dataclass(frozen=True)
class Agreement:
    """Share of pairs in the right order (equal scores count one half), 95 % interval with prompts resampled."""

    accuracy: float
    low: float
    high: float
    pairs: int


class Labels(Protocol):
    """What a fine-tuning needs of its labels; a row is one labelled example."""

    @property
    def prompt(self) -> Tensor:
        """`(N,)` int64, which prompt a row belongs to."""
        ...

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Scalar loss of these rows."""
        ...

    def agreement(self, model: nn.Module, rows: Tensor, rounds: int = ROUNDS) -> Agreement:
        """How often the scorer orders these rows' pictures as labelled; no bootstrap `rounds`, no interval (nan)."""
        ...


@dataclass(frozen=True)
class PreferencePairs:
    """`a, b: (N, 3, H, W)` uint8 or float in [0, 1]; `preference: (N,)` in [0, 1]: 1 for a, 0 for b, .5 a tie."""

    a: Tensor
    b: Tensor
    preference: Tensor
    prompt: Tensor
    hidden: Tensor
    """`(P, L, D)` hidden states of the prompts."""

    @classmethod
    def of(
        cls, a: Tensor, b: Tensor, preference: Tensor, prompts: Sequence[str], encode: Callable[[Sequence[str]], Tensor]
    ) -> PreferencePairs:
        """With each distinct prompt encoded once. Raises `SettingError` for lengths that differ or labels out of range."""
        index, hidden = _texts(prompts, encode, len(a), len(b), len(preference))
        if not bool(((preference >= 0) & (preference <= 1)).all()):
            raise SettingError(
                f"preferences from {float(preference.min())} to {float(preference.max())}: they lie in [0, 1]."
            )
        return cls(a, b, preference.float(), index, hidden)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Bradley-Terry over both pictures, scored in one batch."""
        text = self.hidden[self.prompt[rows]]
        both = model(torch.cat([_pixels(self.a[rows]), _pixels(self.b[rows])]), torch.cat([text, text]))
        return bradley_terry_loss(both[: len(rows)], both[len(rows) :], self.preference[rows])

    def agreement(self, model: nn.Module, rows: Tensor, rounds: int = ROUNDS) -> Agreement:
        """Over pairs with a preference; ties have no right order and are left out."""
        rows = rows[self.preference[rows] != 0.5]
        d = _logits(model, self.a, self, rows) - _logits(model, self.b, self, rows)
        right = 0.5 + 0.5 * np.sign(d) * np.sign(self.preference[rows].double().numpy() - 0.5)
        weights = _resampled(self.prompt[rows].numpy(), rounds)
        return _agreement(right.sum(), len(rows), weights @ right, weights.sum(1))


@dataclass(frozen=True)
class Gains:
    """`drafts: (N, 3, H, W)` uint8 or float in [0, 1]; `gain: (N,)`, the teacher's quality minus the draft's."""

    drafts: Tensor
    gain: Tensor
    prompt: Tensor
    hidden: Tensor
    """`(P, L, D)` hidden states of the prompts."""
    quantile: float | None = None
    """None: squared error; else the pinball loss of this quantile of `-gain`."""

    @classmethod
    def of(
        cls, drafts: Tensor, gain: Tensor, prompts: Sequence[str], encode: Callable[[Sequence[str]], Tensor],
        quantile: float | None = None,
    ) -> Gains:  # fmt: skip
        """With each distinct prompt encoded once. Raises `SettingError` for lengths that differ or values out of range."""
        index, hidden = _texts(prompts, encode, len(drafts), len(gain))
        if not bool(gain.isfinite().all()):
            raise SettingError(f"{int((~gain.isfinite()).sum())} gains are no finite numbers: leave those drafts out.")
        if quantile is not None and not 0 < quantile < 1:
            raise SettingError(f"quantile={quantile!r} is out of range: above 0 and below 1, or None for squares.")
        return cls(drafts, gain.float(), index, hidden, quantile)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Squared error or pinball loss of the gain."""
        logits = model(_pixels(self.drafts[rows]), self.hidden[self.prompt[rows]])
        return gain_loss(logits, self.gain[rows], self.quantile)

    def agreement(self, model: nn.Module, rows: Tensor, rounds: int = ROUNDS) -> Agreement:
        """Over all pairs of drafts with different gains, of one prompt or two: the larger gain should score lower."""
        score, gain = _logits(model, self.drafts, self, rows), self.gain[rows].double().numpy()
        better = np.triu(np.sign(gain[None] - gain[:, None]))  # +1: the row's draft gains less, so should score higher
        right = np.where(better == 0, 0.0, 0.5 + 0.5 * np.sign(score[:, None] - score[None]) * better)
        weights = _resampled(self.prompt[rows].numpy(), rounds)
        hits, all_pairs = ((weights @ m * weights).sum(1) for m in (right, np.abs(better)))
        return _agreement(right.sum(), int(np.abs(better).sum()), hits, all_pairs)


@torch.no_grad()
def _logits(model: nn.Module, images: Tensor, labels: PreferencePairs | Gains, rows: Tensor, batch: int = 128) -> np.ndarray:
    parts = [model(_pixels(images[r]), labels.hidden[labels.prompt[r]]) for r in rows.split(batch) if len(r)]
    return torch.cat(parts).double().numpy() if parts else np.zeros(0)


def _pixels(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float() / 255


def _texts(prompts: Sequence[str], encode: Callable[[Sequence[str]], Tensor], *lengths: int) -> tuple[Tensor, Tensor]:
    if not prompts or any(n != len(prompts) for n in lengths):
        raise SettingError(f"{len(prompts)} prompts for {list(lengths)} pictures and labels: one each, at least one.")
    distinct = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    return torch.tensor([distinct[p] for p in prompts]), encode(list(distinct))


def _resampled(prompt: np.ndarray, rounds: int) -> np.ndarray:
    """How often each row counts in each bootstrap round, prompts drawn with all their rows: `(rounds, N)`."""
    distinct, group = np.unique(prompt, return_inverse=True)
    n = len(distinct)
    if not rounds or not n:
        return np.zeros((0, len(prompt)))
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=rounds)[:, group].astype(np.float64)


def _agreement(right: float, pairs: int, hits: np.ndarray, totals: np.ndarray) -> Agreement:
    if not pairs:
        raise SettingError("no pair among the held-out prompts has a preference: label more prompts, or hold out more.")
    low, high = np.quantile(hits[totals > 0] / totals[totals > 0], [0.025, 0.975]) if len(hits) else (np.nan, np.nan)
    return Agreement(float(right / pairs), float(low), float(high), pairs)
