"""Distillation by a recipe to a student, its card and its page. Run again to resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from torch import nn

from allaprima.core.errors import SettingError, TrainingError
from allaprima.core.types import Condition
from allaprima.data.captioned import read_captioned
from allaprima.data.images import save_png
from allaprima.data.prompts import read_prompts
from allaprima.distill.devices import Devices
from allaprima.distill.loop import TrainingProgress
from allaprima.distill.many import FILE, fitted_partition, part_of, recipe_of, student_folder
from allaprima.distill.methods import METHODS
from allaprima.distill.methods.common import SamplingDefaults, SharedPartition, TrainingSetup
from allaprima.distill.methods.pairs import painted_pairs
from allaprima.distill.publish import Publication, publish, publish_many, save_student
from allaprima.distill.publish_adapter import publish_adapter
from allaprima.distill.recipe import Recipe, checked, read_recipe
from allaprima.distill.training_data import (
    TrainingData,
    embedded,
    encode_data,
    identity_of,
    read_data,
    read_latents,
)  # fmt: skip
from allaprima.experiments.training_samples import SAMPLES, Watcher, adapter_grid, sample_grid
from allaprima.models.cards.card import Card, load_card
from allaprima.models.components.latents import encoded
from allaprima.models.families.family import Family
from allaprima.models.loading.pair import load_pair


def list_methods(console: Console) -> None:
    """Each method with what it makes, its paper and its options."""
    for name, entry in METHODS.items():
        _, options = entry.load()
        console.print(f"[bold]{name}[/]  {entry.summary} ({entry.paper})", soft_wrap=True)
        console.print(
            "    " + "  ".join(f"{k}={v.get_default()!r}" for k, v in options.model_fields.items()) + "\n", soft_wrap=True
        )


def data_of(recipe: Recipe, card: Card, teacher: Family, out: Path, console: Console) -> tuple[TrainingData, str]:
    """Return what is trained on, and that in words. Raises `TrainingError` or `SettingError` for data that can't be read."""
    adapter = METHODS[recipe.method].adapter
    if recipe.data is None:
        prompts = _prompts(recipe, card)
        console.print(f"no data given: the teacher paints {recipe.painted} pictures of {len(prompts)} prompts")
        conditions = embedded(prompts, teacher.condition)
        shape = teacher.latent_shape(card.height, card.width)
        blank = TrainingData(torch.zeros(1, *shape), conditions, torch.zeros(1, dtype=torch.long), tuple(prompts), "blank")
        setup = TrainingSetup(teacher, blank, teacher.condition([""]).clone(), recipe, out)
        path = out / "data" / "painted.safetensors"
        _, ends, of = painted_pairs(setup, recipe.painted, card.teacher.steps, card.teacher.guidance_scale, path)
        identity, pictures = identity_of(ends, prompts, of), None
        if adapter:
            parts = [teacher.decode(ends[i : i + 16]) for i in range(0, len(ends), 16)]
            pictures = (torch.cat(parts) * 255).round().byte()
        return TrainingData(ends, conditions, of, tuple(prompts), identity, pictures), "pictures of the teacher's own"
    if recipe.data.endswith(".safetensors"):
        return read_latents(Path(recipe.data)), recipe.data
    folder = out / "data"
    belongs = f"{recipe.data} at {card.width}x{card.height}, autoencoder {teacher.fingerprints.get('vae', '?')}"
    belongs += ", with pictures" if adapter else ""
    with Bar(console=console) as bar:
        task = bar.add_task("encoding pictures", total=None)
        encode_data(
            read_captioned(recipe.data), partial(encoded, teacher.vae), card.width, card.height, folder, belongs,
            note=lambda n: bar.update(task, completed=n), keep_pictures=adapter,
        )  # fmt: skip
    return read_data(folder, teacher.condition), recipe.data


def _prompts(recipe: Recipe, card: Card) -> list[str]:
    if recipe.prompts is not None:
        return list(dict.fromkeys(r.prompt for r in read_prompts(recipe.prompts)))
    known = card.usual_prompts()
    if not known:
        raise SettingError(f"card {card.name!r} doesn't say what it knows: give data=..., or prompts=FILE for the teacher.")
    return known


