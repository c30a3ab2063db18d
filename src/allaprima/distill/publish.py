"""What a training leaves behind: a student in diffusers' folder format, a card ready to paint with, and a model page.

```
OUT/
  card.yaml           extends the teacher's card: allaprima generate --card OUT
  student/            unet/, scheduler/: loads in diffusers with the teacher's other parts; of a LoRA its file instead,
                      and unet/ only if it sits on another network than the teacher's
  README.md           the model page: recipe, data, samples, licence
  samples.png         drafts of the student
  provenance.json     recipe, data, teacher, steps, seconds, hashes of the weights
```
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from allaprima.core.folder import PICKLES
from allaprima.distill.loop import Progress
from allaprima.distill.methods import METHODS
from allaprima.distill.methods.common import Use
from allaprima.distill.network import folder_of
from allaprima.distill.recipe import Recipe
from allaprima.models.card import Card
from allaprima.models.lora import FILE, save_lora


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
    network: str = ""
    """What the student's network is, in words, where it isn't just the teacher's."""


def publish(made: Made, unet: nn.Module, out: Path) -> Path:
    """Write the student, its card and its page; returns the card's path. What is there is written over, file by file."""
    student = out / "student"
    plain: Any = unet.eval().requires_grad_(False)
    source = made.card.path(made.card.teacher.source or "")
    if made.recipe.lora is None:
        plain.save_pretrained(student / "unet", safe_serialization=True)
    else:
        save_lora(plain, student)
        _copy_base(made.recipe, student / "unet")
    shutil.copytree(source / "scheduler", student / "scheduler", dirs_exist_ok=True)
    card = out / "card.yaml"
    card.write_text(yaml.safe_dump(_card(made), sort_keys=False), encoding="utf-8")
    account = {
        "recipe": made.recipe.model_dump(),
        "trained": asdict(made.progress),
        "identity": dict(made.identity),
        "sha256": {
            str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(student.rglob("*.safetensors"))
        },
    }
    (out / "provenance.json").write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(page(made), encoding="utf-8")
    return card


def _copy_base(recipe: Recipe, folder: Path) -> None:
    """What the adapters sit on, if it isn't the teacher: a card's folder should be enough to paint with."""
    if recipe.start is None:
        return
    base = folder_of(recipe.start)
    if base.resolve() != folder.resolve():
        shutil.copytree(base, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*(f"*{p}" for p in PICKLES)))


def _card(made: Made) -> dict[str, Any]:
    """A card that takes everything but the student from the teacher's."""
    teacher = made.card
    named = teacher.folder / "card.yaml"
    bundled = teacher.name if (teacher.folder.parent.name == "bundled") else str(named.resolve())
    shared = ["text_encoder", "tokenizer", "vae"]
    where = {} if made.recipe.lora is None else {"lora": f"student/{FILE}"}
    if made.recipe.lora is None or made.recipe.start is not None:
        where["source"] = "student"
    student = {
        **where, "steps": made.use.steps, "guidance_scale": made.use.guidance, "solver": made.use.solver,
        "license": teacher.teacher.license, "share": shared,
    }  # fmt: skip
    return {
        "extends": bundled,
        "name": f"{teacher.name}-{made.recipe.method.replace('_', '-')}",
        "description": f"{teacher.name} with a student made by {made.recipe.method}. Calibrate before adaptive use.",
        "student": student,
    }


def _in_diffusers(recipe: Recipe) -> str:
    put = 'put `UNet2DConditionModel.from_pretrained("student/unet")` in its place'
    both = "load the teacher's pipeline"
    if recipe.lora is not None:
        also = "" if recipe.start is None else f", {put}"
        return f"""In diffusers: {both}{also} and call `load_lora_weights("student", weight_name="{FILE}")`, with
`LCMScheduler` for several steps."""
    return f"In diffusers: {both} and {put}, with\n`LCMScheduler` for several steps."


def page(made: Made) -> str:
    """The model page, Markdown with the head that model hubs read."""
    entry = METHODS[made.recipe.method]
    recipe = yaml.safe_dump(made.recipe.model_dump(exclude_none=True), sort_keys=False).strip()
    return f"""---
license: {made.card.teacher.license.lower()}
library_name: diffusers
tags: [allaprima, distillation, text-to-image]
---

# {made.card.name}, student by {made.recipe.method}

{entry.summary.capitalize()} ({entry.paper}). Teacher: `{made.card.name}`.

![drafts of the student](samples.png)

Made for {made.use.steps} step{"s" if made.use.steps != 1 else ""} at guidance scale {made.use.guidance:g}. {made.use.words}

```
allaprima generate --card card.yaml "a prompt" --student-only
allaprima calibrate --card card.yaml --budget 15 --out calibration.json    # before adaptive use
```

{_in_diffusers(made.recipe)}

| | |
|---|---|
| network | {made.network or "the teacher's"} |
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
