"""A run of requests into a folder, whatever the task: identity, resume, progress, tables and the contact sheet."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from rich.console import Console

from allaprima.calibration.steering import SteeredThreshold
from allaprima.cascade.metadata import ImageRecord, RecordWriter
from allaprima.cascade.policy import AlwaysPolicy, Decision, Policy, ThresholdPolicy, policy_to_dict
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.result import count_steps
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.prompt_inputs import EXTRA_PROMPTS, extra_prompts
from allaprima.conditioning.vocabulary import ResolvedPrompt
from allaprima.core.errors import AllaprimaError
from allaprima.data.images import png_bytes, save_png, to_pil, write_bytes_atomically
from allaprima.data.sheet import SheetRow, contact_sheet
from allaprima.experiments.drift_watch import DriftWatch
from allaprima.experiments.options import PaintOptions
from allaprima.experiments.progress import Bar
from allaprima.experiments.run_folder import RunFolder
from allaprima.pipeline import AdaptivePipeline

SHEET_CELLS = 48


@dataclass(frozen=True)
class RunPlan:
    """A run, ready to start."""

    pipe: AdaptivePipeline
    policy: Policy
    settings: CascadeSettings
    requests: Sequence[GenerationRequest] = ()
    wordings: Sequence[ResolvedPrompt] = ()
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What was put on the card's models, as accounts tell it (`record.RECORD_EXTRAS`)."""


def identity(plan: RunPlan, o: PaintOptions) -> dict[str, Any]:
    """Return what a folder belongs to: everything that its pictures follow from."""
    pairs = zip(plan.wordings, plan.requests, strict=True)
    return identity_of(plan.pipe, plan.policy, plan.settings, o, len(plan.requests), digest((w.asked, r) for w, r in pairs))


def digest(asked: Iterable[tuple[str, GenerationRequest]]) -> str:
    """Of all that is asked for, in order: prompts as they were given, and requests."""
    made, before = hashlib.sha256(), "["
    for words, r in asked:
        row = [words, r.prompt, r.negative_prompt, r.seed, *given_rows(r), *extra_prompts(r).items()]
        made.update((before + json.dumps(row)).encode())
        before = ", "
    made.update(b"[]" if before == "[" else b"]")
    return made.hexdigest()


def identity_of(
    pipe: AdaptivePipeline, policy: Policy, settings: CascadeSettings, o: PaintOptions, pictures: int, asked: str
) -> dict[str, Any]:
    """Return the same, of so many pictures whose `digest` is known."""
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
        "settings": settings.to_dict(),
        "fingerprints": pipe.fingerprints(),
        "pictures": pictures,
        "prompts_sha256": asked,
    }


def history(plan: RunPlan, accounts: Mapping[int, dict[str, Any]]) -> Iterator[Decision | None]:
    """Decisions of the pictures that are there, None for each that is to be painted; refused prompts get no decision."""
    cascade = plan.pipe.cascade(plan.settings, plan.policy)
    for request in plan.requests:
        if request.index in accounts:
            yield Decision(accounts[request.index]["decision"])
            continue
        try:
            cascade.check(request)
        except AllaprimaError:
            continue
        yield None


def drift_watch(pipe: AdaptivePipeline, policy: Policy, o: PaintOptions, console: Console) -> DriftWatch | None:
    """Return a watch for calibrated thresholds, steered or not; under steering for the one that it begins with."""
    made, threshold = pipe.calibration, policy.threshold
    if o.threshold is not None or made is None or made.policy is not None or threshold is None or math.isinf(threshold):
        return None
    return DriftWatch(made.monitor(threshold), threshold, console)


def paint(plan: RunPlan, o: PaintOptions, console: Console) -> None:
    """Paint what isn't there yet, and write tables and the contact sheet at the end."""
    folder = RunFolder(o.out)
    prints = plan.pipe.fingerprints()
    folder.claim(identity(plan, o), o.resume)
    for request in plan.requests:
        keep_sources(folder, request)
    # Scores of images beside prompts lie elsewhere than those that were calibrated, which is no drift.
    beside = any(r.edit is not None or r.controls for r in plan.requests)
    watch = None if beside else drift_watch(plan.pipe, plan.policy, o, console)
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
    pack = RecordWriter(o.card, o.mode, prints, told, plan.extras)
    with Bar(console, len(todo)) as bar:
        for result in plan.pipe.stream(todo, plan.settings, plan.policy):
            packed = pack(result, plan.wordings[result.request.index].asked)
            keep(folder, packed)
            accounts[result.request.index] = packed.account
            if watch is not None:
                watch.see(result.request.index, result.score)
            seconds += packed.seconds
            bar.painted(packed.account)
    totals = write_tables(folder, (accounts[r.index] for r in plan.requests), plan.settings, console)
    summary(console, o, totals, seconds, len(todo))
    if isinstance(plan.policy, SteeredThreshold):
        unit = plan.policy.prices.unit
        console.print(f"steered to {plan.policy.mean_cost:.4g} mean {unit} a picture; {plan.policy.budget:g} were asked for")
    if watch is not None:
        watch.say()
    end(totals)


def end(totals: Totals) -> None:
    """With code 2 if a picture failed."""
    if totals.failed:
        import typer

        raise typer.Exit(2)


