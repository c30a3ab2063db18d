"""Images to edit and their masks, one for all prompts or one each, as the cascade reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from allaprima.conditioning.edit import DEFAULT_STRENGTH, Edit, ImageInput
from allaprima.core.errors import SettingError
from allaprima.data.images import as_mask, as_tensor

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
    images = one_each(n, "image", image)
    masks = [None] * n if mask_image is None else one_each(n, "mask_image", mask_image)
    usual = DEFAULT_STRENGTH if mask_image is None else 1.0
    shares = [usual if strength is None else strength] * n if isinstance(strength, float | int | None) else list(strength)
    if len(shares) != n:
        raise SettingError(f"{len(shares)} strengths for {n} prompts: give one for all or one each.")
    return [
        Edit(ImageInput.of(as_tensor(i)), float(s), None if m is None else ImageInput.of(as_mask(m)))
        for i, s, m in zip(images, shares, masks, strict=True)
    ]


def one_each(n: int, name: str, images: Images) -> list[Any]:
    """Return a list of `n` from one for all or a list of one each. Raises `SettingError` for another number."""
    several: list[Any] = list(images) if isinstance(images, list | tuple) else [images] * n
    if len(several) != n:
        raise SettingError(f"{len(several)} of {name} for {n} prompts: give one for all or one each.")
    return several
