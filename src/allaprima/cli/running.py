"""A run of requests into a folder, whatever the task: identity, resume, progress, tables and the contact sheet."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from allaprima.calibration.steering import SteeredThreshold
from allaprima.cascade.job import Request
from allaprima.cascade.policy import AlwaysPolicy, Decision, Policy, ThresholdPolicy, policy_to_dict
from allaprima.cascade.record import chunks, record
from allaprima.cascade.result import Result
from allaprima.cascade.settings import CascadeSettings
from allaprima.cli.folder import RunFolder
from allaprima.cli.watch import DriftWatch
from allaprima.core.errors import AllaprimaError
from allaprima.core.words import MORE, given
from allaprima.data.images import png_bytes, save_png, to_pil, write_bytes_atomically
from allaprima.data.sheet import SheetRow, contact_sheet
from allaprima.pipeline import AdaptivePipeline
from allaprima.tasks.edit import share_of
from allaprima.tasks.text_to_image import Wording

SHEET_CELLS = 48


class RunOptions(Protocol):
    """What a run needs to know of a command's options."""

    @property
    def card(self) -> str: ...

    @property
    def out(self) -> Path: ...

    @property
    def mode(self) -> str:
        """The pipeline's mode."""
        ...

    @property
    def threshold(self) -> float | None: ...

    @property
    def resume(self) -> bool: ...


@dataclass(frozen=True)
class Plan:
    """A run, ready to start."""

    pipe: AdaptivePipeline
    policy: Policy
    settings: CascadeSettings
    requests: Sequence[Request]
    wordings: Sequence[Wording]
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What was put on the card's models, as accounts tell it (`record.BESIDE`)."""


def identity(plan: Plan, o: RunOptions) -> dict[str, Any]:
    """What a folder belongs to: everything that its pictures follow from."""
    rows = [
        [w.asked, r.prompt, r.negative_prompt, r.seed, *given_rows(r), *given(r).items()]
        for w, r in zip(plan.wordings, plan.requests, strict=True)
    ]
    asked = json.dumps(rows)
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


def history(plan: Plan, accounts: Mapping[int, dict[str, Any]]) -> Iterator[Decision | None]:
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


def drift_watch(plan: Plan, o: RunOptions, console: Console) -> DriftWatch | None:
    """For calibrated thresholds, steered or not; under steering the threshold it begins with is the calibrated one.

    Not for pictures beside prompts: their scores lie elsewhere than those that were calibrated, which is no drift.
    """
    if any(r.edit is not None or r.controls for r in plan.requests):
        return None
    made, threshold = plan.pipe.calibration, plan.policy.threshold
    if o.threshold is not None or made is None or made.policy is not None or threshold is None or math.isinf(threshold):
        return None
    return DriftWatch(made.monitor(threshold), threshold, console)


def paint(plan: Plan, o: RunOptions, console: Console) -> None:
    """Paint what isn't there yet, and write tables and the contact sheet at the end."""
    folder = RunFolder(o.out)
    prints = plan.pipe.fingerprints()
    folder.claim(identity(plan, o), o.resume)
    for request in plan.requests:
        keep_sources(folder, request)
    watch = drift_watch(plan, o, console)
    told = None if isinstance(plan.policy, SteeredThreshold) else plan.policy
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
            asked = plan.wordings[result.request.index].asked
            account = record(result, o.card, o.mode, asked, prints, told, plan.beside)
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


def given_rows(request: Request) -> list[Any]:
    """What comes with a prompt, JSON-ready; empty for text alone."""
    edit = [] if request.edit is None else [request.edit.row()]
    return edit + ([[[c.digest for c in request.controls], list(request.control_scales)]] if request.controls else [])


def keep_sources(folder: RunFolder, request: Request) -> None:
    """What an edit starts from, or what controls, beside what comes of it: without it nothing could be painted again."""
    for picture in (*request.controls, *(() if request.edit is None else (request.edit.image, request.edit.mask))):
        path = None if picture is None else folder.source(picture.digest)
        if picture is not None and path is not None and not path.exists():
            path.parent.mkdir(exist_ok=True)
            image = picture.read()
            save_png(to_pil(image.expand(3, -1, -1) if len(image) == 1 else image), path, {})


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
            *MORE,
            "seed",
            "score",
            "threshold",
            "decision",
            "evaluations",
            "error",
            "edit",
            "controls",
        )
        row = {**{k: a[k] for k in keep if k in a}, **there, "steps": steps_of(a, settings)}
        # JSON has no infinity (a steered threshold that lets all or nothing pass) and no nan (an oracle that failed).
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        lines.append(json.dumps(row))
        if a["error"] is None and len(cells) < SHEET_CELLS:
            draft = Image.open(folder.drafts / name) if "draft" in there else None
            final = Image.open(folder.images / name)
            edit = a.get("edit")
            first = edit["image"] if edit is not None else a["controls"][0]["image"] if "controls" in a else None
            source = None if first is None else Image.open(folder.source(first))
            words = a["prompt"] if edit is None else f"{a['prompt']} ({edit['strength']:g})"
            cells.append(SheetRow(words, draft, final, a["score"], a["threshold"], a["decision"], source))
    folder.write("results.jsonl", "\n".join(lines) + "\n")
    if cells:
        share = sum(a["decision"] == "accept" for a in accounts) / len(accounts)
        order = "Picture, draft, final (strength)." if "edit" in accounts[0] else "Left the draft, right the final."
        order = "Map, draft, final." if "controls" in accounts[0] else order
        title = f"allaprima: {len(accounts)} pictures, {share:.0%} accepted at once. {order}"
        write_bytes_atomically(folder.path / "sheet.png", png_bytes(contact_sheet(cells, title), {}))


def steps_of(account: dict[str, Any], settings: CascadeSettings) -> int:
    """Network steps of one picture (a guided step is two evaluations but one step)."""
    if "steps" in account:
        return account["steps"]
    student = settings.student_steps * account.get("attempts", 1) if "student" in account["evaluations"] else 0
    if "teacher" not in account["evaluations"]:
        return student
    part = "edit" in account and account["decision"] == "regenerate"
    return student + (share_of(settings.teacher_steps, account["edit"]["strength"]) if part else settings.teacher_steps)


def summary(
    console: Console,
    o: RunOptions,
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
