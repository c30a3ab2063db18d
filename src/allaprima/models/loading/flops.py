"""What a guided step of a model takes: counted by torch on a copy without memory, from the network's config alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from allaprima.core.types import Condition
from allaprima.models.families.family import Family


def step_flops(model: Family, height: int, width: int, guidance_scale: float) -> float:
    """Floating-point operations of one guided step for one picture, two a multiplication with addition.

    A step at scale 1 is one network evaluation, guided ones are two unless the network reads its scale. Norms, activations
    and softmax aren't counted (`torch.utils.flop_counter`).
    """
    net: Any = model.network
    cond = model.condition(["a"])
    with torch.device("meta"):
        # A stand-in says what it stands for.
        copy = getattr(net, "kind", type(net)).from_config(dict(net.config))
    x_t = torch.empty(1, *model.latent_shape(height, width), device="meta")
    bare = Condition({k: v.to("meta") for k, v in cond.tensors.items()})
    # Fused attention is one operation, which the counter knows on some devices only.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        model.output(copy, x_t, torch.full((1,), 0.5, device="meta"), bare)
    calls = 1 if guidance_scale == 1 else model.denoiser.evaluations_per_call
    return float(counter.get_total_flops() * calls)
