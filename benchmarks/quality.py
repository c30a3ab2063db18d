"""What the cascade buys: quality against mean steps, on the bundled pair.

    python -m benchmarks.quality [--json] [--seeds 3] [--captions 147] [--out runs/quality]

Each row paints the same captions with the same seeds: the student alone, the teacher alone (DPM-Solver++(2M) 10 and 25
steps and DDIM 50 on their usual grids; the card's own solver, grid and steps), the cascade with the card's settings at 10
and 15 mean steps (each seed's threshold from the other seeds' drafts of the same captions), and "refine all" at the same
means. Two sets of captions: `test`, concept-style pairs that were never trained on, and `train`.

Measures: Frechet distance to real pictures on EfficientNet-Lite0 features (not Inception, so not a published FID; it is
biased upwards by few pictures, equally for every row); retrieval@1, whether the judge finds the right caption among all
the card knows; the judge's own score; the oracle's score. The judge is another network than the oracle, trained apart,
on real pictures only, and never decides anything. Intervals: 95 %, prompts resampled (Frechet: Student's t over seeds).

Pictures are kept in --out, so a stopped run goes on where it was; the models' fingerprints are part of the names.
The real pictures' features are read from `benchmarks/data` (made by `python -m benchmarks.reference --data emoji64.tar`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.bundled.emoji import load_judge
from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.calibration.budget import Prices
from allaprima.calibration.threshold import threshold_for
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import SettingError
from allaprima.diffusion.noising import Variance
from allaprima.evaluation.decision import decision_accuracy
from allaprima.evaluation.frechet import frechet_distance
from allaprima.evaluation.intervals import Interval, mean_interval, t_interval
from allaprima.features.efficientnet_lite import EfficientNetLite0
from allaprima.pipeline import AdaptivePipeline
from benchmarks.reference import load_reference

FIRST_SEED = 5_000_000
"""Far from the seeds that trained the oracle (10,000 on) and calibrated the threshold (1,000,000 on)."""
BUDGETS = (10.0, 15.0)
TEST_IMAGES = 2
"""Pictures of each test caption and seed: 49 captions alone would be few for a Frechet distance."""


@dataclass(frozen=True)
class Painted:
    """One way of painting all captions of a set with one seed: `images: (N,3,H,W)` uint8; drafts and scores if any."""

    images: Tensor
    drafts: Tensor | None
    scores: Tensor | None


@dataclass(frozen=True)
class Way:
    """How to paint: a mode of the pipeline and changes to its settings."""

    mode: str
    changes: dict[str, Any]


_USUAL = {"teacher_last_time": None, "teacher_guidance_interval": None, "teacher_guidance": 3.0}
_REFINE = {"student_steps": 5, "strategy": "refine", "sigma": Variance(0.7), "teacher_solver": "dpm_solver"}
WAYS: dict[str, Way] = {
    # The card's own drafts with their scores, and what its strategy makes of every one of them.
    "draft": Way("student-only", {}),
    "action": Way("action", {}),
    # "Refine all" at a mean of 10 and 15 steps, from five-step drafts; the student's row is their drafts.
    "refine-10": Way("refine-all", {**_REFINE, "teacher_steps": 10}),
    "refine-5": Way("refine-all", {**_REFINE, "teacher_steps": 5}),
    # The baselines on their solvers' usual grids, as diffusers has them; then the teacher as the card uses it.
    "dpm-10": Way("teacher-only", {"teacher_steps": 10, "teacher_solver": "dpm_solver", **_USUAL}),
    "dpm-25": Way("teacher-only", {"teacher_steps": 25, "teacher_solver": "dpm_solver", **_USUAL}),
    "ddim-50": Way("teacher-only", {"teacher_steps": 50, "teacher_solver": "ddim", **_USUAL}),
    # What the card's guidance gives the baseline: the rest of the difference is the cascade's.
    "ddim-50-card": Way("teacher-only", {"teacher_steps": 50, "teacher_solver": "ddim", "teacher_last_time": None}),
    "teacher": Way("teacher-only", {}),
}
_TEACHER = (
    "teacher_steps", "teacher_solver", "teacher_guidance", "teacher_guidance_interval", "teacher_last_time",
    "height", "width", "batch_size",
)  # fmt: skip
"""The settings that a teacher-only picture depends on; the rest may change without painting it again."""


def key_of(mode: str, settings: dict[str, Any], prints: dict[str, str], captions: Sequence[str], seed: int) -> str:
    """Return what makes these pictures what they are, as JSON."""
    if mode == "teacher-only":
        settings = {k: settings[k] for k in _TEACHER if settings[k] is not None}
        prints = {k: v for k, v in prints.items() if k == "teacher"}
    return json.dumps([mode, settings, prints, list(captions), seed], sort_keys=True)


def file_of(what: str) -> str:
    """Name of the file for a key."""
    return f"{hashlib.sha256(what.encode()).hexdigest()[:20]}.safetensors"


def paint(pipe: AdaptivePipeline, way: Way, captions: Sequence[str], seed: int, path: Path, note: str) -> Painted:
    """Paint, or read what an earlier run painted."""
    settings = pipe.settings.changed(**way.changes)
    mode = {"refine": "refine-all", "regenerate": "teacher-only"}[settings.strategy] if way.mode == "action" else way.mode
    what = key_of(mode, settings.to_dict(), pipe.fingerprints(), captions, seed)
    file = path / file_of(what)
    if not file.exists():
        requests = [GenerationRequest(c, seed + i, "", i) for i, c in enumerate(captions)]
        results = sorted(pipe.stream(requests, settings, pipe.policy(settings, mode=mode)), key=lambda r: r.request.index)
        tensors: dict[str, Tensor] = {"images": _bytes([r.image for r in results])}
        if results[0].draft is not None:
            tensors["drafts"] = _bytes([r.draft for r in results])
            tensors["scores"] = torch.tensor([r.score for r in results], dtype=torch.float64)
        path.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file.with_suffix(".part"), {"what": what})
        file.with_suffix(".part").replace(file)
    print(f"{note}: {len(captions)} pictures", file=sys.stderr, flush=True)
    found = load_file(file)
    return Painted(found["images"], found.get("drafts"), found.get("scores"))


def _bytes(images: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([(x * 255).round().byte() for x in images if x is not None])


@dataclass(frozen=True)
class Row:
    """A line of the table: pictures `(seeds, N, 3, H, W)` and the mean steps they took."""

    images: Tensor
    steps: float
    accepted: float | None = None


def held_out_thresholds(scores: Tensor, share: float) -> Tensor:
    """Return a threshold for each seed `(seeds, 1)` from the drafts of the *other* seeds, `scores: (seeds, N)`.

    A threshold belongs to its prompts (methods 1): captions that were never trained on score lower, and the card's
    threshold, made on all captions, would send more of them to the teacher than the budget says.
    """
    if len(scores) < 2:
        raise SettingError(f"{len(scores)} seed: thresholds are made on the other seeds' drafts, so at least 2 are due.")
    others = [torch.cat([row for j, row in enumerate(scores) if j != i]).tolist() for i in range(len(scores))]
    return torch.tensor([[threshold_for(s, share)] for s in others], dtype=torch.float64)


def clear_leads(scores: Tensor, scorers: Tensor) -> Tensor:
    """Drafts that lead the teacher's picture by more than half of the other seeds' leading drafts do, `(seeds, N)` bool."""
    leads = scores - scorers
    rows: list[Tensor] = []
    for i, row in enumerate(leads):
        others = torch.cat([leads[:i], leads[i + 1 :]]).flatten()
        others = others[others > 0]
        rows.append(row > (others.median() if len(others) else 0.0))
    return torch.stack(rows)


def rows_of(
    painted: dict[str, list[Painted]], s: CascadeSettings, budgets: Sequence[float], scorers: Tensor | None = None
) -> dict[str, Row]:
    """Every row from what was painted; a cascade's pictures are drafts or the teacher's by its threshold.

    `looks: (seeds, N)` are the oracle's scores of what the teacher makes of every draft, for the policy that looks again.
    """

    def stack(name: str) -> Tensor:
        return torch.stack([p.images for p in painted[name]])

    drafts, action = stack("draft"), stack("action")
    scores = torch.stack([p.scores for p in painted["draft"] if p.scores is not None])
    five = torch.stack([p.drafts for p in painted["refine-10"] if p.drafts is not None])
    rows = {
        "student 5": Row(five, 5),
        f"student {s.student_steps}": Row(drafts, s.student_steps),
        "teacher DPM++ 10": Row(stack("dpm-10"), 10),
        "teacher DPM++ 25": Row(stack("dpm-25"), 25),
        "teacher DDIM 50": Row(stack("ddim-50"), 50),
        "teacher DDIM 50, card's guidance": Row(stack("ddim-50-card"), 50),
        f"teacher, card's {s.teacher_steps}": Row(stack("teacher"), s.teacher_steps),
    }
    for budget in budgets:
        share = Prices.from_steps(s.student_steps, s.teacher_steps).share_for(budget)
        keep = scores >= held_out_thresholds(scores, share)
        images = torch.where(keep[..., None, None, None], drafts, action)
        accepted = float(keep.double().mean())
        rows[f"adaptive {budget:g}"] = Row(images, s.student_steps + s.teacher_steps * (1 - accepted), accepted)
        if scorers is not None:
            again = torch.where((keep | clear_leads(scores, scorers))[..., None, None, None], drafts, action)
            rows[f"adaptive {budget:g}, rechecked"] = Row(again, rows[f"adaptive {budget:g}"].steps, accepted)
        n = int(budget) - 5
        rows[f"refine all {budget:g}"] = Row(stack(f"refine-{n}"), 5 + n)
    return rows


@dataclass(frozen=True)
class Measured:
    """A row's measures; per-picture values are flat over (seed, caption)."""

    frechet: list[float]
    found: list[float]
    judge: list[float]
    oracle: list[float]


