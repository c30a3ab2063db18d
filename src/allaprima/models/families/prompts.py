"""How families read prompts: what is too much for a text encoder, and `encode_prompt` of diffusers' own pipelines."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import ModelError, PromptError
from allaprima.models.cards.card import TextSettings


def text_side(pipeline_class: tuple[str, str], model: Any, **more: Any) -> Any:
    """Return a diffusers pipeline with a model's tokenizers and text encoders and no other parts, for its `encode_prompt`.

    `pipeline_class`: module below `diffusers.pipelines`, and class. `more`: what else it is made with.
    """
    module, name = pipeline_class
    kind = getattr(importlib.import_module(f"diffusers.pipelines.{module}"), name)
    due = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    inputs = {n: getattr(model, n, None) for n in due if n.startswith(("tokenizer", "text_encoder"))}
    return kind(**{**dict.fromkeys(due), **inputs, **more})


def refuse_unreadable(prompt: str, tokens: Sequence[tuple[int, int]]) -> None:
    """Raise `PromptError` for an empty prompt, or one that has more tokens than an encoder reads (pairs of both)."""
    if not prompt.strip():
        raise PromptError("the prompt is empty: say what to paint, for example 'red apple, noto'.")
    for n, most in tokens:
        if n > most:
            raise PromptError(f"the prompt {prompt[:60]!r}... has {n} tokens; this text encoder reads {most}. Shorten it.")


def clip_layers(*encoders: Any) -> int:
    """How many layers all of these have, wherever they run; 0 where one isn't CLIP's text encoder."""
    known = all(getattr(encoder.config, "model_type", None) == "clip_text_model" for encoder in encoders)
    return min(int(encoder.config.num_hidden_layers) for encoder in encoders) if known else 0


def told_to(inputs: Sequence[PromptInputs], count: int) -> list[list[str]]:
    """Columns: what each of `count` encoders reads, for diffusers' `encode_prompt`."""
    return [[w.per_encoder[place] for w in inputs] for place in range(count)]


def refuse_text_settings(text: TextSettings, family: str, most: int = 512, known: Sequence[str] = ()) -> None:
    """Raise `ModelError` for settings of the text encoder that a family doesn't have, or more tokens than it reads."""
    odd = [name for name in ("attention_mask", "zero_padding") if getattr(text, name)]
    odd += [name for name in ("instruction",) if getattr(text, name) is not None and name not in known]
    if odd:
        value = getattr(text, odd[0])
        raise ModelError(f"text.{odd[0]} = {value} means nothing to the family {family}: leave it out of the card.")
    if text.max_sequence_length is not None and text.max_sequence_length > most:
        raise ModelError(
            f"text.max_sequence_length = {text.max_sequence_length} is more than the {most} tokens that the family {family}"
            " reads: give fewer, or leave it out of the card."
        )


def read_length(text: TextSettings, usual: int) -> int:
    """How many tokens of a prompt are read: what the card says, else what is usual for the family."""
    return usual if text.max_sequence_length is None else text.max_sequence_length
