"""`plan.yaml`: a demand, kinds of hardware, thresholds to choose from; docs/planning.md explains every line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.threshold import threshold_for
from allaprima.core.errors import CalibrationError, SettingError
from allaprima.fleet.workload import STAGES, Choice, Demand, Kind, Recording

DAY = 86_400
SHARES = tuple(k / 10 for k in range(11))
"""Shares to try where a calibration knows them all."""
RECORDING_SCHEMA = 1
Layouts = Literal["apart", "together", "either"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CallSeconds(_Strict):
    """Of one call for a whole batch, by part."""

    student_step: float
    oracle: float
    """Scoring a batch of drafts."""
    teacher_step: float
    decode: float
    """A batch of latents to pictures: once for drafts, once for what the teacher made."""
    text: float = 0.0
    """Encoding a batch of prompts."""

    def by_stage(self) -> dict[str, tuple[float, ...]]:
        """As machines do it: drafts are decoded and scored in one call."""
        found = {
            "new": self.text, "student": self.student_step, "score": self.decode + self.oracle,
            "teacher": self.teacher_step, "decode": self.decode,
        }  # fmt: skip
        return {stage: (x,) for stage, x in found.items()}


class Hardware(_Strict):
    """One kind of machine."""

    cost: float
    """An hour."""
    at_most: int | None = None
    batch: int | None = None
    """Pictures a call; a recording knows its own."""
    seconds: CallSeconds | None = None
    recorded: str | None = None
    """JSON of `python -m benchmarks.simulator --record`, relative to the plan."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.seconds is None) == (self.recorded is None):
            raise ValueError("either seconds (given) or recorded (a file of measured ones) is due")
        if self.seconds is not None and self.batch is None:
            raise ValueError("seconds are of a whole batch: batch, pictures a call, is due with them")
        return self


class TeacherOnly(_Strict):
    """What the saving is counted against."""

    steps: int
    quality: float | None = None


class FrontierReport(_Strict):
    """Thresholds from a calibration, their qualities from a report of `allaprima frontier`."""

    calibration: str
    """JSON file, relative to the plan."""
    report: str | None = None
    """`frontier.json`, relative to the plan."""
    method: str = "adaptive regenerate"
    measure: str = "judge"
    """Higher must be better."""


class ThresholdPoint(_Strict):
    """One threshold, given."""

    threshold: float
    share: float
    quality: float | None = None


class PlanFile(_Strict):
    """A plan as read from its YAML."""

    p95: float
    student_steps: int
    teacher_steps: int
    hardware: dict[str, Hardware]
    frontier: FrontierReport | list[ThresholdPoint]
    pictures_a_second: float | None = None
    pictures_a_day: float | None = None
    burstiness: float = 1.0
    occupied_at_most: float = 0.9
    teacher_only: TeacherOnly | None = None
    quality: float | None = None
    cost_at_most: float | None = None
    layout: Layouts = "either"


@dataclass(frozen=True)
class Task:
    """A plan file, read and checked."""

    demand: Demand
    kinds: tuple[Kind, ...]
    choices: tuple[Choice, ...]
    layouts: tuple[str, ...]
    quality: float | None
    cost_at_most: float | None
    teacher_only: Choice


