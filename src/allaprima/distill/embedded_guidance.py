"""A UNet that is told the guidance scale beside the time: a guided step is one evaluation (arXiv 2310.04378)."""

from __future__ import annotations

from typing import Any

import torch

from allaprima.core.errors import ModelError

DIM = 256
"""Width of the embedding, that of diffusers' training scripts."""
NEW = "time_embedding.cond_proj.weight"


def with_embedded_guidance(unet: Any, dim: int = DIM) -> Any:
    """Return a copy of a `UNet2DConditionModel` with `time_cond_proj_dim=dim`, float32, frozen, in evaluation mode.

    The new projection is zero, so that the copy says to the bit what `unet` says, whatever scale it is told. Departure:
    diffusers' script starts it at random. A UNet that has one already is copied with it.
    """
    if unet.config.time_cond_proj_dim is not None:
        dim = unet.config.time_cond_proj_dim
    # What the config makes at random is overwritten, and shouldn't move anybody's random numbers.
    with torch.random.fork_rng(devices=[]):
        made = type(unet).from_config(unet.config, time_cond_proj_dim=dim)
    weights = dict(unet.state_dict())
    weights.setdefault(NEW, torch.zeros_like(made.time_embedding.cond_proj.weight))
    try:
        made.load_state_dict(weights)
    except RuntimeError as e:
        raise ModelError(f"this UNet's weights don't fit its config: {e}. Load it again from its folder.") from e
    return made.to(unet.device).eval().requires_grad_(False)
