"""`allaprima distill`: a recipe to a student, its card and its page. Run again to resume."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from torch import nn

from allaprima.core.errors import SettingError, TrainingError
from allaprima.data.captioned import read_captioned
from allaprima.data.images import save_png
from allaprima.data.prompts import read_prompts
from allaprima.data.sheet import SheetRow, contact_sheet
from allaprima.distill.loop import Progress
from allaprima.distill.methods import METHODS
from allaprima.distill.methods.common import Bench
from allaprima.distill.methods.pairs import painted_pairs
from allaprima.distill.publish import Made, publish
from allaprima.distill.recipe import Recipe, checked, read_recipe
from allaprima.distill.training_data import (
    TrainingData,
    embedded,
    encode_data,
    identity_of,
    read_data,
    read_latents,
    vae_encode,
)  # fmt: skip
from allaprima.models.card import Card, load_card
from allaprima.models.families.sd import SDModel
from allaprima.models.pair import load_pair

SAMPLES = 12


def list_methods(console: Console) -> None:
    """Each method with what it makes, its paper and its options."""
    for name, entry in METHODS.items():
        options = importlib.import_module(entry.module).Options.model_fields
        console.print(f"[bold]{name}[/]  {entry.summary} ({entry.paper})", soft_wrap=True)
        console.print("    " + "  ".join(f"{k}={v.get_default()!r}" for k, v in options.items()) + "\n", soft_wrap=True)


def data_of(recipe: Recipe, card: Card, teacher: SDModel, out: Path, console: Console) -> tuple[TrainingData, str]:
    """What is trained on, and that in words. Raises `TrainingError` or `SettingError` for data that can't be read."""
    if recipe.data is None:
        prompts = _prompts(recipe, card)
        console.print(f"no data given: the teacher paints {recipe.painted} pictures of {len(prompts)} prompts")
        conditions = embedded(prompts, teacher.condition)
        shape = teacher.latent_shape(card.height, card.width)
        blank = TrainingData(torch.zeros(1, *shape), conditions, torch.zeros(1, dtype=torch.long), tuple(prompts), "blank")
        bench = Bench(teacher, blank, teacher.condition([""]).clone(), recipe, out)
        path = out / "data" / "painted.safetensors"
        _, ends, of = painted_pairs(bench, recipe.painted, card.teacher.steps, card.teacher.guidance_scale, path)
        made = TrainingData(ends, conditions, of, tuple(prompts), identity_of(ends, prompts, of))
        return made, "pictures of the teacher's own"
    if recipe.data.endswith(".safetensors"):
        return read_latents(Path(recipe.data)), recipe.data
    folder = out / "data"
    belongs = f"{recipe.data} at {card.width}x{card.height}, autoencoder {teacher.fingerprints.get('vae', '?')}"
    with Bar(console=console) as bar:
        task = bar.add_task("encoding pictures", total=None)
        encode_data(
            read_captioned(recipe.data), vae_encode(teacher.vae), card.width, card.height, folder, belongs,
            note=lambda n: bar.update(task, completed=n),
        )  # fmt: skip
    return read_data(folder, teacher.condition), recipe.data


def _prompts(recipe: Recipe, card: Card) -> list[str]:
    if recipe.prompts is not None:
        return list(dict.fromkeys(r.prompt for r in read_prompts(recipe.prompts)))
    known = [f"{c}, {s}" for c in card.known_concepts() for s in card.styles]
    if not known:
        raise SettingError(f"card {card.name!r} doesn't say what it knows: give data=..., or prompts=FILE for the teacher.")
    return known


def watcher(console: Console, bar: Bar, total: int) -> Callable[[Mapping[str, nn.Module], Progress], None]:
    """Moves the progress bar at checkpoints, with loss and throughput."""
    task = bar.add_task("training", total=total)

    def watch(emas: Mapping[str, nn.Module], p: Progress) -> None:
        rate = p.samples / p.seconds if p.seconds > 0 else 0.0
        bar.update(task, completed=p.step, description=f"training, loss {p.loss:.4g}, {rate:.1f} samples/s")

    return watch


@torch.inference_mode()
def samples(card: Card, prompts: Sequence[str], path: Path) -> None:
    """A contact sheet of the new student's drafts."""
    from allaprima.pipeline import AdaptivePipeline

    pipe = AdaptivePipeline.from_card(card)
    out = pipe(list(prompts), seed=0, mode="student-only")
    rows = [SheetRow(p, None, image, None, None, "accept") for p, image in zip(prompts, out.images, strict=True)]
    save_png(contact_sheet(rows, f"{card.name}: drafts of {card.student.steps} steps"), path, {})


def distill_command(method: str | None, recipe_file: Path | None, changes: Sequence[str], out: Path) -> None:
    """Read the recipe, train, publish."""
    console = Console(stderr=True, highlight=False)
    recipe = read_recipe(recipe_file, method, changes)
    if recipe.method not in METHODS:
        raise SettingError(f"method={recipe.method!r} is not known: {', '.join(METHODS)} are.")
    module: Any = importlib.import_module(METHODS[recipe.method].module)
    options = checked(module.Options, recipe.options, recipe.method)
    card = load_card(recipe.teacher)
    teacher = load_pair(card).teacher
    data, words = data_of(recipe, card, teacher, out, console)
    null = teacher.condition([""]).clone()
    last: list[Progress] = []
    notes: list[str] = []
    with Bar(console=console) as bar:
        show = watcher(console, bar, recipe.loop.max_train_steps)

        def watch(emas: Mapping[str, nn.Module], p: Progress) -> None:
            last.append(p)
            show(emas, p)

        def note(words: str) -> None:
            notes.append(words)
            console.print(words)

        bench = Bench(teacher, data, null, recipe, out / "training", watch, note)
        unet = module.run(bench, options)
    if not last:
        raise TrainingError(f"{out / 'training'} says nothing of its steps: give a larger loop.max_train_steps.")
    made = Made(recipe, card, last[-1], words, len(data), bench.identity(), module.use(options, card), "; ".join(notes))
    path = publish(made, unet, out)
    shown = [data.captions[i * len(data.captions) // SAMPLES] for i in range(min(SAMPLES, len(data.captions)))]
    samples(load_card(path), shown, out / "samples.png")
    console.print(
        f"student, card and page are in {out}; paint with it: allaprima generate --card {path} --student-only 'a prompt'"
    )
