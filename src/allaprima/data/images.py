"""Pictures on disk: atomic, deterministic PNGs whose text chunks say what made them (ours, and A1111's `parameters`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from allaprima.core.errors import RunFolderError, SettingError


def to_pil(image: Tensor) -> Image.Image:
    """`(3, H, W)` in [0, 1] -> an 8-bit picture, rounded to nearest; a fourth channel is kept as transparency."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(np.asarray(pixels))


MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}
"""Pillow's names of what has 8 bits a channel or fewer."""


def opaque(image: Image.Image, name: str) -> Image.Image:
    """Return a picture as RGB. Raises `SettingError` for transparent places, or more than 8 bits a channel."""
    if image.mode not in MODES:
        raise SettingError(f"{name} is of Pillow's mode {image.mode!r}: 8 bits a channel are due. Convert it first.")
    clear = "A" in image.getbands() or "transparency" in image.info
    if clear and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise SettingError(f"{name} has transparent places: lay it on the background that it belongs to first.")
    return image.convert("RGB")


def covering(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resized so that it covers `width` by `height`, then cut at the centre."""
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    resized = image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))


def as_tensor(image: Image.Image | Tensor) -> Tensor:
    """Return a picture as `(3, H, W)` in [0, 1]; a tensor may have a fourth channel, a mask (`control_maps.with_hole`).

    Raises `SettingError` for what has no such reading.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (3, 4) or not image.is_floating_point():
            raise SettingError(
                f"a picture of shape {tuple(image.shape)} and {image.dtype}: (3, H, W) of numbers in [0, 1] is due."
            )
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise SettingError(
                f"a picture with values in {low:g}..{high:g}: [0, 1] is due. Divide by 255, or shift [-1, 1]."
            )
        return image
    return torch.from_numpy(np.array(opaque(image, "a picture"))).permute(2, 0, 1).float() / 255


def read_exactly(path: Path) -> Tensor:
    """Return what `to_pil` was given, from the PNG that was made of it: `(3, H, W)` or, with a fourth channel, `(4, H, W)`.

    Raises `SettingError` for a file that can't be read.
    """
    try:
        with Image.open(path) as image:
            plain = image if image.mode == "RGBA" else image.convert("RGB")
            return torch.from_numpy(np.array(plain)).permute(2, 0, 1).float() / 255
    except (OSError, UnidentifiedImageError) as e:
        raise SettingError(f"{path} cannot be read as a picture: {e}. Put the original back.") from e


def as_mask(mask: Image.Image | Tensor) -> Tensor:
    """Return a mask as `(1, H, W)` in [0, 1]: white, or 1, is painted anew. Raises `SettingError`."""
    if isinstance(mask, Tensor):
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3 or mask.shape[0] != 1 or not bool(((mask >= 0) & (mask <= 1)).all()):
            raise SettingError(f"a mask of shape {tuple(mask.shape)}: (1, H, W) or (H, W) of numbers in [0, 1] is due.")
        return mask.float()
    if mask.mode not in MODES:
        raise SettingError(f"a mask is of Pillow's mode {mask.mode!r}: 8 bits a channel are due. Convert it first.")
    return torch.from_numpy(np.array(mask.convert("L")))[None].float() / 255


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write beside, sync, rename: a kill leaves the old file or the new one. Raises `RunFolderError` with the next step."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"{path} cannot be written: {e.strerror}. Free some space or choose another --out.") from e


def png_bytes(image: Image.Image, chunks: Mapping[str, str]) -> bytes:
    """Return a PNG as bytes; equal pictures and chunks give equal bytes."""
    import io

    info = PngInfo()
    for key, text in chunks.items():
        # tEXt holds Latin-1 only; iTXt holds the rest.
        if all(ord(c) < 256 for c in text):
            info.add_text(key, text)
        else:
            info.add_itxt(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=6)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path, chunks: Mapping[str, str]) -> None:
    """Write a picture with its text chunks, atomically."""
    write_bytes_atomically(path, png_bytes(image, chunks))


def read_chunks(path: Path) -> dict[str, str]:
    """Text chunks of a PNG. Raises `SettingError` for what is not a PNG."""
    try:
        with Image.open(path) as image:
            if image.format != "PNG":
                raise SettingError(f"{path} is a {image.format}, not a PNG: only PNGs carry what made them.")
            image.load()
            return {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
    except (OSError, UnidentifiedImageError) as e:
        raise SettingError(f"{path} cannot be read as a picture: {e}. Give a PNG painted by allaprima.") from e


def a1111_parameters(prompt: str, negative: str, fields: Mapping[str, str | int | float]) -> str:
    """Return the text that AUTOMATIC1111's web UI writes, and other tools read, under `parameters`."""
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{k}: {v}" for k, v in fields.items()))
    return "\n".join(lines)
