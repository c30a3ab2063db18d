"""What finished pictures are measured by, in commands that paint to compare: oracle, bundled judge, features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.frontier import Measure
from allaprima.experiments.image_store import ScoreFunction
from allaprima.pipeline import AdaptivePipeline


@dataclass(frozen=True)
class Scorers:
    """One function that measures everything, and what it measures."""

    score_images: ScoreFunction
    measures: tuple[Measure, ...]
    identity: dict[str, str]
    """Names of what is measured with the networks' fingerprints."""
    reference: Tensor | None
    """Features of real pictures `(M, D)` for the Frechet distance, or None."""

    @property
    def signature(self) -> str:
        """The identity as one string, part of the names of kept measures."""
        return repr(sorted(self.identity.items()))


def scorers_for(pipe: AdaptivePipeline, prompts: Sequence[str], reference: Path | None) -> Scorers:
    """Return the card's oracle; for the bundled pairs their judge first; the Frechet distance where a reference is given.

    Raises `SettingError` for a card without an oracle.
    """
    card = getattr(pipe.card, "name", "")
    if pipe.oracle is None:
        raise SettingError(f"card {card!r} has no oracle: a cascade has nothing to decide by.")
    oracle, size = pipe.oracle, pipe.settings.batch_size
    measures = [Measure("oracle", "oracle's score", True)]
    identity = {"oracle": oracle.fingerprint}
    judge: Any = None
    texts: dict[str, Tensor] = {}
    net = features = None
    if card == "scenes":
        from allaprima.bundled.judges import load_judge_score

        judge = load_judge_score(card, pipe.student.encode)
        measures.insert(0, Measure("judge", "share right", True))
        identity["judge"] = "exact"
    if card == "emoji":
        from allaprima.bundled.emoji import load_judge

        judge = load_judge()
        parts = [pipe.student.encode(prompts[i : i + 64]) for i in range(0, len(prompts), 64)]
        texts = dict(zip(prompts, torch.cat([judge.embed_texts(p) for p in parts]), strict=True))
        measures.insert(0, Measure("judge", "judge's score", True))
        identity["judge"] = "bundled"
    if reference is not None:
        from safetensors.torch import load_file

        from allaprima.features.efficientnet_lite import EfficientNetLite0

        net = EfficientNetLite0.pretrained()
        features = load_file(reference)["features"].float()
        measures.append(Measure("frechet", "Frechet distance (EfficientNet-Lite0)", False))
        identity["features"] = net.fingerprint

    @torch.inference_mode()
    def score_images(images: Tensor, captions: Sequence[str]) -> dict[str, Tensor]:
        x = images.float() / 255
        found = {
            "oracle": torch.cat([oracle.score(x[i : i + size], captions[i : i + size]) for i in range(0, len(x), size)])
        }
        if judge is not None:
            found["judge"] = judge.score(x, torch.stack([texts[c] for c in captions]) if texts else captions)
        if net is not None:
            found["features"] = net.features(images).half()
        return {k: v.clone() for k, v in found.items()}

    return Scorers(score_images, tuple(measures), identity, features)
