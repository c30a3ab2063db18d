"""What a training leaves behind: a student in diffusers' folder format, a card ready to paint with, and a model page.

```
OUT/
  card.yaml           extends the teacher's card: allaprima generate --card OUT
  student/            unet/ (or transformer/), scheduler/: loads in diffusers with the teacher's other parts; of a LoRA its
                      file instead, and the network only if it sits on another than the teacher's
  students/0/, ...    the same of a multi-student training, with partition.safetensors that says whose a prompt is
  README.md           the model page: recipe, data, samples, licence
  samples.png         drafts of the student
  provenance.json     recipe, data, teacher, steps, seconds, hashes of the weights
```
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from allaprima.core.files import PICKLES
from allaprima.distill.loop import TrainingProgress
from allaprima.distill.many import FILE, student_folder
from allaprima.distill.methods import METHODS
from allaprima.distill.methods.common import SamplingDefaults
from allaprima.distill.network import folder_of
from allaprima.distill.recipe import Recipe
from allaprima.models.cards.card import Card, is_bundled
from allaprima.models.components.lora import FILE as LORA
from allaprima.models.components.lora import save_lora
from allaprima.models.families.registry import FAMILIES


@dataclass(frozen=True)
class Publication:
    """What is published."""

    recipe: Recipe
    card: Card
    """The teacher's card."""
    progress: TrainingProgress
    data: str
    """What it was trained on, in words."""
    pictures: int
    identity: Mapping[str, Any]
    use: SamplingDefaults
    """How to paint with it."""
    network: str = ""
    """What the student's network is, in words, where it isn't just the teacher's."""


def save_student(network: nn.Module, folder: Path, card: Card) -> None:
    """Write a trained network with the scheduler of `card`'s teacher: a folder that cards may name and diffusers loads."""
    plain: Any = network.cpu().eval().requires_grad_(False)
    plain.save_pretrained(folder / FAMILIES[card.family].component, safe_serialization=True)
    _scheduler(card, folder)


def publish(made: Publication, network: nn.Module, out: Path) -> Path:
    """Write the student, its card and its page; returns the card's path. What is there is written over, file by file."""
    if made.recipe.lora is None:
        save_student(network, out / "student", made.card)
        return _described(made, {"source": "student"}, [out / "student"], type(network).__name__, out)
    save_lora(network.eval(), out / "student")
    source = {"lora": f"student/{LORA}"}
    if made.recipe.start is not None:
        # What the adapters sit on, if it isn't the teacher: a card's folder should be enough to paint with.
        component = FAMILIES[made.card.family].component
        _copied(folder_of(made.recipe.start, component), out / "student" / component)
        _scheduler(made.card, out / "student")
        source["source"] = "student"
    return _described(made, source, [out / "student"], type(network).__name__, out)


def publish_many(made: Publication, students: int, network: str, out: Path) -> Path:
    """Write card and page of a multi-student training whose students `save_student` has written; returns the card's path.

    `network`: their class in diffusers.
    """
    folders = [student_folder(out, k) for k in range(students)]
    source = {"students": [str(f.relative_to(out)) for f in folders], "partition": FILE}
    return _described(made, source, folders, network, out)


def _described(made: Publication, source: Mapping[str, Any], folders: Sequence[Path], name: str, out: Path) -> Path:
    """Card, account and page; `name` is the students' class in diffusers."""
    card = out / "card.yaml"
    card.write_text(yaml.safe_dump(_card(made, source), sort_keys=False), encoding="utf-8")
    component = FAMILIES[made.card.family].component
    places = [place for folder in folders for place in (folder, folder / component)]
    write_account(account_of(made, [p for place in places for p in sorted(place.glob("*.safetensors"))], out), out)
    (out / "README.md").write_text(page(made, name), encoding="utf-8")
    return card


def account_of(made: Publication, weights: Sequence[Path], out: Path) -> dict[str, Any]:
    """What was done, and hashes of what came of it."""
    return {
        "recipe": made.recipe.model_dump(),
        "trained": asdict(made.progress),
        "identity": dict(made.identity),
        "sha256": {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in weights},
    }


