"""`allaprima generate`: prompts to a run folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.steering import SteeredThreshold
from allaprima.cascade.job import Request
from allaprima.cascade.policy import AlwaysPolicy, Decision, Policy, ThresholdPolicy, policy_to_dict
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings, make_sigma
from allaprima.cli.folder import RunFolder
from allaprima.cli.record import chunks, record
from allaprima.cli.watch import DriftWatch
from allaprima.core.errors import AllaprimaError, PromptError, SettingError
from allaprima.data.images import png_bytes, save_png, to_pil, write_bytes_atomically
from allaprima.data.prompts import PromptRow, read_prompts
from allaprima.data.sheet import SheetRow, contact_sheet
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.diffusion.rollback import Variance
from allaprima.pipeline import AdaptivePipeline
from allaprima.tasks.text_to_image import Vocabulary, Wording

SHEET_CELLS = 48
MAX_PICTURES = 1_000_000


@dataclass(frozen=True)
class GenerateOptions:
    """Options of the command, as given."""

    prompts: list[str] | None
    prompts_file: str | None
    demo: bool
    card: str
    out: Path
    student_only: bool
    teacher_only: bool
    strategy: str | None
    budget: float | None
    steer: bool
    threshold: float | None
    calibration: Path | None
    sigma: float | None
    sigma_is: str | None
    solver: str | None
    steps: int | None
    last_time: float | None
    student_steps: int | None
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    guidance_outside: float | None
    negative_prompt: str
    seed: int
    images_per_prompt: int
    batch_size: int | None
    nearest: bool
    resume: bool

    @property
    def mode(self) -> str:
        """The pipeline's mode."""
        if self.student_only and self.teacher_only:
            raise SettingError("--student-only and --teacher-only contradict each other: give one.")
        return "student-only" if self.student_only else "teacher-only" if self.teacher_only else "adaptive"


def cascade_settings(defaults: CascadeSettings, o: GenerateOptions) -> CascadeSettings:
    """The card's settings with the caller's changes; out-of-range values raise `SettingError`."""
    changes: dict[str, Any] = {
        "strategy": o.strategy,
        "teacher_solver": o.solver,
        "teacher_steps": o.steps,
        "teacher_last_time": o.last_time,
        "student_steps": o.student_steps,
        "batch_size": o.batch_size,
        "teacher_guidance": o.guidance,
        "student_guidance": o.guidance,
    }
    if o.guidance_interval is not None or o.guidance_outside is not None:
        changes["teacher_guidance_interval"] = _interval(defaults.teacher_guidance_interval, o)
    if o.sigma is not None or o.sigma_is is not None:
        kind = o.sigma_is or ("variance" if isinstance(defaults.sigma, Variance) else "strength")
        changes["sigma"] = make_sigma(kind, defaults.sigma.value if o.sigma is None else o.sigma)
    return defaults.changed(**{k: v for k, v in changes.items() if v is not None})


def _interval(default: GuidanceInterval | None, o: GenerateOptions) -> GuidanceInterval:
    """The card's interval with the caller's changes."""
    if o.guidance_interval is not None:
        made = GuidanceInterval(*o.guidance_interval, 1.0 if default is None else default.outside)
    elif default is not None:
        made = default
    else:
        raise SettingError(
            f"guidance_outside={o.guidance_outside!r} is outside of no interval: give --guidance-interval too."
        )
    return made if o.guidance_outside is None else dataclasses.replace(made, outside=o.guidance_outside)


def collect_prompts(o: GenerateOptions, console: Console) -> list[PromptRow]:
    """Prompts from arguments, a file, stdin, or the demonstration; raises `PromptError` when there are none."""
    rows = [PromptRow(p) for p in o.prompts or []]
    if o.demo:
        rows += list(read_prompts(Path(__file__).parent.parent / "bundled" / "emoji" / "demo.txt"))
    if o.prompts_file is not None:
        rows += list(read_prompts(o.prompts_file))
    if not rows:
        raise PromptError("no prompts: give some as arguments, --prompts-file FILE (or - for stdin), or --demo.")
    if not 1 <= o.images_per_prompt <= MAX_PICTURES // len(rows):
        raise SettingError(
            f"images_per_prompt={o.images_per_prompt!r} is out of range: 1..{MAX_PICTURES // len(rows)} here."
        )
    for row in rows:
        if row.seed is not None and o.images_per_prompt > 1:
            console.print("[yellow]note:[/] rows with their own seed count it up for each further picture")
            break
    return rows


