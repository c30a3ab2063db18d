"""The record inside an image, and the image generated again from it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from torch import Tensor

from allaprima.cascade.metadata import CHUNK, RECORD_EXTRAS, chunks, record
from allaprima.cascade.policy import policy_from_dict
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.conditioning.prompt_inputs import EXTRA_PROMPTS
from allaprima.core.errors import ModelError, SettingError
from allaprima.data.images import as_mask, covering, png_bytes, read_chunks, read_exactly, to_pil, write_bytes_atomically
from allaprima.experiments.edit import read_file
from allaprima.experiments.run_folder import RunFolder
from allaprima.models.placement.device_config import DeviceConfig


@dataclass(frozen=True)
class SourceImages:
    """Where the pictures are that an account speaks of by their digests: in its run's folder, or among given files."""

    run: Path
    files: tuple[Path, ...] = ()
    size: tuple[int, int] = (0, 0)
    """Width and height that files are fitted to, as a server fits uploads."""

    def picture(self, digest: str, mask: bool = False) -> ImageInput:
        """Return a picture or mask. Raises `SettingError` where it isn't, or is another."""
        path = RunFolder(self.run).source(digest)
        if not path.is_file():
            for found in self._given(mask):
                if found.digest == digest:
                    return found
            if self.files:
                what = "mask" if mask else "picture"
                raise SettingError(f"none of {len(self.files)} files is the {what} {digest}: give the one that was used.")
            raise SettingError(f"{path} isn't there: put it back, or name the picture that was edited with --source FILE.")

        def kept() -> Tensor:
            image = read_exactly(path)
            return image[:1] if mask else image

        found = ImageInput.read_by(kept)
        if found.digest != digest:
            raise SettingError(f"{path} was changed since it was used: put the original back.")
        return found

    def _given(self, mask: bool) -> Iterator[ImageInput]:
        """Every reading of every file; files that aren't there raise, those without such a reading are passed over."""
        for file in self.files:
            if not file.is_file():
                raise SettingError(f"{file} is not there: check its name.")
            for read in (partial(read_file, file, self.size, True, mask), *([partial(clear, file, self.size)] * mask)):
                with contextlib.suppress(SettingError, OSError, ValueError):
                    yield ImageInput.read_by(read)


def clear(file: Path, size: tuple[int, int]) -> Tensor:
    """Return a mask `(1, H, W)` as servers of OpenAI's kind read it: 1 where a file is transparent."""
    with Image.open(file) as image:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return as_mask(covering(Image.fromarray(255 - alpha), *size))


def show_command(
    picture: Path, repeat: bool, out: Path | None, card: str | None = None, sources: Sequence[Path] = ()
) -> None:
    """Print the account of a picture; paint it again when asked, and compare bytes.

    `card`: where the card is that the account names; `sources`: files of what was edited, if no run's folder has them.
    """
    console = Console(highlight=False, soft_wrap=True)
    found = read_chunks(picture)
    if CHUNK not in found:
        raise SettingError(
            f"{picture} carries no record of allaprima's: drafts and other tools' pictures don't. Try images/."
        )
    try:
        account: dict[str, Any] = json.loads(found[CHUNK])
    except ValueError as e:
        raise SettingError(f"{picture} carries a record that is not JSON: it was changed. Use the original file.") from e
    console.print_json(json.dumps(account))
    if not repeat:
        return
    size = account["settings"]["width"], account["settings"]["height"]
    again = paint_again(account, SourceImages(picture.absolute().parent.parent, tuple(sources), size), card)
    if out is not None:
        write_bytes_atomically(out, again)
    if again == picture.read_bytes():
        console.print("[green]painted again: byte-identical[/]")
    else:
        raise ModelError("painted again: the bytes differ. Another version of a library or another CPU rounds otherwise.")


def edit_again(row: dict[str, Any], kept: SourceImages) -> Edit:
    """Return the edit that an account tells of. Raises `SettingError`."""
    mask = kept.picture(row["mask"], mask=True) if "mask" in row else None
    return Edit(kept.picture(row["image"]), row["strength"], mask)


def paint_again(account: dict[str, Any], kept: SourceImages, card: str | None = None) -> bytes:
    """Return the PNG that this account describes; `card`: its card, if the name that the account has isn't enough.

    Raises `ModelError` if the models are others than those that made it, `SettingError` if an edited picture isn't there.
    """
    from allaprima.pipeline import AdaptivePipeline

    pipe = AdaptivePipeline.from_card(card or account["card"], device_config=DeviceConfig.of(**account.get("placement", {})))
    if "nets" in account:
        condition = account.get("condition", {"maps": None, "weight": 0.0})
        pipe = pipe.with_controlnets(account["nets"], condition["maps"], condition["weight"])
    prints = pipe.fingerprints()
    for name, value in account["fingerprints"].items():
        if prints.get(name) != value:
            raise ModelError(
                f"the {name} that painted this was {value}, here it is {prints.get(name)}: use the same models."
            )
    settings = CascadeSettings.from_dict(account["settings"])
    if "policy" in account:
        policy = policy_from_dict(account["policy"])
    else:
        policy = pipe.policy(settings, account["threshold"], None, account["mode"])
    edit = None if "edit" not in account else edit_again(account["edit"], kept)
    controls = tuple(kept.picture(c["image"]) for c in account.get("controls", []))
    scales = tuple(float(c["scale"]) for c in account.get("controls", []))
    request = GenerationRequest(
        account["prompt"], account["seed"], account["negative_prompt"], account["index"], 0, edit, controls, scales,
        **{name: account[name] for name in EXTRA_PROMPTS if name in account},
    )  # fmt: skip
    (result,) = pipe.stream([request], settings, policy)
    if result.image is None:
        raise ModelError(f"it could not be painted again: {result.error}")
    asked = account.get("asked", account["prompt"])
    beside = {k: account[k] for k in RECORD_EXTRAS if k in account}
    made = record(result, account["card"], account["mode"], asked, prints, policy, beside)
    return png_bytes(to_pil(result.image), chunks(made))