class Meter:
    """Feature network, judge and oracle, with everything about the captions computed once."""

    def __init__(self, pipe: AdaptivePipeline, captions: Sequence[str], reference: Tensor) -> None:
        self.net, self.judge, self.pipe = EfficientNetLite0.pretrained(), load_judge(), pipe
        self.captions, self.reference = list(captions), reference
        pool = [f"{c}, {s}" for c in known_concepts() for s in STYLES]
        self.pool = self._texts(pool)
        self.target = torch.tensor([pool.index(c) for c in captions])

    def _texts(self, captions: Sequence[str]) -> Tensor:
        parts = [self.pipe.student.encode(captions[i : i + 64]) for i in range(0, len(captions), 64)]
        return torch.cat([self.judge.embed_texts(p) for p in parts])

    def look(self, images: Tensor) -> Tensor:
        """Return the oracle's scores `(N,)` of `(N, 3, H, W)` uint8, one a caption."""
        assert self.pipe.oracle is not None
        parts = [
            self.pipe.oracle.score(images[i : i + 64].float() / 255, self.captions[i : i + 64])
            for i in range(0, len(images), 64)
        ]
        return torch.cat(parts).double()

    @torch.no_grad()
    def measure(self, images: Tensor) -> Measured:
        """`images: (seeds, N, 3, H, W)` uint8."""
        out = Measured([], [], [], [])
        for one in images:
            out.frechet.append(frechet_distance(self.net.features(one), self.reference))
            pictures = one.float() / 255
            embedded = torch.cat([self.judge.embed_images(x) for x in pictures.split(128)])
            logits = self.judge.logits(embedded, self.pool)
            out.found.extend((logits.argmax(1) == self.target).double().tolist())
            out.judge.extend(logits.gather(1, self.target[:, None])[:, 0].tolist())
            out.oracle.extend(self.look(one).tolist())
        return out


