"""Noise schedules: how much signal (alpha) and noise (sigma) a sample holds at time t.

`x_t = alpha_t * x0 + sigma_t * eps`. Three schedules cover the models of this field:

- `DiscreteVP`: variance preserving, alpha^2 + sigma^2 = 1, times are the training's integers 0..T-1
  (Stable Diffusion and its relatives; DDPM, arXiv 2006.11239, equation 4);
- `Flow`: straight lines, alpha = 1 - t, sigma = t, times in [0, 1] (rectified flow, arXiv 2209.03003);
- `TrigFlow`: a quarter circle, alpha = cos t, sigma = sin t, times are angles in [0, pi/2] (arXiv 2410.11081, section 3.1).

All answer for a `(B,)` tensor of times, so samples at different times share a batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64, Real
from torch import Tensor

from allaprima.core.errors import SettingError


@runtime_checkable
class Schedule(Protocol):
    """What solvers, rollback and losses need to know of a noise schedule."""

    @property
    def t_max(self) -> float:
        """The largest time: (almost) pure noise."""
        ...

    @property
    def t_clean(self) -> float:
        """The pseudo-time of a clean picture, where alpha = 1 and sigma = 0."""
        ...

    def alpha(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Signal scale at times `t: (B,)` -> `(B,)`."""
        ...

    def sigma(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        """Noise scale (standard deviation) at times `t: (B,)` -> `(B,)`."""
        ...

    def time_of_variance(self, variance: float) -> float:
        """Return the time whose noise variance sigma_t^2 is `variance`, in (0, 1)."""
        ...

    def time_of_strength(self, strength: float, steps: int | None = None) -> float:
        """Return the time at a share `strength`, in (0, 1], of the whole schedule (diffusers' meaning).

        `steps`: how many are taken from there; a schedule whose grid is stretched to a last time begins elsewhere then.
        """
        ...

    def timesteps(self, n: int, start: float | None = None) -> list[float]:
        """`n` decreasing times from `start` (default: the noisiest) towards clean, clean excluded."""
        ...


def expand(v: Float[Tensor, " b"], like: Float[Tensor, " b *d"]) -> Float[Tensor, " b ..."]:
    """`(B,)` -> `(B, 1, ...)` with the number of dimensions, the dtype and the device of `like`."""
    return v.to(like.device, like.dtype).reshape(-1, *([1] * (like.ndim - 1)))


def _check_share(name: str, value: float, upper_included: bool) -> None:
    inside = 0.0 < value <= 1.0 if upper_included else 0.0 < value < 1.0
    if not inside:
        bracket = "]" if upper_included else ")"
        raise SettingError(f"{name}={value!r} is out of range: it must lie in (0, 1{bracket}. Try {name}=0.7.")


SPACINGS = ("leading", "trailing", "linspace")
"""How the times of a grid lie on the schedule, by diffusers' names (arXiv 2305.08891, table 2)."""
Spacing = str | tuple[float, ...]
"""One of these names, or the times themselves, falling."""
NEARLY_ZERO = 2.0**-24
"""Signal power that stands for none where its logarithm is needed, as in diffusers' schedulers."""


class DiscreteVP:
    """Variance-preserving schedule on integer times 0..T-1, from its cumulative products of (1 - beta).

    `t = -1` stands for the clean picture (alpha 1, sigma 0), which is where solvers end. Real-valued times
    between integers interpolate log-SNR linearly, so a rollback may start anywhere.

    The last time may have no signal at all, alpha 0 (`rescale_betas_zero_snr`, arXiv 2305.08891).
    """

    t_clean = -1.0
    spacing: Spacing | None = None
    """Of `grid`; None is "leading" with an offset of 1, Stable Diffusion's own; some solvers have another then."""

    def __init__(self, alphas_cumprod: Float[Tensor, " ..."]) -> None:
        if alphas_cumprod.ndim != 1 or len(alphas_cumprod) < 2:
            raise SettingError(f"alphas_cumprod has shape {tuple(alphas_cumprod.shape)}: a (T,) tensor, T >= 2, is due.")
        abar = alphas_cumprod.double()
        if not bool(((abar[:-1] > 0) & (abar[:-1] < 1)).all() and (abar.diff() < 0).all() and abar[-1] >= 0):
            raise SettingError(
                "alphas_cumprod must decrease strictly inside (0, 1); the last one alone may be 0. Mend the betas."
            )
        self.alphas_cumprod = abar
        self.zero_terminal = bool(abar[-1] == 0)
        """Whether the noisiest time is pure noise."""
        some = abar.clamp(min=NEARLY_ZERO)
        self._half_log_snr = 0.5 * (some.log() - (1 - some).log())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DiscreteVP:
        """From a diffusers scheduler config (`beta_schedule`, `beta_start`, `beta_end`, `num_train_timesteps`)."""
        n = int(config.get("num_train_timesteps", 1000))
        b0, b1 = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        kind = config.get("beta_schedule", "linear")
        trained: Sequence[float] | None = config.get("trained_betas")
        # float32, as diffusers computes them: parity to 1e-5 starts here.
        if trained is not None:
            betas = torch.tensor(trained, dtype=torch.float32)
        elif kind == "linear":
            betas = torch.linspace(b0, b1, n, dtype=torch.float32)
        elif kind == "scaled_linear":
            betas = torch.linspace(b0**0.5, b1**0.5, n, dtype=torch.float32) ** 2
        elif kind == "squaredcos_cap_v2":
            u = torch.arange(n + 1, dtype=torch.float64) / n
            bar = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999).float()
        else:
            raise SettingError(
                f"beta_schedule={kind!r} is not known: linear, scaled_linear, squaredcos_cap_v2 and trained_betas are."
            )
        bar = torch.cumprod(1.0 - betas, dim=0)
        if config.get("rescale_betas_zero_snr"):
            # Algorithm 1 of arXiv 2305.08891: shift the roots so that the last is 0, scale so that the first stays. The way
            # through betas and back is diffusers', whose rounding parity needs.
            root = bar.sqrt()
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            bar = torch.cumprod(torch.cat([root[:1] ** 2, root[1:] ** 2 / root[:-1] ** 2]), dim=0)
        return cls(bar)

    def with_timestep_spacing(self, spacing: Spacing | None) -> DiscreteVP:
        """Return the same noise with another spacing of `grid`.

        Raises `SettingError` for a name or times that it can't have.
        """
        if isinstance(spacing, str) and spacing not in SPACINGS:
            raise SettingError(
                f"spacing={spacing!r} is not known: {', '.join(SPACINGS)} are, or times with commas between: 999,499."
            )
        if isinstance(spacing, tuple):
            falling = all(a > b for a, b in zip(spacing, spacing[1:], strict=False))
            if not (spacing and falling and spacing[0] <= self.t_max and spacing[-1] >= 0):
                raise SettingError(f"times {spacing!r} don't fit: falling ones are due, between {self.t_max:g} and 0.")
        made = copy.copy(self)
        made.spacing = spacing
        return made

    @property
    def num_train_timesteps(self) -> int:
        """T: how many integer times the network was trained on."""
        return len(self.alphas_cumprod)

    @property
    def t_max(self) -> float:
        return float(self.num_train_timesteps - 1)

    def _log_snr(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        table = self._half_log_snr.to(t.device)
        x = t.double().clamp(0, len(table) - 1)
        low = x.floor().long().clamp(max=len(table) - 2)
        w = x - low
        return table[low] * (1 - w) + table[low + 1] * w

    def alpha(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        lam = self._log_snr(t)
        found = torch.where(t < 0, torch.ones_like(lam), torch.sigmoid(2 * lam).sqrt())
        return torch.where(t >= self.t_max, torch.zeros_like(lam), found) if self.zero_terminal else found

    def sigma(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        lam = self._log_snr(t)
        found = torch.where(t < 0, torch.zeros_like(lam), torch.sigmoid(-2 * lam).sqrt())
        return torch.where(t >= self.t_max, torch.ones_like(lam), found) if self.zero_terminal else found

    def time_of_variance(self, variance: float) -> float:
        _check_share("variance", variance, upper_included=False)
        var = 1 - self.alphas_cumprod
        if not float(var[0]) <= variance <= float(var[-1]):
            raise SettingError(
                f"variance={variance!r} is outside this schedule's {float(var[0]):.4f}..{float(var[-1]):.4f}."
                " Choose a value between them."
            )
        target = torch.tensor(0.5, dtype=torch.float64) * torch.logit(torch.tensor(1 - variance, dtype=torch.float64))
        # Log-SNR falls with t: search on its negative, then invert the linear interpolation.
        neg = -self._half_log_snr
        hi = int(torch.searchsorted(neg, -target).clamp(1, len(neg) - 1))
        lo = hi - 1
        w = float((-target - neg[lo]) / (neg[hi] - neg[lo]))
        return lo + min(max(w, 0.0), 1.0)

    def time_of_strength(self, strength: float, steps: int | None = None) -> float:
        _check_share("strength", strength, upper_included=True)
        return (
            max(round(strength * self.num_train_timesteps), 1) - 1.0
            if strength == 1.0
            else strength * self.num_train_timesteps
        )

    def timesteps(self, n: int, start: float | None = None) -> list[float]:
        if n < 1 or n > self.num_train_timesteps:
            raise SettingError(f"steps={n} is out of range: 1..{self.num_train_timesteps} steps fit this schedule.")
        if start is None and isinstance(self.spacing, tuple):
            if len(self.spacing) != n:
                raise SettingError(
                    f"steps={n} with {len(self.spacing)} times {self.spacing!r}: as many steps as times are due."
                )
            return list(self.spacing)
        if start is None and self.spacing == "trailing":
            return [float(round(self.num_train_timesteps * i / n) - 1) for i in range(n, 0, -1)]
        if start is None and self.spacing == "linspace":
            if n == 1:
                return [0.0]
            return [float(round(self.t_max * i / (n - 1))) for i in range(n - 1, -1, -1)]
        if start is None:
            # "leading" spacing with offset 1, Stable Diffusion's own: 50 steps are 981, 961, ..., 1.
            stride = self.num_train_timesteps // n
            return [float(min(i * stride + 1, self.num_train_timesteps - 1)) for i in reversed(range(n))]
        # N network evaluations from `start`, whatever it is (issue-thread request: N steps means N steps).
        return [start, *(start * (n - i) / n for i in range(1, n))]


class Flow:
    """Rectified flow: alpha = 1 - t, sigma = t, times in [0, 1], with the resolution shift of SD3 (equation 23).

    `top`: the unshifted time that grids begin at; diffusers' flow sigmas of DPM-Solver (SANA's) begin at .999.
    `terminal`: where the last evaluation of a grid falls: `1 - t` of all its times is stretched by one factor, so that they
    end there and still begin at 1 (LTX-Video's, and Qwen-Image's `shift_terminal`).
    """

    t_clean = 0.0

    def __init__(self, shift: float = 1.0, top: float = 1.0, terminal: float | None = None) -> None:
        if shift <= 0:
            raise SettingError(f"shift={shift!r} must be positive; 1.0 means no shift.")
        if not 0 < top <= 1:
            raise SettingError(f"top={top!r} is out of range: grids begin in (0, 1]; 1.0 is pure noise.")
        if terminal is not None and not 0 < terminal < 1:
            raise SettingError(
                f"terminal={terminal!r} is out of range: the last time lies in (0, 1). Leave it out for none."
            )
        self.shift, self.top, self.terminal = shift, top, terminal

    @property
    def t_max(self) -> float:
        return self._shifted(self.top)

    def alpha(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return 1.0 - t.double()

    def sigma(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return t.double()

    def time_of_variance(self, variance: float) -> float:
        """Return the time with the same *signal-to-noise ratio* as a VP sample of noise variance `variance`.

        sigma^2 alone has another meaning here, since alpha^2 + sigma^2 is not 1; matching the ratio
        sigma/alpha = sqrt(v / (1 - v)) keeps the paper's "how much of the draft survives" the same.
        """
        _check_share("variance", variance, upper_included=False)
        ratio = (variance / (1 - variance)) ** 0.5
        return ratio / (1 + ratio)

    def time_of_strength(self, strength: float, steps: int | None = None) -> float:
        _check_share("strength", strength, upper_included=True)
        u = self.top * strength
        return self._shifted(u) if steps is None else self._stretched(u, u, steps)

    def _shifted(self, u: float) -> float:
        # Equation 23 with its denominator written so that 1 stays 1: a bit above it alpha is negative and log-SNR no number.
        return self.shift * u / (self.shift * u + (1 - u))

    def _stretched(self, u: float, first: float, n: int) -> float:
        """Return the time at `u` of a grid of `n` even steps from `first`, both unshifted."""
        t = self._shifted(u)
        # One evaluation is the first and the last: it stays where the noise is (diffusers divides 0 by 0 there).
        if self.terminal is None or n == 1:
            return t
        return 1 - (1 - t) * (1 - self.terminal) / (1 - self._shifted(first / n))

    def _unstretched(self, start: float, n: int) -> float:
        """Return the `u` whose `n` steps begin at the time `start`."""
        if self.terminal is None or n == 1 or start <= self.terminal:
            return start / (self.shift - (self.shift - 1) * start)
        low, high = 0.0, 1.0
        for _ in range(60):
            u = (low + high) / 2
            low, high = (u, high) if self._stretched(u, u, n) < start else (low, u)
        return high

    def timesteps(self, n: int, start: float | None = None) -> list[float]:
        if n < 1:
            raise SettingError(f"steps={n} is out of range: at least 1 step is due.")
        if start is None:
            return [self._stretched(self.top * ((n - i) / n), self.top, n) for i in range(n)]
        # Between the terminal and a start that is it but for rounding, no times lie.
        if self.terminal is not None and start <= self.terminal * (1 + 1e-9):
            return [start, *(start * (n - i) / n for i in range(1, n))]
        # Unshift the start, walk evenly, shift back.
        u = self._unstretched(start, n)
        # The start itself, not what rounding makes of its way there and back.
        return [start, *(self._stretched(u * (n - i) / n, u, n) for i in range(1, n))]


class TrigFlow:
    """A quarter circle: alpha = cos t, sigma = sin t, times are angles (TrigFlow; SANA-Sprint, arXiv 2503.09641).

    The papers scale data and noise by one sigma_data: `y = cos t (sigma_data x0) + sin t (sigma_data eps)`. Divided by it
    that is `x_t = cos t x0 + sin t eps`: sigma_data drops out, and latents are those of any other schedule.

    The signal-to-noise ratio of an angle is that of the flow time `s = sin t / (sin t + cos t)`, since then
    `s / (1 - s) = tan t`.
    """

    t_clean = 0.0
    t_max = 1.5708
    """SANA-Sprint's first angle as published: 3.7e-6 above pi/2, so that alpha is -3.7e-6 there."""
    second = 1.3
    """The other angle of two steps, as published."""

    def alpha(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return t.double().cos()

    def sigma(self, t: Real[Tensor, " b"]) -> Float64[Tensor, " b"]:
        return t.double().sin()

    def time_of_variance(self, variance: float) -> float:
        """`arcsin sqrt(v)`: alpha^2 + sigma^2 is 1, so the variance is the paper's own."""
        _check_share("variance", variance, upper_included=False)
        return math.asin(variance**0.5)

    def time_of_strength(self, strength: float, steps: int | None = None) -> float:
        """Return a share of the angle, as diffusers' SANA-Sprint takes the end of its even times."""
        _check_share("strength", strength, upper_included=True)
        return self.t_max * strength

    def timesteps(self, n: int, start: float | None = None) -> list[float]:
        """Even angles, as diffusers' SCMScheduler has them; of two steps from noise the second is its 1.3."""
        if n < 1:
            raise SettingError(f"steps={n} is out of range: at least 1 step is due.")
        if start is None and n == 2:
            return [self.t_max, self.second]
        top = self.t_max if start is None else start
        return [top, *(top * (n - i) / n for i in range(1, n))]