def read_plan(path: Path, changes: Mapping[str, Any] | None = None) -> Task:
    """Read `plan.yaml`; `changes` are fields that stand in place of the file's. Raises `SettingError`."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise SettingError(f"{path} cannot be read as YAML: {e}. docs/planning.md has an example to start from.") from e
    if not isinstance(raw, dict):
        raise SettingError(f"{path} is {type(raw).__name__}, not a mapping of names to values: see docs/planning.md.")
    values = {k: v for k, v in (changes or {}).items() if v is not None}
    # One of two names for one thing on the command line stands in place of both in the file.
    for one, other in (("pictures_a_second", "pictures_a_day"), ("quality", "cost_at_most")):
        if one in values or other in values:
            raw = {k: v for k, v in raw.items() if k not in (one, other)}
    try:
        return _checked(PlanFile.model_validate({**raw, **values}), path)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(x) for x in first["loc"]) or "the file"
        said = repr(first["input"])
        said = said if len(said) <= 80 else said[:77] + "..."
        raise SettingError(f"{path}: {where} is {said}: {first['msg']}. docs/planning.md has every field.") from e


def _checked(file: PlanFile, path: Path) -> Task:
    if (file.pictures_a_second is None) == (file.pictures_a_day is None):
        raise SettingError(f"{path}: pictures_a_second or pictures_a_day is due, one of them.")
    if file.quality is not None and file.cost_at_most is not None:
        raise SettingError(
            f"{path}: quality={file.quality!r} asks for the cheapest fleet that good, cost_at_most={file.cost_at_most!r} for"
            " the best at that price: give one of them."
        )
    if not file.hardware:
        raise SettingError(f"{path}: hardware is empty: name one kind or more, with its cost an hour and its seconds.")
    rate = file.pictures_a_second if file.pictures_a_second is not None else (file.pictures_a_day or 0) / DAY
    only = file.teacher_only or TeacherOnly(steps=file.teacher_steps)
    demand = Demand(
        rate, file.p95, file.student_steps, file.teacher_steps, only.steps, file.burstiness, file.occupied_at_most
    )  # fmt: skip
    choices = _choices(file, path.parent)
    _check_aim(file, choices, path)
    return Task(
        demand,
        tuple(_kind(name, h, path.parent) for name, h in file.hardware.items()),
        choices,
        ("apart", "together") if file.layout == "either" else (file.layout,),
        file.quality,
        file.cost_at_most,
        Choice(math.inf, 1.0, math.nan if only.quality is None else only.quality),
    )


def _check_aim(file: PlanFile, choices: Sequence[Choice], path: Path) -> None:
    known = [c for c in choices if not math.isnan(c.quality)]
    if file.quality is not None:
        if len(known) < len(choices):
            raise SettingError(
                f"{path}: quality={file.quality!r} is asked for, but not known of every threshold: give it in the frontier's"
                " points or a report, or ask for cost_at_most."
            )
        best = max(known, key=lambda c: c.quality)
        if best.quality < file.quality:
            raise SettingError(
                f"{path}: quality={file.quality!r} can't be reached: the best of the frontier is {best.quality:.6g}, at"
                f" threshold {best.threshold:.6g}. Nearest: quality: {best.quality:.6g}."
            )
    elif file.cost_at_most is None and len(choices) > 1:
        raise SettingError(
            f"{path}: {len(choices)} thresholds and nothing to choose by: give quality (at least) or cost_at_most (an hour);"
            " a frontier of one point needs neither."
        )


def _kind(name: str, h: Hardware, folder: Path) -> Kind:
    if h.seconds is not None:
        return Kind(name, h.cost, h.batch or 1, h.seconds.by_stage(), h.at_most)
    recording = read_recording(folder / str(h.recorded))
    if h.batch not in (None, recording.batch):
        raise SettingError(
            f"hardware {name!r}: batch={h.batch!r}, but {h.recorded} was recorded with {recording.batch}: leave batch out."
        )
    times = {s: tuple(float(x) for x in recording.seconds[s]) for s in STAGES}
    return Kind(name, h.cost, recording.batch, times, h.at_most, measured=True)


def _choices(file: PlanFile, folder: Path) -> tuple[Choice, ...]:
    values = file.frontier
    if not isinstance(values, FrontierReport):
        if not values:
            raise SettingError("frontier is empty: give points (threshold, share, quality) or a calibration.")
        return tuple(Choice(p.threshold, p.share, math.nan if p.quality is None else p.quality) for p in values)
    calibration = Calibration.load(folder / values.calibration)
    if values.report is not None:
        return _reported(values, calibration, folder / values.report, file)
    if file.cost_at_most is None:
        return (Choice(calibration.threshold, calibration.percentile / 100),)
    return tuple(Choice(threshold_for(calibration.scores, s), s) for s in SHARES)


def _reported(values: FrontierReport, calibration: Calibration, path: Path, file: PlanFile) -> tuple[Choice, ...]:
    """Return the points of a report as choices: shares follow from their mean steps,
    the threshold is the calibration's for it."""
    try:
        points = [p for p in json.loads(path.read_text(encoding="utf-8"))["points"] if p["method"] == values.method]
        rows = [(float(p["steps"]), float(p[values.measure])) for p in points]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CalibrationError(
            f"{path} has no points of method {values.method!r} with {values.measure!r}: {e!r}. Give a frontier.json of"
            " `allaprima frontier`, and a method and a measure that are in it."
        ) from e
    if not rows:
        raise CalibrationError(f"{path} has no method {values.method!r}: name one that is in it.")
    found: dict[float, Choice] = {}
    for steps, quality in rows:
        share = round((steps - file.student_steps) / file.teacher_steps, 4)
        if not -0.005 <= share <= 1.005:
            raise SettingError(
                f"{path}: {steps:.4g} mean steps are no share of {file.student_steps} + {file.teacher_steps} steps: the"
                " report is of other settings. Give student_steps and teacher_steps as the frontier had them."
            )
        share = min(max(share, 0.0), 1.0)
        found[share] = replace(Choice(threshold_for(calibration.scores, share), share), quality=quality)
    return tuple(found[s] for s in sorted(found))


def read_recording(path: Path) -> Recording:
    """Inverse of `write_recording`; raises `SettingError` for anything else."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema"] != RECORDING_SCHEMA:
            raise SettingError(f"{path} has schema {raw['schema']}, this version reads {RECORDING_SCHEMA}: record again.")
        times = {s: [float(x) for x in raw["seconds"][s]] for s in STAGES}
        return Recording(str(raw["machine"]), int(raw["batch"]), times)
    except SettingError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise SettingError(
            f"{path} is not a recording ({e!r}): JSON with schema, machine, batch and seconds by stage ({', '.join(STAGES)})"
            " is due, as `python -m benchmarks.simulator --record FILE` writes it."
        ) from e


def write_recording(path: Path, recording: Recording) -> None:
    """As JSON."""
    raw = {
        "schema": RECORDING_SCHEMA, "machine": recording.machine, "batch": recording.batch,
        "seconds": {s: list(x) for s, x in recording.seconds.items()},
    }  # fmt: skip
    path.write_text(json.dumps(raw) + "\n", encoding="utf-8")
