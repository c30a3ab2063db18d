"""What a training leaves behind: a student in diffusers' folder format, a card ready to paint with, and a model page.

```
OUT/
  card.yaml           extends the teacher's card: allaprima generate --card OUT
  student/            unet/ (or transformer/), scheduler/: loads in diffusers with the teacher's other parts
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

from allaprima.distill.loop import Progress
from allaprima.distill.many import FILE, student_folder
from allaprima.distill.methods import METHODS
from allaprima.distill.methods.common import Use
from allaprima.distill.recipe import Recipe
from allaprima.models.card import Card
from allaprima.models.families.registry import FAMILIES


@dataclass(frozen=True)
class Made:
    """What is published."""

    recipe: Recipe
    card: Card
    """The teacher's card."""
    progress: Progress
    data: str
    """What it was trained on, in words."""
    pictures: int
    identity: Mapping[str, Any]
    use: Use
    """How to paint with it."""


def save_student(network: nn.Module, folder: Path, card: Card) -> None:
    """Write a trained network with the scheduler of `card`'s teacher: a folder that cards may name and diffusers loads."""
    plain: Any = network.cpu().eval().requires_grad_(False)
    plain.save_pretrained(folder / FAMILIES[card.family].component, safe_serialization=True)
    shutil.copytree(card.path(card.teacher.source or "") / "scheduler", folder / "scheduler", dirs_exist_ok=True)


def publish(made: Made, network: nn.Module, out: Path) -> Path:
    """Write the student, its card and its page; returns the card's path. What is there is written over, file by file."""
    save_student(network, out / "student", made.card)
    return _described(made, {"source": "student"}, [out / "student"], type(network).__name__, out)


def publish_many(made: Made, students: int, network: str, out: Path) -> Path:
    """Write card and page of a multi-student training whose students `save_student` has written; returns the card's path.

    `network`: their class in diffusers.
    """
    folders = [student_folder(out, k) for k in range(students)]
    source = {"students": [str(f.relative_to(out)) for f in folders], "partition": FILE}
    return _described(made, source, folders, network, out)


def _described(made: Made, source: Mapping[str, Any], folders: Sequence[Path], name: str, out: Path) -> Path:
    """Card, account and page; `name` is the students' class in diffusers."""
    card = out / "card.yaml"
    card.write_text(yaml.safe_dump(_card(made, source), sort_keys=False), encoding="utf-8")
    account = {
        "recipe": made.recipe.model_dump(),
        "trained": asdict(made.progress),
        "identity": dict(made.identity),
        "sha256": {
            str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
            for folder in folders
            for p in sorted((folder / FAMILIES[made.card.family].component).glob("*.safetensors"))
        },
    }
    (out / "provenance.json").write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(page(made, name), encoding="utf-8")
    return card


def _card(made: Made, source: Mapping[str, Any]) -> dict[str, Any]:
    """A card that takes everything but the student from the teacher's."""
    teacher = made.card
    named = teacher.folder / "card.yaml"
    bundled = teacher.name if (teacher.folder.parent.name == "bundled") else str(named.resolve())
    several = "" if made.recipe.partition is None else f"-{made.recipe.partition.students}"
    shared = list(FAMILIES[teacher.family].shared)
    student = {
        **source, "steps": made.use.steps, "guidance_scale": made.use.guidance, "solver": made.use.solver,
        "license": teacher.teacher.license, "share": shared,
    }  # fmt: skip
    return {
        "extends": bundled,
        "name": f"{teacher.name}-{made.recipe.method.replace('_', '-')}{several}",
        "description": f"{teacher.name} with a student made by {made.recipe.method}. Calibrate before adaptive use.",
        "student": student,
    }


def page(made: Made, network: str) -> str:
    """The model page, Markdown with the head that model hubs read; `network` is the student's class in diffusers."""
    component = FAMILIES[made.card.family].component
    scheduler = "LCMScheduler" if component == "unet" else "FlowMatchLCMScheduler"
    entry = METHODS[made.recipe.method]
    recipe = yaml.safe_dump(made.recipe.model_dump(exclude_none=True), sort_keys=False).strip()
    student, several, where = "student", "", "student"
    if made.recipe.partition is not None:
        k = made.recipe.partition.students
        student, where = f"{k} students", "students/0"
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

Made for {made.use.steps} step{"s" if made.use.steps != 1 else ""} at guidance scale {made.use.guidance:g}. {made.use.words}

```
allaprima generate --card card.yaml "a prompt" --student-only
allaprima calibrate --card card.yaml --budget 15 --out calibration.json    # before adaptive use
```

In diffusers: load the teacher's pipeline and put `{network}.from_pretrained("{where}/{component}")` in its place, with
`{scheduler}` for several steps.

| | |
|---|---|
| trained on | {made.data}: {made.pictures} pictures |
| steps, samples | {made.progress.step}, {made.progress.samples} |
| seconds | {made.progress.seconds:.0f} |
| last running loss | {made.progress.loss:.5g} |
| licence | {made.card.teacher.license}, the teacher's; mind the data's own |

## Recipe

```yaml
{recipe}
```
"""
