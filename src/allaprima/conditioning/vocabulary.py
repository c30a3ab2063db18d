"""Text to image: what is asked, in words the models know.

A card may say which concepts and styles its models know, and other words for the concepts. A prompt about something
else is moved to a known concept, and the caller is told which. In this order:

1. the concept itself, whatever its case, article or hyphens: "A T-shirt" is "t shirt";
2. a concept, else a keyword, give or take a plural or a space: "dogs" is "dog", "kitten" is a keyword of "cat";
3. a concept that ends the phrase, before any "in", "with" and the like: "a happy dog in a tent" is "dog";
4. the nearest of all.

Nearest, here and where several concepts have the keyword, is the highest mean of two cosine similarities (of mean hidden
states): to the concept's name, and to its name followed by its keywords. The name alone knows no synonyms ("space ship"
is near "sailboat"); the keywords alone drown it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_PREPOSITIONS = re.compile(r" (?:and|at|behind|by|for|from|in|inside|near|of|on|over|under|wearing|with|without) ")


@dataclass(frozen=True)
class ResolvedPrompt:
    """A prompt as asked and as it will be painted."""

    asked: str
    painted: str
    similarity: float = 1.0
    """Cosine similarity of what was asked and the painted concept's name; 1 when it is that concept, however spelt."""


def _plain(text: str) -> str:
    """Lower case, one space between words, no hyphens, no article in front."""
    words = re.findall(r"\w+", text.lower().replace("'", ""))
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def _forms(text: str) -> Iterator[str]:
    """Keys under which a phrase may be found, the likeliest first: spaces don't count, nor does a plural."""
    key = text.replace(" ", "")
    yield key
    if len(key) > 3:
        if key.endswith("ies"):
            yield key[:-3] + "y"
        if key.endswith("s"):
            yield key[:-1]
        if key.endswith("es"):
            yield key[:-2]
        if key.endswith("y"):
            yield key[:-1] + "ies"
    yield key + "s"


class Vocabulary:
    """The concepts, styles and keywords of a card. `encode(prompts) -> (B, L, D)` hidden states, zero where padded."""

    def __init__(
        self,
        concepts: Sequence[str],
        styles: Sequence[str],
        encode: Callable[[Sequence[str]], Tensor],
        keywords: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.concepts, self.styles, self._encode = list(concepts), list(styles), encode
        self.keywords = {c: list((keywords or {}).get(c, [])) for c in self.concepts}
        self._known = {_plain(c): c for c in reversed(self.concepts)}
        self._names = {next(_forms(_plain(c))): [c] for c in reversed(self.concepts)}
        self._holders: dict[str, list[str]] = {}
        for concept, words in self.keywords.items():
            for word in words:
                self._holders.setdefault(next(_forms(_plain(word))), []).append(concept)
        self._tables: tuple[Tensor, Tensor] | None = None

    def _mean(self, texts: Sequence[str]) -> Tensor:
        parts: list[Tensor] = []
        for i in range(0, len(texts), 64):
            hidden = self._encode(texts[i : i + 64])
            live = (hidden.abs().sum(-1, keepdim=True) > 0).float()
            parts.append((hidden * live).sum(1) / live.sum(1).clamp(min=1))
        return torch.nn.functional.normalize(torch.cat(parts), dim=1)

    def split(self, prompt: str) -> tuple[str, str | None]:
        """Split `"a red apple, noto"` -> `("a red apple", "noto")`; None when no known style ends the prompt."""
        head, _, tail = prompt.rpartition(",")
        style = tail.strip().lower()
        return (head.strip(), style) if head.strip() and style in self.styles else (prompt.strip(), None)

    def _candidates(self, text: str) -> list[str]:
        """Concepts that the words of a phrase name, steps 2 and 3; none when only its meaning can tell."""
        # Names first: a "cherry" is "cherries", though it is also a keyword of "cherry blossom".
        for index in (self._names, self._holders):
            for key in _forms(text):
                if found := index.get(key):
                    return found
        # "a fox in a tent" is a fox; only a "slice of pizza", whose head is unknown, is what comes last.
        for part in dict.fromkeys((_PREPOSITIONS.split(text)[0], text)):
            words = part.split()
            for start in range(len(words)):
                for key in _forms(" ".join(words[start:])):
                    if found := self._names.get(key):
                        return found
        return []

    def _read(self, concepts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return unit vectors `(N, D)` of names, and of names followed by keywords."""
        names = self._mean(concepts)
        if not any(self.keywords.values()):
            return names, names
        return names, self._mean([", ".join((c, *self.keywords[c])) for c in concepts])

    def _nearest(self, text: str) -> tuple[str, float]:
        """Return the concept meant by a phrase that isn't one, and the similarity to its name."""
        asked = self._mean([text])[0]
        if candidates := self._candidates(text):
            names, described = self._read(candidates)
        else:
            if self._tables is None:
                self._tables = self._read(self.concepts)
            candidates, (names, described) = self.concepts, self._tables
        best = int(((names + described) @ asked).argmax())
        return candidates[best], float(names[best] @ asked)

    def word(self, prompt: str) -> ResolvedPrompt:
        """Return the prompt in known words; unchanged when the card doesn't say what it knows."""
        if not self.concepts or not prompt.strip():
            return ResolvedPrompt(prompt, prompt)
        found = self.known(prompt)
        if found is not None:
            return found
        asked, style = self.split(prompt)
        concept, similarity = self._nearest(_plain(asked) or asked)
        return ResolvedPrompt(prompt, self._styled(concept, style), similarity)

    def known(self, prompt: str) -> ResolvedPrompt | None:
        """Return the prompt in known words if it is a concept itself, however spelt; no network is asked."""
        asked, style = self.split(prompt)
        concept = self._known.get(_plain(asked))
        return None if concept is None else ResolvedPrompt(prompt, self._styled(concept, style))

    def _styled(self, concept: str, style: str | None) -> str:
        """With its style, else the first."""
        style = style or (self.styles[0] if self.styles else None)
        return concept if style is None else f"{concept}, {style}"
