"""The judges of the bundled pairs by card: they evaluate what a pair paints and never decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from allaprima.evaluation.metric import PerImageScorer

JUDGED = ("emoji", "scenes")
"""Cards that have a judge."""


def load_judge_score(card: str, encode: Callable[[Sequence[str]], Tensor]) -> PerImageScorer:
    """Return a card's judge as a scorer of pictures.

    Args:
        card: Name of a bundled card, one of `JUDGED`.
        encode: The pair's text encoder, which some judges read prompts through.
    """
    if card == "scenes":
        from allaprima.bundled.scenes.score import ExactJudgeScore

        return ExactJudgeScore()
    from allaprima.bundled.emoji import load_judge
    from allaprima.evaluation.judge_score import JudgeScore
    from allaprima.evaluation.retrieval import JudgeEncoder

    return JudgeScore(JudgeEncoder(load_judge(), encode))
