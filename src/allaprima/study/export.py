"""Votes as tables, and pairs as `allaprima finetune-oracle` reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from allaprima.core.errors import SettingError
from allaprima.study.create import PICTURES
from allaprima.study.outcomes import by_pair
from allaprima.study.store.store import StudyStore
from allaprima.study.tables import write_csv, write_parquet

PAIR_COLUMNS = ("prompt", "a", "b", "preference", "votes", "seed", "method_a", "method_b", "band", "distance")


def write_votes(store: StudyStore, folder: Path, out: Path, question: str) -> dict[str, int]:
    """`votes.csv` and `votes.parquet` (a vote a row, checks too) and `pairs.csv`; says how many rows each has.

    `pairs.csv`: paths relative to itself; `preference` is the share of votes for a, a tie one half. Raises `SettingError`.
    """
    asked = store.questions
    everything = [v.row() for v in store.votes(("study", "gold", "qualification", "training"))]
    written = {"votes.csv": len(everything)}
    write_csv(out / "votes.csv", everything)
    write_parquet(out / "votes.parquet", everything)
    if not asked.compares:
        return written
    if question not in asked.names:
        raise SettingError(f"question={question!r} was not asked: {', '.join(asked.names)} were.")
    value = {"a": 1.0, "tie": 0.5, "b": 0.0}
    rows: list[dict[str, Any]] = []
    pictures = Path(os.path.relpath(folder / PICTURES, out))
    for of in by_pair(store.votes()).values():
        v = of[0]
        share = sum(value[w.answers[question]] for w in of) / len(of)
        rows.append({
            "prompt": v.prompt, "a": (pictures / v.files[0]).as_posix(), "b": (pictures / v.files[1]).as_posix(),
            "preference": round(share, 6), "votes": len(of), "seed": v.seed, "method_a": v.methods[0],
            "method_b": v.methods[1], "band": v.band, "distance": v.distance,
        })  # fmt: skip
    write_csv(out / "pairs.csv", rows, PAIR_COLUMNS)
    return {**written, "pairs.csv": len(rows)}
