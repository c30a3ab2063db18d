"""Features and moments of a set of pictures, kept on disk by what they were made of.

The key hashes the pictures' raw 8-bit pixels in order, the network's fingerprint and its preprocessing: other pictures,
other weights or another resizing make another file. A file that is corrupt, or not what its name says, is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from allaprima.core.errors import RunFolderError, SettingError
from allaprima.data.images import write_bytes_atomically
from allaprima.evaluation.frechet import Moments, MomentSums
from allaprima.evaluation.metric import check_count, features_of
from allaprima.features.module import Features, describe_features

Pictures = Callable[[], Iterable[Tensor]]
"""Batches of `(B, 3, H, W)` uint8, as often as they are asked for; how they are split makes no difference to the key."""


def content_hash(pictures: Pictures, features: Features, protocol: Mapping[str, Any]) -> str:
    """SHA-256 over shapes and pixels in order, network and protocol (JSON-ready)."""
    digest = hashlib.sha256()
    for batch in pictures():
        _check(batch)
        for picture in batch:
            digest.update(f"{tuple(picture.shape)}".encode())
            digest.update(picture.cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps([describe_features(features), protocol], sort_keys=True).encode())
    return digest.hexdigest()


class FeatureCache:
    """A folder of safetensors; every file carries its key and the hash of its tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def moments(self, pictures: Pictures, features: Features) -> Moments:
        """For `FrechetDistance`; at least 2 pictures."""

        def make() -> dict[str, Tensor]:
            sums = MomentSums()
            for x in _features(pictures, features):
                sums.add(x)
            m = sums.moments()
            return {"count": torch.tensor(m.count), "mean": m.mean, "factor": m.factor}

        found = self._get(content_hash(pictures, features, {"what": "moments", "version": 1}), make)
        return Moments(int(found["count"]), found["mean"], found["factor"])

    def features(self, pictures: Pictures, features: Features) -> Tensor:
        """`(N, D)` float64, for `KernelDistance` and `PrecisionRecall`; at least 1 picture."""

        def make() -> dict[str, Tensor]:
            parts = list(_features(pictures, features))
            check_count(sum(map(len, parts)), 1, "a reference")
            return {"features": torch.cat(parts)}

        return self._get(content_hash(pictures, features, {"what": "features", "version": 1}), make)["features"]

    def _get(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        path = self.folder / f"{key[:32]}.safetensors"
        found = _read(path, key)
        if found is None:
            found = make()
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise RunFolderError(f"{self.folder} cannot be made: {e.strerror}. Choose another folder.") from e
            write_bytes_atomically(path, save(found, {"key": key, "tensors": _tensors_hash(found)}))
        return found


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return what the file holds, or `None` if there is none that can be trusted."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as f:
            meta: dict[str, str] = f.metadata() or {}
            found = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as e:
        logging.getLogger(__name__).warning("%s cannot be read (%s): made again.", path, e)
        return None
    if meta.get("key") != key or meta.get("tensors") != _tensors_hash(found):
        logging.getLogger(__name__).warning("%s is not what its name says: made again.", path)
        return None
    return found


def _tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check(batch: Tensor) -> None:
    if batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
        raise SettingError(f"pictures of type {batch.dtype} and shape {tuple(batch.shape)}: uint8 (B, 3, H, W) is due.")


def _features(pictures: Pictures, net: Features) -> Iterable[Tensor]:
    for batch in pictures():
        if len(batch):
            yield features_of(net, batch.float() / 255)
