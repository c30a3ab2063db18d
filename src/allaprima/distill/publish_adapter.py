"""What a training of a ControlNet leaves behind.

```
OUT/
  card.yaml           extends the teacher's card: allaprima control --card OUT picture.png "a prompt"
  controlnet/         diffusers' ControlNetModel; or a conditional UNet, two folders in diffusers' format (CoDi's full kind)
  README.md           the model page: recipe, data, samples, licence
  samples.png         maps, and what is painted with them
  provenance.json     recipe, data, teacher, steps, seconds, hash of the weights
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from torch import nn

from allaprima.distill.methods import METHODS
from allaprima.distill.publish import Publication, account_of, extended_name, facts, write_account
from allaprima.models.adapters.conditional_unet import ConditionalUNet

FOLDER = "controlnet"


def publish_adapter(made: Publication, net: nn.Module, map_: str, few_steps: bool, out: Path) -> Path:
    """Write the net, its card and its page; returns the card's path. `few_steps`: it is a student's own net (CoDi)."""
    plain: Any = net.cpu().eval().requires_grad_(False)
    plain.save_pretrained(out / FOLDER, safe_serialization=True)
    card = out / "card.yaml"
    card.write_text(yaml.safe_dump(_card(made, map_, few_steps), sort_keys=False), encoding="utf-8")
    write_account(account_of(made, sorted((out / FOLDER).rglob("*.safetensors")), out), out)
    (out / "README.md").write_text(_page(made, map_, isinstance(net, ConditionalUNet)), encoding="utf-8")
    return card


def _card(made: Publication, map_: str, few_steps: bool) -> dict[str, Any]:
    teacher = made.card
    there = teacher.controls.get(map_)
    control: dict[str, Any] = {"map": map_, "license": teacher.teacher.license}
    # A many-step net of the same map stays the teacher's; without one the teacher takes the student's.
    if not few_steps or there is None:
        control["source"] = FOLDER
    if few_steps:
        control |= {
            "student": FOLDER, "student_steps": made.use.steps, "student_solver": made.use.solver,
            "student_guidance": made.use.guidance,
        }  # fmt: skip
    return {
        "extends": extended_name(teacher),
        "name": f"{teacher.name}-{made.recipe.method}-{map_}",
        "description": f"{teacher.name} with a net that reads {map_}, made by {made.recipe.method}.",
        "controls": {map_: control},
    }


def _page(made: Publication, map_: str, whole: bool) -> str:
    entry = METHODS[made.recipe.method]
    if whole:
        what = "a conditional UNet"
        reads = f"`{FOLDER}/unet` and `{FOLDER}/encoder` are a UNet2DConditionModel and a ControlNetModel of diffusers."
    else:
        what = "a ControlNet on the teacher's"
        reads = f'In diffusers: `ControlNetModel.from_pretrained("{FOLDER}")`, with the teacher\'s pipeline.'
    return f"""---
license: {made.card.teacher.license.lower()}
library_name: diffusers
tags: [allaprima, controlnet, text-to-image]
---

# {made.card.name}, {map_} by {made.recipe.method}

{entry.summary.capitalize()} ({entry.paper}). Base: the teacher of `{made.card.name}`.

![maps and pictures](samples.png)

Made for {made.use.steps} steps at guidance scale {made.use.guidance:g}. {made.use.note}

```
allaprima control --card card.yaml picture.png "a prompt"
```

{reads}

{facts(made, what)}
"""