@dataclass(frozen=True)
class _Plan:
    """A run, ready to start."""

    pipe: AdaptivePipeline
    policy: Policy
    settings: CascadeSettings
    requests: Sequence[Request]
    wordings: Sequence[Wording]


def prepare(o: GenerateOptions, console: Console) -> _Plan:
    """Load the models and turn prompts into requests."""
    rows = collect_prompts(o, console)
    mode = o.mode
    with console.status("loading models"):
        pipe = AdaptivePipeline.from_card(o.card)
    if o.calibration is not None:
        pipe.use(Calibration.load(o.calibration))
    settings = cascade_settings(pipe.settings, o)
    policy = pipe.policy(settings, o.threshold, o.budget, mode, o.steer)
    pipe.machine(settings, policy)  # Settings that these models can't meet are refused before a folder is claimed.
    assert pipe.card is not None
    card = pipe.card
    concepts = card.known_concepts() if o.nearest else []
    vocabulary = Vocabulary(concepts, card.styles, pipe.student.encode, card.known_keywords())
    words = [vocabulary.word(row.prompt) for row in rows]
    for word in words:
        if word.similarity < 1:
            console.print(
                f"[yellow]note:[/] {word.asked!r} is not a concept this card knows; painting {word.painted!r}"
                f" (similarity {word.similarity:.2f}; --no-nearest paints it as asked)"
            )
    requests: list[Request] = []
    for row, word in zip(rows, words, strict=True):
        for k in range(o.images_per_prompt):
            i = len(requests)
            seed = o.seed + i if row.seed is None else row.seed + k
            requests.append(Request(word.painted, seed, row.negative_prompt or o.negative_prompt, i))
    return _Plan(pipe, policy, settings, requests, [w for w in words for _ in range(o.images_per_prompt)])


def identity(plan: _Plan, o: GenerateOptions) -> dict[str, Any]:
    """What a folder belongs to: everything that its pictures follow from."""
    asked = json.dumps(
        [[w.asked, r.prompt, r.negative_prompt, r.seed] for w, r in zip(plan.wordings, plan.requests, strict=True)]
    )
    policy = plan.policy
    how: dict[str, Any]
    if isinstance(policy, SteeredThreshold):
        how = {"steered": policy.identity()}
    elif isinstance(policy, (ThresholdPolicy, AlwaysPolicy)):
        how = {"threshold": policy.threshold}
    else:
        # A fitted policy is more than its threshold: without it the folder could not be gone on with, or explained.
        how = {"threshold": policy.threshold, "policy": policy_to_dict(policy)}
    return {
        "card": o.card,
        "mode": o.mode,
        **how,
        "settings": plan.settings.to_dict(),
        "fingerprints": plan.pipe.fingerprints(),
        "pictures": len(plan.requests),
        "prompts_sha256": hashlib.sha256(asked.encode()).hexdigest(),
    }


def history(plan: _Plan, accounts: Mapping[int, dict[str, Any]]) -> Iterator[Decision | None]:
    """Decisions of the pictures that are there, None for each that is to be painted; refused prompts get no decision."""
    machine = plan.pipe.machine(plan.settings, plan.policy)
    for request in plan.requests:
        if request.index in accounts:
            yield Decision(accounts[request.index]["decision"])
            continue
        try:
            machine.check(request)
        except AllaprimaError:
            continue
        yield None


def drift_watch(plan: _Plan, o: GenerateOptions, console: Console) -> DriftWatch | None:
    """For calibrated thresholds, steered or not; under steering the threshold it begins with is the calibrated one."""
    made, threshold = plan.pipe.calibration, plan.policy.threshold
    if o.threshold is not None or made is None or made.policy is not None or threshold is None or math.isinf(threshold):
        return None
    return DriftWatch(made.monitor(threshold), threshold, console)


