"""A feature network that remembers: pictures whose features were made before (or cached) aren't put through it again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.features.module import Features


class CachedFeatures:
    """`net` with the features of some 8-bit pictures at hand; any other picture goes through `net`."""

    def __init__(self, net: Features, pictures: Iterable[Tensor], features: Tensor) -> None:
        """Batches `(B, 3, H, W)` of uint8 and their features `(N, D)` in the same order."""
        self.net, self.name, self.fingerprint, self.dim = net, net.name, net.fingerprint, net.dim
        self.preprocessing: Mapping[str, Any] = net.preprocessing
        keys = [_key(picture) for batch in pictures for picture in batch]
        if features.shape != (len(keys), net.dim):
            raise SettingError(f"features of shape {tuple(features.shape)}: {(len(keys), net.dim)} is due.")
        self._place = {key: i for i, key in enumerate(keys)}
        self._features = features

    def features(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, dim)`."""
        bytes8 = (images * 255).round().byte()
        # Only what is exactly 8-bit: a resized picture must not pass for its rounded neighbour.
        if torch.equal(bytes8.to(images.dtype) / 255, images):
            found = [self._place.get(_key(picture)) for picture in bytes8]
            places = [i for i in found if i is not None]
            if len(places) == len(images):
                return self._features[places]
        return self.net.features(images)


def _key(picture: Tensor) -> bytes:
    digest = hashlib.sha256(f"{tuple(picture.shape)}".encode())
    digest.update(picture.cpu().contiguous().numpy().tobytes())
    return digest.digest()
