"""A model of a known family as a painter of whole pictures, for a cascade whose other half isn't known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.conditioning.prompt_inputs import extra_prompts
from allaprima.core.errors import PromptError
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.diffusion.noising import Strength
from allaprima.models.diffusion_model import DiffusionModel
from allaprima.models.external.image_generator import GeneratedImage, GeneratorRequest, steps_for_strength


class GeneratorAdapter:
    """Generate with a latent cascade of its own, whose student and teacher are both the model.

    `drafts`: it paints as a student does (costs and noises go by that name). `last_time`, `interval`: as in
    `CascadeSettings`, of the teacher.
    """

    def __init__(
        self, model: DiffusionModel, drafts: bool, last_time: float | None = None, interval: GuidanceInterval | None = None
    ) -> None:
        self.model = model
        self._more: dict[str, Any] = {"teacher_last_time": last_time, "teacher_guidance_interval": interval}
        self._policy = AlwaysPolicy(Decision.ACCEPT if drafts else Decision.REGENERATE)
        self._cascades: dict[Any, LatentCascade] = {}

    @property
    def fingerprint(self) -> str:
        """The model's."""
        return str(getattr(self.model, "fingerprint", "unknown"))

    @property
    def paints_over(self) -> bool:
        """Whether the model reads pictures."""
        return self.model.reads_images

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the model's."""
        return self.model.encode(prompts)

    def check(self, request: GeneratorRequest) -> None:
        """Raise `PromptError` or `SettingError` for what can't be painted."""
        self._cascade_of(request, 1).check(_request(request, 0))

    def paint(self, requests: Sequence[GeneratorRequest], batch: int) -> list[GeneratedImage | Exception]:
        """One answer an ask."""
        cascade = self._cascade_of(requests[0], batch)
        found: list[GeneratedImage | Exception] = [PromptError("nothing was painted")] * len(requests)
        for r in run(cascade, [_request(request, i) for i, request in enumerate(requests)]):
            evaluations = sum(r.cost.evaluations.values())
            i = r.request.index
            found[i] = (
                PromptError(r.error or "?") if r.image is None else GeneratedImage(r.image, requests[i].steps, evaluations)
            )
        return found

    def _cascade_of(self, request: GeneratorRequest, batch: int) -> LatentCascade:
        """Asks of a run differ in prompt, seed and picture only."""
        over = request.image is not None
        told = request.solver, request.steps, request.guidance, request.guidance_rescale, request.clip_skip
        key = (*told, request.height, request.width, request.strength if over else None, batch)
        if key not in self._cascades:
            steps = steps_for_strength(request.steps, request.strength) if over else request.steps
            settings = CascadeSettings(
                student_steps=steps, student_solver=request.solver, student_guidance=request.guidance, teacher_steps=steps,
                teacher_solver=request.solver, teacher_guidance=request.guidance, sigma=Strength(0.5), batch_size=batch,
                height=request.height, width=request.width, strategy="regenerate", clip_skip=request.clip_skip,
                student_guidance_rescale=request.guidance_rescale, teacher_guidance_rescale=request.guidance_rescale,
                **self._more,
            )  # fmt: skip
            self._cascades[key] = LatentCascade(self.model, self.model, None, self._policy, settings)
        return self._cascades[key]


def _request(request: GeneratorRequest, index: int) -> GenerationRequest:
    edit = None if request.image is None else Edit(ImageInput.of(request.image), request.strength)
    return GenerationRequest(
        request.prompt, request.seed, request.negative_prompt, index, edit=edit, **extra_prompts(request)
    )
