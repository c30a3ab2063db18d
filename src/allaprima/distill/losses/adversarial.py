"""The adversarial part of distribution matching (arXiv 2405.14867, section 4.3; arXiv 2410.23274, stage 3).

A small head on the fake score's bottleneck tells diffused real data from diffused generated ones. Both are diffused, to
random times, so that they overlap and the head can't be certain. Real data and conditions are both a student's own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.core.types import Samples


class DiscriminatorHead(nn.Module):
    """Bottleneck features `(B, C, H, W)` -> `(B,)` logits, positive for real: conv, norm, SiLU, then one number a sample.

    Two such stages, each halving the resolution, a 1x1 convolution to one channel, the mean over what places are left.
    Raises `SettingError` for channels that `groups` doesn't divide.
    """

    def __init__(self, channels: int, hidden: int = 256, groups: int = 32) -> None:
        super().__init__()
        if channels < 1 or hidden < 1 or hidden % groups:
            raise SettingError(
                f"channels={channels}, hidden={hidden}, groups={groups}: groups must divide hidden, all >= 1."
            )
        widths = [channels, hidden, hidden]
        stages: list[nn.Module] = []
        for a, b in zip(widths, widths[1:], strict=False):
            stages += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(groups, b), nn.SiLU()]
        self.stages = nn.Sequential(*stages, nn.Conv2d(hidden, 1, 1))

    def forward(self, features: Float[Tensor, " b c h w"]) -> Float[Tensor, " b"]:
        """`(B, C, H, W) -> (B,)`."""
        return self.stages(features).mean((1, 2, 3))


def discriminator_loss(real: Float[Tensor, " b"], fake: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """`softplus(-D(real)) + softplus(D(fake))`, mean over the batch. Least, given the densities, at `D = log p_real/p_fake`.

    The logits of generated samples come from `sg(x)`: the head must not teach the generator.
    """
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """`softplus(-D(x))`, mean over the batch: small where the head takes generated samples for real ones."""
    return F.softplus(-fake).mean()


def matched_weight(reference: Tensor, other: Tensor, x: Samples) -> Float[Tensor, ""]:
    """Return the weight of loss `other` at which its gradient by the image has the norm of `reference`'s.

    No gradient through it.

    `reference` (the distribution matching loss) and `other` (the generator's adversarial loss) are scalars computed from
    `x: (B, ...)`, the generated images; norms are over the whole batch. On the image, not on the weights: a gradient by x
    costs no pass through the generator. 0 when `other` has no gradient (a head that sees no difference yet).
    """
    norms = [_norm(torch.autograd.grad(v, x, retain_graph=True)[0]) for v in (reference, other)]
    return torch.where(norms[1] > 0, norms[0] / norms[1], torch.zeros_like(norms[0]))


def _norm(g: Tensor) -> Tensor:
    """Return the 2-norm, scaled: where the head is very sure, gradients are so small that their squares would vanish."""
    largest = g.abs().max()
    return largest * (g / torch.where(largest > 0, largest, 1.0)).norm()
