"""What text encoders are told where it isn't one prompt for all: `prompt_2` and the like, named as diffusers names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allaprima.core.errors import SettingError

EXTRA_PROMPTS = ("prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3")
"""What a request may say beside `prompt` and `negative_prompt`; empty: as these."""


@dataclass(frozen=True)
class PromptInputs:
    """One row of a condition: what is wanted, or what guidance leads away from."""

    prompt: str
    prompt_2: str = ""
    """For the second text encoder; empty: the prompt."""
    prompt_3: str = ""
    """For the third."""

    @property
    def per_encoder(self) -> tuple[str, str, str]:
        """What each of up to three encoders reads."""
        return self.prompt, self.prompt_2 or self.prompt, self.prompt_3 or self.prompt

    @property
    def empty(self) -> bool:
        """Whether nothing is said to any of them."""
        return not any(self.per_encoder)


def extra_prompts(request: Any) -> dict[str, Any]:
    """Those of `EXTRA_PROMPTS` that a request (or anything with fields of these names) sets."""
    return {name: value for name in EXTRA_PROMPTS if (value := getattr(request, name))}


def positive_inputs(request: Any) -> PromptInputs:
    """What a request wants."""
    return PromptInputs(request.prompt, request.prompt_2, request.prompt_3)


def negative_inputs(request: Any) -> PromptInputs:
    """What it leads away from."""
    return PromptInputs(request.negative_prompt, request.negative_prompt_2, request.negative_prompt_3)


def broadcast(name: str, value: str | Sequence[str] | None, n: int) -> list[str]:
    """A text for each of `n` prompts, from one for all, one each or none. Raises `SettingError` for other numbers."""
    found = [value or ""] * n if value is None or isinstance(value, str) else list(value)
    if len(found) != n:
        raise SettingError(f"{name}: {len(found)} of them for {n} prompts. Give one for all or one each.")
    return found


def broadcast_all(texts: Mapping[str, str | Sequence[str] | None], n: int) -> list[dict[str, Any]]:
    """The same for several names: for each of `n` prompts what is said under each name."""
    columns = {name: broadcast(name, value, n) for name, value in texts.items()}
    return [{name: column[k] for name, column in columns.items()} for k in range(n)]
