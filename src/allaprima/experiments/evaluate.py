"""Evaluation of the images of a folder or a run by metrics with intervals, alone or against others."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from allaprima._version import __version__
from allaprima.core.errors import SettingError
from allaprima.data.images import write_bytes_atomically
from allaprima.data.pictures import RESULTS, PictureSet, Which, open_pictures
from allaprima.evaluation.intervals import Interval
from allaprima.evaluation.paired import paired
from allaprima.experiments.evaluation_table import print_table
from allaprima.experiments.metric_suite import MeasuredSet, MetricOutcome, MetricSuite
from allaprima.experiments.needs import Needs, Reference, features_sha256, metric_names, read_features
from allaprima.experiments.progress import Bars

SCHEMA = 1
KINDS: tuple[Which, ...] = ("final", "draft")
SUBSET = 1000
"""Pictures of a subset of the kernel distance, as published, if there are as many."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of the command, as given."""

    pictures: Path | None
    metrics: str | None
    which: str
    reference: Path | None
    against: Path | None
    features: str
    clip: Path | None
    detector: Path | None
    composition_prompts: Path | None
    card: str | None
    prompts_file: str | None
    seed: int | None
    images_per_prompt: int | None
    budget: float | None
    threshold: float | None
    batch_size: int
    subset_size: int | None
    cache: Path | None
    out: Path | None
    as_json: bool

    def check(self) -> None:
        """Raise `SettingError` before anything is read or loaded."""
        if self.which not in ("final", "draft", "both"):
            raise SettingError(f"which={self.which!r} is not known: final, draft or both.")
        if self.which == "both" and self.against is not None:
            raise SettingError("--which both compares finals with drafts, --against with another run: give one.")
        if not 1 <= self.batch_size <= 4096:
            raise SettingError(f"batch_size={self.batch_size!r} is out of range: 1..4096 pictures at a time.")
        if self.subset_size is not None and self.subset_size < 2:
            raise SettingError(f"subset_size={self.subset_size!r} is out of range: 2 pictures or more.")
        if self.pictures is None:
            if self.prompts_file is None:
                raise SettingError(
                    "nothing to measure: give PICTURES (a folder or a run), or --prompts-file to paint first."
                )
            if self.out is None or self.out.suffix == ".json":
                raise SettingError(f"out={self.out and str(self.out)!r}: painting needs a run folder. Give --out FOLDER.")
            return
        for name in ("seed", "images_per_prompt", "budget", "threshold"):
            if getattr(self, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise SettingError(f"{option} is for painting, and {self.pictures} is painted: leave one of them out.")
        if not self.report_path.parent.is_dir():
            raise SettingError(f"{self.report_path.parent}, where --out goes, is not a folder: make it, or choose another.")

    @property
    def report_path(self) -> Path:
        """Where `evaluation.json` goes."""
        if self.out is None:
            return Path("evaluation.json")
        return self.out / "evaluation.json" if self.pictures is None or self.out.is_dir() else self.out

    @property
    def cache_folder(self) -> Path:
        """Where features are kept."""
        if self.cache is not None:
            return self.cache
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "allaprima"


def evaluate_command(o: EvaluateOptions, generate: Callable[[Path], None]) -> None:
    """Measure, compare, and write the report.

    Args:
        o: Options of the command.
        generate: Generate images into a run folder, `o.out`; called where no images are given.
    """
    o.check()
    names = metric_names(o.metrics)
    console = Console(stderr=True, highlight=False)
    reference = open_reference(o.reference)
    card = o.card or ("emoji" if o.pictures is None else card_of(o.pictures))
    needs = Needs(reference, card, o.clip, o.detector, o.composition_prompts)
    needs.check_options(names)
    where = o.pictures or o.out
    assert where is not None
    if o.pictures is None:
        generate(where)
    prompts_file = None if o.pictures is None else o.prompts_file
    kinds: list[Which] = [k for k in KINDS if o.which in (k, "both")]
    sets = [open_pictures(where, kind, prompts_file) for kind in kinds]
    if o.against is not None:
        sets.append(open_pictures(o.against, kinds[0]))
    for one in sets:
        needs.check(names, one)
        if one.left_out:
            console.print(f"[yellow]note:[/] {one.left_out} rows of {one.name} have no such picture and are left out")
    with Bars.show(console) as bars:
        counts = [len(s) for s in sets]
        if reference is not None:
            counts.append(len(reference))
        subset = o.subset_size or min(SUBSET, *counts)
        setup = MetricSuite(names, needs, o.features, o.batch_size, subset, o.cache_folder, bars)
        hashes = [setup.hashed(s) for s in sets]
        described = None if reference is None else describe_reference(reference, setup)
        taken = [setup.measure(s, *h) for s, h in zip(sets, hashes, strict=True)]
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "command": shlex.join(["allaprima", *sys.argv[1:]]),
        "sets": [describe(t) for t in taken],
        "reference": described,
        "comparison": compare(*taken) if len(taken) == 2 else None,
    }
    text = json.dumps(report, indent=1, allow_nan=False) + "\n"
    write_bytes_atomically(o.report_path, text.encode())
    print_table(console, report)
    console.print(f"written to {o.report_path}")
    if o.as_json:
        print(text, end="")