def as_list(i: Interval) -> list[float]:
    """JSON-ready."""
    return [i.mean, i.low, i.high]


def evaluate(pipe: AdaptivePipeline, captions: Sequence[str], reference: Tensor, args: argparse.Namespace, name: str) -> Any:
    """Paint and measure one set of captions."""
    painted: dict[str, list[Painted]] = {k: [] for k in WAYS}
    for k, way in WAYS.items():
        for j in range(args.seeds):
            seed = FIRST_SEED + 100_000 * j
            painted[k].append(paint(pipe, way, captions, seed, args.out, f"{name}, {k}, seed {j + 1} of {args.seeds}"))
    meter = Meter(pipe, captions, reference)
    scorers = torch.stack([meter.look(p.images) for p in painted["action"]])
    rows = rows_of(painted, pipe.settings, BUDGETS, scorers)
    groups = [list(dict.fromkeys(captions)).index(c) for c in captions] * args.seeds
    measured = {k: meter.measure(row.images) for k, row in rows.items()}
    table = {
        k: {
            "mean_steps": row.steps,
            "accepted": row.accepted,
            "frechet": as_list(t_interval(measured[k].frechet)),
            **{m: as_list(mean_interval(getattr(measured[k], m), groups)) for m in ("found", "judge", "oracle")},
        }
        for k, row in rows.items()
    }

    def paired(a: str, b: str, measure: Callable[[Measured], list[float]]) -> list[float]:
        difference = [x - y for x, y in zip(measure(measured[a]), measure(measured[b]), strict=True)]
        return as_list(mean_interval(difference, groups))

    last = "teacher DDIM 50"

    def gap(first: str) -> dict[str, list[float]]:
        frechet = [a - b for a, b in zip(measured[first].frechet, measured[last].frechet, strict=True)]
        measures: dict[str, Callable[[Measured], list[float]]] = {"found": lambda m: m.found, "judge": lambda m: m.judge}
        return {"frechet": as_list(t_interval(frechet)), **{k: paired(first, last, m) for k, m in measures.items()}}

    student = f"student {pipe.settings.student_steps}"
    scores = torch.cat([p.scores for p in painted["draft"] if p.scores is not None]).tolist()
    own = f"teacher, card's {pipe.settings.teacher_steps}"

    def told(teacher: str, by: Sequence[float]) -> dict[str, float]:
        return decision_accuracy(by, [a > b for a, b in zip(measured[student].judge, measured[teacher].judge, strict=True)])

    # From the draft alone, as the threshold decides; then from both pictures, as a second look does.
    accuracies = {teacher: told(teacher, scores) for teacher in ("teacher DPM++ 25", last, own)}
    leads = {t: [a - b for a, b in zip(scores, measured[t].oracle, strict=True)] for t in accuracies}
    accuracies |= {f"{t}, from both pictures": told(t, lead) for t, lead in leads.items()}
    return {
        "pictures_a_row": len(captions) * args.seeds,
        "captions": len(set(captions)),
        "reference_pictures": len(reference),
        "rows": table,
        **{f"{first} minus {last}": gap(first) for first in ("adaptive 15", "adaptive 15, rechecked")},
        "oracle_against_judge": accuracies,
    }