def generate_command(o: GenerateOptions) -> None:
    """Paint, resume, and write tables and the contact sheet at the end."""
    console = Console(stderr=True, highlight=False)
    plan = prepare(o, console)
    folder = RunFolder(o.out)
    prints = plan.pipe.fingerprints()
    folder.claim(identity(plan, o), o.resume)
    watch = drift_watch(plan, o, console)
    accounts: dict[int, dict[str, Any]] = {r.index: a for r in plan.requests if (a := folder.done(r.index)) is not None}
    todo = [r for r in plan.requests if r.index not in accounts]
    if o.resume and accounts:
        console.print(f"{len(accounts)} of {len(plan.requests)} pictures are there already")
    for index, account in accounts.items():
        if watch is not None:
            watch.see(index, account["score"])
    if isinstance(plan.policy, SteeredThreshold):
        plan.policy.resume(history(plan, accounts))
    seconds = 0.0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("painting", total=len(todo))
        seen = accepted = 0
        for result in plan.pipe.stream(todo, plan.settings, plan.policy):
            account = record(result, o.card, o.mode, plan.wordings[result.request.index].asked, prints, plan.policy)
            save_result(folder, result, account)
            accounts[result.request.index] = account
            if watch is not None:
                watch.see(result.request.index, result.score)
            seen, accepted = seen + 1, accepted + (account["decision"] == "accept")
            seconds += sum(result.cost.seconds.values())
            progress.update(task, advance=1, description=f"painting, {accepted / seen:.0%} accepted at once")
    ordered = [accounts[r.index] for r in plan.requests]
    write_tables(folder, ordered, plan.settings)
    summary(console, o, ordered, plan.settings, seconds, len(todo))
    if isinstance(plan.policy, SteeredThreshold):
        unit = plan.policy.prices.unit
        console.print(f"steered to {plan.policy.mean_cost:.4g} mean {unit} a picture; {plan.policy.budget:g} were asked for")
    if watch is not None:
        watch.say()
    failed = sum(a["error"] is not None for a in ordered)
    if failed:
        import typer

        raise typer.Exit(2)


def save_result(folder: RunFolder, result: Result, account: dict[str, Any]) -> None:
    """Draft first, then the picture: a picture that is there means everything about it is."""
    if result.image is None:
        return
    name = f"{result.request.index:05d}.png"
    if result.draft is not None:
        save_png(to_pil(result.draft), folder.drafts / name, {})
    save_png(to_pil(result.image), folder.images / name, chunks(account))


def write_tables(folder: RunFolder, accounts: Sequence[dict[str, Any]], settings: CascadeSettings) -> None:
    """`results.jsonl` and `sheet.png`, made from what the folder holds."""
    lines: list[str] = []
    cells: list[SheetRow] = []
    for a in accounts:
        name = f"{a['index']:05d}.png"
        there = {"image": None if a["error"] else f"images/{name}"}
        if (folder.drafts / name).exists():
            there["draft"] = f"drafts/{name}"
        keep = (
            "index",
            "prompt",
            "asked",
            "negative_prompt",
            "seed",
            "score",
            "threshold",
            "decision",
            "evaluations",
            "error",
        )
        row = {**{k: a[k] for k in keep if k in a}, **there, "steps": steps_of(a, settings)}
        # JSON has no infinity (a steered threshold that lets all or nothing pass) and no nan (an oracle that failed).
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        lines.append(json.dumps(row))
        if a["error"] is None and len(cells) < SHEET_CELLS:
            draft = Image.open(folder.drafts / name) if "draft" in there else None
            final = Image.open(folder.images / name)
            cells.append(SheetRow(a["prompt"], draft, final, a["score"], a["threshold"], a["decision"]))
    folder.write("results.jsonl", "\n".join(lines) + "\n")
    if cells:
        share = sum(a["decision"] == "accept" for a in accounts) / len(accounts)
        title = f"allaprima: {len(accounts)} pictures, {share:.0%} accepted at once. Left the draft, right the final."
        write_bytes_atomically(folder.path / "sheet.png", png_bytes(contact_sheet(cells, title), {}))


def steps_of(account: dict[str, Any], settings: CascadeSettings) -> int:
    """Network steps of one picture (a guided step is two evaluations but one step)."""
    student = settings.student_steps * account.get("attempts", 1) if "student" in account["evaluations"] else 0
    return student + (settings.teacher_steps if "teacher" in account["evaluations"] else 0)


def summary(
    console: Console,
    o: GenerateOptions,
    accounts: Sequence[dict[str, Any]],
    settings: CascadeSettings,
    seconds: float,
    new: int,
) -> None:
    """Say what was done and where it is."""
    good = [a for a in accounts if a["error"] is None]
    for a in accounts:
        if a["error"] is not None:
            console.print(f"[red]failed[/] {a['index']}: {a['error']}", markup=True)
    if good:
        mean = sum(steps_of(a, settings) for a in good) / len(good)
        accepted = sum(a["decision"] == "accept" for a in good)
        speed = f", {seconds / new:.2f} s a picture" if new else ""
        console.print(f"{len(good)} pictures: {accepted} accepted at once, mean {mean:.1f} steps{speed}")
    console.print(f"look at {o.out / 'sheet.png'}; rows in {o.out / 'results.jsonl'}; what made one: allaprima show PICTURE")
