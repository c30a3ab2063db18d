"""How much a picture leans on its prompt (arXiv 2312.10835, appendix B; DAAM, arXiv 2210.04885).

Cross-attention of the conditional half, mean over all layers and steps, heads and places; of the prompt's own tokens,
without begin, end and padding, the largest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allaprima.core.errors import SettingError


def over_steps(steps: Sequence[Tensor]) -> Tensor:
    """One `(B, L)` a step -> their mean `(B, L)`."""
    if not steps:
        raise SettingError("no steps: attention of at least one is due.")
    return torch.stack(list(steps)).mean(0)


def prompt_influence(attention: Tensor, content: Tensor) -> Tensor:
    """`attention: (B, L)` in [0, 1], `content: (B, L)` bool, which tokens are words -> `(B,)` in [0, 1].

    Raises `SettingError` for other shapes, or a prompt without a word.
    """
    if attention.ndim != 2 or attention.shape != content.shape:
        raise SettingError(
            f"attention of shape {tuple(attention.shape)} for words of shape {tuple(content.shape)}: (B, L) twice is due."
        )
    empty = (~content.any(1)).nonzero().flatten().tolist()
    if empty:
        raise SettingError(f"prompt {empty[0]} has no word among its tokens: leave it out.")
    return attention.double().masked_fill(~content, float("-inf")).amax(1)
