"""Plain English in: the scene that a prompt asks for, or a refusal that names the nearest sentence.

`two red circles left of a blue star` is how the models know a caption; `2 red circles to the left of a blue star`,
`There are two red circles on the left of one blue star.` and `a photo of a star and 2 green squares` are read too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from allaprima.bundled.scenes.geometry import COLOUR_NAMES, SHAPES
from allaprima.bundled.scenes.grammar import MOST_GROUPS, MOST_OBJECTS, NUMBERS, PLURALS, RELATIONS, Group, Scene
from allaprima.core.errors import PromptError

_SINGULARS = {plural: shape for shape, plural in PLURALS.items()}
_COUNTS: Mapping[str, int] = {
    **{word: 1 for word in ("a", "an", "one", "single", "the", "1")},
    **{word: 2 for word in ("two", "2", "pair", "couple", "both")},
    **{word: 3 for word in ("three", "3")},
    **{word: 4 for word in ("four", "4")},
}
_MORE = {
    "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "dozen", "hundred", "thousand", "million", "many",
    "several", "some",
}  # fmt: skip
_RELATION_PHRASES = (
    (r"(?:is |are |stands? |sits? |lies? )?(?:to|on|at) the left(?: side| hand side)? of", "left of"),
    (r"(?:is |are )?left of", "left of"),
    (r"(?:is |are |stands? |sits? |lies? )?(?:to|on|at) the right(?: side| hand side)? of", "right of"),
    (r"(?:is |are )?right of", "right of"),
    (r"(?:is |are |sits? |lies? )?(?:above|over|atop|on top of)", "above"),
    (r"(?:is |are |sits? |lies? )?(?:below|under|underneath|beneath)", "below"),
)
_OPENING = re.compile(
    r"^(?:(?:please )?(?:draw|paint|show|make|generate|create|render)(?: me)? )?"
    r"(?:(?:a|an|the) )?(?:photo|photograph|picture|image|drawing|painting|illustration|scene)(?:s)? (?:of|with|showing) "
    r"|^(?:please )?(?:draw|paint|show|make|generate|create|render)(?: me)? |^there (?:is|are) "
)
_NEAR_COLOURS = {
    "crimson": "red", "scarlet": "red", "maroon": "red", "brown": "orange", "gold": "yellow", "golden": "yellow",
    "lime": "green", "olive": "green", "teal": "green", "turquoise": "blue", "cyan": "blue", "navy": "blue",
    "violet": "purple", "lilac": "purple", "magenta": "pink", "rose": "pink", "grey": "black", "gray": "black",
    "dark": "black", "white": "black", "silver": "black",
}  # fmt: skip
_NEAR_SHAPES = {
    "ball": "circle", "disc": "circle", "disk": "circle", "dot": "circle", "oval": "circle", "ellipse": "circle",
    "ring": "circle", "sphere": "circle", "box": "square", "cube": "square", "rectangle": "square", "block": "square",
    "diamond": "square", "pyramid": "triangle", "cone": "triangle", "plus": "cross", "pentagon": "star",
    "hexagon": "circle", "asterisk": "star",
}  # fmt: skip
_NEAR_RELATIONS = {"beside", "near", "behind", "next", "between", "inside", "around", "touching", "opposite"}
_FILLERS = {"of", "is", "are", "in", "at", "on", "to", "it", "its", "side", "that", "which", "coloured", "colored"}
_DEFAULT = Scene((Group(1, "red", "circle"),))
LONGEST = 1000
"""Characters of a prompt that are read; a scene takes fewer than a hundred."""


@dataclass
class _Draft:
    """What the words so far say of a group."""

    count: int | None = None
    colour: str | None = None
    shape: str | None = None
    plural: bool = False

    def group(self) -> Group:
        count = self.count if self.count is not None else (2 if self.plural else 1)
        return Group(count, self.colour, self.shape or SHAPES[0])


def plain_words(prompt: str) -> list[str]:
    """Return a prompt's words in lower case, relations as one word each, without punctuation but commas."""
    text = " ".join(re.sub(r"[^\w,&+]+", " ", prompt[:LONGEST].lower().replace("_", " ")).split())
    text = _OPENING.sub("", text)
    for pattern, relation in _RELATION_PHRASES:
        text = re.sub(rf"\b{pattern}\b", relation.replace(" ", "_"), text)
    text = re.sub(r"\s*(,\s*and\b|,|&|\+|\bplus\b|\bwith\b|\band\b)\s*", " and ", text)
    text = re.sub(r"\b(?:a )?(pair|couple) of\b", r"\1", text)
    return text.split()


