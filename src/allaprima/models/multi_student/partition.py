"""Which student paints which prompt: the partitions of Multi-Student Distillation (arXiv 2410.23274).

Students are distilled each on its own share of the conditions, `F(D, Y_k)`: disjoint, equal in size and alike in meaning.
A partition is fitted once on training prompts and saved (`partition_file`); one function, `route`, says whose a prompt is,
in training and in use. Shares of the prompts it was fitted on are equal to within one prompt, unless prompts coincide.

`fit_pca_median`: PCA of pooled text embeddings, split at the median of the first axis, then at the median of the second
inside each half; further axes for 8, 16, ... students.
`fit_balanced_kmeans`: 2-means of fixed sizes, again inside each part. `fit_random`: no meaning at all, the control.

Departures: the paper does not say how its quadrants are cut, the nested medians are ours; its k-means was rejected for
uneven sizes, ours is balanced by bisection; its random split is by sample, ours by prompt, so that it can be used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from allaprima.core.errors import SettingError

PERIODS = 64.0
"""How often `fit_random` goes round its circle within one standard deviation: neighbours closer than that stay together."""


class Partition(Protocol):
    """A fitted partition; frozen."""

    @property
    def method(self) -> str:
        """`pca_median`, `balanced_kmeans` or `random`."""
        ...

    @property
    def students(self) -> int:
        """K."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was fitted, float64 and int64."""
        ...

    @property
    def dim(self) -> int:
        """D of the embeddings it was fitted on."""
        ...

    def route(self, conditions: Tensor) -> Tensor:
        """Embeddings `(N, L, D)` or pooled `(N, D)` -> students `(N,)` int64 in 0..K-1.

        The answer for a row never depends on the other rows. Raises `SettingError` for another shape.
        """
        ...


def pool(embeddings: Tensor) -> Tensor:
    """Hidden states `(N, L, D)`, zero where padded -> `(N, D)` float64, the mean over live tokens; `(N, D)` stays.

    One row at a time: kernels may sum a batch in another order than a single row.
    """
    if embeddings.ndim not in (2, 3) or not embeddings.is_floating_point():
        raise SettingError(
            f"embeddings of shape {tuple(embeddings.shape)}, {embeddings.dtype} can't be routed: floating point (N, L, D) or"
            " pooled (N, D) are due."
        )
    x = embeddings.detach().cpu().double()
    if not bool(x.isfinite().all()):
        raise SettingError("embeddings to route hold nan or infinite values: look at the text encoder that made them.")
    if x.ndim == 2:
        return x
    return torch.stack([_mean_of_live(row) for row in x]) if len(x) else x.new_zeros(0, x.shape[-1])


def _mean_of_live(row: Tensor) -> Tensor:
    live = row.abs().sum(-1) > 0
    return row[live].mean(0) if bool(live.any()) else row.new_zeros(row.shape[-1])


@dataclass(frozen=True, eq=False)
class Tree:
    """A binary tree of cuts: at node j a pooled embedding x goes left when `directions[j] . x <= thresholds[j]`."""

    directions: Tensor
    """`(K - 1, D)` float64."""
    thresholds: Tensor
    """`(K - 1,)` float64."""
    children: Tensor
    """`(K - 1, 2)` int64, left and right: a later node's number, or `-1 - student`."""
    method: str

    @property
    def students(self) -> int:
        """K."""
        return len(self.thresholds) + 1

    @property
    def dim(self) -> int:
        """D."""
        return self.directions.shape[1]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The cuts."""
        return {"directions": self.directions, "thresholds": self.thresholds, "children": self.children}

    def route(self, conditions: Tensor) -> Tensor:
        """`(N, L, D)` or `(N, D) -> (N,)`."""
        children = self.children.tolist()
        found: list[int] = []
        for x in _pooled_for(conditions, self.dim):
            place = 0 if children else -1
            while place >= 0:
                place = children[place][int(_along(self.directions[place], x) > self.thresholds[place])]
            found.append(-1 - place)
        return torch.tensor(found, dtype=torch.long)


@dataclass(frozen=True, eq=False)
class Circle:
    """`u = frac(direction . x)` falls into one of K arcs between `thresholds`: like prompts go different ways.

    A hash of the prompt would be simpler, but one of the embedding's bits would change with rounding, and training sets
    keep embeddings.
    """

    direction: Tensor
    """`(D,)` float64, scaled so that one standard deviation of the training prompts goes round `PERIODS` times."""
    thresholds: Tensor
    """`(K - 1,)` float64, increasing, in [0, 1)."""
    method: str = "random"

    @property
    def students(self) -> int:
        """K."""
        return len(self.thresholds) + 1

    @property
    def dim(self) -> int:
        """D."""
        return len(self.direction)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Direction and arcs."""
        return {"direction": self.direction, "thresholds": self.thresholds}

    def route(self, conditions: Tensor) -> Tensor:
        """`(N, L, D)` or `(N, D) -> (N,)`."""
        x = _pooled_for(conditions, self.dim)
        return torch.tensor([int((self._turn(row) > self.thresholds).sum()) for row in x], dtype=torch.long)

    def _turn(self, x: Tensor) -> Tensor:
        return _along(self.direction, x) % 1.0


