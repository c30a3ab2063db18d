"""Editing images by prompts into a run folder; the student edits first (SDEdit in the cascade)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from rich.console import Console
from torch import Tensor

from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.edit import DEFAULT_STRENGTH, Edit, ImageInput
from allaprima.core.errors import SettingError
from allaprima.data.edits import EditRow
from allaprima.data.images import as_mask, as_tensor, covering, opaque
from allaprima.experiments.generate import cascade_settings, filled, policy_beside, texts_of
from allaprima.experiments.options import ImageOptions
from allaprima.experiments.runner import RunPlan, paint
from allaprima.pipeline import AdaptivePipeline
from allaprima.pipeline.requests import compose_requests


@dataclass(frozen=True)
class EditOptions(ImageOptions):
    """Options of the command, as given."""

    edits_file: Path | None
    strengths: tuple[float, ...]


def read_file(path: Path, size: tuple[int, int], fit: bool, mask: bool) -> Tensor:
    """Return a picture `(3, H, W)` or mask `(1, H, W)` of `size` (width, height). Raises `SettingError` naming the file."""
    try:
        with Image.open(path) as image:
            image.load()
            plain = image if mask else opaque(image, str(path))
            plain = covering(plain.convert("L") if mask else plain, *size) if fit else plain
            if plain.size != size:
                raise SettingError(
                    f"{path} has {plain.size[0]}x{plain.size[1]} pixels, this card paints {size[0]}x{size[1]}: add --fit to"
                    " resize and cut it, or resize it yourself."
                )
            return as_mask(plain) if mask else as_tensor(plain)
    except SettingError:
        raise
    except FileNotFoundError as e:
        raise SettingError(f"{path} is not there: check its name.") from e
    except (OSError, SyntaxError, ValueError, EOFError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise SettingError(f"{path} cannot be read as a picture: {e}. Make it again, or leave it out.") from e


def prepare_edits(o: EditOptions, console: Console) -> RunPlan:
    """Load the models, look at every picture, and turn rows into requests."""
    o.check_rows(o.edits_file, "--edits-file")
    rows = o.rows(o.edits_file)
    with console.status("loading models"):
        pipe = AdaptivePipeline.from_card(o.card)
    settings = cascade_settings(pipe.settings, o)
    if o.strategy is None:
        settings = settings.changed(strategy="regenerate")
    usual = None if pipe.calibration is None else pipe.calibration.threshold
    policy = policy_beside(pipe, settings, usual, o, console)
    pipe.cascade(settings, policy)
    size = settings.width, settings.height

    def compose(row: EditRow, painted: str, first: int, number: int) -> list[GenerationRequest]:
        image = ImageInput.read_by(partial(read_file, row.image, size, o.fit, False))
        mask = None if row.mask is None else ImageInput.read_by(partial(read_file, row.mask, size, o.fit, True))
        usual = o.strengths or ((DEFAULT_STRENGTH,) if mask is None else (1.0,))
        strengths = usual if row.strength is None else (row.strength,)
        begin = o.seed + number * o.images_per_prompt if row.seed is None else row.seed
        # One seed for all strengths: what differs between them is the strength.
        seeds = [begin + k for k in range(o.images_per_prompt) for _ in strengths]
        edits = [Edit(image, strength, mask) for strength in strengths] * o.images_per_prompt
        return compose_requests([painted] * len(seeds), seeds, edits, first_index=first, texts=texts_of(row, o))

    return filled(RunPlan(pipe, policy, settings), rows, o, console, compose)


def edit_command(o: EditOptions) -> None:
    """Paint, resume, and write tables and the contact sheet at the end."""
    console = Console(stderr=True, highlight=False)
    paint(prepare_edits(o, console), o, console)
