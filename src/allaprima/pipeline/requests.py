"""The composer of generation requests: Python, the command line, HTTP and Ray make theirs here, so a field is added once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.conditioning.prompt_inputs import EXTRA_PROMPTS, broadcast_all
from allaprima.core.errors import SettingError

PROMPT_TEXTS = ("negative_prompt", *EXTRA_PROMPTS)
"""Texts of a request beside its prompt."""
CALL_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "num_inference_steps": ("teacher_steps",),
    "guidance_scale": ("teacher_guidance", "student_guidance"),
    "guidance_rescale": ("teacher_guidance_rescale", "student_guidance_rescale"),
    "clip_skip": ("clip_skip",),
}
"""Arguments of a call, as diffusers names them, and the fields of `CascadeSettings` that they set."""


def compose_requests(
    prompts: Sequence[str],
    seeds: Sequence[int],
    edits: Sequence[Edit] | None = None,
    controls: Sequence[tuple[ImageInput, ...]] | None = None,
    control_scales: tuple[float, ...] = (),
    first_index: int = 0,
    *,
    texts: Mapping[str, str | Sequence[str] | None],
) -> list[GenerationRequest]:
    """Compose the requests of a call: as many of each prompt, one after another, as there are seeds for it.

    Args:
        prompts: As they are to be encoded.
        seeds: One an image, a whole number of them for each prompt.
        edits: One a prompt, or None to generate from noise.
        controls: For each prompt an image for each ControlNet.
        control_scales: One a ControlNet; empty: 1 each.
        first_index: Index of the first request among the caller's.
        texts: Any of `PROMPT_TEXTS`, one for all prompts or one each; None or empty: none.

    Returns:
        Requests in the order of their seeds.

    Raises:
        SettingError: For as many texts as there are neither one nor prompts, and for a text of an unknown name.
    """
    unknown = sorted(texts.keys() - set(PROMPT_TEXTS))
    if unknown:
        raise SettingError(f"{unknown[0]!r} is no text of a request: {', '.join(PROMPT_TEXTS)} are.")
    columns = broadcast_all({name: texts.get(name) for name in PROMPT_TEXTS}, len(prompts))
    each = len(seeds) // len(prompts) if prompts else 0
    return [
        GenerationRequest(
            prompts[k],
            seed,
            index=first_index + i,
            edit=None if edits is None else edits[k],
            controls=() if controls is None else controls[k],
            control_scales=control_scales,
            **columns[k],
        )
        for i, seed in enumerate(seeds)
        for k in (i // each,)
    ]


def settings_changes(**arguments: Any) -> dict[str, Any]:
    """Return the changes of `CascadeSettings` that arguments of a call make; those that are None make none."""
    given = {name: value for name, value in arguments.items() if value is not None}
    return {field: value for name, value in given.items() for field in CALL_SETTINGS[name]}
