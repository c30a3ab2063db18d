"""Text to image: what is asked, in words the models know.

A card may say which concepts and styles its models know. A prompt about something else is moved to the nearest known
concept (cosine similarity of mean hidden states), and the caller is told which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wording:
    """A prompt as asked and as it will be painted."""

    asked: str
    painted: str
    similarity: float = 1.0
    """Cosine similarity of the asked and the painted concept; 1 when nothing was changed."""


class Vocabulary:
    """The concepts and styles of a card. `encode(prompts) -> (B, L, D)` hidden states, zero where padded."""

    def __init__(self, concepts: Sequence[str], styles: Sequence[str], encode: Callable[[Sequence[str]], Tensor]) -> None:
        self.concepts, self.styles, self._encode = list(concepts), list(styles), encode
        self._known = set(concepts)
        self._table: Tensor | None = None

    def _mean(self, texts: Sequence[str]) -> Tensor:
        parts: list[Tensor] = []
        for i in range(0, len(texts), 64):
            hidden = self._encode(texts[i : i + 64])
            live = (hidden.abs().sum(-1, keepdim=True) > 0).float()
            parts.append((hidden * live).sum(1) / live.sum(1).clamp(min=1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    def split(self, prompt: str) -> tuple[str, str | None]:
        """`"a red apple, noto"` -> `("a red apple", "noto")`; None when no known style ends the prompt."""
        head, _, tail = prompt.rpartition(",")
        style = tail.strip().lower()
        return (head.strip(), style) if head.strip() and style in self.styles else (prompt.strip(), None)

    def word(self, prompt: str) -> Wording:
        """The prompt in known words; unchanged when the card doesn't say what it knows."""
        if not self.concepts or not prompt.strip():
            return Wording(prompt, prompt)
        concept, style = self.split(prompt)
        style = style or (self.styles[0] if self.styles else None)
        similarity = 1.0
        if concept.lower() not in self._known:
            if self._table is None:
                self._table = self._mean(self.concepts)
            scores = self._table @ self._mean([concept])[0]
            similarity, best = float(scores.max()), int(scores.argmax())
            concept = self.concepts[best]
        else:
            concept = concept.lower()
        return Wording(prompt, concept if style is None else f"{concept}, {style}", similarity)