def read(prompt: str) -> Scene:
    """Return the scene that a prompt asks for.

    Args:
        prompt: Plain English, such as `two red circles left of a blue star`.

    Raises:
        PromptError: If the prompt is not a scene of this grammar; the message says why and names the nearest one.
    """
    try:
        return _read_strictly(prompt)
    except _NotAScene as e:
        shown = prompt if len(prompt) <= 120 else prompt[:117] + "..."
        raise PromptError(
            f"{shown!r} is not a scene that this pair knows: {e}. The nearest it knows: {nearest(prompt)!r}."
        ) from None


class _NotAScene(Exception):
    """Why a prompt can't be read."""


def _read_strictly(prompt: str) -> Scene:
    if len(prompt) > LONGEST:
        raise _NotAScene(f"it has {len(prompt)} characters, and at most {LONGEST} are read")
    words = plain_words(prompt)
    if not words:
        raise _NotAScene("it is empty; expected objects, such as two red circles")
    drafts, relation = [_Draft()], None
    for i, word in enumerate(words):
        draft = drafts[-1]
        if (named := word.replace("_", " ")) in RELATIONS or word == "and":
            if draft.shape is None:
                raise _NotAScene(f"{named!r} follows no object")
            if i == len(words) - 1:
                raise _NotAScene(f"nothing follows {named!r}")
            if named in RELATIONS:
                if relation is not None or len(drafts) > 1:
                    raise _NotAScene(f"{named!r} must stand between two groups of objects and no others")
                relation = named
            elif relation is not None:
                raise _NotAScene("a relation stands between two groups of objects, and there are more")
            drafts.append(_Draft())
        else:
            _take(draft, word)
    if drafts[-1].shape is None:
        raise _NotAScene(f"{words[-1]!r} says no shape: {', '.join(SHAPES[:-1])} and {SHAPES[-1]} are known")
    groups = _joined([draft.group() for draft in drafts], relation)
    for draft in drafts:
        if draft.count is None and draft.plural:
            raise _NotAScene(f"it doesn't say how many {PLURALS[draft.shape or SHAPES[0]]}")
    _check(groups)
    return Scene(tuple(groups), relation)


def _take(draft: _Draft, word: str) -> None:
    """Add a word to a group. Raises `_NotAScene` for one that has no place there."""
    if word in _NEAR_RELATIONS:
        raise _NotAScene(f"{word!r} is no relation it knows: {', '.join(RELATIONS)}")
    if draft.shape is not None:
        raise _NotAScene(f"{word!r} follows {draft.shape!r} where 'and', a comma or a relation is expected")
    if word in _COUNTS:
        if draft.count is not None and not (draft.count == 1 and word == "single"):
            raise _NotAScene(f"{word!r} is a second number for one group")
        draft.count = _COUNTS[word]
    elif word in COLOUR_NAMES:
        if draft.colour is not None:
            raise _NotAScene(f"an object has one colour, not {draft.colour!r} and {word!r}")
        draft.colour = word
    elif word in SHAPES or word in _SINGULARS:
        draft.shape, draft.plural = _SINGULARS.get(word, word), word in _SINGULARS
        if draft.count is None and not draft.plural:
            draft.count = 1
    elif word in _MORE or word.isdigit():
        shown = word if len(word) <= 12 else word[:9] + "..."
        raise _NotAScene(f"{shown!r} is no number it knows: 1 to {MOST_OBJECTS} objects, all together")
    else:
        raise _NotAScene(f"{word!r} is no colour or shape it knows: {', '.join(COLOUR_NAMES)}; {', '.join(SHAPES)}")


def _joined(groups: Sequence[Group], relation: str | None) -> list[Group]:
    """Join groups that say the same, `a star and a star` two stars, where no relation tells them apart."""
    if relation is not None:
        return list(groups)
    found: list[Group] = []
    for group in groups:
        for i, other in enumerate(found):
            if (other.colour, other.shape) == (group.colour, group.shape):
                found[i] = replace(other, count=other.count + group.count)
                break
        else:
            found.append(group)
    return found


