"""Calibration: scores of held-out drafts to a threshold, or another policy, for a budget. Resumable."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.budget import Prices, Unit
from allaprima.calibration.outcome_table import OutcomeTable, generate_outcomes, prompts_digest
from allaprima.calibration.policies import fit_all
from allaprima.calibration.uncertainty import convergence_table, warning_for
from allaprima.cascade.policy import AlwaysPolicy, Decision, Policy, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.cost import Cost
from allaprima.core.errors import CalibrationError, PromptError, SettingError
from allaprima.data.images import write_bytes_atomically
from allaprima.data.prompts import read_prompts
from allaprima.experiments.attempts import CostUnit
from allaprima.experiments.sequential_calibration import calibrate_sequential
from allaprima.experiments.tune import CandidateImages, budget_for, searched
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.pipeline import AdaptivePipeline

UNITS = ("steps", "evaluations", "seconds", "money")
MEASURED = 32
"""Escalated pictures that a price in seconds is measured on."""


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of the command, as given."""

    budget: float | None
    target: float | None
    metric: str
    search: bool
    unit: str
    price_per_hour: float | None
    card: str
    prompts_file: str | None
    samples: int
    seed: int
    student_steps: int | None
    steps: int | None
    batch_size: int | None
    policy: str
    drafts: int
    tolerance: float
    table: bool
    out: Path
    device_config: DeviceConfig = field(default_factory=DeviceConfig)

    def check(self) -> None:
        """Raise `SettingError` before anything is loaded."""
        if self.unit not in UNITS:
            raise SettingError(f"unit={self.unit!r} is not known: {', '.join(UNITS)} are.")
        if (self.unit == "money") != (self.price_per_hour is not None):
            raise SettingError("--unit money needs --price-per-hour, and no other unit takes it.")
        if self.price_per_hour is not None and not 0 < self.price_per_hour < math.inf:
            raise SettingError(f"price_per_hour={self.price_per_hour!r} must be a number above 0.")
        if not 10 <= self.samples <= 1_000_000:
            raise SettingError(f"samples={self.samples!r} is out of range: 10..1000000; the paper finds 500 enough.")
        if not 0 < self.tolerance < 1:
            raise SettingError(
                f"tolerance={self.tolerance!r} is out of range: a share of the budget in (0, 1), usually 0.03."
            )
        if not 1 <= self.drafts <= 8:
            raise SettingError(f"drafts={self.drafts!r} is out of range: 1..8 attempts are painted for best-of policies.")
        known = [
            "threshold",
            "sequential",
            "band",
            "recheck",
            "clear_recheck",
            "pre_route",
            "value",
            *(f"best_of_{n}" for n in range(2, self.drafts + 1)),
        ]
        if self.policy not in known:
            raise SettingError(f"policy={self.policy!r} is not known: {', '.join(known)} are (best_of_N with --drafts N).")
        if self.policy == "sequential" and self.unit == "money":
            raise SettingError("--policy sequential counts in steps, evaluations or seconds, not in money: give --unit.")
        if self.policy not in ("threshold", "sequential") and self.unit != "steps":
            raise SettingError(
                f"--policy {self.policy} is fitted to a budget in steps, not in {self.unit}: leave --unit out."
            )
        if (self.search or self.target is not None) and self.unit != "steps":
            raise SettingError(f"--search and --target count in steps, not in {self.unit}: leave --unit out.")
        if self.target is not None and (self.budget is not None or self.search):
            raise SettingError(
                f"target={self.target!r} finds the budget for the settings at hand: leave --budget and --search out."
            )
        if self.out.is_dir():
            raise SettingError(f"out={str(self.out)!r} is a folder: name the file to write, e.g. calibration.json.")

    @property
    def wanted(self) -> float:
        """The budget; 15 mean steps when nothing is said."""
        return 15.0 if self.budget is None else self.budget


