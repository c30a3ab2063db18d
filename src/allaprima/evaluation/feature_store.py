"""Features of painted and of reference pictures, kept: for metrics whose formula needs every pair."""

from __future__ import annotations

import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.metric import check_count, features_of
from allaprima.features.module import Features


class FeatureStore:
    """Memory: 8 D bytes a picture. `reference: (M, D)`, features made earlier, or `None`: they come with `add`."""

    def __init__(self, who: str, net: Features, reference: Tensor | None = None) -> None:
        self.who, self.net = who, net
        if reference is not None and (reference.ndim != 2 or reference.shape[1] != net.dim):
            raise SettingError(f"reference features of shape {tuple(reference.shape)}: (M, {net.dim}) is due.")
        if reference is not None and not bool(torch.isfinite(reference).all()):
            raise SettingError("reference features are not all finite: make them again.")
        self.fixed = reference is not None
        self._painted: list[Tensor] = []
        self._real: list[Tensor] = [] if reference is None else [reference.detach().cpu().double()]

    @property
    def counts(self) -> tuple[int, int]:
        """How many painted and how many reference pictures."""
        return sum(map(len, self._painted)), sum(map(len, self._real))

    def add(self, images: Tensor, references: Tensor | None) -> None:
        """Painted pictures and, unless the reference was given, any number of real ones; all or nothing is added."""
        if references is not None and self.fixed:
            raise SettingError(f"{self.who} has its reference already: give features or pictures, not both.")
        painted = features_of(self.net, images)
        real = None if references is None else features_of(self.net, references, "references")
        self._painted.append(painted)
        if real is not None:
            self._real.append(real)

    def both(self, least: int) -> tuple[Tensor, Tensor]:
        """Painted `(N, D)` and reference `(M, D)` features, `least` of each or more."""
        n, m = self.counts
        check_count(n, least, self.who)
        check_count(m, least, self.who, "reference pictures")
        return torch.cat(self._painted), torch.cat(self._real)
