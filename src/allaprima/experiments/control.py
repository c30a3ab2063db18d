"""Generating from prompts and control images into a run folder; the student paints first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.control import check_scales
from allaprima.conditioning.edit import ImageInput
from allaprima.core.errors import SettingError
from allaprima.data.control_maps import GIVEN, HOLE, MAPS, control_map, with_hole
from allaprima.data.edits import EditRow
from allaprima.experiments.edit import read_file
from allaprima.experiments.generate import cascade_settings, filled, policy_beside, requests_of
from allaprima.experiments.options import ImageOptions
from allaprima.experiments.runner import RunPlan, paint
from allaprima.models.cards.card import Card
from allaprima.pipeline import AdaptivePipeline


@dataclass(frozen=True)
class ControlOptions(ImageOptions):
    """Options of the command, as given."""

    controls_file: Path | None
    nets: tuple[str, ...]
    maps: tuple[str, ...]
    scales: tuple[float, ...]
    condition_weight: float

    def check(self) -> None:
        """Raise `SettingError` or `PromptError` before anything is loaded."""
        self.check_rows(self.controls_file, "--controls-file")
        for name, given in (("maps", self.maps), ("scales", self.scales)):
            if len(given) not in (0, max(1, len(self.nets))):
                raise SettingError(f"{name}={list(given)!r} for {max(1, len(self.nets))} ControlNets: one each, or none.")
        check_scales(self.scales)
        if self.condition_weight and self.mode == "adaptive" and self.threshold is None:
            raise SettingError(
                f"--condition-weight {self.condition_weight:g} makes another score, for which the card's threshold means"
                " nothing: give --threshold (scores are in the run's table; --threshold 100 regenerates all)."
            )


def nets_of(card: Card, o: ControlOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """ControlNets and the maps they read; the card's first when nothing is said. Raises `SettingError`."""
    nets = o.nets or tuple(card.controls)[:1]
    if not nets:
        raise SettingError(f"card {card.name!r} has no ControlNet: give --net FOLDER, in diffusers' format, and --map.")
    maps = o.maps or tuple(card.controls[n].map if n in card.controls else GIVEN for n in nets)
    odd = next((m for m in maps if m not in (*MAPS, HOLE, GIVEN)), None)
    if odd is not None:
        known = ", ".join((*MAPS, HOLE))
        raise SettingError(f"map={odd!r} is not computed here, {known} are: --map given takes the picture itself.")
    return nets, maps


def read_map(row: EditRow, size: tuple[int, int], fit: bool, name: str) -> Tensor:
    """Return the map of a row's picture, or the picture if it is the map.

    Raises `SettingError` for a hole without a mask.
    """
    image = read_file(row.image, size, fit, mask=False)
    if name != HOLE:
        return image if name == GIVEN else control_map(name, image)
    if row.mask is None:
        raise SettingError(f"{row.image}: the map 'hole' needs a mask, white where the picture is missing. Give --mask.")
    return with_hole(image, read_file(row.mask, size, fit, mask=True))


def prepare_controls(o: ControlOptions, console: Console) -> RunPlan:
    """Load the models, compute every map, and turn rows into requests."""
    o.check()
    rows = o.rows(o.controls_file)
    with console.status("loading models"):
        pipe = AdaptivePipeline.from_card(o.card)
        assert pipe.card is not None
        nets, maps = nets_of(pipe.card, o)
        usual = None if pipe.calibration is None else pipe.calibration.threshold
        pipe = pipe.with_controlnets(nets, maps, o.condition_weight)
    settings = cascade_settings(pipe.settings, o)
    policy = policy_beside(pipe, settings, usual, o, console)
    pipe.cascade(settings, policy)
    beside: dict[str, Any] = {"nets": list(nets)}
    if o.condition_weight:
        beside["condition"] = {"maps": list(maps), "weight": o.condition_weight}
    size = settings.width, settings.height

    def compose(row: EditRow, painted: str, first: int, _: int) -> list[GenerationRequest]:
        images = tuple(ImageInput.read_by(partial(read_map, row, size, o.fit, m)) for m in maps)
        return requests_of(row, painted, first, o, [images], o.scales)

    return filled(RunPlan(pipe, policy, settings, extras=beside), rows, o, console, compose)


def control_command(o: ControlOptions) -> None:
    """Paint, resume, and write tables and the contact sheet at the end."""
    console = Console(stderr=True, highlight=False)
    paint(prepare_controls(o, console), o, console)