def write_account(account: Mapping[str, Any], out: Path) -> None:
    """As JSON."""
    (out / "provenance.json").write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")


def _copied(base: Path, folder: Path) -> None:
    if base.resolve() != folder.resolve():
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*(f"*{p}" for p in PICKLES)))


def _scheduler(card: Card, folder: Path) -> None:
    shutil.copytree(
        card.path(card.teacher.source or "", ("scheduler",)) / "scheduler", folder / "scheduler", dirs_exist_ok=True
    )


def extended_name(card: Card) -> str:
    """How a card names this one: bundled ones by name, others by where they are."""
    return card.name if is_bundled(card) else str((card.folder / "card.yaml").resolve())


def _card(made: Publication, source: Mapping[str, Any]) -> dict[str, Any]:
    """A card that takes everything but the student from the teacher's."""
    teacher = made.card
    several = "" if made.recipe.partition is None else f"-{made.recipe.partition.students}"
    shared = list(FAMILIES[teacher.family].shared)
    student = {
        **source, "steps": made.use.steps, "guidance_scale": made.use.guidance, "solver": made.use.solver,
        "license": teacher.teacher.license, "share": shared,
    }  # fmt: skip
    return {
        "extends": extended_name(teacher),
        "name": f"{teacher.name}-{made.recipe.method.replace('_', '-')}{several}",
        "description": f"{teacher.name} with a student made by {made.recipe.method}. Calibrate before adaptive use.",
        "student": student,
    }


def _in_diffusers(made: Publication, network: str) -> str:
    component, where = FAMILIES[made.card.family].component, "student" if made.recipe.partition is None else "students/0"
    scheduler = "LCMScheduler" if component == "unet" else "FlowMatchLCMScheduler"
    put = f'put `{network}.from_pretrained("{where}/{component}")` in its place'
    both = "load the teacher's pipeline"
    if made.recipe.lora is not None:
        also = "" if made.recipe.start is None else f", {put}"
        return f"""In diffusers: {both}{also} and call `load_lora_weights("student", weight_name="{LORA}")`, with
`{scheduler}` for several steps."""
    return f"In diffusers: {both} and {put},\nwith `{scheduler}` for several steps."


def page(made: Publication, network: str) -> str:
    """The model page, Markdown with the head that model hubs read; `network` is the student's class in diffusers."""
    entry = METHODS[made.recipe.method]
    student, several = "student", ""
    if made.recipe.partition is not None:
        k = made.recipe.partition.students
        student = f"{k} students"
        several = (
            f"\n\nA prompt is painted by one of {k} students, as `partition.safetensors` says"
            f" ({made.recipe.partition.kind}): {k} times one student's training, one student's cost of painting."
        )
    return f"""---
license: {made.card.teacher.license.lower()}
library_name: diffusers
tags: [allaprima, distillation, text-to-image]
---

# {made.card.name}, {student} by {made.recipe.method}

{entry.summary.capitalize()} ({entry.paper}). Teacher: `{made.card.name}`.{several}

![drafts of the student](samples.png)

Made for {made.use.steps} step{"s" if made.use.steps != 1 else ""} at guidance scale {made.use.guidance:g}. {made.use.note}

```
allaprima generate --card card.yaml "a prompt" --student-only
allaprima calibrate --card card.yaml --budget 15 --out calibration.json    # before adaptive use
```

{_in_diffusers(made, network)}

{facts(made, "the teacher's")}
"""


def facts(made: Publication, network: str) -> str:
    """The table of a model page, and the recipe; `network` is what the trained network is if nothing else is said."""
    recipe = yaml.safe_dump(made.recipe.model_dump(exclude_none=True), sort_keys=False).strip()
    return f"""| | |
|---|---|
| network | {made.network or network} |
| trained on | {made.data}: {made.pictures} pictures |
| steps, samples | {made.progress.step}, {made.progress.samples} |
| seconds | {made.progress.seconds:.0f} |
| last running loss | {made.progress.loss:.5g} |
| licence | {made.card.teacher.license}, the teacher's; mind the data's own |

## Recipe

```yaml
{recipe}
```"""
