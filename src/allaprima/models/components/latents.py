"""Latents as a network knows them, and as the autoencoder does: what its config says lies between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _numbers(config: Any) -> tuple[float, float, Tensor | None, Tensor | None]:
    """Scale, shift, and mean and standard deviation by channel `(1, C, 1, 1)` where the config has both."""
    scale = float(getattr(config, "scaling_factor", 1.0) or 1.0)
    shift = float(getattr(config, "shift_factor", 0.0) or 0.0)
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return scale, shift, None, None
    return scale, shift, torch.tensor(mean).reshape(1, -1, 1, 1), torch.tensor(std).reshape(1, -1, 1, 1)


def to_network(config: Any, latents: Tensor) -> Tensor:
    """`(z - shift) * scale`, or `(z - mean) * scale / std`, of an autoencoder's latents `(B, C, h, w)`."""
    scale, shift, mean, std = _numbers(config)
    if mean is not None and std is not None:
        return (latents - mean) * scale / std
    return (latents - shift) * scale


def to_autoencoder(config: Any, latents: Tensor) -> Tensor:
    """Inverse of `to_network`."""
    scale, shift, mean, std = _numbers(config)
    if mean is not None and std is not None:
        return latents * std / scale + mean
    # Nothing is added where nothing is due: the bits stay those of a plain division.
    return latents / scale + shift if shift else latents / scale


def downsampling(config: Any) -> int:
    """Pixels a latent, along one side, of diffusers' convolutional autoencoders: a halving between two stages."""
    names = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
    return 2 ** (len(next(getattr(config, name) for name in names if hasattr(config, name))) - 1)


@torch.inference_mode()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Return a network's latents `(B, C, h, w)` -> pictures `(B, 3, H, W)` in [0, 1]."""
    return (vae.decode(to_autoencoder(vae.config, latents)).sample / 2 + 0.5).clamp(0, 1)


@torch.inference_mode()
def encoded(vae: Any, images: Tensor) -> Tensor:
    """Pictures `(B, 3, H, W)` in [-1, 1] -> a network's latents: the mean of what the autoencoder says.

    Departure: diffusers' image-to-image pipelines draw from its distribution; the mean is the same each time.
    """
    return to_network(vae.config, mean_of(vae.encode(images)))


def mean_of(found: Any) -> Tensor:
    """Return the latents of what an autoencoder's `encode` says: the mean, where it says a distribution."""
    if hasattr(found, "latent_dist"):
        return found.latent_dist.mode()
    return found.latents if hasattr(found, "latents") else found.latent
