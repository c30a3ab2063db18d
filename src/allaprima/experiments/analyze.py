"""Analysis of a pair as the paper has it (section 3, appendices B and D), as one page with its numbers."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from allaprima._version import __version__
from allaprima.analysis.measuring import chosen
from allaprima.analysis.painting import RecordingModel, attends, paint_side, tensors_of
from allaprima.cascade.request import GenerationRequest
from allaprima.core.errors import PromptError, SettingError
from allaprima.data.prompts import read_prompts
from allaprima.experiments.analysis_folder import AnalysisFolder
from allaprima.experiments.analysis_sections import AnalysisMeasures, sections_of
from allaprima.experiments.calibrate import check_prompts
from allaprima.experiments.progress import Bars
from allaprima.pipeline import AdaptivePipeline

MEASURED_AT_ONCE = 32
"""Pictures."""


@dataclass(frozen=True)
class AnalyzeOptions:
    """Options of the command, as given."""

    card: str
    prompts_file: str | None
    prompts: int
    seeds: int
    seed: int
    measures: tuple[str, ...]
    skip: tuple[str, ...]
    features: str
    icnet: Path | None
    tie: float
    student_steps: int | None
    steps: int | None
    batch_size: int | None
    out: Path

    def check(self) -> None:
        """Raise `SettingError` before anything is loaded."""
        chosen(self.measures, self.skip)
        if self.prompts < 10 or self.seeds < 1:
            raise SettingError(
                f"prompts={self.prompts!r}, seeds={self.seeds!r}: at least 10 prompts, since intervals are over them, and"
                " 1 seed are due; 200 prompts of 2 seeds are a good start."
            )
        if not 0 <= self.tie <= 10:
            raise SettingError(f"tie={self.tie!r} is out of range: 0..10 standard deviations; 0.25 is the default.")
        if self.icnet is not None and not self.icnet.is_file():
            raise SettingError(f"icnet={str(self.icnet)!r} is not a file: export ICNet's score as ONNX, or leave it out.")

    @property
    def wanted(self) -> list[str]:
        """Measures by name."""
        return chosen(self.measures, self.skip)

    def command(self) -> str:
        """Return what to type for the same run."""
        parts = [f"--card {self.card} --prompts {self.prompts} --seeds {self.seeds} --seed {self.seed}"]
        parts += [f"--prompts-file {self.prompts_file}"] if self.prompts_file is not None else []
        parts += [f"--measures {','.join(self.measures)}"] if self.measures else []
        parts += [f"--skip {','.join(self.skip)}"] if self.skip else []
        parts += [f"--features {self.features}"] if self.features != "efficientnet-lite0" else []
        parts += [f"--icnet {self.icnet}"] if self.icnet is not None else []
        parts += [f"--tie {self.tie:g}"] if self.tie != 0.25 else []
        for name in ("student_steps", "steps", "batch_size"):
            if getattr(self, name) is not None:
                parts.append(f"--{name.replace('_', '-')} {getattr(self, name)}")
        return " ".join(["allaprima analyze", *parts])


def prompts_of(o: AnalyzeOptions, pipe: AdaptivePipeline) -> list[str]:
    """Different prompts, as they will be painted. Raises `PromptError` for too few."""
    if o.prompts_file is not None:
        found = list(dict.fromkeys(r.prompt for r in read_prompts(o.prompts_file)))[: o.prompts]
    elif pipe.card is not None and pipe.card.usual_prompts():
        known = pipe.card.usual_prompts()
        found = list(dict.fromkeys(known[(i * 7919) % len(known)] for i in range(min(o.prompts, len(known)))))
    else:
        raise PromptError(f"card {o.card!r} names no concepts of its own: give --prompts-file, a prompt a line.")
    if len(found) < 10:
        raise PromptError(f"{len(found)} different prompts: 10 or more are due, since intervals are over prompts.")
    return found


def changed(o: AnalyzeOptions, pipe: AdaptivePipeline) -> AdaptivePipeline:
    """Return the pipeline with the settings that were asked for."""
    changes = {"student_steps": o.student_steps, "teacher_steps": o.steps, "batch_size": o.batch_size}
    made = copy.copy(pipe)
    made.settings = pipe.settings.changed(**{k: v for k, v in changes.items() if v is not None})
    return made


def requests_of(prompts: list[str], o: AnalyzeOptions) -> list[GenerationRequest]:
    """Every prompt with its seeds, each seed once."""
    return [GenerationRequest(prompts[i // o.seeds], o.seed + i, "", i) for i in range(len(prompts) * o.seeds)]


@torch.inference_mode()
def paint(
    pipe: AdaptivePipeline, requests: list[GenerationRequest], folder: AnalysisFolder, wanted: list[str], bars: Bars
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All pairs, batch by batch, each kept at once; beside them why something was not watched, by measure."""
    steps, missing = pipe.level == "steps", dict[str, str]()
    sides = {name: RecordingModel(getattr(pipe, name)) for name in ("student", "teacher")} if steps else {}
    attending = {n for n, w in sides.items() if "influence" in wanted and attends(w)}
    if "curvature" in wanted and not steps:
        missing["curvature"] = "these models are called whole and show no steps."
    if "influence" in wanted and "student" not in attending:
        missing["influence"] = (
            "the student's network has no cross-attention that torch shows (joint attention, or not in torch)."
        )
    needs = ["student", "teacher", *(["gram", "student_times", "teacher_times"] if steps else [])]
    needs += [f"{name}_attention" for name in sorted(attending)]
    watching = copy.copy(pipe)
    for name, side in sides.items():
        setattr(watching, name, side)
    policies = {"student": "student-only", "teacher": "teacher-only"}
    machines = {n: watching.cascade(pipe.settings, pipe.policy(pipe.settings, mode=m)) for n, m in policies.items()}
    parts: list[dict[str, Tensor]] = []
    size, advance = pipe.settings.batch_size, bars.task("painting pairs", len(requests))
    for number, i in enumerate(range(0, len(requests), size)):
        batch = requests[i : i + size]
        found = folder.batch(number, needs)
        if found is None:
            made = {}
            for name, cascade in machines.items():
                side = sides.get(name)
                with side.attending() if side is not None and name in attending else nullcontext():
                    made[name] = paint_side(cascade, batch, side)
            found = tensors_of(made["student"], made["teacher"])
            folder.keep(number, found)
        parts.append(found)
        advance(len(batch))
    once = ("student_times", "teacher_times")
    whole = {k: parts[0][k] if k in once else torch.cat([p[k] for p in parts]) for k in needs}
    return whole, missing


