"""Reader of the warm start: an autoencoder and a teacher trained before this project on all concepts.

Its latent space (normalised per channel) is the one the bundled autoencoder keeps, so the warm-started teacher needs no
translation. Only training reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file

from allaprima.bundled.emoji import weights

if TYPE_CHECKING:
    from allaprima.models.autoencoder import PixelShuffleAutoencoder


def load_start_autoencoder(folder: Path) -> PixelShuffleAutoencoder:
    """From `autoencoder.safetensors` in `folder`, float32, frozen."""
    from allaprima.models.autoencoder import PixelShuffleAutoencoder

    net = PixelShuffleAutoencoder()
    net.load_state_dict({k: v.float() for k, v in load_file(folder / "autoencoder.safetensors").items()})
    return net.eval().requires_grad_(False)


def load_autoencoder(folder: Path | None = None) -> PixelShuffleAutoencoder:
    """From a diffusers folder, by default the bundled one, float32, frozen: what every painted picture goes through."""
    from allaprima.models.autoencoder import PixelShuffleAutoencoder

    return PixelShuffleAutoencoder.from_pretrained(folder or weights("teacher/vae")).float().eval().requires_grad_(False)
