"""A fitted partition on disk: one safetensors file whose header says schema, method and number of students; no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.models.multi_student.partition import Circle, Partition, Tree

SCHEMA = 1


def save_partition(partition: Partition, path: Path) -> None:
    """One safetensors file, written beside and renamed; the header says method, number of students and schema."""
    about = {"schema": SCHEMA, "method": partition.method, "students": partition.students}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    save_file({k: v.contiguous() for k, v in partition.tensors.items()}, beside, {"partition": json.dumps(about)})
    beside.replace(path)


def load_partition(path: Path) -> Partition:
    """Inverse of `save_partition`. Raises `ModelError` for a truncated file, another schema or what is no partition."""
    try:
        with safe_open(path, "pt") as f:
            header = (f.metadata() or {}).get("partition")
            # Copies: a tensor that looks into the file would change with it.
            tensors = {k: f.get_tensor(k).clone() for k in f.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{path} cannot be read as a partition: {e}. Copy it again, or fit it again.") from e
    try:
        about: dict[str, Any] = json.loads(header or "")
        schema, method, students = about["schema"], str(about["method"]), about["students"]
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise ModelError(f"{path} is not a partition: its header says {header!r}. Save it with `save_partition`.") from e
    if schema != SCHEMA:
        raise ModelError(f"{path} has schema {schema!r}, this version reads {SCHEMA}: fit it again, or change the version.")
    made = _assembled(method, students, tensors)
    if made is None:
        shapes = {k: tuple(v.shape) for k, v in tensors.items()}
        raise ModelError(f"{path}: {method!r} for {students!r} students can't be made of {shapes}. Fit it again.")
    return made


def _assembled(method: str, students: int, t: dict[str, Tensor]) -> Partition | None:
    """Return a partition that can route, or None when what is due is missing, of another shape, or leads nowhere."""
    if type(students) is not int or students < 1:
        return None
    names = {"direction", "thresholds"} if method == "random" else {"directions", "thresholds", "children"}
    if t.keys() != names or not all(bool(v.isfinite().all()) for v in t.values()):
        return None
    cuts = t["thresholds"]
    if cuts.dtype != torch.double or cuts.shape != (students - 1,):
        return None
    if method == "random":
        direction = t["direction"]
        return Circle(direction, cuts) if direction.dtype == torch.double and direction.ndim == 1 else None
    directions, children = t["directions"], t["children"]
    shaped = directions.dtype == torch.double and directions.ndim == 2 and len(directions) == len(cuts)
    if method not in ("pca_median", "balanced_kmeans") or not shaped or children.shape != (len(cuts), 2):
        return None
    # Every node but the root and every student is somebody's child, and a child comes after its parent: a tree.
    ends = sorted(children.flatten().tolist())
    later = all(c < 0 or c > j for j, pair in enumerate(children.tolist()) for c in pair)
    whole = ends == [*range(-students, 0), *range(1, len(cuts))]
    return Tree(directions, cuts, children, method) if later and (whole or students == 1) else None
