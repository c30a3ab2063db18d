"""Noise belongs to the sample: every draw comes from (seed, purpose, step), never from the batch it happens to be in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor


def derive(seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed from a seed and a path of names, the same on every machine and in every Python."""
    text = "\x1f".join([str(int(seed)), *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def noise(seed: int, purpose: str, step: int, shape: Sequence[int]) -> Float32[Tensor, " ..."]:
    """Return standard normal float32 of this shape, on the CPU, for one sample."""
    generator = torch.Generator().manual_seed(derive(seed, purpose, step))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def noise_batch(
    seeds: Sequence[int], purpose: str, steps: Sequence[int], shape: Sequence[int]
) -> Float32[Tensor, " {len(seeds)} ..."]:
    """`(B, *shape)`: row i is `noise(seeds[i], purpose, steps[i], shape)`."""
    return torch.stack([noise(seed, purpose, step, shape) for seed, step in zip(seeds, steps, strict=True)])