def _check(groups: Sequence[Group]) -> None:
    """Raise `_NotAScene` for groups that make no scene."""
    total = sum(group.count for group in groups)
    if len(groups) > MOST_GROUPS:
        raise _NotAScene(f"it has {len(groups)} groups of objects, and at most {MOST_GROUPS} fit")
    if total > MOST_OBJECTS:
        raise _NotAScene(f"it has {total} objects, and at most {MOST_OBJECTS} fit")
    for a, b in combinations(groups, 2):
        if a.overlaps(b):
            raise _NotAScene(f"{a.text()!r} and {b.text()!r} can't be told apart: give each a shape or a colour of its own")


def nearest(prompt: str) -> str:
    """Return the caption that is nearest to a prompt: known words kept, others replaced by known ones or left out.

    Args:
        prompt: Anything.
    """
    drafts, relation = [_Draft()], None
    for word in plain_words(prompt)[:100]:
        known = _nearest_word(word)
        if known is None:
            continue
        if known == "and" or known in RELATIONS:
            if drafts[-1].shape is not None:
                relation = known if known in RELATIONS and relation is None and len(drafts) == 1 else relation
                drafts.append(_Draft())
            continue
        if drafts[-1].shape is not None:  # a new group without "and"
            drafts.append(_Draft())
        if known in COLOUR_NAMES:
            drafts[-1].colour = known
        elif known in SHAPES or known in _SINGULARS:
            drafts[-1].shape, drafts[-1].plural = _SINGULARS.get(known, known), known in _SINGULARS
        else:
            drafts[-1].count = int(known)
    meant = [draft for draft in drafts if draft.shape is not None]
    if not meant and drafts[0].colour is not None:
        meant = [_Draft(drafts[0].count, drafts[0].colour, SHAPES[0])]
    return _fitted([draft.group() for draft in meant], relation).caption()


def _nearest_word(word: str) -> str | None:
    """Return a word of the grammar for any word: itself, a neighbour, a number as digits; None for one that says nothing."""
    named = word.replace("_", " ")
    if word in _COUNTS:
        return str(_COUNTS[word])
    if word in COLOUR_NAMES or word in SHAPES or word in _SINGULARS or named in RELATIONS or word == "and":
        return named
    if word in _MORE or word.isdigit():
        return str(MOST_OBJECTS)
    if word in _FILLERS:
        return None
    if word in _NEAR_COLOURS:
        return _NEAR_COLOURS[word]
    for form in (word, word.removesuffix("s"), word.removesuffix("es")):
        if form in _NEAR_SHAPES:
            shape = _NEAR_SHAPES[form]
            return shape if form == word else PLURALS[shape]
    if word in _NEAR_RELATIONS:
        return "and"
    candidates = [*COLOUR_NAMES, *SHAPES, *_SINGULARS, *NUMBERS.values()]
    found = difflib.get_close_matches(word, candidates, n=1, cutoff=0.7)
    return None if not found else str(_COUNTS.get(found[0], found[0]))


def _fitted(groups: Sequence[Group], relation: str | None) -> Scene:
    """Return the scene of as many of the groups as make one."""
    kept: list[Group] = []
    for group in _joined(groups, relation):
        clash = any(group.overlaps(other) for other in kept)
        if clash or len(kept) == (2 if relation is not None else MOST_GROUPS):
            continue
        kept.append(replace(group, count=max(1, min(group.count, MOST_OBJECTS))))
    while sum(group.count for group in kept) > MOST_OBJECTS:
        most = max(range(len(kept)), key=lambda i: kept[i].count)
        if kept[most].count == 1:
            kept.pop()
        else:
            kept[most] = replace(kept[most], count=kept[most].count - 1)
    if not kept:
        return _DEFAULT
    return Scene(tuple(kept), relation if len(kept) == 2 else None)


def canonical(prompt: str) -> str:
    """Return a prompt as the models know it (`allaprima.data.grammars`).

    Args:
        prompt: Plain English.

    Raises:
        PromptError: If the prompt is not a scene of this grammar.
    """
    return read(prompt).caption()
