"""Control images: one for each ControlNet, for all prompts or one each, and their conditioning scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allaprima.conditioning.edit import ImageInput
from allaprima.conditioning.image_inputs import Images, one_each
from allaprima.core.errors import SettingError
from allaprima.data.images import as_tensor


def controls_of(
    n: int, nets: int, control_image: Images | Sequence[Images] | None, scale: float | Sequence[float]
) -> tuple[list[tuple[ImageInput, ...]], tuple[float, ...]]:
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
    columns = [[ImageInput.of(as_tensor(i)) for i in one_each(n, "control_image", given)] for given in several]
    return [tuple(column[k] for column in columns) for k in range(n)], scales


def check_scales(scales: Sequence[float]) -> None:
    """Raise `SettingError` for a scale of a ControlNet that means nothing."""
    odd = next((s for s in scales if not 0 <= s <= 10), None)
    if odd is not None:
        raise SettingError(f"a ControlNet's scale of {odd!r} is out of range: 0..10; 0 leaves it out, 1 is usual.")
