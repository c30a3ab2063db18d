"""Pictures in and out: uploads are looked at before they are decoded, answers are encoded off the event loop."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.data.images import MODES, covering, opaque, png_bytes, to_pil
from allaprima.serving.api.errors import ApiError

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is decoded; Pillow knows many more, with as many decoders that a stranger may try."""
QUALITY = {"jpeg": 92, "webp": 90}
"""Where the caller names no `output_compression`."""


def opened(file: BinaryIO, name: str, most: int) -> Image.Image:
    """Return a picture of which only the header has been read. Raises `ApiError` for one that is not to be decoded."""
    try:
        with warnings.catch_warnings():
            # Pillow's own alarm is about pixels, which are counted below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise _bad(name, f"is no picture that is read here ({type(e).__name__}): PNG, JPEG or WebP is due") from None
    if image.width * image.height > most:
        raise _bad(name, f"has {image.width}x{image.height} pixels: {most} are possible. Make it smaller first")
    if getattr(image, "n_frames", 1) != 1:
        raise _bad(name, "has several frames: one is due. Save the one that is meant")
    if image.mode not in MODES:
        raise _bad(name, f"is of Pillow's mode {image.mode!r}: 8 bits a channel are due. Convert it first")
    return image


def read_image(file: BinaryIO, width: int, height: int, most: int) -> Tensor:
    """Return an upload as `(3, H, W)` in [0, 1], resized and cut at the centre where it is of another size."""
    image = opened(file, "image", most)
    try:
        return _tensor(covering(opaque(image, "image"), width, height))
    except SettingError as e:
        raise ApiError(400, "invalid_image", str(e), "image") from None
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as e:
        raise _bad("image", f"can't be decoded: {str(e)[:120]}. Make it again") from None


def read_mask(file: BinaryIO, size: tuple[int, int], width: int, height: int, most: int) -> Tensor:
    """Return a mask as `(1, H, W)`, 1 where the picture is painted anew.

    As OpenAI has it: where it is transparent. A mask without transparency is read as diffusers' are: where it is white.
    `size`: of the picture that it lies on, (width, height).
    """
    image = opened(file, "mask", most)
    if image.size != size:
        raise _bad("mask", f"has {image.size[0]}x{image.size[1]} pixels, the picture {size[0]}x{size[1]}: the same are due")
    try:
        clear = "A" in image.getbands() or "transparency" in image.info
        if clear:
            inverted = np.asarray(image.convert("RGBA").getchannel("A"))
            grey = Image.fromarray(255 - inverted)
        else:
            grey = image.convert("L")
        made = torch.from_numpy(np.array(covering(grey, width, height)))[None].float() / 255
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as e:
        raise _bad("mask", f"can't be decoded: {str(e)[:120]}. Make it again") from None
    if not bool((made > 0).any()):
        raise _bad("mask", "leaves nothing to paint: what is transparent (or, in a mask without transparency, white) is")
    return made


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _bad(name: str, what: str) -> ApiError:
    return ApiError(400, "invalid_image", f"{name} {what}.", name)


def encoded(image: Tensor, kind: str, quality: int | None, chunks: Mapping[str, str] | None = None) -> bytes:
    """Return a picture `(3, H, W)` as a file of a format of `schemas.Format`; `chunks`: texts that a PNG carries."""
    picture = to_pil(image)
    if kind == "png":
        return png_bytes(picture, chunks or {})
    buffer = io.BytesIO()
    picture.save(buffer, kind.upper(), quality=QUALITY[kind] if quality is None else quality)
    return buffer.getvalue()