def _along(direction: Tensor, x: Tensor) -> Tensor:
    """`direction . x` of one row, by the same kernel in fit and use, so that prompts which coincide stay together."""
    return (direction * x).sum()


def _pooled_for(conditions: Tensor, dim: int) -> Tensor:
    x = pool(conditions)
    if x.shape[1] != dim:
        raise SettingError(
            f"embeddings have {x.shape[1]} dimensions, the partition was fitted on {dim}: use the text encoder it was"
            " fitted with, or fit it again."
        )
    return x


def fit_pca_median(embeddings: Tensor, students: int) -> Tree:
    """Nested medians along the principal axes of training prompts, `(N, L, D)` or `(N, D)`; K is a power of two.

    The first axis decides the most significant bit of a student's number. Halves of an odd number differ by one; the cut
    lies midway between two neighbours, so that no training prompt lies on it. Raises `SettingError`.
    """
    x = _training(embeddings, students)
    if students & (students - 1):
        raise SettingError(f"pca_median cuts into halves: students={students!r} must be 1, 2, 4, 8, ... Or balanced_kmeans.")
    axes = _principal_axes(x)
    depth = students.bit_length() - 1
    if depth > len(axes):
        raise SettingError(f"{students} students need {depth} axes, embeddings have {len(axes)}: ask for fewer students.")
    return _grown(x, students, "pca_median", lambda _rows, level, _left: axes[level])


def fit_balanced_kmeans(embeddings: Tensor, students: int, seed: int = 0, restarts: int = 4) -> Tree:
    """K groups of equal size around their means, by bisection, of training prompts `(N, L, D)` or `(N, D)`; any K.

    With sizes fixed, the best assignment to two means is a cut across the line between them, so each bisection alternates
    cut and means until nothing changes, from the first principal axis and `restarts` random directions, and keeps the one
    with the least squared distance. Departure: balanced k-means proper moves all K means at once. Raises `SettingError`.
    """
    x = _training(embeddings, students)
    generator = torch.Generator().manual_seed(seed)

    def direction(rows: Tensor, _level: int, left: int) -> Tensor:
        centred = rows - rows.mean(0)
        random = torch.randn(restarts, rows.shape[1], generator=generator, dtype=torch.float64)
        starts = [_principal_axes(rows)[0], *random]
        return min((_two_means(centred, left, s) for s in starts), key=lambda found: found[0])[1]

    return _grown(x, students, "balanced_kmeans", direction)


def fit_random(embeddings: Tensor, students: int, seed: int = 0) -> Circle:
    """Return a share for each student that has nothing to do with meaning, the same for a prompt every time.

    Any K, seeded.
    """
    x = _training(embeddings, students)
    direction = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    spread = float((x @ direction).std(correction=0))
    if spread <= 0:
        raise SettingError(f"student 1 of {students} gets none of the {len(x)} prompts: their embeddings are all the same.")
    unfitted = Circle(direction * (PERIODS / spread), torch.zeros(0, dtype=torch.float64))
    turns = torch.stack([unfitted._turn(row) for row in x])  # pyright: ignore[reportPrivateUsage] (the same module's)
    cuts = [_cut(turns, _share(len(x), k, students)) for k in range(1, students)]
    fitted = Circle(unfitted.direction, torch.tensor(cuts, dtype=torch.float64))
    check_sizes(fitted, x)
    return fitted


