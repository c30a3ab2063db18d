"""A model of a known family as a painter of whole pictures, for a cascade whose other half isn't known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from allaprima.cascade.job import Request
from allaprima.cascade.machine import Machine
from allaprima.cascade.painter import Painter, Reads
from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.run import run
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.asks import Ask, Painted, grid_for
from allaprima.core.errors import PromptError
from allaprima.core.words import given
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.diffusion.rollback import Strength
from allaprima.tasks.edit import Edit, Picture


class StepPainter:
    """Paints with a machine of its own, the model on both sides of it; batches and bits are the machine's.

    `drafts`: it paints as a student does (costs and noises go by that name). `last_time`, `interval`: as in
    `CascadeSettings`, of the teacher.
    """

    def __init__(
        self, painter: Painter, drafts: bool, last_time: float | None = None, interval: GuidanceInterval | None = None
    ) -> None:
        self.painter = painter
        self._more: dict[str, Any] = {"teacher_last_time": last_time, "teacher_guidance_interval": interval}
        self._policy = AlwaysPolicy(Decision.ACCEPT if drafts else Decision.REGENERATE)
        self._machines: dict[Any, Machine] = {}

    @property
    def fingerprint(self) -> str:
        """The model's."""
        return str(getattr(self.painter, "fingerprint", "unknown"))

    @property
    def paints_over(self) -> bool:
        """Whether the model reads pictures."""
        return isinstance(self.painter, Reads)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """The model's."""
        return self.painter.encode(prompts)

    def check(self, ask: Ask) -> None:
        """Raise `PromptError` or `SettingError` for what can't be painted."""
        self._machine(ask, 1).check(_request(ask, 0))

    def paint(self, asks: Sequence[Ask], batch: int) -> list[Painted | Exception]:
        """One answer an ask."""
        machine = self._machine(asks[0], batch)
        found: list[Painted | Exception] = [PromptError("nothing was painted")] * len(asks)
        for r in run(machine, [_request(ask, i) for i, ask in enumerate(asks)]):
            evaluations = sum(r.cost.evaluations.values())
            i = r.request.index
            found[i] = PromptError(r.error or "?") if r.image is None else Painted(r.image, asks[i].steps, evaluations)
        return found

    def _machine(self, ask: Ask, batch: int) -> Machine:
        """Asks of a run differ in prompt, seed and picture only."""
        over = ask.image is not None
        told = ask.solver, ask.steps, ask.guidance, ask.guidance_rescale, ask.clip_skip
        key = (*told, ask.height, ask.width, ask.strength if over else None, batch)
        if key not in self._machines:
            steps = grid_for(ask.steps, ask.strength) if over else ask.steps
            settings = CascadeSettings(
                student_steps=steps, student_solver=ask.solver, student_guidance=ask.guidance, teacher_steps=steps,
                teacher_solver=ask.solver, teacher_guidance=ask.guidance, sigma=Strength(0.5), batch_size=batch,
                height=ask.height, width=ask.width, strategy="regenerate", clip_skip=ask.clip_skip,
                student_guidance_rescale=ask.guidance_rescale, teacher_guidance_rescale=ask.guidance_rescale, **self._more,
            )  # fmt: skip
            self._machines[key] = Machine(self.painter, self.painter, None, self._policy, settings)
        return self._machines[key]


def _request(ask: Ask, index: int) -> Request:
    edit = None if ask.image is None else Edit(Picture.of(ask.image), ask.strength)
    return Request(ask.prompt, ask.seed, ask.negative_prompt, index, edit=edit, **given(ask))