@dataclass(frozen=True)
class DistillRun:
    """One command: what is trained, on what, where."""

    recipe: Recipe
    module: Any
    options: Any
    card: Card
    teacher: Family
    null: Condition
    data: TrainingData
    data_description: str
    out: Path
    devices: Devices
    console: Console
    notes: list[str] = field(default_factory=list)

    @property
    def use(self) -> SamplingDefaults:
        """How what is made is painted with."""
        return self.module.use(self.options, self.card)

    @property
    def shown(self) -> list[str]:
        """Prompts of the sample grids."""
        captions = self.data.captions
        return [captions[i * len(captions) // SAMPLES] for i in range(min(SAMPLES, len(captions)))]

    def made(self, progress: TrainingProgress, setup: TrainingSetup) -> Publication:
        """Return what is published."""
        network = "; ".join(dict.fromkeys(self.notes))
        return Publication(
            self.recipe, self.card, progress, self.data_description, len(self.data), setup.identity(), self.use, network
        )

    def note(self, data_description: str) -> None:
        """Keep what a network is for the model page, and say it."""
        if data_description not in self.notes:
            self.console.print(data_description)
        self.notes.append(data_description)


def train_one(work: DistillRun, setup: TrainingSetup, grids: Path, what: str) -> tuple[nn.Module, TrainingProgress]:
    """Train (or resume) one student under a progress bar."""
    loop = work.recipe.loop
    with Bar(console=work.console, disable=not work.devices.main) as bar:
        task = bar.add_task(what, total=loop.max_train_steps)
        every = 0.0 if loop.fsdp or METHODS[work.recipe.method].adapter else loop.sample_seconds
        prompts = setup.data.captions[:: max(1, len(setup.data.captions) // SAMPLES)][:SAMPLES]
        watch = Watcher(bar, task, work.devices, work.teacher, work.card, work.use, prompts, grids, every)
        unet = work.module.run(replace(setup, watcher=watch, note=work.note), work.options)
    if watch.last is None:
        raise TrainingError(f"{setup.folder} says nothing of its steps: give a larger loop.max_train_steps.")
    return work.devices.gathered(unet), watch.last


def train_several(work: DistillRun) -> tuple[list[TrainingProgress], TrainingSetup]:
    """Train the students of a partition that are asked for, one after the other."""
    asked = work.recipe.partition
    assert asked is not None
    partition = fitted_partition(asked.kind, asked.students, asked.seed, work.data, work.out / FILE)
    done: list[TrainingProgress] = []
    setup = None
    for number in asked.numbers:
        data, folder = part_of(work.data, partition, number), student_folder(work.out, number)
        recipe, whole = recipe_of(work.recipe, number), SharedPartition(work.data, work.out / "data")
        setup = TrainingSetup(work.teacher, data, work.null, recipe, folder / "training", devices=work.devices, whole=whole)
        unet, progress = train_one(work, setup, folder / "samples", f"student {number} of {asked.students}")
        if work.devices.main:
            save_student(unet, folder, work.card)
        done.append(progress)
    assert setup is not None
    return done, setup


def distill_command(method: str | None, recipe_file: Path | None, changes: Sequence[str], out: Path) -> None:
    """Read the recipe, train, publish."""
    recipe = read_recipe(recipe_file, method, changes)
    if recipe.method not in METHODS:
        raise SettingError(f"method={recipe.method!r} is not known: {', '.join(METHODS)} are.")
    module, options_class = METHODS[recipe.method].load()
    options = checked(options_class, recipe.options, recipe.method)
    card = load_card(recipe.teacher)
    loop = recipe.loop
    devices = Devices.here(loop.mixed_precision, loop.gradient_accumulation_steps, loop.fsdp, loop.report_to, out / "logs")
    console = Console(stderr=True, highlight=False, quiet=not devices.main)
    teacher = load_pair(card).teacher
    with devices.first():
        data, data_description = data_of(recipe, card, teacher, out, console)
    teacher.network.to(devices.device)
    devices.start_trackers({**recipe.model_dump(exclude={"options", "loop"}), **recipe.options, **loop.model_dump()})
    null = teacher.condition([""]).clone()
    unread = sorted(null.tensors.keys() - data.conditions.tensors.keys())
    if unread:
        raise TrainingError(
            f"{data_description} holds {sorted(data.conditions.tensors)} of a prompt, and no {unread[0]}: the family"
            f" {card.family} reads {sorted(null.tensors)}. Make the latents' file again with all of them, or give pictures."
        )
    work = DistillRun(recipe, module, options, card, teacher, null, data, data_description, out, devices, console)
    try:
        path = trained(work)
    finally:
        devices.end_trackers()
    if path is None:
        return
    new = load_card(path)
    if METHODS[recipe.method].adapter:
        few, kind = recipe.method == "conditional", options.map
        save_png(adapter_grid(new, kind, data, "student-only" if few else "teacher-only"), out / "samples.png", {})
        console.print(f"net, card and page are in {out}; paint with it: allaprima control --card {path} PICTURE 'a prompt'")
        return
    title = f"{new.name}: drafts of {new.student.steps} steps"
    save_png(sample_grid(load_pair(new).student, work.use, new, work.shown, title), out / "samples.png", {})
    console.print(
        f"student, card and page are in {out}; paint with it: allaprima generate --card {path} --student-only 'a prompt'"
    )


def trained(work: DistillRun) -> Path | None:
    """Train and publish; the card's path, or None where another process writes it or students are still due."""
    recipe, out, devices = work.recipe, work.out, work.devices
    if METHODS[recipe.method].adapter and recipe.partition is not None:
        raise SettingError(f"{recipe.method} trains one net for all prompts: leave partition out.")
    if recipe.partition is None:
        setup = TrainingSetup(work.teacher, work.data, work.null, recipe, out / "training", devices=devices)
        network, progress = train_one(work, setup, out / "samples", "training")
        if not devices.main:
            return None
        made = work.made(progress, setup)
        if METHODS[recipe.method].adapter:
            return publish_adapter(made, network, work.options.map, recipe.method == "conditional", out)
        return publish(made, network, out)
    progresses, setup = train_several(work)
    students = range(recipe.partition.students)
    due = [k for k in students if not (student_folder(out, k) / work.teacher.component).is_dir()]
    if due:
        work.console.print(f"students {due} are still due: run this again without partition.only, or with it elsewhere")
        return None
    made, name = work.made(progresses[-1], setup), type(work.teacher.network).__name__
    return publish_many(made, len(students), name, out) if devices.main else None
