"""The judge's own score of each picture for its prompt, as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.retrieval import JudgeEncoder

SIDE = 64
"""Pixels that the judge was trained on."""


class JudgeScore:
    """Scorer: `exp(log_scale) cos(picture, prompt)`, a logit; the judge never steers the cascade, so it can't flatter it."""

    name = "judge"
    higher_is_better = True
    needs_prompts = True
    needs_references = False

    def __init__(self, encoder: JudgeEncoder) -> None:
        self.encoder = encoder

    def protocol(self) -> dict[str, Any]:
        """Return the judge's fingerprint."""
        return {
            "formula": "exp(log_scale) cos(picture, prompt)",
            "judge": {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
        }

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> Tensor:
        """`(B, 3, 64, 64)` in [0, 1] with prompts -> `(B,)`. Raises `SettingError` for another size."""
        if tuple(images.shape[2:]) != (SIDE, SIDE):
            raise SettingError(
                f"the judge looks at {SIDE}x{SIDE} pixels, these pictures have {images.shape[3]}x{images.shape[2]}:"
                " resize them, or use clip_score."
            )
        fit = self.encoder.embed_images(images) * self.encoder.embed_captions(prompts)
        return self.encoder.judge.log_scale.detach().exp() * fit.sum(1)
