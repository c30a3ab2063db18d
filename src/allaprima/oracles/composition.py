"""Composition: whether an image shows the objects, counts, colours and positions that its prompt asks for.

A detector finds objects; the requirements of the prompt, in GenEval's file format, are checked one by one
(arXiv 2310.11513). `evaluation.composition` reports the share of right images by kind; `CompositionOracle` here lets a
detector score drafts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from allaprima.core.errors import PromptError

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's."""
RELATIONS = ("left of", "right of", "above", "below")
MAX_OBJECTS = 16
"""Objects of one name that are looked at, the most confident ones, as GenEval's."""
POSITION_MARGIN = 0.1
"""Share of both boxes' sizes by which centres must differ before one object is beside another, as GenEval's."""


@dataclass(frozen=True)
class Detection:
    """An object that a detector found.

    Args:
        name: What it is, one of the names that were asked for.
        box: Left, top, right and bottom in pixels.
        confidence: In [0, 1].
        colour: Its colour; None where the detector doesn't say.
    """

    name: str
    box: tuple[float, float, float, float]
    confidence: float
    colour: str | None = None


class Detector(Protocol):
    """Finds objects by their names."""

    name: str
    fingerprint: str
    """Hash of weights and settings."""
    min_confidence: float
    """Confidence above which an object counts. GenEval has .3, and .9 where objects are counted, for Mask2Former."""

    def detect(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Find objects.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            names: For each image, the objects to look for.

        Returns:
            For each image what was found, of any confidence; nothing else than what was asked for.
        """
        ...


class Inclusion(BaseModel):
    """Objects that an image must show: at least `count` of a class, perhaps of a colour and beside an earlier group."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(alias="class", min_length=1)
    count: int = Field(ge=1)
    color: str | None = None
    relation: tuple[str, int] | None = Field(default=None, alias="position")
    """A relation and the place of the group that it refers to in the list."""


class Exclusion(BaseModel):
    """Objects that an image must not show: `count` or more of a class."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(alias="class", min_length=1)
    count: int = Field(ge=1)


class CompositionPrompt(BaseModel):
    """A prompt with what it asks for, a line of GenEval's `evaluation_metadata.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tag: str
    """Kind of the prompt: single_object, two_object, counting, colors, position, color_attr or one of your own."""
    prompt: str = Field(min_length=1)
    include: tuple[Inclusion, ...] = Field(min_length=1)
    exclude: tuple[Exclusion, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Objects that a detector has to look for, each once."""
        return tuple(dict.fromkeys(part.name for part in (*self.include, *self.exclude)))

    def check(self) -> None:
        """Raise `PromptError` for a colour, a relation or a reference that means nothing."""
        for i, part in enumerate(self.include):
            if part.color is not None and part.color not in COLOURS:
                raise PromptError(f"color={part.color!r} is not known: {', '.join(COLOURS)} are.")
            if part.relation is not None:
                relation, target = part.relation
                if relation not in RELATIONS:
                    raise PromptError(f"position={relation!r} is not known: {', '.join(RELATIONS)} are.")
                if not 0 <= target < i:
                    raise PromptError(
                        f"position refers to group {target} from group {i}: expected an earlier one, 0 the first."
                    )


def read_composition_prompts(file: Path) -> dict[str, CompositionPrompt]:
    """Read GenEval's `evaluation_metadata.jsonl`, or a file of your own in that format.

    Args:
        file: JSON lines: `{"tag": "counting", "prompt": "...", "include": [{"class": "clock", "count": 2}], "exclude": []}`.

    Returns:
        The requirements by prompt.

    Raises:
        PromptError: For a file that can't be read, and for a line that isn't such an object; the message names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise PromptError(f"{file} can't be read: {e}. Expected JSON lines of composition prompts.") from e
    prompts: dict[str, CompositionPrompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            made = CompositionPrompt.model_validate_json(line)
            made.check()
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise PromptError(f"{file}, line {number}: {where}: {first['msg']}.") from e
        except PromptError as e:
            raise PromptError(f"{file}, line {number}: {e}") from e
        if prompts.setdefault(made.prompt, made) != made:
            raise PromptError(f"{file}, line {number}: {made.prompt!r} stands there twice with different requirements.")
    if not prompts:
        raise PromptError(f"{file} holds no prompts: expected one JSON object a line.")
    return prompts


def requirements_of(prompts: Mapping[str, CompositionPrompt], prompt: str) -> CompositionPrompt:
    """Return the requirements of a prompt; raises `PromptError` for one that has none."""
    if prompt not in prompts:
        raise PromptError(
            f"prompt {prompt!r} is not among the {len(prompts)} composition prompts, so what it asks for is not known:"
            " add a line for it to their file, or leave it out."
        )
    return prompts[prompt]


def relations_between(box: Sequence[float], other: Sequence[float]) -> frozenset[str]:
    """Return which of `RELATIONS` hold from one box to another, none where they lie too close.

    As GenEval's: the distance of the centres, less a tenth of both sizes, must point at most 60 degrees away.

    Args:
        box: Left, top, right and bottom in pixels.
        other: The same.
    """
    offset = [(box[i] + box[i + 2] - other[i] - other[i + 2]) / 2 for i in (0, 1)]
    margin = [POSITION_MARGIN * (abs(box[i + 2] - box[i]) + abs(other[i + 2] - other[i])) for i in (0, 1)]
    revised = [max(abs(o) - m, 0.0) * (1 if o > 0 else -1) for o, m in zip(offset, margin, strict=True)]
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    if max(map(abs, revised)) < 1e-3:
        return frozenset()
    x, y = (r / length for r in revised)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return frozenset(relation for relation, is_so in holds.items() if is_so)


def composition_fault(detections: Sequence[Detection], wanted: CompositionPrompt, confidence: float) -> str | None:
    """Return why an image doesn't show what its prompt asks for, None for a right one.

    Colour and position are those of the most confident objects of a class, as many as are asked for, as in GenEval.

    Args:
        detections: What was found in the image.
        wanted: Requirements of its prompt.
        confidence: Objects count from above this confidence on.
    """
    found: dict[str, list[Detection]] = {}
    for d in sorted(detections, key=lambda d: -d.confidence):
        if d.confidence > confidence and len(found.setdefault(d.name, [])) < MAX_OBJECTS:
            found[d.name].append(d)
    groups: list[list[Detection]] = []
    for part in wanted.include:
        group = found.get(part.name, [])[: part.count]
        if len(group) < part.count:
            return f"expected {part.count} x {part.name}, found {len(group)}"
        colours = [d.colour for d in group]
        if part.color is not None and colours.count(part.color) < part.count:
            return f"expected {part.count} x {part.color} {part.name}, found {', '.join(map(str, colours))}"
        if part.relation is not None:
            relation, target = part.relation
            for d in group:
                for other in groups[target]:
                    if relation not in relations_between(d.box, other.box):
                        return f"expected {part.name} {relation} {other.name}"
        groups.append(group)
    for part in wanted.exclude:
        if len(found.get(part.name, [])) >= part.count:
            return f"expected fewer than {part.count} x {part.name}, found {len(found[part.name])}"
    return None


class CompositionOracle:
    """A detector as an oracle: how wide the range of confidence thresholds is over which an image shows its prompt.

    1 is an image whose objects are all certain and that shows nothing else; 0 one that is wrong at any threshold. It needs
    no training, but knows only prompts whose requirements are given.

    Args:
        detector: Finds the objects.
        prompts: Requirements by prompt.
    """

    name = "composition"

    def __init__(self, detector: Detector, prompts: Mapping[str, CompositionPrompt]) -> None:
        self.detector, self.prompts = detector, prompts
        self.fingerprint = f"composition {detector.fingerprint}"

    @property
    def cost(self) -> float:
        """Not known: measure it."""
        return float("nan")

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores in [0, 1], `(B,)`.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            prompts: One each.

        Raises:
            PromptError: For a prompt whose requirements are not given.
        """
        wanted = [requirements_of(self.prompts, p) for p in prompts]
        found = self.detector.detect(images, [w.names for w in wanted])
        return torch.tensor([_widest_range(d, w) for d, w in zip(found, wanted, strict=True)])


def _widest_range(detections: Sequence[Detection], wanted: CompositionPrompt) -> float:
    """Return the length of the longest range of thresholds in [0, 1] in which nothing is wrong."""
    ends = sorted({0.0, 1.0, *(min(max(d.confidence, 0.0), 1.0) for d in detections)})
    longest = current = 0.0
    for low, high in zip(ends, ends[1:], strict=False):
        # Between two confidences the same objects count.
        current = current + high - low if composition_fault(detections, wanted, low) is None else 0.0
        longest = max(longest, current)
    return longest
