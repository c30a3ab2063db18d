"""Pairs whose answer is known: to teach, to qualify, and to see whether somebody still looks.

They are made of the study's own pictures, so nobody has to collect any: the text's picture against that of another text
(which matches?), against a coarse copy of itself (which has fewer faults?), or against itself (equal). None compares two
methods, so they tell nothing about the study's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from allaprima.core.errors import SettingError
from allaprima.study.design import KNOWN, ImagePair, Kind
from allaprima.study.questions import QuestionSet

Save = Callable[[Image.Image], Path]
"""Keeps a picture and says where."""
COARSE = 10
"""Side of the coarse copy, in pixels, before it is scaled up again."""


@dataclass(frozen=True)
class Counts:
    """How many known pairs of each kind."""

    training: int = 3
    qualification: int = 4
    gold: int = 6

    def __post_init__(self) -> None:
        for name, n in vars(self).items():
            if not 0 <= n <= 100:
                raise SettingError(f"{name}={n}: 0 to 100 pairs are possible.")


def known_pairs(pairs: Sequence[ImagePair], asked: QuestionSet, counts: Counts, save: Save, seed: int) -> list[ImagePair]:
    """Of pictures drawn from `pairs`. Raises `SettingError` where all pairs have one prompt."""
    if not sum(vars(counts).values()):
        return []
    if len({p.prompt for p in pairs}) < 2:
        raise SettingError("all pairs have one prompt, so no picture is of another text: give more prompts, or no tests.")
    rng = np.random.default_rng([seed, 3])
    makers = (_other_text, _coarse, _itself) if asked.compares else (_itself, _other_text)
    made: list[ImagePair] = []
    for kind in KNOWN:
        for i in range(getattr(counts, kind)):
            # An attention check must be obvious: "equal" is for teaching, and once in the test.
            usable = makers[:2] if kind == "gold" and asked.compares else makers
            pair = usable[i % len(usable)](kind, pairs, asked, save, rng)
            made.append(_turned(pair) if asked.compares and i % 4 in (1, 2) else pair)
    return made


def _one(pairs: Sequence[ImagePair], rng: np.random.Generator) -> tuple[ImagePair, Path]:
    pair = pairs[int(rng.integers(len(pairs)))]
    return pair, pair.pictures[int(rng.integers(2))]


def _made(kind: Kind, source: ImagePair, pictures: tuple[Path, Path], expected: Mapping[str, str], why: str) -> ImagePair:
    return ImagePair(kind, source.prompt, source.seed, ("known", "known"), pictures, expected, why)


def _other_text(
    kind: Kind, pairs: Sequence[ImagePair], asked: QuestionSet, save: Save, rng: np.random.Generator
) -> ImagePair:
    source, right = _one(pairs, rng)
    others = [p for p in pairs if p.prompt != source.prompt]
    wrong = others[int(rng.integers(len(others)))].pictures[0]
    if not asked.compares:
        return _made(kind, source, (right, wrong), {"object": "different"}, "One of them shows something else altogether.")
    expected = {"alignment": "a", "overall": "a"}
    return _made(kind, source, (right, wrong), expected, "Only one of them shows what the text says; that counts most.")


def _coarse(kind: Kind, pairs: Sequence[ImagePair], asked: QuestionSet, save: Save, rng: np.random.Generator) -> ImagePair:
    source, right = _one(pairs, rng)
    with Image.open(right) as image:
        plain = image.convert("RGB")
    small = plain.resize((COARSE, COARSE), Image.Resampling.BILINEAR)
    spoilt = save(small.resize(plain.size, Image.Resampling.BILINEAR))
    expected = {"quality": "a", "overall": "a"}
    return _made(kind, source, (right, spoilt), expected, "It is the same picture, but one copy is blurred beyond use.")


def _itself(kind: Kind, pairs: Sequence[ImagePair], asked: QuestionSet, save: Save, rng: np.random.Generator) -> ImagePair:
    source, right = _one(pairs, rng)
    answer, questions = ("tie", ("overall",)) if asked.compares else ("similar", asked.names)
    why = "Both are the very same picture: where you see no difference, say so."
    return _made(kind, source, (right, right), dict.fromkeys(questions, answer), why)


def _turned(pair: ImagePair) -> ImagePair:
    other = {"a": "b", "b": "a"}
    a, b = pair.pictures
    return replace(pair, pictures=(b, a), expected={k: other.get(v, v) for k, v in pair.expected.items()})
