"""How often student and teacher are right on held-out scenes, by kind, and how well the oracle tells: judged exactly.

    python -m benchmarks.scenes [--card scenes] [--prompts 700] [--seeds 3] [--json] [--out runs/scenes-table]

Each row paints the same held-out captions (`grammar.benchmark_scenes`, the seven kinds alike) with the same seeds: the
student in 1 to 4 steps, the teacher in 10, 14, 25 and 50 of the card's solver, and in 50 of DDIM. The exact judge reads the
pictures as they are saved, in 8 bits. Intervals: 95 %, captions resampled.

The oracle's table is over the student's drafts in the card's number of steps: the area under the curve of its score for the
judge's verdict, and the share of drafts it is right to accept or refuse at a score of 0.

Verdicts are kept in --out, so that a stopped run goes on where it was; the models' fingerprints are part of the names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from allaprima.bundled.scenes.grammar import KINDS, Scene, benchmark_scenes
from allaprima.bundled.scenes.judge import FAULTS, judge
from allaprima.core.errors import SettingError
from allaprima.evaluation.decision import area_under_curve
from allaprima.pipeline import AdaptivePipeline

FIRST_SEED = 9_000_000
"""Far from the seeds of the oracle's drafts, which are below 2^31 and drawn, and of calibrations."""
CHUNK = 100


def rows_of(pipe: AdaptivePipeline) -> dict[str, tuple[str, dict[str, Any], int]]:
    """Return the rows by name: the pipeline's mode, changes to its settings, and network evaluations a picture."""
    guided = 1 if pipe.settings.teacher_guidance == 1 else 2
    a_step = 1 if pipe.settings.student_guidance == 1 else 2
    rows: dict[str, tuple[str, dict[str, Any], int]] = {}
    for n in (1, 2, 3, 4):
        rows[f"student {n}"] = ("student-only", {"student_steps": n}, n * a_step)
    for n in (10, 14, 25, 50):
        rows[f"teacher {n}"] = ("teacher-only", {"teacher_steps": n}, n * guided)
    rows["teacher DDIM 50"] = ("teacher-only", {"teacher_steps": 50, "teacher_solver": "ddim@trailing"}, 50 * guided)
    return rows


def paint(
    pipe: AdaptivePipeline, scenes: Sequence[Scene], seed: int, mode: str, changes: dict[str, Any], label: str
) -> dict[str, np.ndarray]:
    """Paint and judge; returns `right (N,)`, `fault (N,)`, an index into `FAULTS` or -1, and the oracle's `score (N,)`."""
    right, fault, score = list[bool](), list[int](), list[torch.Tensor]()
    for first in track(range(0, len(scenes), CHUNK), label, console=Console(stderr=True), transient=True):
        part = scenes[first : first + CHUNK]
        captions = [scene.caption() for scene in part]
        seeds = [seed + first + i for i in range(len(part))]
        images = pipe(captions, seed=seeds, mode=mode, output_type="pt", batch_size=50, **changes).images
        images = (images * 255).round() / 255
        verdicts = [judge(x, s) for x, s in zip(images.permute(0, 2, 3, 1).numpy(), part, strict=True)]
        right += [v.right for v in verdicts]
        fault += [-1 if v.fault is None else FAULTS.index(v.fault) for v in verdicts]
        if pipe.oracle is not None:
            score.append(pipe.oracle.score(images, captions))
    scores = torch.cat(score).numpy() if score else np.full(len(right), np.nan)
    return {"right": np.array(right), "fault": np.array(fault), "score": scores}


def measured(
    pipe: AdaptivePipeline, scenes: Sequence[Scene], seeds: int, out: Path, rows: str = ""
) -> dict[str, dict[str, np.ndarray]]:
    """Return, by row, `right`, `fault` and `score`, each `(seeds, N)`."""
    out.mkdir(parents=True, exist_ok=True)
    belongs = json.dumps([pipe.fingerprints(), pipe.settings.to_dict(), [s.caption() for s in scenes]], sort_keys=True)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, (mode, changes, _) in rows_of(pipe).items():
        if not name.startswith(rows):
            continue
        parts: list[dict[str, np.ndarray]] = []
        for k in range(seeds):
            tag = hashlib.sha256(f"{belongs} {name} {k}".encode()).hexdigest()[:16]
            file = out / f"{tag}.npz"
            if not file.exists():
                made = paint(pipe, scenes, FIRST_SEED + 100_000 * k, mode, changes, f"{name}, seed {k}")
                beside = file.with_suffix(".part.npz")
                np.savez(beside, **made)
                beside.replace(file)
            with np.load(file) as kept:
                parts.append({key: kept[key] for key in kept.files})
        found[name] = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
    return found


