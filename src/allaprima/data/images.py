"""Pictures on disk: atomic, deterministic PNGs whose text chunks say what made them (ours, and A1111's `parameters`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from allaprima.core.errors import RunFolderError, SettingError


def to_pil(image: Tensor) -> Image.Image:
    """`(3, H, W)` in [0, 1] -> an 8-bit picture, rounded to nearest."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(np.asarray(pixels))


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
    """A PNG as bytes; equal pictures and chunks give equal bytes."""
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
    """The text that AUTOMATIC1111's web UI writes, and other tools read, under `parameters`."""
    lines = [prompt]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{k}: {v}" for k, v in fields.items()))
    return "\n".join(lines)