def held_out_prompts(pipe: AdaptivePipeline, o: CalibrateOptions, console: Console) -> list[str]:
    """As many prompts as samples; those of a file once each, repeated ones named and left out."""
    assert pipe.card is not None
    if o.prompts_file is None:
        known = pipe.card.usual_prompts()
        if not known:
            raise PromptError("no prompts to calibrate on: give --prompts-file; this card doesn't say what it knows.")
        # A fixed stride through the list, so that 500 of 1,124 prompts touch every concept and style alike.
        return [known[(i * 7919) % len(known)] for i in range(o.samples)]
    asked = [row.prompt for row in read_prompts(o.prompts_file)]
    prompts = list(dict.fromkeys(asked))
    if len(prompts) < len(asked):
        twice = next(p for p, times in Counter(asked).items() if times > 1)
        console.print(
            f"[yellow]note:[/] {len(asked) - len(prompts)} of {len(asked)} prompts are repeated, {twice!r} first; each"
            " counts once, or the threshold would lean on them"
        )
    if len(prompts) < 10:
        raise PromptError(f"{o.prompts_file} has {len(prompts)} different prompts: 10 or more are due, 500 are usual.")
    check_prompts(pipe, prompts)
    return prompts[: o.samples]


def check_prompts(pipe: AdaptivePipeline, prompts: Sequence[str]) -> None:
    """Raise what the student raises for a prompt that it can't read; generators of complete images tell it themselves."""
    student: Any = pipe.student
    for prompt in prompts if hasattr(student, "check_prompt") else ():
        student.check_prompt(prompt)


class ScoreBook:
    """Scores as they come, a line each, so that a killed calibration goes on where it was."""

    def __init__(self, path: Path, belongs: dict[str, Any]) -> None:
        self.path, self.rows = path, dict[int, dict[str, Any]]()
        head = json.dumps(belongs, sort_keys=True)
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            if lines and lines[0] == head:
                # A line that was cut off by a kill is painted again.
                for line in lines[1:]:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        continue
                    self.rows[row["index"]] = row
        kept = "".join(json.dumps(r) + "\n" for r in self.rows.values())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes_atomically(path, f"{head}\n{kept}".encode())
        except OSError as e:
            raise SettingError(f"{path} cannot be written: {e.strerror}. Choose another --out.") from e

    def add(self, result: Result) -> None:
        """Add a finished draft; one whose score is no finite number is not kept, so that it is tried again next time."""
        if result.score is None or not math.isfinite(result.score):
            return
        row = {"index": result.request.index, "score": result.score, "cost": result.cost.to_dict()}
        self.rows[result.request.index] = row
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")


def score_drafts(
    pipe: AdaptivePipeline, settings: CascadeSettings, prompts: Sequence[str], o: CalibrateOptions, console: Console
) -> ScoreBook:
    """Paint and score what is not in the book yet. Raises `CalibrationError` when drafts have no score."""
    digest = prompts_digest(prompts)
    belongs = {
        "settings": pipe.student_settings(settings), "fingerprints": pipe.fingerprints(), "prompts": digest, "seed": o.seed
    }  # fmt: skip
    book = ScoreBook(o.out.with_name(o.out.name + ".scores.jsonl"), belongs)
    if book.rows:
        console.print(f"{len(book.rows)} of {len(prompts)} drafts are scored already")
    todo = [GenerationRequest(p, o.seed + i, "", i) for i, p in enumerate(prompts) if i not in book.rows]
    first: Result | None = None
    with Progress(console=console) as progress:
        drafts = pipe.stream(todo, settings, AlwaysPolicy(Decision.ACCEPT))
        for result in progress.track(drafts, total=len(todo), description="scoring drafts"):
            book.add(result)
            if result.request.index not in book.rows and first is None:
                first = result
    if first is not None:
        why = first.error or first.warning or f"the oracle gave {first.score}"
        raise CalibrationError(
            f"{len(prompts) - len(book.rows)} of {len(prompts)} drafts have no score, the first is {first.request.prompt!r}:"
            f" {why}. The other scores are kept in {book.path}: mend the cause and run this again."
        )
    return book


