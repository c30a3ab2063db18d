"""Classifier-free guidance, per sample, in one doubled forward pass (arXiv 2207.12598)."""

from __future__ import annotations

import torch

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Denoiser, Samples, Times
from allaprima.diffusion.schedule import expand


class ClassifierFreeGuidance:
    """`x0_u + w (x0_c - x0_u)`: the same as guiding eps or v, since x0 is affine in them at a given x_t and t.

    The condition holds `guidance_scale: (B,)` and, for each guided tensor `X`, a `negative_X`; others are shared.
    """

    evaluations_per_call = 2

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """`(B,C,H,W), (B,), B rows -> (B,C,H,W)`. Raises `SettingError` without scale or negative."""
        w = cond.get("guidance_scale")
        names = [k for k in cond.tensors if not k.startswith("negative_") and k != "guidance_scale"]
        if w is None or not any(f"negative_{k}" in cond.tensors for k in names):
            raise SettingError(
                f"guidance needs guidance_scale and a negative_*; the condition holds {sorted(cond.tensors)}."
            )
        # Unconditional half first, as diffusers has it.
        negative = {k: cond.tensors.get(f"negative_{k}", cond.tensors[k]) for k in names}
        double = Condition({k: torch.cat([negative[k], cond.tensors[k]]) for k in names})
        x0_u, x0_c = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), double).chunk(2)
        return x0_u + expand(w, x_t) * (x0_c - x0_u)