def check_sizes(partition: Partition, conditions: Tensor) -> tuple[int, ...]:
    """How many of these conditions each student gets. Raises `SettingError` that names a student who gets none."""
    sizes = torch.bincount(partition.route(conditions), minlength=partition.students).tolist()
    for student, size in enumerate(sizes):
        if size == 0:
            raise SettingError(
                f"student {student} of {partition.students} gets none of the {len(conditions)} prompts: too many of them"
                " coincide. Give more and more varied prompts, or ask for fewer students."
            )
    return tuple(sizes)


def _check_count(students: int) -> None:
    if students < 1:
        raise SettingError(f"students={students!r} must be at least 1.")


def _training(embeddings: Tensor, students: int) -> Tensor:
    _check_count(students)
    x = pool(embeddings)
    if len(x) < students:
        raise SettingError(
            f"student {len(x)} of {students} gets none of the {len(x)} prompts: give more prompts or ask for fewer students."
        )
    return x


def _share(n: int, part: int, whole: int) -> int:
    """`n part / whole`, halves up: nested shares stay within one of `n / whole`, since bounds are whole numbers."""
    return (2 * n * part + whole) // (2 * whole)


def _cut(values: Tensor, left: int) -> float:
    """Midway between the `left` smallest values and the rest."""
    ordered = values.sort().values
    return float((ordered[left - 1] + ordered[left]) / 2)


def _principal_axes(x: Tensor) -> Tensor:
    """`(D, D)`, rows by falling variance; the sign is that of the largest component, which makes an axis unique."""
    centred = x - x.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T
    return axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()


def _two_means(centred: Tensor, left: int, direction: Tensor) -> tuple[float, Tensor]:
    """Squared distance to the two means and the direction from one to the other, `left` rows on the near side."""
    before: Tensor | None = None
    cost = float("inf")
    for _ in range(100):
        order = (centred @ direction).argsort(stable=True)
        near = torch.zeros(len(centred), dtype=torch.bool)
        near[order[:left]] = True
        if before is not None and bool((near == before).all()):
            break
        low, high = centred[near].mean(0), centred[~near].mean(0)
        cost = float((centred[near] - low).square().sum() + (centred[~near] - high).square().sum())
        before = near
        if bool((high == low).all()):
            break
        direction = high - low
    return cost, direction


def _grown(x: Tensor, students: int, method: str, direction: Callable[[Tensor, int, int], Tensor]) -> Tree:
    """Cut again and again; `direction(rows, level, size of the left side)` says across which line."""
    directions: list[Tensor] = []
    thresholds: list[float] = []
    children: list[list[int]] = []

    def grow(rows: Tensor, first: int, count: int, level: int) -> int:
        if count == 1:
            return -1 - first
        half = count // 2
        left = _share(len(rows), half, count)
        place = len(directions)
        directions.append(direction(rows, level, left))
        along = torch.stack([_along(directions[-1], row) for row in rows])
        thresholds.append(_cut(along, left))
        children.append([0, 0])
        right = along > thresholds[-1]
        for side, (part, start, many) in enumerate(((rows[~right], first, half), (rows[right], first + half, count - half))):
            if len(part) < many:
                raise SettingError(
                    f"student {start + len(part)} of {students} gets none of the {len(x)} prompts: too many of them"
                    " coincide. Give more and more varied prompts, or ask for fewer students."
                )
            children[place][side] = grow(part, start, many, level + 1)
        return place

    grow(x, 0, students, 0)
    cuts = torch.stack(directions) if directions else x.new_zeros(0, x.shape[1])
    found = torch.tensor(children, dtype=torch.long).reshape(-1, 2)
    fitted = Tree(cuts, torch.tensor(thresholds, dtype=torch.float64), found, method)
    check_sizes(fitted, x)
    return fitted


def partition_fingerprint(partition: Partition) -> str:
    """Hash of everything a route depends on."""
    digest = hashlib.sha256(f"{partition.method} {partition.students}".encode())
    for name, value in sorted(partition.tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
