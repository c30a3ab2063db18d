"""Tasks by name, as a caller says them once: what must be given, and which of the card's nets reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.data.control_maps import HOLE, with_hole
from allaprima.data.images import as_mask, as_tensor, to_pil

TASKS: Mapping[str, tuple[str, ...]] = {
    "text-to-image": (),
    "edit": ("image",),
    "inpaint": ("image", "mask_image"),
    "control": ("control_image",),
    "super-resolution": ("image",),
}
"""What each must be given beside a prompt, by diffusers' argument names."""
OWN_NET: Mapping[str, str] = {"inpaint": HOLE, "super-resolution": "low-resolution"}
"""The map that a task's net reads. Inpainting does without a net, by blending latents; super-resolution doesn't."""


def check_task(task: str) -> None:
    """Raise `SettingError` for an unknown one."""
    if task not in TASKS:
        raise SettingError(f"task={task!r} is not known: {', '.join(TASKS)} are.")


def prepared(
    task: str, size: tuple[int, int], net: bool, image: Any, mask_image: Any, control_image: Any
) -> tuple[Any, Any, Any]:
    """`image, mask_image, control_image` as the cascade takes them; `size`: width and height that are painted.

    `net`: a net of the task's own reads them. Raises `SettingError` for what is missing or means nothing.
    """
    value = {"image": image, "mask_image": mask_image, "control_image": control_image}
    missing = next((k for k in TASKS[task] if value[k] is None), None)
    if missing is not None:
        raise SettingError(f"task={task!r} needs {missing}=: give it, or leave the task out.")
    odd = next((k for k, v in value.items() if v is not None and k not in TASKS[task] and not _shares(task, k)), None)
    if odd is not None:
        raise SettingError(f"task={task!r} takes no {odd}=: leave it out, or choose another task ({', '.join(TASKS)}).")
    if not net or task not in OWN_NET:
        return image, mask_image, control_image
    if task == "super-resolution":
        return None, None, [enlarged(i, size) for i in _several(image)]
    masks = _several(mask_image)
    images = _several(image)
    count = max(len(images), len(masks))
    if {len(images), len(masks)} - {1, count}:
        raise SettingError(f"{len(images)} pictures and {len(masks)} masks: give one of either, or as many of both.")
    pairs = zip(images * (count // len(images)), masks * (count // len(masks)), strict=True)
    holes = [with_hole(as_tensor(i), as_mask(m)) for i, m in pairs]
    return None, None, holes


def _shares(task: str, name: str) -> bool:
    """Control may come beside an edit."""
    return name == "control_image" and task in ("edit", "inpaint")


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def enlarged(image: Image.Image | Tensor, size: tuple[int, int]) -> Tensor:
    """A small picture brought to `size` by bicubic interpolation, as the maps that super-resolution learnt from were."""
    return as_tensor(to_pil(as_tensor(image)).resize(size, Image.Resampling.BICUBIC))
