"""Classifier-free guidance, per sample, in one doubled forward pass (arXiv 2207.12598), and where it is applied.

Or embedded: a student that was told the scale when it was distilled needs one pass (arXiv 2310.04378, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.core.types import Condition, Denoiser, Samples, Times
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.predictions import from_x0, to_x0
from allaprima.diffusion.schedules import Schedule, expand

GUIDANCE_KEYS = ("guidance_scale", "guidance_rescale")
"""What a condition tells guidance, not networks."""


@dataclass(frozen=True)
class GuidanceInterval:
    """Times at which the full scale is used (arXiv 2404.07724); elsewhere it is `outside`, 1 being no guidance.

    Departures: the paper's interval is in noise levels, this one in the schedule's own times, like `last_time`; the paper
    has no guidance outside, here some may be left.
    """

    low: float
    high: float
    outside: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.low < self.high and math.isfinite(self.high)):
            raise SettingError(
                f"guidance interval {self.low!r}..{self.high!r} is empty: 0 <= low < high are due, for example 100 1000"
                " to leave the last, nearly clean steps out."
            )
        if not 0 <= self.outside <= 100:
            raise SettingError(f"guidance outside the interval, {self.outside!r}, is out of range: 0..100; 1 is none.")

    def scale(self, guidance: float, t: Times) -> Times:
        """`(B,)` scales at times `t: (B,)`."""
        inside = (t >= self.low) & (t <= self.high)
        return torch.where(inside, guidance, self.outside).float()


def scales_at(t: Times, guidance: float, interval: GuidanceInterval | None) -> Times:
    """`(B,)` scales at times `t: (B,)`; without an interval the same at all."""
    return torch.full((len(t),), float(guidance)) if interval is None else interval.scale(guidance, t)


class GuidedDenoiser(Protocol):
    """A denoiser whose condition holds `guidance_scale: (B,)` and a `negative_X` for each guided tensor `X`."""

    @property
    def evaluations_per_call(self) -> int:
        """Network evaluations of a guided call, a sample."""
        ...

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """The guided clean prediction."""
        ...

    def unguided(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """The same at scale 1, in one evaluation."""
        ...


def positive(cond: Condition) -> Condition:
    """What a network is told of a condition without guidance."""
    return Condition({k: v for k, v in cond.tensors.items() if not k.startswith("negative_") and k not in GUIDANCE_KEYS})


def doubled(cond: Condition) -> tuple[Times, Condition]:
    """`(B,)` scales, and 2B rows: the unconditional half first, as in diffusers. Raises `SettingError` without either."""
    w, names = cond.get("guidance_scale"), list(positive(cond).tensors)
    if w is None or not any(f"negative_{k}" in cond.tensors for k in names):
        raise SettingError(f"guidance needs guidance_scale and a negative_*; the condition holds {sorted(cond.tensors)}.")
    negative = {k: cond.tensors.get(f"negative_{k}", cond.tensors[k]) for k in names}
    return w, Condition({k: torch.cat([negative[k], cond.tensors[k]]) for k in names})


def rescaled(guided: Samples, plain: Samples, share: Times) -> Samples:
    """`phi u std(u_c) / std(u) + (1 - phi) u`, deviations over each sample (arXiv 2305.08891, equations 15 and 16).

    `guided`: a guided output `u`, `plain`: its conditional half `u_c`, `share: (B,)`: phi in 0..1.
    """
    ratio = plain.flatten(1).std(1) / guided.flatten(1).std(1)
    return guided * expand(share * ratio + (1 - share), guided)


class ClassifierFreeGuidance:
    """`x0_u + w (x0_c - x0_u)`: the same as guiding eps or v, since x0 is affine in them at a given x_t and t.

    The condition holds `guidance_scale: (B,)` and, for each guided tensor `X`, a `negative_X`; others are shared. With
    `guidance_rescale: (B,)` in it, too, what a `NetworkDenoiser` says is rescaled (`rescaled`).
    """

    evaluations_per_call = 2

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """`(B,C,H,W), (B,), B rows -> (B,C,H,W)`. Raises `SettingError` without scale or negative."""
        w, double = doubled(cond)
        x0_u, x0_c = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), double).chunk(2)
        x0, share = x0_u + expand(w, x_t) * (x0_c - x0_u), cond.get("guidance_rescale")
        return x0 if share is None else self._rescaled(x0, x0_c, x_t, t, share)

    def _rescaled(self, x0: Samples, x0_c: Samples, x_t: Samples, t: Times, share: Times) -> Samples:
        # The spread that is meant is that of what networks say; on x0 it would be another.
        of = self.denoiser
        if not isinstance(of, NetworkDenoiser):
            raise SettingError(f"guidance_rescale needs what a network said; {type(of).__name__} shows none. Leave it out.")
        alpha, sigma = of.schedule.alpha(t), of.schedule.sigma(t)
        guided, plain = (from_x0(of.prediction, x, x_t, alpha, sigma) for x in (x0, x0_c))
        return to_x0(of.prediction, rescaled(guided, plain, share), x_t, alpha, sigma)

    def unguided(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """What `__call__` gives at scale 1, up to rounding, in one evaluation: the conditional half alone."""
        return self.denoiser(x_t, t, positive(cond))


class TokenGuidance:
    """Classifier-free guidance that turns a velocity and keeps its length, token by token (Qwen-Image, arXiv 2508.02324).

    `u = u_u + w (u_c - u_u)`, then `u |u_c| / |u|` with norms over a token, `side` by `side` latents of all channels. Unlike
    the plain kind it isn't the same on x0, so that it is done on what the network says.
    """

    evaluations_per_call = 2

    def __init__(
        self, network: Callable[[Samples, Times, Condition], Samples], schedule: Schedule, prediction: str, side: int
    ) -> None:
        self.network, self.schedule, self.prediction, self.side = network, schedule, prediction, side

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """`(B,C,H,W), (B,), B rows -> (B,C,H,W)`. Raises `SettingError` without scale or negative."""
        w, double = doubled(cond)
        u_u, u_c = self.network(torch.cat([x_t, x_t]), torch.cat([t, t]), double).chunk(2)
        u = u_u + expand(w, x_t) * (u_c - u_u)
        return self._x0(u * (self._length(u_c) / self._length(u)), x_t, t)

    def unguided(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """The conditional half alone, which is what `__call__` gives at scale 1."""
        return self._x0(self.network(x_t, t, positive(cond)), x_t, t)

    def _x0(self, u: Samples, x_t: Samples, t: Times) -> Samples:
        return to_x0(self.prediction, u, x_t, self.schedule.alpha(t), self.schedule.sigma(t))

    def _length(self, u: Float[Tensor, " b c h w"]) -> Float[Tensor, " b 1 h w"]:
        """Norm of each token, at each of its latents: `(B,C,H,W) -> (B,1,H,W)`."""
        squares = u.square().sum(1, keepdim=True).unfold(2, self.side, self.side).unfold(3, self.side, self.side)
        norms = squares.sum((-1, -2)).sqrt()
        return norms.repeat_interleave(self.side, 2).repeat_interleave(self.side, 3)


def guidance_embedding(scale: Times, dim: int) -> Float[Tensor, " b e"]:
    """`(B,)` guidance scales -> `(B, dim)`: sines and cosines of `1000 (w - 1)` (arXiv 2107.00630's, as LCM uses it).

    The operations are those of diffusers' `LatentConsistencyModelPipeline.get_guidance_scale_embedding`, in float32 and in
    its order: the arguments reach thousands, so that another rounding would be another embedding.
    """
    half = dim // 2
    step = torch.log(torch.tensor(10000.0, device=scale.device)) / (half - 1)
    angles = ((scale.float() - 1) * 1000.0)[:, None] * torch.exp(torch.arange(half, device=scale.device).float() * -step)
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


class EmbeddedGuidance:
    """A network that is told the scale: the guided prediction in one evaluation, and at scale 1 the unguided one.

    Negatives in the condition are left out: such a network never saw one (nor does diffusers' LCM pipeline take any).
    """

    evaluations_per_call = 1

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """`(B,C,H,W), (B,), B rows -> (B,C,H,W)`. Raises `SettingError` without a scale."""
        w = cond.get("guidance_scale")
        if w is None:
            raise SettingError(
                f"embedded guidance needs guidance_scale; the condition holds {sorted(cond.tensors)}: give it, 1 being none."
            )
        known = {**positive(cond).tensors, "guidance_scale": w}
        return self.denoiser(x_t, t, Condition(known))

    def unguided(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """What `__call__` gives at scale 1, to the bit."""
        return self(x_t, t, Condition({**cond.tensors, "guidance_scale": torch.ones_like(t, dtype=torch.float32)}))
