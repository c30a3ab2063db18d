"""The exact judge as a scorer, as a judge of composition and as a detector of objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allaprima.bundled.scenes.geometry import SHAPES, SIDE
from allaprima.bundled.scenes.grammar import OPPOSITE, Scene
from allaprima.bundled.scenes.judge import detect, judge
from allaprima.bundled.scenes.reading import read
from allaprima.core.errors import SettingError
from allaprima.oracles.composition import CompositionPrompt, Detection, Exclusion, Inclusion


def _arrays(images: Tensor) -> np.ndarray:
    """`(B, 3, 64, 64)` to `(B, 64, 64, 3)`; other sizes raise `SettingError`."""
    if tuple(images.shape[2:]) != (SIDE, SIDE):
        raise SettingError(
            f"the judge of scenes reads {SIDE}x{SIDE} pixels, these pictures have {images.shape[3]}x{images.shape[2]}:"
            " resize them, or use clip_score."
        )
    return images.float().permute(0, 2, 3, 1).cpu().numpy()


class ExactJudgeScore:
    """Scorer of scenes without a network: whether a picture shows just what its prompt asks for."""

    name = "judge"
    higher_is_better = True
    needs_prompts = True
    needs_references = False

    def protocol(self) -> dict[str, Any]:
        """Return what the score is, for a report."""
        return {"formula": "1 if the picture shows the prompt's objects and no others, else 0", "judge": "exact"}

    def kind(self, prompt: str) -> str:
        """Return one of `grammar.KINDS`; raises `PromptError` for a prompt that is not a scene."""
        return read(prompt).kind

    def faults(self, images: Tensor, prompts: Sequence[str]) -> list[str | None]:
        """Return one of `judge.FAULTS` for each wrong picture, None for each right one.

        Args:
            images: `(B, 3, 64, 64)` in [0, 1].
            prompts: One each.

        Raises:
            SettingError: For pictures of another size.
            PromptError: For a prompt that is not a scene.
        """
        return [judge(image, read(p)).fault for image, p in zip(_arrays(images), prompts, strict=True)]

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> Tensor:
        """Return 1 for each right picture and 0 for each wrong one, `(B,)`; as `faults`, references are not looked at."""
        return torch.tensor([float(fault is None) for fault in self.faults(images, prompts)])


class SceneDetector:
    """`composition.Detector` of the shapes of scenes, without a network; objects that are not well drawn are left out."""

    name, fingerprint, min_confidence = "scenes", "exact", 0.5

    def detect(self, images: Tensor, names: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Find shapes; confidences are how well their templates overlap."""
        found: list[list[Detection]] = []
        for image, wanted in zip(_arrays(images), names, strict=True):
            objects = [o for o in detect(image)[0] if o.well_drawn and o.shape in wanted]
            found.append([Detection(o.shape, o.box, min(o.overlap, 1.0), o.colour) for o in objects])
        return found


def composition_prompt(scene: Scene) -> CompositionPrompt:
    """Return a scene's requirements in GenEval's format; the shapes of its groups must differ, as GenEval's classes do."""
    include: list[Inclusion] = []
    for i, group in enumerate(scene.groups):
        # GenEval says where a group is from an earlier one; a scene says it of the first.
        relation = (OPPOSITE[scene.relation], 0) if i == 1 and scene.relation is not None else None
        include.append(
            Inclusion.model_validate(
                {"class": group.shape, "count": group.count, "color": group.colour, "position": relation}
            )
        )
    counts = {group.shape: group.count for group in scene.groups}
    exclude = [Exclusion.model_validate({"class": shape, "count": counts.get(shape, 0) + 1}) for shape in SHAPES]
    return CompositionPrompt(tag=scene.kind, prompt=scene.caption(), include=tuple(include), exclude=tuple(exclude))