def kept_columns(
    folder: AnalysisFolder, bars: Bars, count: int
) -> Callable[[str, str, Callable[[slice], Tensor]], np.ndarray]:
    """Return a function that measures `(N,)` values in slices, or reads them if the same measure was taken before."""

    def column(name: str, identity: str, measure: Callable[[slice], Tensor]) -> np.ndarray:
        key = f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        found = folder.column(key)
        if found is None or len(found) != count:
            advance, parts = bars.task(f"measuring {name}", count), list[Tensor]()
            for i in range(0, count, MEASURED_AT_ONCE):
                here = slice(i, min(i + MEASURED_AT_ONCE, count))
                parts.append(measure(here).detach().double().cpu())
                advance(here.stop - here.start)
            found = torch.cat(parts)
            folder.keep_column(key, found)
        return found.double().numpy()

    return column


def analyze_command(o: AnalyzeOptions) -> None:
    """Paint, measure, write the report, say what was found."""
    o.check()
    console = Console(stderr=True, highlight=False)
    pipe = changed(o, AdaptivePipeline.from_card(o.card))
    if pipe.oracle is None:
        raise SettingError(f"card {o.card!r} has no oracle: who says how good a picture is? Give the card one.")
    prompts = prompts_of(o, pipe)
    requests = requests_of(prompts, o)
    check_prompts(pipe, prompts)
    folder = AnalysisFolder(o.out)
    identity = {
        "card": o.card, "prompts": len(prompts), "seeds": o.seeds, "seed": o.seed,
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "settings": pipe.settings.to_dict(), "fingerprints": pipe.fingerprints(),
    }  # fmt: skip
    folder.claim(identity)
    with Bars.show(console, transient=False) as bars:
        painted, missing = paint(pipe, requests, folder, o.wanted, bars)
        column = kept_columns(folder, bars, len(requests))
        measured = AnalysisMeasures(pipe, o.wanted, prompts, requests, painted, missing, o.features, o.icnet, o.tie)
        pairs, sections = sections_of(measured, column)
    lead = lead_of(o, pipe, len(prompts))
    about = {"command": o.command(), "version": __version__, **identity, "labels": dict(pairs.labels)}
    from allaprima.analysis.report import write

    write(o.out, f"Inside {o.card}: student and teacher, pair by pair", lead, pairs, sections, about)
    for section in sections:
        print(f"## {section.seen.title}")
        if section.seen.missing:
            print(f"- not measured: {section.seen.missing}")
        for f in section.seen.findings:
            print(f"- {f.sentence}")
        for fact in section.seen.facts:
            print(f"- {fact}")
    console.print(f"look at {o.out / 'report.html'}; numbers in {o.out / 'report.json'} and {o.out / 'pairs.csv'}")


def lead_of(o: AnalyzeOptions, pipe: AdaptivePipeline, prompts: int) -> list[str]:
    """Return what the report begins with."""
    s, left = pipe.settings, [m for m in o.skip if m not in o.wanted]
    return [
        f"{prompts * o.seeds} pairs of the card {o.card}: {prompts} prompts, {o.seeds} seeds each. Student {s.student_steps}"
        f" steps ({s.student_solver}), teacher {s.teacher_steps} ({s.teacher_solver}), from the same prompt and noise.",
        "Brackets are 95 % bootstrap intervals; prompts are resampled with all their pictures. A claim of the paper is"
        " confirmed when its interval lies on the paper's side of zero, refuted when it lies on the other, and not seen here"
        " when it holds zero.",
        *([f"Left out as asked: {', '.join(left)}."] if left else []),
    ]