def given_rows(request: GenerationRequest) -> list[Any]:
    """Return what comes with a prompt, JSON-ready; empty for text alone."""
    edit = [] if request.edit is None else [request.edit.row()]
    return edit + ([[[c.digest for c in request.controls], list(request.control_scales)]] if request.controls else [])


def keep_sources(folder: RunFolder, request: GenerationRequest) -> None:
    """Keep the images that a request is conditioned on: without them nothing could be painted again."""
    for picture in (*request.controls, *(() if request.edit is None else (request.edit.image, request.edit.mask))):
        path = None if picture is None else folder.source(picture.digest)
        if picture is not None and path is not None and not path.exists():
            path.parent.mkdir(exist_ok=True)
            image = picture.read()
            save_png(to_pil(image.expand(3, -1, -1) if len(image) == 1 else image), path, {})


def keep(folder: RunFolder, packed: ImageRecord) -> None:
    """Draft first, then the picture: a picture that is there means everything about it is."""
    if packed.image is None:
        return
    name = f"{packed.account['index']:05d}.png"
    if packed.draft is not None:
        write_bytes_atomically(folder.drafts / name, packed.draft)
    write_bytes_atomically(folder.images / name, packed.image)


ROW = (
    "index", "prompt", "asked", "negative_prompt", *EXTRA_PROMPTS, "seed", "score", "threshold", "decision", "evaluations",
    "error", "edit", "controls",
)  # fmt: skip
"""Of an account, what `results.jsonl` tells."""


@dataclass
class Totals:
    """What a run has come to."""

    pictures: int = 0
    accepted: int = 0
    steps: int = 0
    failed: int = 0

    def see(self, account: Mapping[str, Any], steps: int) -> None:
        """One more."""
        good = account["error"] is None
        self.pictures += good
        self.failed += not good
        self.accepted += good and account["decision"] == "accept"
        self.steps += steps if good else 0


def write_tables(
    folder: RunFolder, accounts: Iterable[dict[str, Any]], settings: CascadeSettings, console: Console
) -> Totals:
    """`results.jsonl` and `sheet.png`, made from what the folder holds, account by account; says which pictures failed."""
    totals, shown = Totals(), list[dict[str, Any]]()

    def lines() -> Iterator[str]:
        for a in accounts:
            steps = steps_of(a, settings)
            totals.see(a, steps)
            if a["error"] is not None:
                console.print(f"[red]failed[/] {a['index']}: {a['error']}", markup=True)
            elif len(shown) < SHEET_CELLS:
                shown.append(a)
            yield json.dumps(row_of(folder, a, steps))

    folder.write_lines("results.jsonl", lines())
    if shown:
        write_sheet(folder, shown, totals)
    return totals


def row_of(folder: RunFolder, account: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return a line of `results.jsonl`."""
    name = f"{account['index']:05d}.png"
    there = {"image": None if account["error"] else f"images/{name}"}
    if (folder.drafts / name).exists():
        there["draft"] = f"drafts/{name}"
    row = {**{k: account[k] for k in ROW if k in account}, **there, "steps": steps}
    # JSON has no infinity (a steered threshold that lets all or nothing pass) and no nan (an oracle that failed).
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def write_sheet(folder: RunFolder, shown: Sequence[dict[str, Any]], totals: Totals) -> None:
    """Write the contact sheet: the first pictures, small."""
    cells: list[SheetRow] = []
    for a in shown:
        name = f"{a['index']:05d}.png"
        draft = Image.open(folder.drafts / name) if (folder.drafts / name).exists() else None
        final = Image.open(folder.images / name)
        edit = a.get("edit")
        first = edit["image"] if edit is not None else a["controls"][0]["image"] if "controls" in a else None
        source = None if first is None else Image.open(folder.source(first))
        words = a["prompt"] if edit is None else f"{a['prompt']} ({edit['strength']:g})"
        cells.append(SheetRow(words, draft, final, a["score"], a["threshold"], a["decision"], source))
    count = totals.pictures + totals.failed
    order = "Picture, draft, final (strength)." if "edit" in shown[0] else "Left the draft, right the final."
    order = "Map, draft, final." if "controls" in shown[0] else order
    title = f"allaprima: {count} pictures, {totals.accepted / count:.0%} accepted at once. {order}"
    write_bytes_atomically(folder.path / "sheet.png", png_bytes(contact_sheet(cells, title), {}))


def steps_of(account: dict[str, Any], settings: CascadeSettings) -> int:
    """Return the network steps of a recorded image (a guided step is two evaluations but one step)."""
    if "steps" in account:
        return account["steps"]
    strength = account["edit"]["strength"] if "edit" in account and account["decision"] == "regenerate" else None
    return count_steps(settings, account, strength)


def summary(console: Console, o: PaintOptions, totals: Totals, seconds: float, new: int) -> None:
    """Say what was done and where it is."""
    if totals.pictures:
        mean = totals.steps / totals.pictures
        speed = f", {seconds / new:.2f} s a picture" if new else ""
        console.print(f"{totals.pictures} pictures: {totals.accepted} accepted at once, mean {mean:.1f} steps{speed}")
    console.print(f"look at {o.out / 'sheet.png'}; rows in {o.out / 'results.jsonl'}; what made one: allaprima show PICTURE")
