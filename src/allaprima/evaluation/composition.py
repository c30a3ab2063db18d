"""Composition metric: the share of images that show what their prompts ask for, by GenEval's kinds (arXiv 2310.11513)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from allaprima.evaluation.metric import MetricResult, check_count, check_images, check_prompts, common
from allaprima.oracles.composition import CompositionPrompt, Detector, composition_fault, requirements_of


class CompositionJudge(Protocol):
    """Says what is wrong with an image, and of what kind its prompt is."""

    def protocol(self) -> dict[str, Any]:
        """Return what makes its verdicts comparable, JSON-ready."""
        ...

    def kind(self, prompt: str) -> str:
        """Return the kind of a prompt; raises `PromptError` for one that it doesn't know."""
        ...

    def faults(self, images: Tensor, prompts: Sequence[str]) -> list[str | None]:
        """Return what is wrong with each image `(B, 3, H, W)` in [0, 1]; None for a right one."""
        ...


class DetectorJudge:
    """A detector, and the requirements of prompts in GenEval's file format.

    Args:
        detector: Finds the objects.
        prompts: Requirements by prompt.
    """

    def __init__(self, detector: Detector, prompts: Mapping[str, CompositionPrompt]) -> None:
        self.detector, self.prompts = detector, prompts

    def protocol(self) -> dict[str, Any]:
        """Return the detector with its threshold."""
        d = self.detector
        return {"detector": d.name, "fingerprint": d.fingerprint, "min_confidence": d.min_confidence}

    def kind(self, prompt: str) -> str:
        """Return the tag of a prompt."""
        return requirements_of(self.prompts, prompt).tag

    def faults(self, images: Tensor, prompts: Sequence[str]) -> list[str | None]:
        """Check the requirements one by one."""
        wanted = [requirements_of(self.prompts, p) for p in prompts]
        found = self.detector.detect(images, [w.names for w in wanted])
        least = self.detector.min_confidence
        return [composition_fault(d, w, least) for d, w in zip(found, wanted, strict=True)]


class Composition:
    """Metric: the share of right images, overall and by kind.

    Args:
        judge: Says what is wrong with an image.
    """

    name = "composition"
    higher_is_better = True

    def __init__(self, judge: CompositionJudge) -> None:
        self.judge = judge
        self._right: list[bool] = []
        self._kinds: list[str] = []

    def protocol(self) -> dict[str, Any]:
        """Return the judge's, with the number of images."""
        return {**self.judge.protocol(), **common(self, "picture"), "pictures": len(self._right)}

    def update(self, images: Tensor, prompts: Sequence[str] = (), references: Tensor | None = None) -> None:
        """Judge a batch."""
        if not len(check_images(images)):
            return
        check_prompts(prompts, len(images), self.name)
        kinds = [self.judge.kind(p) for p in prompts]
        self._right += [fault is None for fault in self.judge.faults(images, prompts)]
        self._kinds += kinds

    def compute(self) -> MetricResult:
        """Return the share right; `more`: the mean over kinds, which is GenEval's overall score."""
        check_count(len(self._right), 1, self.name)
        right, kinds = np.array(self._right, dtype=float), tuple(self._kinds)
        by_kind = [right[[k == kind for k in kinds]].mean() for kind in dict.fromkeys(kinds)]
        more = {"mean over kinds": float(np.mean(by_kind))}
        return MetricResult(self.name, float(right.mean()), self.protocol(), more, right, kinds=kinds)
