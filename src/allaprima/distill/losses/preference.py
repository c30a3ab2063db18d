"""Teaching a scorer from labels: pairs of pictures (Bradley-Terry), or what the teacher would gain on a draft."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bradley_terry_loss(a: Float[Tensor, " b"], b: Float[Tensor, " b"], preference: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """`-p log sigmoid(a - b) - (1 - p) log sigmoid(b - a)`, mean over the batch.

    `a, b: (B,)` logits of two pictures of one prompt, `preference: (B,)` in [0, 1]: 1 when a is preferred, 0 when b, .5
    for a tie, or a share of votes. The gradient by a is `(sigmoid(a - b) - p) / B`: at the optimum the difference is the
    logit of the expected preference. Only differences within a prompt are taught, so one threshold for all prompts may
    suit the scores less than before; `gain_loss` teaches what a cascade's threshold needs.
    """
    return F.binary_cross_entropy_with_logits(a - b, preference)


def gain_loss(logits: Float[Tensor, " b"], gain: Float[Tensor, " b"], quantile: float | None = None) -> Float[Tensor, ""]:
    """Teaches `logit = -gain`, the gain `E(T) - E(S)` of the teacher seen from the draft alone; mean over the batch.

    The score then orders drafts of all prompts by how little the teacher would help: what falls short gains most. Without
    `quantile` the squared error, whose optimum is the expected gain; with it the pinball loss of `u = -gain - logit`,
    `max(q u, (q - 1) u)`, whose optimum is the q-quantile of `-gain` (.5: the median, deaf to a few wild qualities).
    """
    u = -gain - logits
    if quantile is None:
        return u.square().mean()
    return (quantile * u).maximum((quantile - 1) * u).mean()
