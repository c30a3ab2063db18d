"""Reader of the warm start: an autoencoder and a teacher trained before this project on all concepts.

Its latent space (normalised per channel) is the one the bundled autoencoder keeps, so the warm-started teacher needs no
translation. Only training reads it.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


class _Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.n1 = nn.GroupNorm(8, c)
        self.c1 = nn.Conv2d(c, c, 3, padding=1)
        self.c2 = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c2(F.silu(self.c1(F.silu(self.n1(x)))))


class StartAutoencoder(nn.Module):
    """The warm start's encoder and decoder, on pictures in [-1, 1]."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, 96, 3, padding=1), _Residual(96), _Residual(96),
            nn.GroupNorm(8, 96), nn.SiLU(), nn.Conv2d(96, 8, 1),
        )  # fmt: skip
        self.dec = nn.Sequential(
            nn.Conv2d(8, 128, 3, padding=1), _Residual(128), _Residual(128), _Residual(128),
            nn.GroupNorm(8, 128), nn.SiLU(), nn.Conv2d(128, 48, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip
        self.register_buffer("latent_mean", torch.zeros(8))
        self.register_buffer("latent_std", torch.ones(8))

    @classmethod
    def load(cls, folder: Path) -> StartAutoencoder:
        """From `autoencoder.safetensors` in `folder`."""
        net = cls()
        net.load_state_dict({k: v.float() for k, v in load_file(folder / "autoencoder.safetensors").items()})
        return net.eval().requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        """`(B, 3, 64, 64)` in [-1, 1] -> normalised latents `(B, 8, 16, 16)`."""
        return (self.enc(images) - self.latent_mean.view(1, -1, 1, 1)) / self.latent_std.view(1, -1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents `(B, 8, 16, 16)` -> pictures `(B, 3, 64, 64)`, about [-1, 1]."""
        return self.dec(latents * self.latent_std.view(1, -1, 1, 1) + self.latent_mean.view(1, -1, 1, 1))
