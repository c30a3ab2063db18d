"""Frechet distance between two sets of features (arXiv 1706.08500, equation 6).

`|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`. The last trace is the nuclear norm of `A B^T`, with A, B the centred
features over `sqrt(n - 1)`: no matrix square root is taken, so few samples in many dimensions are no trouble for the
arithmetic. They are for the estimate: it is biased upwards with few samples, so compare only distances made with the
same numbers of pictures, the same feature network and the same reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allaprima.core.errors import SettingError


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Distance of features `a: (N, D)` and `b: (M, D)`, N, M >= 2. Raises `SettingError` for other shapes."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise SettingError(
            f"features of shapes {tuple(a.shape)} and {tuple(b.shape)}: (N, D) and (M, D) with N, M >= 2 are due."
        )
    a, b = a.double(), b.double()
    m_a, m_b = a.mean(0), b.mean(0)
    ca, cb = (a - m_a) / (len(a) - 1) ** 0.5, (b - m_b) / (len(b) - 1) ** 0.5
    # tr((S_a S_b)^1/2) = sum of the singular values of ca cb^T, since S_a = ca^T ca and S_b = cb^T cb.
    cross = float(torch.linalg.svdvals(_triangle(ca) @ _triangle(cb).T).sum())
    return float((m_a - m_b).square().sum() + ca.square().sum() + cb.square().sum()) - 2 * cross


def _triangle(x: Tensor) -> Tensor:
    """At most D rows with the same `x^T x`: many samples must not cost a matrix of samples by samples."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x
