"""What callers give beside prompts, as the cascade reads it: pictures, one for all prompts or one each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.data.images import as_mask, as_tensor
from allaprima.tasks.edit import DEFAULT_STRENGTH, Edit, Picture

Images = Image | Tensor | Sequence[Image | Tensor]
"""One for all prompts, or one each."""


def edits_of(
    n: int, image: Images | None, strength: float | Sequence[float] | None, mask_image: Images | None
) -> list[Edit] | None:
    """An edit for each of `n` prompts, None when there is no picture to edit. Raises `SettingError`."""
    if image is None:
        given = {"strength": strength, "mask_image": mask_image}
        odd = next((k for k, v in given.items() if v is not None), None)
        if odd is not None:
            raise SettingError(f"{odd} means nothing without a picture to edit: give image=, or leave it out.")
        return None
    images = _one_each(n, "image", image)
    masks = [None] * n if mask_image is None else _one_each(n, "mask_image", mask_image)
    usual = DEFAULT_STRENGTH if mask_image is None else 1.0
    shares = [usual if strength is None else strength] * n if isinstance(strength, float | int | None) else list(strength)
    if len(shares) != n:
        raise SettingError(f"{len(shares)} strengths for {n} prompts: give one for all or one each.")
    return [
        Edit(Picture.of(as_tensor(i)), float(s), None if m is None else Picture.of(as_mask(m)))
        for i, s, m in zip(images, shares, masks, strict=True)
    ]


def _one_each(n: int, name: str, given: Images) -> list[Any]:
    several: list[Any] = list(given) if isinstance(given, list | tuple) else [given] * n
    if len(several) != n:
        raise SettingError(f"{len(several)} of {name} for {n} prompts: give one for all or one each.")
    return several


def controls_of(
    n: int, nets: int, control_image: Images | Sequence[Images] | None, scale: float | Sequence[float]
) -> tuple[list[tuple[Picture, ...]], tuple[float, ...]]:
    """For each of `n` prompts a picture for each of `nets` ControlNets, and their scales. Raises `SettingError`."""
    if control_image is None:
        if nets:
            raise SettingError(f"control_image is missing: {nets} ControlNets read a picture each.")
        return [()] * n, ()
    if not nets:
        raise SettingError("control_image means nothing without a ControlNet: with_controlnets(...) puts one on.")
    listed: list[Any] = list(control_image) if isinstance(control_image, list | tuple) else []
    several: list[Any] = [control_image] if nets == 1 else listed
    if len(several) != nets:
        raise SettingError(f"control_image has {len(several)} entries for {nets} ControlNets: a list with one a net is due.")
    scales = (float(scale),) * nets if isinstance(scale, float | int) else tuple(map(float, scale))
    if len(scales) != nets:
        raise SettingError(
            f"controlnet_conditioning_scale={scale!r}: a number, or {nets} of them, one a ControlNet, is due."
        )
    check_scales(scales)
    columns = [[Picture.of(as_tensor(i)) for i in _one_each(n, "control_image", given)] for given in several]
    return [tuple(column[k] for column in columns) for k in range(n)], scales


def check_scales(scales: Sequence[float]) -> None:
    """Raise `SettingError` for a scale of a ControlNet that means nothing."""
    odd = next((s for s in scales if not 0 <= s <= 10), None)
    if odd is not None:
        raise SettingError(f"a ControlNet's scale of {odd!r} is out of range: 0..10; 0 leaves it out, 1 is usual.")
