"""Trajectories of denoised predictions: how far they bend, when, how they look in a plane (arXiv 2312.10835, appendix B).

Curvature is the largest distance of an interior point to the chord between first and last point, in units of the latents:
points on a line have 0, an arc its sagitta, anything in one dimension 0. All of it follows from inner products of the
points, so that of a trajectory `(T, D)` its Gram matrix `(T, T)` is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from allaprima.core.errors import SettingError


def gram(points: Tensor, origin: int = 0) -> Tensor:
    """Inner products `(..., T, D) -> (..., T, T)`, float64, relative to the point `origin`.

    Relative to a point of the trajectory, for its distance to the true origin would cost digits.
    """
    if points.ndim < 2 or not points.shape[-2]:
        raise SettingError(f"points of shape {tuple(points.shape)}: (..., T, D) with T of 1 or more is due.")
    x = points.double()
    x = x - x[..., origin : origin + 1, :]
    return x @ x.transpose(-1, -2)


def deviations(inner: np.ndarray, first: int = 0, last: int = -1) -> np.ndarray:
    """Distance of every point from `first` to `last` to the chord between those two: `(..., T, T) -> (..., T')`.

    A chord of length 0 (a closed trajectory) is a point: distances to it. Negative rounding errors count as 0.
    """
    last = last % inner.shape[-1]
    g = inner[..., first : last + 1, first : last + 1]
    # a_i = p_i - p_first, c = p_last - p_first; |a|^2 - (a c)^2 / |c|^2 is the squared distance to the line.
    a2 = np.einsum("...ii->...i", g) - 2 * g[..., 0, :] + g[..., :1, 0]
    ac = g[..., :, -1] - g[..., :, 0] - g[..., :1, -1] + g[..., :1, 0]
    c2 = a2[..., -1:]
    along = np.divide(ac**2, c2, out=np.zeros_like(ac), where=c2 > 0)
    return np.sqrt(np.clip(a2 - along, 0, None))


def curvature(inner: np.ndarray, first: int = 0, last: int = -1) -> np.ndarray:
    """`(..., T, T) -> (...)`: the largest of `deviations`; 0 for fewer than 3 points."""
    return deviations(inner, first, last).max(-1)


def plane(inner: np.ndarray) -> tuple[np.ndarray, float]:
    """Principal components of the points of one Gram matrix `(T, T)`: coordinates `(T, 2)` and the share of variance shown.

    Axes point the way that the last point lies on their positive side.
    """
    n = len(inner)
    centre = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(centre @ inner @ centre)
    order = np.argsort(values)[::-1][:2]
    found = vectors[:, order] * np.sqrt(np.clip(values[order], 0, None))
    if found.shape[1] < 2:
        found = np.pad(found, ((0, 0), (0, 2 - found.shape[1])))
    found = found * np.where(found[-1] < 0, -1.0, 1.0)
    total = float(np.clip(values, 0, None).sum())
    return found, float(np.clip(values[order], 0, None).sum()) / total if total > 0 else 1.0


@dataclass(frozen=True)
class Trajectories:
    """Of every pair, student's points then teacher's: `gram (N, S + T, S + T)`, and the times of both."""

    gram: np.ndarray
    student_times: np.ndarray
    """`(S,)`, in the schedule's times."""
    teacher_times: np.ndarray

    @property
    def students(self) -> int:
        """How many of the points are the student's."""
        return len(self.student_times)

    def student(self) -> np.ndarray:
        """Curvatures `(N,)` of the student's."""
        return curvature(self.gram, 0, self.students - 1)

    def teacher(self) -> np.ndarray:
        """Curvatures `(N,)` of the teacher's."""
        return curvature(self.gram, self.students)

    def chord(self) -> np.ndarray:
        """Length `(N,)` of the teacher's chord."""
        return self.teacher_to_end()[:, 0]

    def by_time(self) -> np.ndarray:
        """`(N, T)`: the teacher's distance to its chord at each of its times."""
        return deviations(self.gram, self.students)

    def student_to_end(self) -> np.ndarray:
        """`(N, S)`: distance of each of the student's predictions to the teacher's last."""
        return self._to(slice(0, self.students))

    def teacher_to_end(self) -> np.ndarray:
        """`(N, T)`: distance of each of the teacher's predictions to its last."""
        return self._to(slice(self.students, None))

    def _to(self, which: slice) -> np.ndarray:
        square = np.einsum("nii->ni", self.gram)
        return np.sqrt(np.clip(square[:, which] + square[:, -1:] - 2 * self.gram[:, which, -1], 0, None))
