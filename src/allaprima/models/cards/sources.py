"""What a card is made of, where each source lies, whether it is on this machine. Nothing is fetched, nothing loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from allaprima.models.cards.card import Card
from allaprima.models.cards.components import PARTS
from allaprima.models.cards.hub import HubSource, cache_of, command, here, lacking


@dataclass(frozen=True)
class CardSource:
    """One source of a card."""

    whose: str
    """`teacher`, `student`, `network of the student`, `LoRA of the student`, `oracle`."""
    text: str
    """As the card has it."""
    license: str
    components: tuple[str, ...] | None
    """Folders that are read of it; None is all there is."""
    hub: HubSource | None
    path: Path
    """Where it lies, or would."""
    missing: tuple[str, ...]
    """What isn't here; nothing is missing of what can be loaded."""

    @property
    def here(self) -> bool:
        """Whether it can be loaded without a network."""
        return not self.missing

    @property
    def command(self) -> str | None:
        """What fetches it; None for a path."""
        return None if self.hub is None else command(self.hub, self.components)


def sources_of(card: Card) -> list[CardSource]:
    """Return the teacher first, then the student's own, then the oracle."""
    family, student = PARTS.get(card.family), card.student
    of_teacher = None if family is None else family.needed()
    of_student = None if family is None else family.needed(student.share)
    found = (
        []
        if card.teacher.source is None
        else [_source(card, "teacher", card.teacher.source, card.teacher.license, of_teacher)]
    )
    if card.teacher.refiner is not None:
        found.append(_source(card, "refiner of the teacher", card.teacher.refiner, card.teacher.license, of_teacher))
    if student.source is not None:
        found.append(_source(card, "student", student.source, student.license, of_student))
    found += [_source(card, f"student {k}", f, student.license, of_student) for k, f in enumerate(student.students)]
    if student.network is not None:
        found.append(_source(card, "network of the student", student.network, student.license, None))
    if student.lora is not None:
        found.append(_source(card, "LoRA of the student", student.lora, student.license, None))
    for whose, side in (("teacher", card.teacher), ("student", card.student)):
        if side.remote is not None:
            text = f"{side.remote.model} at {side.remote.url}"
            found.append(CardSource(f"{whose}'s server", text, side.license, None, None, Path(), ()))
    if card.oracle.kind != "none":
        found.append(_source(card, "oracle", card.oracle.source, card.oracle.license, None))
    return found


def _source(card: Card, whose: str, text: str, license: str, components: tuple[str, ...] | None) -> CardSource:
    hub = card.hub(text)
    if hub is None:
        path = card.beside(text)
        missing = () if path.exists() else (text,)
    else:
        found = here(hub)
        path = cache_of(hub) if found is None else found
        missing = (str(hub),) if found is None else tuple(lacking(found, components))
    return CardSource(whose, text, license, components, hub, path, missing)
