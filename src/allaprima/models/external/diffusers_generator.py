"""Any text-to-image pipeline of diffusers' as a painter of whole pictures (`models.external.image_generator`), called as it
is."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import EXTRA_PROMPTS, extra_prompts
from allaprima.core.constants import NATIVE_SOLVER
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.models.components.fingerprints import content_fingerprint
from allaprima.models.external.image_generator import GeneratedImage, GeneratorRequest, steps_for_strength
from allaprima.models.families.family import combined
from allaprima.models.loading.from_pipelines import as_model, family_of

NEEDED = ("prompt", "generator", "num_inference_steps")
"""What a call must take."""


class DiffusersGenerator:
    """`text` paints from a prompt, `image` paints over a picture; either may be missing.

    `rows`: pictures a call, always as many (filled up with copies of the first), so that a picture's bits don't depend on
    how many there are. Each picture has a generator of its own. Steps are counted by the pipeline's `callback_on_step_end`,
    and twice as evaluations where the pipeline says that it is guided (`do_classifier_free_guidance`). Not for several
    threads at once.
    """

    def __init__(self, text: Any = None, image: Any = None, rows: int = 1) -> None:
        self.text, self.image, self.rows = text, image, rows
        if rows < 1:
            raise SettingError(f"rows={rows!r} must be at least 1: pictures a call.")
        if text is None and image is None:
            raise ModelError("a painter needs a pipeline: text to image, image to image, or both.")
        for pipe in (text, image):
            missing = [] if pipe is None else [n for n in NEEDED if n not in _takes(pipe)]
            if missing:
                raise ModelError(f"{type(pipe).__name__} takes no {missing[0]}: it can't be called as a painter.")

    @classmethod
    def of(cls, pipe: Any, rows: int = 1) -> DiffusersGenerator:
        """From one pipeline: its own kind, and the other with the same parts where diffusers knows it (`AutoPipeline`)."""
        from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image, AutoPipelineForText2Image

        over = {"image", "strength"} <= _takes(pipe)
        other: Any = AutoPipelineForText2Image if over else AutoPipelineForImage2Image
        try:
            made = other.from_pipe(pipe)
            made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
        except (ValueError, TypeError, AttributeError):
            made = None
        return cls(made, pipe, rows) if over else cls(pipe, made, rows)

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path) -> DiffusersGenerator:
        """From a folder, or a repository of the hub, in diffusers' format; safetensors, no remote code. `ModelError`."""
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        try:
            pipe = DiffusionPipeline.from_pretrained(
                folder_or_id, use_safetensors=True, torch_dtype=torch.float32, trust_remote_code=False
            )
        except Exception as e:
            why = " ".join(str(e).split())[:300]
            raise ModelError(f"{folder_or_id} cannot be loaded as a pipeline of diffusers': {why}. Check the source.") from e
        pipe.set_progress_bar_config(disable=True)
        return cls.of(pipe)

    @property
    def paints_over(self) -> bool:
        """Whether there is a pipeline for it."""
        return self.image is not None

    @cached_property
    def fingerprint(self) -> str:
        """Of all components, by content."""
        parts = dict((self.text or self.image).components)
        return combined({name: content_fingerprint(part) for name, part in sorted(parts.items())})

    @cached_property
    def _model(self) -> Any:
        pipe = self.text or self.image
        return None if family_of(pipe) is None else as_model(pipe)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Hidden states, of a pipeline of a known family. Raises `ModelError`."""
        if self._model is None:
            raise ModelError(
                f"{type(self.text or self.image).__name__} isn't of a known family: how it reads prompts isn't known. Give"
                " an oracle that reads them itself, or oracle.encoder in the card."
            )
        return self._model.encode(prompts)

    def check(self, request: GeneratorRequest) -> None:
        """Raise `PromptError` or `SettingError` for what the pipeline doesn't take: nothing is dropped in silence."""
        if not request.prompt.strip():
            raise PromptError("the prompt is empty: say what to paint.")
        if request.solver != NATIVE_SOLVER:
            raise SettingError(
                f"solver={request.solver!r}: a pipeline that is called paints with its own scheduler, {NATIVE_SOLVER!r}."
            )
        pipe = self._pipe(request)
        takes, name = _takes(pipe), type(pipe).__name__
        if request.negative_prompt and "negative_prompt" not in takes:
            raise SettingError(f"{name} takes no negative_prompt: leave it out.")
        odd = next((n for n in more_of(request) if n not in takes), None)
        if odd is not None:
            raise SettingError(f"{name} takes no {odd}, and {getattr(request, odd)!r} is asked for: leave it out.")
        if request.guidance != 1 and "guidance_scale" not in takes:
            raise SettingError(f"{name} takes no guidance_scale, and {request.guidance:g} is asked for: give 1.")
        tokenizer = getattr(pipe, "tokenizer", None)
        if tokenizer is not None and getattr(pipe, "tokenizer_2", None) is None:
            n, most = len(tokenizer(request.prompt).input_ids), int(tokenizer.model_max_length)
            if n > most:
                raise PromptError(f"the prompt {request.prompt[:60]!r}... has {n} tokens; {name} reads {most}. Shorten it.")

    def _pipe(self, request: GeneratorRequest) -> Any:
        pipe = self.text if request.image is None else self.image
        if pipe is None:
            kind = "paint from a prompt alone" if request.image is None else "paint over a picture"
            raise SettingError(
                f"{type(self.text or self.image).__name__} can't {kind}, and diffusers knows no sister of it."
            )
        return pipe

    def paint(self, requests: Sequence[GeneratorRequest], batch: int) -> list[GeneratedImage | Exception]:
        """One answer an ask. Those with negatives go apart, and those that say other things beside the prompt."""
        found: dict[int, GeneratedImage | Exception] = {}
        kinds = [(bool(request.negative_prompt), *more_of(request)) for request in requests]
        for kind in dict.fromkeys(kinds):
            places = [i for i, mine in enumerate(kinds) if mine == kind]
            for start in range(0, len(places), self.rows):
                some = places[start : start + self.rows]
                found.update(zip(some, self._some([requests[i] for i in some]), strict=True))
        return [found[i] for i in range(len(requests))]

    def _some(self, requests: list[GeneratorRequest]) -> list[GeneratedImage | Exception]:
        try:
            return list(self._call(requests + requests[:1] * (self.rows - len(requests)))[: len(requests)])
        except Exception as e:
            # Whose fault it is shows when they are painted one by one.
            return [e] if len(requests) == 1 else [self._some([request])[0] for request in requests]

    def _call(self, requests: list[GeneratorRequest]) -> list[GeneratedImage]:
        from allaprima.data.images import to_pil

        first, pipe = requests[0], self._pipe(requests[0])
        takes, counted, guided = _takes(pipe), 0, False

        def count(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal counted, guided
            counted += 1
            guided = bool(getattr(pipeline, "do_classifier_free_guidance", False))
            return tensors

        def listed(values: list[Any]) -> Any:
            return values[0] if len(values) == 1 else values

        n = first.steps if first.image is None else steps_for_strength(first.steps, first.strength)
        told: dict[str, Any] = {
            "prompt": listed([a.prompt for a in requests]), "num_inference_steps": n, "guidance_scale": first.guidance,
            "generator": listed([torch.Generator().manual_seed(a.seed) for a in requests]), "height": first.height,
            "width": first.width, "callback_on_step_end": count,
        }  # fmt: skip
        if first.negative_prompt:
            told["negative_prompt"] = listed([a.negative_prompt for a in requests])
        for name in more_of(first):
            told[name] = listed([getattr(a, name) for a in requests]) if name in EXTRA_PROMPTS else getattr(first, name)
        if first.image is not None:
            told["image"] = listed([to_pil(a.image) for a in requests if a.image is not None])
            told["strength"] = first.strength
        told = {k: v for k, v in told.items() if k in takes}
        pictures = torch.from_numpy(pipe(**told, output_type="np").images).permute(0, 3, 1, 2).float().clamp(0, 1)
        steps = counted if "callback_on_step_end" in takes else first.steps
        return [GeneratedImage(p, steps, steps * (2 if guided else 1)) for p in pictures]


def more_of(request: GeneratorRequest) -> list[str]:
    """What an ask says beside what every pipeline is told, by diffusers' names: only what isn't as usual."""
    return [*extra_prompts(request), *(name for name in ("clip_skip", "guidance_rescale") if getattr(request, name))]


def _takes(pipe: Any) -> set[str]:
    return set(inspect.signature(type(pipe).__call__).parameters)
