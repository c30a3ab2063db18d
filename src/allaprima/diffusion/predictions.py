"""What a network predicts, and the way to the clean sample from each: eps, v, x0 and flow end at the model boundary.

With `x_t = alpha x0 + sigma eps`: v = alpha eps - sigma x0 (arXiv 2202.00512, appendix D); flow velocity u = eps - x0
(arXiv 2209.03003; only for alpha = 1 - t, sigma = t).
"""

from __future__ import annotations

from collections.abc import Callable

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples, Times
from allaprima.diffusion.schedules import expand

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
"""Names as in diffusers' scheduler configs."""


def _unknown(kind: str) -> SettingError:
    return SettingError(f"prediction_type={kind!r} is not known: {', '.join(PREDICTIONS)} are.")


def to_x0(kind: str, output: Samples, x_t: Samples, alpha: Times, sigma: Times) -> Samples:
    """The network's output -> x0_hat. `output, x_t: (B, ...)`, `alpha, sigma: (B,)`."""
    a, s = expand(alpha, x_t), expand(sigma, x_t)
    if kind == "epsilon":
        return (x_t - s * output) / a
    if kind == "v_prediction":
        # For alpha^2 + sigma^2 = 1 the denominator is one; it keeps the identity exact for other schedules.
        return (a * x_t - s * output) / (a * a + s * s)
    if kind == "sample":
        return output
    if kind == "flow_prediction":
        return (x_t - s * output) / (a + s)
    raise _unknown(kind)


def from_x0(kind: str, x0: Samples, x_t: Samples, alpha: Times, sigma: Times) -> Samples:
    """Inverse of `to_x0`: what a network of this kind would have to say for this x0."""
    a, s = expand(alpha, x_t), expand(sigma, x_t)
    if kind == "sample":
        return x0
    eps = (x_t - a * x0) / s
    if kind == "epsilon":
        return eps
    if kind == "v_prediction":
        return a * eps - s * x0
    if kind == "flow_prediction":
        return eps - x0
    raise _unknown(kind)


def eps_of(x0: Samples, x_t: Samples, alpha: Times, sigma: Times) -> Samples:
    """`eps_hat = (x_t - alpha x0_hat) / sigma`."""
    return (x_t - expand(alpha, x_t) * x0) / expand(sigma, x_t)


def v_by_flow(velocity: Callable[[Samples, Times], Samples], x_t: Samples, alpha: Times, sigma: Times) -> Samples:
    """What a flow network says of a sample of a variance-preserving schedule, as v (SANA-Sprint, arXiv 2503.09641, 3.1).

    `velocity(x, s)` is asked at the flow time of the same signal-to-noise ratio, `s = sigma / (alpha + sigma)`, and of the
    sample that lies there: `x = x_t / (alpha + sigma)`, so that `x = (1 - s) x0 + s eps`. With `c = sqrt(s^2 + (1 - s)^2)`
    (which is 1 / (alpha + sigma) for alpha^2 + sigma^2 = 1)

        v = ((1 - 2 s) x + (1 - 2 s + 2 s^2) u) / c.

    For u = eps - x0 the bracket is `(1 - s) eps - s x0`; `(1 - s) / c` is alpha, `s / c` sigma: v = alpha eps - sigma x0.
    """
    s = sigma / (alpha + sigma)
    share, c = expand(s, x_t), expand((s**2 + (1 - s) ** 2).sqrt(), x_t)
    x = x_t * c
    return ((1 - 2 * share) * x + (1 - 2 * share + 2 * share**2) * velocity(x, s)) / c