def measured_prices(
    pipe: AdaptivePipeline, settings: CascadeSettings, prompts: Sequence[str], book: ScoreBook, o: CalibrateOptions
) -> Prices:
    """Prices in the unit asked for; seconds are measured on escalated pictures, painted for that."""
    if o.unit == "steps":
        return Prices.from_steps(settings.student_steps, settings.teacher_steps)
    drafts = [Cost.from_dict(r["cost"]) for r in book.rows.values()]
    # Whole batches: a padded one takes as long as a full one, and would overcharge its pictures.
    count = math.ceil(MEASURED / settings.batch_size) * settings.batch_size
    requests = [GenerationRequest(p, o.seed + i, "", i) for i, p in enumerate(prompts[:count])]
    # Nothing reaches infinity: every draft is painted, scored and escalated, as in a run (text is read once).
    escalated = [r.cost for r in pipe.stream(requests, settings, ThresholdPolicy(math.inf, Decision(settings.strategy)))]
    unit = "evaluations" if o.unit == "evaluations" else "seconds"
    prices = Prices.from_costs(drafts, escalated, unit)
    return prices.in_money(o.price_per_hour) if o.price_per_hour is not None else prices


def trusted_score(pipe: AdaptivePipeline, images: Any, prompts: Sequence[str]) -> Any:
    """Return the oracle's scores `(B,)`. Raises `CalibrationError` where it fails: no policy can be fitted around that."""
    import torch

    assert pipe.oracle is not None
    try:
        scores = pipe.oracle.score(images, prompts)
    except Exception as e:
        first = f"{len(prompts)} pictures, {prompts[0]!r} first: {type(e).__name__}: {e}"
        raise CalibrationError(f"the oracle failed on {first}. The drafts' scores are kept: mend it and run again.") from e
    for prompt, score in zip(prompts, scores.tolist(), strict=True):
        if not math.isfinite(score):
            raise CalibrationError(
                f"the oracle gave {score} for {prompt!r}. The drafts' scores are kept: mend it and run this again."
            )
    return torch.as_tensor(scores)


def painted_bank(
    pipe: AdaptivePipeline, settings: CascadeSettings, prompts: Sequence[str], o: CalibrateOptions, console: Console
) -> OutcomeTable:
    """Return what a policy beyond the threshold is fitted on: drafts and both actions of the teacher on held-out prompts."""
    with Progress(console=console) as progress:

        def paint(requests: Sequence[GenerationRequest], settings: CascadeSettings, policy: Policy) -> list[Result]:
            results = progress.track(
                pipe.stream(requests, settings, policy), total=len(requests), description="painting for the policy"
            )
            return sorted(results, key=lambda r: r.request.index)

        seeds = [o.seed + i for i in range(len(prompts))]
        score = partial(trusted_score, pipe)
        return generate_outcomes(paint, score, pipe.student.encode, prompts, seeds, settings, o.drafts)


def fitted_policy(
    pipe: AdaptivePipeline, settings: CascadeSettings, prompts: Sequence[str], o: CalibrateOptions, console: Console
) -> Policy | None:
    """None for the threshold; else the policy of that name, fitted to the budget by the oracle's score of what it gives."""
    if o.policy == "threshold":
        return None
    if o.policy == "sequential":
        unit = cast(CostUnit, o.unit)
        folder = o.out.with_name(o.out.name + ".attempts")
        drafts = max(o.drafts, 2)
        return calibrate_sequential(pipe, settings, prompts, o.seed, o.wanted, unit, drafts, folder, console).policy
    bank = painted_bank(pipe, settings, prompts, o, console)
    fitted = fit_all(bank, o.wanted, Decision(settings.strategy), bank.scores)
    table = Table("policy", "mean steps", "oracle's score", title="on the held-out prompts")
    for f in sorted(fitted.values(), key=lambda f: -f.quality):
        table.add_row(f.name, f"{f.mean_steps:.2f}", f"{f.quality:.4f}")
    console.print(table)
    return fitted[o.policy].policy


