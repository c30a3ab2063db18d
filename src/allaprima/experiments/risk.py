"""Risk control: judged drafts to a threshold with a guarantee on what accepted drafts lose."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from allaprima.calibration.risk import RiskControl, accepted_risk, expected_risk, sure_risk
from allaprima.core.errors import SettingError

PROMISES = {
    "accepted": "the mean loss of accepted drafts",
    "sure": "the mean loss over all drafts (escalated ones lose nothing)",
    "expected": "the mean loss over all drafts, in expectation over calibrations,",
}


def read_judged(path: Path) -> tuple[list[float], list[float]]:
    """Scores and losses of a CSV or JSONL with the columns `score` and `loss`, or `score` and `student_preferred`.

    Raises `SettingError` that names the line for anything that is not a number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SettingError(f"{path} cannot be read: {e}. Give a CSV or JSONL of judged drafts.") from e
    rows: list[Mapping[str, Any]]
    try:
        if path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text)))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as e:
        raise SettingError(f"{path} is not JSONL: {e}. Name a CSV file *.csv, or give one JSON object a line.") from e
    scores: list[float] = []
    losses: list[float] = []
    for number, row in enumerate(rows, 1):
        try:
            scores.append(float(row["score"]))
            losses.append(float(row["loss"]) if "loss" in row else 1.0 - float(row["student_preferred"]))
        except (KeyError, TypeError, ValueError) as e:
            raise SettingError(
                f"{path}, row {number}: {dict(row)!r} has no number under 'score' and 'loss' (or 'student_preferred',"
                " 1 where the draft is at least as good as the teacher's picture). Mend or leave out that row."
            ) from e
    return scores, losses


def risk_command(judged: Path, alpha: float, delta: float, promise: str, bound: float, as_json: bool) -> None:
    """Print the smallest threshold that the promise can be made for."""
    if promise not in PROMISES:
        raise SettingError(f"promise={promise!r} is not known: {', '.join(PROMISES)} are.")
    scores, losses = read_judged(judged)
    made: RiskControl
    if promise == "accepted":
        made = accepted_risk(scores, losses, alpha, delta, bound)
    elif promise == "sure":
        made = sure_risk(scores, losses, alpha, delta, bound)
    else:
        made = expected_risk(scores, losses, alpha, bound)
    if as_json:
        print(json.dumps({**dataclasses.asdict(made), "threshold": str(made.threshold), "promise": promise}))
        return
    console = Console(highlight=False)
    sure = "" if promise == "expected" else f" with confidence {1 - delta:g}"
    if math.isinf(made.threshold) and made.threshold > 0:
        console.print(
            f"nothing can be accepted: no threshold keeps {PROMISES[promise]} below {alpha:g}{sure} with {len(scores)}"
            " judged drafts. Judge more, raise --alpha, or take an oracle that knows more."
        )
        return
    console.print(
        f"threshold {made.threshold:.6g}: {PROMISES[promise]} stays below {alpha:g}{sure}. It accepts"
        f" {made.accepted:.0%} of the {len(scores)} judged drafts, whose loss is {made.loss:.3g}."
        f" Paint with it: allaprima generate --threshold {made.threshold:.6g}"
    )
