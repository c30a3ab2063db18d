"""The exact judge as a scorer: 1 for a right picture, 0 for a wrong one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from allaprima.bundled.scenes.geometry import SIDE
from allaprima.bundled.scenes.judge import judge
from allaprima.bundled.scenes.reading import read
from allaprima.core.errors import SettingError


class ExactJudgeScore:
    """Scorer of scenes without a network: whether a picture shows just what its prompt asks for."""

    name = "judge"
    higher_is_better = True
    needs_prompts = True
    needs_references = False

    def protocol(self) -> dict[str, Any]:
        """Return what the score is, for a report."""
        return {"formula": "1 if the picture shows the prompt's objects and no others, else 0", "judge": "exact"}

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> Tensor:
        """Return 1 for each right picture and 0 for each wrong one, `(B,)`.

        Args:
            images: `(B, 3, 64, 64)` in [0, 1].
            prompts: One each.
            references: Not looked at.

        Raises:
            SettingError: For pictures of another size.
            PromptError: For a prompt that is not a scene.
        """
        if tuple(images.shape[2:]) != (SIDE, SIDE):
            raise SettingError(
                f"the judge of scenes reads {SIDE}x{SIDE} pixels, these pictures have {images.shape[3]}x{images.shape[2]}:"
                " resize them, or use clip_score."
            )
        arrays = images.float().permute(0, 2, 3, 1).cpu().numpy()
        return torch.tensor([float(judge(image, read(p)).right) for image, p in zip(arrays, prompts, strict=True)])
