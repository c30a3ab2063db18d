"""A small autoencoder for 64-pixel pictures: pixel-unshuffle by 4, then residual blocks at one resolution.

diffusers' own autoencoders are memory-bound at this size; this one is a diffusers `ModelMixin` with the same
`encode`/`decode` calls and folder format (config.json and safetensors). After `import allaprima.models.autoencoder`
diffusers' own pipelines load a folder that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


@dataclass
class Encoded:
    """`latent: (B, C, H/4, W/4)`, normalised to about zero mean and unit variance."""

    latent: Tensor


@dataclass
class Decoded:
    """`sample: (B, 3, H, W)`, about [-1, 1]."""

    sample: Tensor


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(silu(norm(x)))))`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.n1 = nn.GroupNorm(8, channels)
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` -> the same."""
        return x + self.c2(F.silu(self.c1(F.silu(self.n1(x)))))


class PixelShuffleAutoencoder(ModelMixin, ConfigMixin):
    """Encoder and decoder on pictures in [-1, 1]; latents are normalised per channel inside, so their scale is 1."""

    latent_mean: Tensor
    latent_std: Tensor

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 8,
        factor: int = 4,
        encoder_channels: int = 96,
        encoder_blocks: int = 2,
        decoder_channels: int = 128,
        decoder_blocks: int = 3,
        scaling_factor: float = 1.0,
        block_out_channels: Sequence[int] = (96, 96, 128),
    ) -> None:
        # diffusers' pipelines read the size of a latent off the number of levels: 3 of them are a factor of 4.
        super().__init__()
        pixels = 3 * factor**2
        self.enc = nn.Sequential(
            nn.PixelUnshuffle(factor),
            nn.Conv2d(pixels, encoder_channels, 3, padding=1),
            *[ResidualBlock(encoder_channels) for _ in range(encoder_blocks)],
            nn.GroupNorm(8, encoder_channels),
            nn.SiLU(),
            nn.Conv2d(encoder_channels, latent_channels, 1),
        )
        self.dec = nn.Sequential(
            nn.Conv2d(latent_channels, decoder_channels, 3, padding=1),
            *[ResidualBlock(decoder_channels) for _ in range(decoder_blocks)],
            nn.GroupNorm(8, decoder_channels),
            nn.SiLU(),
            nn.Conv2d(decoder_channels, pixels, 3, padding=1),
            nn.PixelShuffle(factor),
        )
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def encode(self, images: Tensor) -> Encoded:
        """`(B, 3, H, W)` in [-1, 1] -> normalised latents."""
        return Encoded((self.enc(images) - self.latent_mean.view(1, -1, 1, 1)) / self.latent_std.view(1, -1, 1, 1))

    def decode(self, latents: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Normalised latents `(B, C, h, w)` -> `Decoded`, or the one-tuple diffusers asks for with `return_dict=False`."""
        sample = self.dec(latents * self.latent_std.view(1, -1, 1, 1) + self.latent_mean.view(1, -1, 1, 1))
        return Decoded(sample) if return_dict else (sample,)

    def forward(self, images: Tensor) -> Decoded:
        """Return a round trip."""
        return self.decode(self.encode(images).latent)
