"""Sliced Wasserstein distance between two sets of points: the mean, over directions, of distances on a line.

On a line the best transport is the sorted one, so with n points each and directions `u_l`
`SW^2 = 1/L sum_l 1/n sum_i ((a u_l)_(i) - (b u_l)_(i))^2` (Bonneel et al., Journal of Mathematical Imaging and Vision 51,
2015, section 3). In units of the points; 0 only for equal sets of projections. Two draws of one distribution are not at 0:
compare with that floor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from allaprima.core.errors import SettingError


def sliced_wasserstein(a: Tensor, b: Tensor, generator: torch.Generator, directions: int = 64) -> float:
    """`a, b: (N, D)`, as many points each; `generator` draws the directions. Raises `SettingError` for other shapes."""
    if a.ndim != 2 or a.shape != b.shape or not len(a) or directions < 1:
        raise SettingError(
            f"points of shapes {tuple(a.shape)} and {tuple(b.shape)}, {directions} directions: (N, D) twice, with one N,"
            " and at least one direction are due. Draw as many from either."
        )
    u = torch.nn.functional.normalize(torch.randn(a.shape[1], directions, generator=generator, dtype=torch.float64), dim=0)
    along_a, along_b = (torch.sort(x.double() @ u, dim=0).values for x in (a, b))
    return float((along_a - along_b).square().mean().sqrt())