def open_reference(path: Path | None) -> Reference | None:
    """Return a folder, a run, or a safetensors file of features."""
    if path is None:
        return None
    if path.suffix == ".safetensors":
        return read_features(path)
    return Reference(str(path), open_pictures(path))


def card_of(path: Path) -> str | None:
    """Return the card that a run folder says it was painted with."""
    folder = path.parent if path.name == RESULTS else path
    for marker in (folder / "run.json", folder.parent / "run.json"):
        try:
            card: Any = json.loads(marker.read_text(encoding="utf-8"))["card"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return card if isinstance(card, str) else None
    return None


def describe_reference(reference: Reference, setup: MetricSuite) -> dict[str, Any]:
    """JSON-ready."""
    if reference.pictures is not None:
        what: dict[str, Any] = {"pictures_sha256": setup.hashed(reference.pictures)[0]}
    else:
        assert reference.features is not None
        what = {"features_sha256": features_sha256(reference.features), "network": reference.network}
    return {"source": reference.source, "pictures": len(reference), **what}


def describe(taken: MeasuredSet) -> dict[str, Any]:
    """Return a set with its metrics, JSON-ready."""
    prompts = taken.pictures.prompts
    return {
        "name": taken.pictures.name,
        "pictures": len(taken.pictures),
        "left_out": taken.pictures.left_out,
        "prompts": None if prompts is None else len(set(prompts)),
        "height": taken.size[0],
        "width": taken.size[1],
        "pictures_sha256": taken.sha256,
        "metrics": {name: describe_outcome(o) for name, o in taken.outcomes.items()},
    }


def describe_outcome(o: MetricOutcome) -> dict[str, Any]:
    """`value`: the mean over prompts where pictures have values, the set's value else; `interval`: 95 %."""
    m = o.measured
    return {
        "name": m.name,
        "value": m.value if o.interval is None else o.interval.mean,
        "interval": _ends(o.interval),
        "mean_over_pictures": m.value if m.per_picture is not None else None,
        "more": dict(m.more),
        "kinds": {kind: {"value": i.mean, "interval": _ends(i), "pictures": n} for kind, (i, n) in o.by_kind().items()},
        "protocol": dict(m.protocol),
    }


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def compare(a: MeasuredSet, b: MeasuredSet) -> dict[str, Any]:
    """Return a minus B and A's wins over B, pair by pair; for set metrics the difference alone."""
    by_seed = a.pictures.seeded and b.pictures.seeded
    keys_a, keys_b = a.pictures.keys(by_seed), b.pictures.keys(by_seed)
    check_prompts_agree(a.pictures, b.pictures, by_seed)
    metrics: dict[str, Any] = {}
    for name, one in a.outcomes.items():
        other = b.outcomes[name]
        if not one.values:
            metrics[name] = {"difference": one.measured.value - other.measured.value, "interval": None, "win_rate": None}
            continue
        per_picture = one.measured.per_picture is not None
        p = paired(
            dict(zip(keys_a if per_picture else one.prompts, one.values, strict=True)),
            dict(zip(keys_b if per_picture else other.prompts, other.values, strict=True)),
            dict(zip(keys_a if per_picture else one.prompts, one.prompts, strict=True)),
            one.higher_is_better,
        )
        several = p.prompts > 1
        wins = {"wins": p.wins.wins, "ties": p.wins.ties, "losses": p.wins.losses, "value": p.wins.bootstrap.mean}
        ends = _ends(p.wins.bootstrap) if several else None
        wilson = None if p.wins.wilson is None else asdict(p.wins.wilson)
        metrics[name] = {
            "pairs": p.pairs,
            "prompts": p.prompts,
            "difference": p.difference.mean,
            "interval": _ends(p.difference) if several else None,
            "win_rate": {**wins, "interval": ends, "wilson": wilson},
        }
    both = len(set(keys_a) & set(keys_b))
    return {
        "of": a.pictures.name,
        "against": b.pictures.name,
        "paired_by": "prompt and seed" if by_seed else "name",
        "pairs": both,
        "without_partner": [len(keys_a) - both, len(keys_b) - both],
        "metrics": metrics,
    }


def check_prompts_agree(a: PictureSet, b: PictureSet, by_seed: bool) -> None:
    """Pictures paired by name must show the same; `SettingError` names the first that doesn't."""
    if by_seed or a.prompts is None or b.prompts is None:
        return
    theirs = dict(zip(b.keys(False), b.prompts, strict=True))
    for key, prompt in zip(a.keys(False), a.prompts, strict=True):
        if theirs.get(key, prompt) != prompt:
            raise SettingError(
                f"picture {key[0]!r} shows {prompt!r} in {a.name} and {theirs[key]!r} in {b.name}: rename them."
            )