def calibrate_command(o: CalibrateOptions) -> None:
    """Paint and score drafts; write the artifact."""
    o.check()
    console = Console(stderr=True, highlight=False)
    pipe = AdaptivePipeline.from_card(o.card, device_config=o.device_config)
    if pipe.oracle is None:
        raise SettingError(f"card {o.card!r} has no oracle: nothing can be calibrated without one.")
    changes = {"student_steps": o.student_steps, "teacher_steps": o.steps, "batch_size": o.batch_size}
    settings = dataclasses.replace(pipe.settings, **{k: v for k, v in changes.items() if v is not None})
    prompts = held_out_prompts(pipe, o, console)
    if o.search or o.target is not None:
        folder = o.out.with_name(o.out.name + ".pictures")
        pictures = CandidateImages(pipe, settings, prompts, o.seed, o.metric, folder, console)
        if o.target is not None:
            o = dataclasses.replace(o, budget=budget_for(pictures, o.target))
        else:
            settings = searched(pictures, o.wanted)
        console.print(f"what was painted is kept in {folder}, for other budgets; delete it when you are done")
    if o.unit == "steps":
        prices = Prices.from_steps(settings.student_steps, settings.teacher_steps)
        if o.search and o.wanted > prices.draft + prices.escalation:
            # The best setting sends everything to the teacher and has steps left: nothing is gained by spending them.
            o = dataclasses.replace(o, budget=prices.draft + prices.escalation)
        prices.share_for(o.wanted, clamp=o.policy == "sequential")
    book = score_drafts(pipe, settings, prompts, o, console)
    scores = [book.rows[i]["score"] for i in range(len(prompts))]
    prices = measured_prices(pipe, settings, prompts, book, o)
    share = prices.share_for(o.wanted, clamp=o.policy == "sequential")
    policy = fitted_policy(pipe, settings, prompts, o, console)
    seconds = sum(sum(r["cost"]["seconds"].values()) for r in book.rows.values()) / len(book.rows)
    made = Calibration.make(
        scores, o.wanted, prices, pipe.student_settings(settings), pipe.action_settings(settings), pipe.fingerprints(),
        prompts_digest(prompts), seconds, policy,
    )  # fmt: skip
    made.save(o.out)
    book.path.unlink()
    report(console, made, o, scores, share)


def report(console: Console, made: Calibration, o: CalibrateOptions, scores: Sequence[float], share: float) -> None:
    """Print what was found, how sure it is, and what would make it surer."""
    unit: Unit = made.prices.unit
    (low, high), (least, most) = made.interval, made.cost_interval
    if o.policy == "sequential":
        console.print(f"{o.wanted:g} mean {unit} a picture. Written to {o.out}; what was painted is kept beside it")
        return
    console.print(
        f"threshold {made.threshold:.4f} (95 % interval {low:.4f}..{high:.4f}) sends {made.percentile:.0f} % to the teacher:"
        f" {o.wanted:g} mean {unit} a picture, {least:.4g}..{most:.4g} on unseen prompts. Written to {o.out}"
    )
    warning = warning_for(scores, share, made.prices, o.tolerance)
    if warning is not None:
        console.print(f"[yellow]note:[/] {warning}")
    if o.table:
        table = Table("prompts", "threshold", "sd", f"mean {unit} (95 %)", "seconds", title="what more prompts would buy")
        for r in convergence_table(scores, share, made.prices, made.seconds_per_draft):
            tau = "beyond the scores" if r.threshold is None else f"{r.threshold:.4f}"
            sd = "" if r.threshold_sd is None else f"{r.threshold_sd:.4f}"
            between = f"{r.cost:.3f} ({r.cost_interval[0]:.3f}..{r.cost_interval[1]:.3f})"
            table.add_row(str(r.prompts), tau, sd, between, f"{r.seconds:.0f}")
        console.print(table)