def table_of(result: dict[str, Any]) -> str:
    """Markdown for people."""
    lines: list[str] = []
    for split, part in result["sets"].items():
        lines += [
            f"\n**{split}**: {part['captions']} captions, {part['pictures_a_row']} pictures a row,"
            f" {part['reference_pictures']} real pictures\n",
            "| row | mean steps | Frechet (Lite0) | judge finds caption | judge's score | oracle's score |",
            "|---|---|---|---|---|---|",
        ]
        for name, row in part["rows"].items():
            cells = [
                f"{m:.{d}f} ({lo:.{d}f}..{hi:.{d}f})"
                for (m, lo, hi), d in ((row["frechet"], 2), (row["found"], 3), (row["judge"], 2), (row["oracle"], 3))
            ]
            lines.append(f"| {name} | {row['mean_steps']:.1f} | " + " | ".join(cells) + " |")
        for name, gap in part.items():
            if " minus " in name:
                cells = [f"{k} {m:+.3f} ({lo:+.3f}..{hi:+.3f})" for k, (m, lo, hi) in gap.items()]
                lines.append(f"\n{name}: " + ", ".join(cells))
        for teacher, a in part["oracle_against_judge"].items():
            lines.append(
                f"oracle tells whether the judge prefers the student to {teacher}: accuracy {a['accuracy']:.3f} at its best"
                f" threshold (student preferred {a['student_preferred']:.3f}, always saying the same"
                f" {a['always_the_same']:.3f}, AUC {a['auc']:.3f})"
            )
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", action="store_true")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--captions", type=int, default=147, help="training captions (an even stride through all of them)")
    p.add_argument("--sets", nargs="*", default=["test", "train"], choices=["test", "train"])
    p.add_argument("--out", type=Path, default=Path("runs/quality"), help="painted pictures; run again to go on")
    args = p.parse_args()
    pipe = AdaptivePipeline.from_card("emoji")
    reference = load_reference()
    sets: dict[str, Any] = {}
    for name in args.sets:
        captions, features = reference.split(name)
        if name == "train":
            chosen = [captions[i * len(captions) // args.captions] for i in range(min(args.captions, len(captions)))]
        else:
            chosen = [c for c in captions for _ in range(TEST_IMAGES)]
        sets[name] = evaluate(pipe, chosen, features, args, name)
    result = {
        "seeds": args.seeds,
        "features": "EfficientNet-Lite0 (ImageNet), 224 px bicubic; not Inception FID",
        "data_sha256": reference.data_sha256,
        "fingerprints": pipe.fingerprints(),
        "sets": sets,
    }
    print(json.dumps(result, indent=1) if args.json else table_of(result))


if __name__ == "__main__":
    main()
