"""`allaprima show`: what made a picture, and the picture again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from allaprima.cascade.job import Request
from allaprima.cascade.policy import policy_from_dict
from allaprima.cascade.settings import CascadeSettings
from allaprima.cli.folder import CHUNK, RunFolder
from allaprima.cli.record import BESIDE, chunks, record
from allaprima.core.errors import ModelError, SettingError
from allaprima.data.images import png_bytes, read_chunks, read_exactly, to_pil, write_bytes_atomically
from allaprima.models.placement import Placement
from allaprima.tasks.edit import Edit, Picture


def show_command(picture: Path, repeat: bool, out: Path | None) -> None:
    """Print the account of a picture; paint it again when asked, and compare bytes."""
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
    again = paint_again(account, picture.absolute().parent.parent)
    if out is not None:
        write_bytes_atomically(out, again)
    if again == picture.read_bytes():
        console.print("[green]painted again: byte-identical[/]")
    else:
        raise ModelError("painted again: the bytes differ. Another version of a library or another CPU rounds otherwise.")


def edit_again(row: dict[str, Any], run: Path) -> Edit:
    """The edit that an account tells of, from the pictures that its run keeps. Raises `SettingError`."""
    mask = kept_picture(row["mask"], run, mask=True) if "mask" in row else None
    return Edit(kept_picture(row["image"], run), row["strength"], mask)


def kept_picture(digest: str, run: Path, mask: bool = False) -> Picture:
    """A picture or mask that a run keeps. Raises `SettingError` where it isn't, or is another."""
    path = RunFolder(run).source(digest)

    def read() -> Tensor:
        image = read_exactly(path)
        return image[:1] if mask else image

    found = Picture.read_by(read)
    if found.digest != digest:
        raise SettingError(f"{path} was changed since it was used: put the original back.")
    return found


def paint_again(account: dict[str, Any], run: Path) -> bytes:
    """The PNG that this account describes; `run`: the folder that holds what was edited.

    Raises `ModelError` if the models are others than those that made it, `SettingError` if an edited picture isn't there.
    """
    from allaprima.pipeline import AdaptivePipeline

    pipe = AdaptivePipeline.from_card(account["card"], placement=Placement.of(**account.get("placement", {})))
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
    edit = None if "edit" not in account else edit_again(account["edit"], run)
    controls = tuple(kept_picture(c["image"], run) for c in account.get("controls", []))
    scales = tuple(float(c["scale"]) for c in account.get("controls", []))
    request = Request(
        account["prompt"], account["seed"], account["negative_prompt"], account["index"], 0, edit, controls, scales
    )  # fmt: skip
    (result,) = pipe.stream([request], settings, policy)
    if result.image is None:
        raise ModelError(f"it could not be painted again: {result.error}")
    asked = account.get("asked", account["prompt"])
    beside = {k: account[k] for k in BESIDE if k in account}
    made = record(result, account["card"], account["mode"], asked, prints, policy, beside)
    return png_bytes(to_pil(result.image), chunks(made))
