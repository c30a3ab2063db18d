"""The judges of the bundled pairs by card: they evaluate what a pair paints and never decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from allaprima.core.errors import SettingError

if TYPE_CHECKING:
    from pathlib import Path

    from allaprima.evaluation.composition import CompositionJudge
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


def check_composition(card: str | None, detector: Path | None, prompts: Path | None) -> bool:
    """Return whether composition is judged exactly, without a detector; raises `SettingError` if neither way is open."""
    if detector is None and prompts is None and card == "scenes":
        return True
    if detector is None or prompts is None:
        raise SettingError(
            "composition needs a detector and what prompts ask for: give --detector with the folder of an OWLv2 model and"
            " --composition-prompts with a file in the format of GenEval's evaluation_metadata.jsonl."
        )
    return False


def load_composition_judge(card: str | None, detector: Path | None = None, prompts: Path | None = None) -> CompositionJudge:
    """Return what judges composition: the exact judge of `scenes`, else a detector with the prompts' requirements.

    Args:
        card: Name of the card whose pictures are judged, if it is known.
        detector: Folder of an OWLv2 model.
        prompts: GenEval's `evaluation_metadata.jsonl`, or a file of your own in its format.

    Raises:
        SettingError: If one of the two files is missing where no card has an exact judge.
    """
    if check_composition(card, detector, prompts):
        from allaprima.bundled.scenes.score import ExactJudgeScore

        return ExactJudgeScore()
    from allaprima.evaluation.composition import DetectorJudge
    from allaprima.oracles.composition import read_composition_prompts
    from allaprima.oracles.owlv2 import Owlv2Detector

    assert detector is not None
    assert prompts is not None
    return DetectorJudge(Owlv2Detector(detector), read_composition_prompts(prompts))
