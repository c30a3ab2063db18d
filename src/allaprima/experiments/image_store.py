"""Pictures painted once and kept with what was measured of them; what made them is their name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import PromptError
from allaprima.pipeline import AdaptivePipeline

ScoreFunction = Callable[[Tensor, Sequence[str]], dict[str, Tensor]]
"""Pictures `(B, 3, H, W)` uint8 with prompts -> named values `(B, ...)`."""
_TEACHER_ONLY = (
    "teacher_steps", "teacher_solver", "teacher_guidance", "teacher_guidance_interval", "teacher_last_time",
    "teacher_guidance_rescale", "clip_skip", "height", "width", "batch_size",
)  # fmt: skip
_STUDENT_ONLY = (
    "student_steps", "student_solver", "student_guidance", "student_guidance_rescale", "clip_skip", "height", "width",
    "batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Painting:
    """One way of painting every request: a mode of the pipeline, its settings, which of a seed's drafts comes first."""

    name: str
    mode: str
    settings: CascadeSettings
    attempt: int = 0


class ImageStore:
    """A folder of safetensors: pictures and measures by what made them, so a stopped run goes on where it was."""

    def __init__(
        self, folder: Path, pipe: AdaptivePipeline, prompts: Sequence[str], score_images: ScoreFunction, signature: str,
        note: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`signature` names what `score_images` measures, with the networks' fingerprints."""
        self.folder, self.pipe, self.prompts, self.score_images, self.signature, self.note = (
            folder,
            pipe,
            prompts,
            score_images,
            signature,
            note,
        )
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, painting: Painting, seed: int) -> dict[str, Tensor]:
        """Return `images (N, 3, H, W)` uint8, `scores (N,)` of drafts if any, costs, and what `score_images` gives.

        Costs: `draft.evaluations`, `draft.seconds` (all but the teacher's), `teacher.evaluations`, `teacher.seconds`.
        """
        key = self._key(painting, seed)
        file = self.folder / f"{key}.safetensors"
        if not file.exists():
            self.note(f"painting {painting.name}, seed {seed}")
            self._save(file, self._paint(painting, seed))
        found = load_file(file)
        measured = self.folder / f"{key}.{hashlib.sha256(self.signature.encode()).hexdigest()[:12]}.measured.safetensors"
        if not measured.exists():
            self.note(f"measuring {painting.name}, seed {seed}")
            parts = [
                self.score_images(found["images"][i : i + 64], self.prompts[i : i + 64])
                for i in range(0, len(self.prompts), 64)
            ]
            self._save(measured, {k: torch.cat([p[k] for p in parts]) for k in parts[0]})
        return {**found, **load_file(measured)}

    def _key(self, painting: Painting, seed: int) -> str:
        settings, prints = painting.settings.to_dict(), self.pipe.fingerprints()
        if painting.mode == "teacher-only":
            settings = {k: settings[k] for k in _TEACHER_ONLY if k in settings}
            prints = {"teacher": prints["teacher"]}
        elif painting.mode == "student-only":
            settings = {k: settings[k] for k in _STUDENT_ONLY if k in settings}
            prints = {k: v for k, v in prints.items() if k != "teacher"}
        what: list[Any] = [painting.mode, settings, prints, list(self.prompts), seed, painting.attempt]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]

    def _paint(self, painting: Painting, seed: int) -> dict[str, Tensor]:
        requests = [GenerationRequest(p, seed + i, "", i, painting.attempt) for i, p in enumerate(self.prompts)]
        policy = self.pipe.policy(painting.settings, mode=painting.mode)
        results = sorted(self.pipe.stream(requests, painting.settings, policy), key=lambda r: r.request.index)
        images: list[Tensor] = []
        for r in results:
            if r.image is None:
                raise PromptError(f"{r.request.prompt!r} could not be painted: {r.error}. Take it out of the prompts.")
            images.append((r.image * 255).round().byte())
        made = {"images": torch.stack(images)}
        for unit in ("evaluations", "seconds"):
            spent = [getattr(r.cost, unit) for r in results]
            teacher = torch.tensor([c.get("teacher", 0.0) for c in spent]).double()
            made[f"teacher.{unit}"] = teacher
            made[f"draft.{unit}"] = torch.tensor([sum(c.values()) for c in spent]).double() - teacher
        if painting.mode != "teacher-only":
            made["scores"] = torch.tensor([float("nan") if r.score is None else r.score for r in results]).double()
        return made

    @staticmethod
    def _save(file: Path, tensors: dict[str, Tensor]) -> None:
        beside = file.with_name(file.name + ".part")
        save_file(tensors, beside)
        beside.replace(file)
