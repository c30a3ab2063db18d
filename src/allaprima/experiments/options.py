"""Options that the verbs generate, edit and control have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allaprima.core.errors import PromptError, SettingError
from allaprima.data.edits import EditRow, read_edits


@dataclass(frozen=True)
class PaintOptions:
    """Options that generate, edit and control have in common, as given."""

    prompts: list[str] | None
    card: str
    out: Path
    student_only: bool
    teacher_only: bool
    strategy: str | None
    threshold: float | None
    sigma: float | None
    sigma_is: str | None
    solver: str | None
    steps: int | None
    last_time: float | None
    student_steps: int | None
    guidance: float | None
    negative_prompt: str
    prompt_2: str
    negative_prompt_2: str
    prompt_3: str
    negative_prompt_3: str
    clip_skip: int | None
    guidance_rescale: float | None
    seed: int
    images_per_prompt: int
    batch_size: int | None
    nearest: bool
    resume: bool

    @property
    def mode(self) -> str:
        """The pipeline's mode."""
        if self.student_only and self.teacher_only:
            raise SettingError("--student-only and --teacher-only contradict each other: give one.")
        return "student-only" if self.student_only else "teacher-only" if self.teacher_only else "adaptive"


@dataclass(frozen=True)
class ImageOptions(PaintOptions):
    """Options of a verb that takes an image with prompts, or a file of such rows."""

    picture: Path | None
    mask: Path | None
    fit: bool

    def check_rows(self, file: Path | None, option: str) -> None:
        """Raise `SettingError` or `PromptError` unless there is one of the two; `option` is the file's name as an option."""
        if (self.picture is None) == (file is None):
            raise SettingError(f"a picture with prompts, or {option} with rows of image and prompt: give one of the two.")
        if file is not None and (self.prompts or self.mask is not None):
            raise SettingError(f"{option} has the prompts and masks: leave prompts and --mask out.")
        if self.picture is not None and not self.prompts:
            raise PromptError(f"no prompt for {self.picture}: say what is to be painted, for example 'owl, fluent 3d'.")

    def rows(self, file: Path | None) -> list[EditRow]:
        """Return what is asked. Raises `PromptError` when that is nothing."""
        if self.picture is not None:
            return [EditRow(self.picture, prompt, mask=self.mask) for prompt in self.prompts or []]
        assert file is not None
        rows = list(read_edits(file))
        if not rows:
            raise PromptError(f"{file} has no rows: image and prompt are due in each.")
        return rows
