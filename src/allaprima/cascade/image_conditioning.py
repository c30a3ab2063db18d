"""What comes with a prompt: pictures that are edited, with masks, and pictures that control.

For an edit this says where painting begins and keeps what lies outside the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from allaprima.cascade.job import Job
from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.edit import Edit, ImageInput, blend_outside_mask, last_steps, latent_mask
from allaprima.core.errors import SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.noising import add_noise
from allaprima.diffusion.schedules import Schedule
from allaprima.diffusion.solvers.consistency import Consistency
from allaprima.diffusion.solvers.solver import Solver, Step


def edit_tensors(edit: Edit, height: int, width: int) -> tuple[Tensor, Tensor | None]:
    """Picture `(3, H, W)` and mask `(1, H, W)`. Raises `SettingError` for those of another size."""
    image = _sized(edit.image, (3, height, width))
    return image, None if edit.mask is None else _sized(edit.mask, (1, height, width))


def _sized(picture: ImageInput, shape: tuple[int, ...]) -> Tensor:
    found = picture.read()
    if tuple(found.shape) != shape:
        what = {1: "mask", 3: "picture"}.get(shape[0], "control picture")
        raise SettingError(
            f"a {what} of {found.shape[-1]}x{found.shape[-2]} with {found.shape[0]} channel(s) doesn't fit: this run paints"
            f" {shape[-1]}x{shape[-2]}, {shape[0]} channel(s). Resize it, or change height and width."
        )
    return found


def control_condition(request: GenerationRequest, channels: Sequence[int], height: int, width: int) -> Condition:
    """One row of `control_0 (1, C, H, W)`, ... and `control_scale (1, K)`. Raises `SettingError` for another size."""
    pairs = zip(request.controls, channels, strict=True)
    pictures = {f"control_{k}": _sized(p, (c, height, width))[None] for k, (p, c) in enumerate(pairs)}
    scales = request.control_scales or (1.0,) * len(request.controls)
    return Condition({**pictures, "control_scale": torch.tensor([scales])})


def check_image_inputs(request: GenerationRequest, reads: bool, controls: Sequence[int], height: int, width: int) -> None:
    """Raise `SettingError` for what painters can't use: they read pictures or not, and controls of so many channels."""
    if len(request.controls) != len(controls) or len(request.control_scales) not in (0, len(controls)):
        raise SettingError(
            f"{len(request.controls)} control pictures with {len(request.control_scales)} scales, for painters with"
            f" {len(controls)} ControlNets: one picture each is due, and as many scales or none."
        )
    if controls:
        control_condition(request, controls, height, width)
    if request.edit is not None:
        if not reads:
            raise SettingError("this student has no encode_images, so it can't edit pictures: use another.")
        edit_tensors(request.edit, height, width)


def student_steps(edit: Edit, solver: Solver, steps: int) -> list[Step]:
    """All of a student's steps, from the edit's time on; a consistency student's at times it was trained on."""
    start = solver.schedule.time_of_strength(edit.strength, steps)
    return solver.timesteps_below(steps, start) if isinstance(solver, Consistency) else solver.timesteps(steps, start)


def teacher_steps(edit: Edit, whole: Sequence[Step]) -> list[Step]:
    """The end of the teacher's plan."""
    return last_steps(whole, edit.strength)


def first_latents(job: Job, t: float, noise: Tensor, schedule: Schedule) -> Tensor:
    """Where painting begins at time `t`: at noise, or at the picture that is edited with that noise on it."""
    return noise if job.request.edit is None or job.request.edit.strength == 1 else _noised(job, t, noise, schedule)


def keep_outside_mask(job: Job, x: Tensor, t: float, schedule: Schedule) -> Tensor:
    """Latents at time `t`: what was painted inside the mask; outside, the picture with its noise up to that time."""
    if job.mask is None:
        return x
    return blend_outside_mask(x, _noised(job, t, job.noise, schedule), latent_mask(job.mask, x))


def _noised(job: Job, t: float, noise: Tensor, schedule: Schedule) -> Tensor:
    times = torch.tensor([t], dtype=torch.float64)
    return add_noise(job.source[None], noise[None], times, schedule)[0]


def paste_outside_mask(job: Job, image: Tensor) -> Tensor:
    """A painted picture with the edited one's own pixels outside the mask: decoding its latents would change them."""
    if job.mask is None or job.request.edit is None:
        return image
    return blend_outside_mask(image, job.request.edit.image.read(), job.mask)
