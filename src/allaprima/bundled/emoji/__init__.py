"""The emoji pair: card, data set, recipes, weights."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allaprima.evaluation.reward_judge import RewardJudge


def weights(part: str) -> Path:
    """Folder of one part of the bundled weights, for example `teacher/vae`."""
    return Path(str(resources.files("allaprima.bundled.emoji"))) / "weights" / part


def load_judge() -> RewardJudge:
    """The bundled judge, which evaluates what the pair paints and never decides (recipe: `judge.py`)."""
    from allaprima.evaluation.reward_judge import RewardJudge

    return RewardJudge.from_pretrained(weights("judge"))