def clustered_interval(values: np.ndarray, captions: Sequence[str], rounds: int = 2000) -> tuple[float, float]:
    """Return the ends of a 95 % interval of a mean; captions are resampled with all their pictures.

    Args:
        values: `(seeds, N)`.
        captions: N of them; some stand there several times.
        rounds: Resamples.
    """
    _, index = np.unique(captions, return_inverse=True)
    sums, counts = np.bincount(index, values.sum(0)), np.bincount(index) * float(len(values))
    pick = np.random.default_rng(0).integers(len(sums), size=(rounds, len(sums)))
    low, high = np.quantile(sums[pick].sum(1) / counts[pick].sum(1), [0.025, 0.975])
    return float(low), float(high)


def report(pipe: AdaptivePipeline, scenes: Sequence[Scene], found: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return all figures, JSON-ready."""
    kinds = np.array([scene.kind for scene in scenes])
    captions = [scene.caption() for scene in scenes]
    evaluations = {name: n for name, (_, _, n) in rows_of(pipe).items()}
    rows: dict[str, Any] = {}
    for name, table in found.items():
        right = table["right"].astype(float)
        faults = Counter(table["fault"].flatten().tolist())
        rows[name] = {
            "evaluations": evaluations[name],
            "right": float(right.mean()),
            "interval": list(clustered_interval(right, captions)),
            "kinds": {kind: float(right[:, kinds == kind].mean()) for kind in KINDS},
            "faults": {fault: faults[i] / right.size for i, fault in enumerate(FAULTS)},
        }
    drafts = found.get(f"student {pipe.settings.student_steps}")
    if drafts is None:
        drafts = next(iter(found.values()))
    score, right = drafts["score"], drafts["right"]

    def curve(of: np.ndarray) -> float:
        return area_under_curve(score[:, of].flatten(), right[:, of].flatten())

    return {
        "card": None if pipe.card is None else pipe.card.name,
        "fingerprints": pipe.fingerprints(),
        "prompts": len(scenes),
        "seeds": len(right),
        "rows": rows,
        "oracle": {
            "auc": curve(np.ones(len(kinds), bool)),
            "auc_by_kind": {kind: curve(kinds == kind) for kind in KINDS},
            "accuracy": float(((score > 0) == right).mean()),
        },
    }


def main() -> None:
    """Run from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--card", default="scenes", help="a card of scenes")
    p.add_argument("--prompts", type=int, default=700)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--out", type=Path, default=Path("runs/scenes-table"), help="where verdicts are kept")
    p.add_argument("--rows", default="", help="only rows whose names begin so: student, teacher 25, ...")
    p.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = p.parse_args()
    if args.prompts < len(KINDS) or args.seeds < 1:
        raise SettingError(f"--prompts {args.prompts} --seeds {args.seeds}: at least {len(KINDS)} and 1 are needed.")
    pipe = AdaptivePipeline.from_card(args.card)
    scenes = benchmark_scenes(args.prompts)
    made = report(pipe, scenes, measured(pipe, scenes, args.seeds, args.out, args.rows))
    if args.json:
        json.dump(made, sys.stdout, indent=1)
        print()
        return
    print(f"{made['prompts']} held-out captions, {made['seeds']} seeds\n")
    print(f"| row | evaluations | right | {' | '.join(KINDS)} |\n|---|---|---|{'---|' * len(KINDS)}")
    for name, row in made["rows"].items():
        low, high = row["interval"]
        cells = " | ".join(f"{row['kinds'][kind]:.2f}" for kind in KINDS)
        print(f"| {name} | {row['evaluations']} | {row['right']:.3f} ({low:.3f}..{high:.3f}) | {cells} |")
    print(f"\n| what is wrong | {' | '.join(FAULTS)} |\n|---|{'---|' * len(FAULTS)}")
    for name, row in made["rows"].items():
        print(f"| {name} | {' | '.join(format(row['faults'][fault], '.3f') for fault in FAULTS)} |")
    o = made["oracle"]
    print(f"\n| oracle on drafts | all | {' | '.join(KINDS)} |\n|---|---|{'---|' * len(KINDS)}")
    cells = " | ".join(f"{o['auc_by_kind'][kind]:.3f}" for kind in KINDS)
    print(
        f"| area under the curve | {o['auc']:.3f} | {cells} |\n\nAccuracy of accepting at a score of 0: {o['accuracy']:.3f}"
    )


if __name__ == "__main__":
    main()
