"""Settings of a cascade run, checked once, before anything is loaded or allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from allaprima.core.constants import NATIVE_SOLVER
from allaprima.core.errors import SettingError
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.diffusion.noising import Sigma, Strength, Variance
from allaprima.diffusion.solvers import TAKE_LAST_TIME, check_solver, solver_name

Strategy = Literal["refine", "regenerate"]
MAX_STEPS = 1000
MAX_BATCH = 1024
RANGES: Sequence[tuple[tuple[str, ...], int, int, str]] = (
    (("student_steps", "teacher_steps"), 1, MAX_STEPS, " network steps are possible."),
    (("student_guidance", "teacher_guidance"), 0, 100, "; 1 means no guidance, 3 is usual for `emoji`."),
    (("student_guidance_rescale", "teacher_guidance_rescale"), 0, 1, "; 0 means none, .7 is the paper's."),
    (("batch_size",), 1, MAX_BATCH, "; 16 is a good start."),
)
"""Settings that are numbers: the lowest and the highest value, and what an error says of them."""
OMITTED_DEFAULTS: Mapping[str, float] = {"student_guidance_rescale": 0.0, "teacher_guidance_rescale": 0.0, "clip_skip": 0}
"""Settings that records and fingerprints leave out at these values: files from before they existed stay as they are."""


@dataclass(frozen=True)
class CascadeSettings:
    """How the student paints, and what the teacher does with a draft that falls short."""

    student_steps: int = 5
    student_solver: str = "consistency"
    student_guidance: float = 3.0
    teacher_steps: int = 20
    teacher_solver: str = "dpm_solver"
    teacher_guidance: float = 3.0
    teacher_last_time: float | None = None
    """Where the teacher's last evaluation falls, in the schedule's times; None is the solver's usual grid."""
    teacher_guidance_interval: GuidanceInterval | None = None
    """Times at which the teacher's guidance is full; None is all of them."""
    strategy: Strategy = "refine"
    sigma: Sigma = Variance(0.7)
    batch_size: int = 16
    height: int = 64
    width: int = 64
    student_guidance_rescale: float = 0.0
    """How much of the conditional half's spread a guided prediction gets back, 0..1 (arXiv 2305.08891, section 3.4)."""
    teacher_guidance_rescale: float = 0.0
    clip_skip: int = 0
    """How many of CLIP's last layers are left out of what is wanted, as diffusers counts them."""

    def __post_init__(self) -> None:
        for names, low, high, hint in RANGES:
            for name in names:
                value = getattr(self, name)
                if not low <= value <= high:
                    raise SettingError(f"{name}={value!r} is out of range: {low}..{high}{hint}")
        if self.clip_skip != int(self.clip_skip) or self.clip_skip < 0:
            raise SettingError(f"clip_skip={self.clip_skip!r} is out of range: whole layers, 0 means none, 1 is usual.")
        for name in ("student_solver", "teacher_solver"):
            value = getattr(self, name)
            if value == NATIVE_SOLVER:
                continue
            try:
                check_solver(value)
            except SettingError as e:
                raise SettingError(f"{name}={value!r}: {e}") from e
        if self.teacher_last_time is not None and solver_name(self.teacher_solver) not in TAKE_LAST_TIME:
            raise SettingError(
                f"teacher_last_time={self.teacher_last_time!r} means nothing to {self.teacher_solver!r}:"
                f" {', '.join(sorted(TAKE_LAST_TIME))} have it. Leave it out, or choose one of these solvers."
            )
        if self.teacher_last_time is not None and "@" in self.teacher_solver:
            raise SettingError(
                f"teacher_last_time={self.teacher_last_time!r} and the spacing of {self.teacher_solver!r} both say where"
                " times fall: leave one of them out."
            )
        if self.strategy not in ("refine", "regenerate"):
            raise SettingError(f"strategy={self.strategy!r} is not known: 'refine' or 'regenerate'.")

    def changed(self, **changes: Any) -> CascadeSettings:
        """With changes; a last time was tuned for one solver, so another solver drops it unless it comes with its own."""
        other = changes.get("teacher_solver", self.teacher_solver) != self.teacher_solver
        if other and "teacher_last_time" not in changes:
            changes["teacher_last_time"] = None
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without `OMITTED_DEFAULTS` at its usual; `sigma` keeps its meaning: `{"variance": .7}` or
        `{"strength": .7}`."""
        kind = "variance" if isinstance(self.sigma, Variance) else "strength"
        said = {k: v for k, v in asdict(self).items() if k not in OMITTED_DEFAULTS or v != OMITTED_DEFAULTS[k]}
        return {**said, "sigma": {kind: self.sigma.value}}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> CascadeSettings:
        """Inverse of `to_dict`."""
        ((kind, value),) = raw["sigma"].items()
        interval = raw.get("teacher_guidance_interval")
        fields: dict[str, Any] = {
            **raw,
            "sigma": make_sigma(kind, value),
            "teacher_guidance_interval": None if interval is None else GuidanceInterval(**interval),
        }
        return cls(**fields)


def make_sigma(kind: str, value: float) -> Sigma:
    """Return a rollback depth by the name of its meaning."""
    if kind == "variance":
        return Variance(float(value))
    if kind == "strength":
        return Strength(float(value))
    raise SettingError(f"sigma_is={kind!r} is not known: 'variance' (the paper's formula) or 'strength' (diffusers' share).")
