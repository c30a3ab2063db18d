"""A generation request: what one image is generated from."""

from __future__ import annotations

from dataclasses import dataclass

from allaprima.conditioning.edit import Edit, ImageInput


@dataclass(frozen=True)
class GenerationRequest:
    """What is asked for: one picture."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    index: int = 0
    """Place in the caller's list; only results carry it, nothing is computed from it."""
    attempt: int = 0
    """Which of the seed's drafts comes first: 1 begins with what a policy of several drafts generates second."""
    edit: Edit | None = None
    """The picture to start from; None paints from noise."""
    controls: tuple[ImageInput, ...] = ()
    """Pictures that the painters' ControlNets read, one each."""
    control_scales: tuple[float, ...] = ()
    """How much each of them is heeded; empty: 1 each."""
    prompt_2: str = ""
    """For the second text encoder (`conditioning.prompt_inputs`); empty: the prompt. Likewise the others."""
    negative_prompt_2: str = ""
    prompt_3: str = ""
    negative_prompt_3: str = ""
