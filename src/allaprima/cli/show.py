"""`allaprima show`: what made a picture, and the picture again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from allaprima.cascade.job import Request
from allaprima.cascade.policy import policy_from_dict
from allaprima.cascade.settings import CascadeSettings
from allaprima.cli.folder import CHUNK
from allaprima.cli.record import chunks, record
from allaprima.core.errors import ModelError, SettingError
from allaprima.data.images import png_bytes, read_chunks, to_pil, write_bytes_atomically


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
    again = paint_again(account)
    if out is not None:
        write_bytes_atomically(out, again)
    if again == picture.read_bytes():
        console.print("[green]painted again: byte-identical[/]")
    else:
        raise ModelError("painted again: the bytes differ. Another version of a library or another CPU rounds otherwise.")


def paint_again(account: dict[str, Any]) -> bytes:
    """The PNG that this account describes. Raises `ModelError` if the models are others than those that made it."""
    from allaprima.pipeline import AdaptivePipeline

    pipe = AdaptivePipeline.from_card(account["card"])
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
    request = Request(account["prompt"], account["seed"], account["negative_prompt"], account["index"])
    (result,) = pipe.stream([request], settings, policy)
    if result.image is None:
        raise ModelError(f"it could not be painted again: {result.error}")
    asked = account.get("asked", account["prompt"])
    return png_bytes(to_pil(result.image), chunks(record(result, account["card"], account["mode"], asked, prints, policy)))
