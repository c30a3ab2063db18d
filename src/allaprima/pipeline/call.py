"""Arguments and results of an adaptive pipeline's call: seeds, outputs, the callback on step end."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from allaprima.cascade.result import Result
from allaprima.core.cost import Cost
from allaprima.core.errors import PaintingError, SettingError
from allaprima.data.images import to_pil

StepCallback = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], "Mapping[str, torch.Tensor] | None"]
"""diffusers': `(pipe, step, timestep, tensors) -> tensors that replace them, or None`."""
OUTPUTS: Mapping[str, Callable[[torch.Tensor], Any]] = {
    "pil": lambda images: [to_pil(image) for image in images],
    "np": lambda images: images.permute(0, 2, 3, 1).float().numpy(),
    "pt": lambda images: images,
}
"""Pictures `(N, 3, H, W)` in [0, 1] as a caller wants them."""


@dataclass(frozen=True)
class AdaptiveOutput:
    """Pictures in the order of the prompts (`num_images_per_prompt` of each in a row), and their account."""

    images: Any
    """A list of PIL's by default; an array or a tensor if that was asked for (`output_type`)."""
    scores: list[float | None]
    decisions: list[str]
    costs: list[Cost]
    results: list[Result]


def check_output(output_type: str, callback: StepCallback | None, tensor_inputs: Sequence[str]) -> None:
    """Raise `SettingError` for an output, or for tensors of a callback, that there are not."""
    if output_type not in OUTPUTS:
        raise SettingError(f"output_type={output_type!r} is not known: {', '.join(OUTPUTS)} are.")
    if callback is not None and not set(tensor_inputs) <= {"latents"}:
        raise SettingError(f"callback_on_step_end_tensor_inputs={list(tensor_inputs)}: 'latents' can be had.")


def output_of(results: Sequence[Result], output_type: str, return_dict: bool) -> AdaptiveOutput | tuple[Any]:
    """Return what a call gives back. Raises `PaintingError`, which holds all results, when an image failed."""
    results = sorted(results, key=lambda r: r.request.index)
    failed = [r for r in results if r.image is None]
    if failed:
        raise PaintingError(
            f"{len(failed)} of {len(results)} pictures failed, the first: {failed[0].error}. The others are in this"
            " error's `results`.",
            results,
        )
    images = OUTPUTS[output_type](torch.stack([r.image for r in results if r.image is not None]))
    if not return_dict:
        return (images,)
    columns = [r.score for r in results], [str(r.decision) for r in results], [r.cost for r in results]
    return AdaptiveOutput(images, *columns, results)


class CallbackOnStepEnd:
    """A caller's callback, as the machine calls it."""

    def __init__(self, pipe: Any, callback: StepCallback, latents: bool) -> None:
        self._pipe, self._callback, self._latents, self._step = pipe, callback, latents, 0

    def __call__(self, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Return what the latents `(B, C, h, w)` become; `t: (B,)` the times they were painted at."""
        said = self._callback(self._pipe, self._step, t, {"latents": latents} if self._latents else {})
        self._step += 1
        changed = latents if said is None else said.get("latents", latents)
        if changed.shape != latents.shape:
            raise SettingError(f"a callback made latents of {tuple(changed.shape)}: {tuple(latents.shape)} are due.")
        return changed


def seeds_of(
    n: int, seed: int | Sequence[int] | None, generator: torch.Generator | Sequence[torch.Generator] | None
) -> list[int]:
    """Return `n` seeds, from one (counted up), a list, generators, or none. Raises `SettingError`."""
    if seed is not None and generator is not None:
        raise SettingError("seed and generator contradict each other: give one.")
    if generator is not None:
        several = [generator] * n if isinstance(generator, torch.Generator) else list(generator)
        if len(several) != n:
            raise SettingError(f"{len(several)} generators for {n} pictures: give one for all, or one a picture.")
        return [int(torch.randint(2**31, (1,), generator=g)) for g in several]
    if seed is None:
        first = secrets.randbelow(2**31)
        return [first + i for i in range(n)]
    if isinstance(seed, int):
        return [seed + i for i in range(n)]
    if len(seed) != n:
        raise SettingError(f"{len(seed)} seeds for {n} pictures: give one for all (counted up), or one a picture.")
    return [int(s) for s in seed]
