"""Grammars: models that know sentences of one kind only read a prompt as the sentence that it means."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

GRAMMARS: Mapping[str, str] = {"scenes": "allaprima.bundled.scenes.reading"}
"""Name in a card's `text.grammar` -> the module whose `canonical(prompt)` says the sentence; imported when it is needed."""


def canonical_prompt(grammar: str | None, prompt: str) -> str:
    """Return a prompt as a grammar's models know it.

    Args:
        grammar: One of `GRAMMARS`; None leaves every prompt as it is.
        prompt: Plain English. The empty prompt, which guidance leads away from, stays empty.

    Raises:
        PromptError: If the prompt is not a sentence of the grammar; the message names the nearest one.
    """
    if grammar is None or not prompt:
        return prompt
    return importlib.import_module(GRAMMARS[grammar]).canonical(prompt)
