"""Licences that models are given under: SPDX ids, and the named ones of the model hub, and what each asks for, in short.

A summary is no advice: read the licence itself before you use a model for anything that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Licence:
    """What a card's `license` stands for."""

    name: str
    says: str
    spdx: bool = False
    commercial: bool | None = True
    """Whether commercial use is allowed at all, perhaps under conditions that `says` names; None where nothing is known."""


LICENCES: Mapping[str, Licence] = {
    "Apache-2.0": Licence("Apache License 2.0", "free use with notice", spdx=True),
    "MIT": Licence("MIT License", "free use with notice", spdx=True),
    "CreativeML-OpenRAIL-M": Licence("CreativeML Open RAIL-M", "free use but for the uses its attachment A forbids"),
    "OpenRAIL++": Licence("CreativeML Open RAIL++-M", "free use but for the uses its attachment A forbids"),
    "stabilityai-ai-community": Licence(
        "Stability AI Community License",
        "free for research, and commercially below $1M of yearly revenue; accept it on the model's page first",
    ),
    "sai-nc-community": Licence(
        "Stability AI Non-Commercial Research Community License", "research and private use only", commercial=False
    ),
    "flux-1-dev-non-commercial-license": Licence(
        "FLUX.1 [dev] Non-Commercial License",
        "non-commercial use of the model only; accept it on the model's page first",
        commercial=False,
    ),
    "nscl-v2-custom": Licence(
        "NVIDIA License (NSCL v2-custom, SANA's)",
        "read it, and the Gemma Terms of Use for the text encoder, before any use but research",
        commercial=None,
    ),
    "unstated": Licence("no licence named by its page", "ask its authors before you use it", commercial=None),
}
"""By the id that cards give."""
GATED = frozenset({"stabilityai-ai-community", "flux-1-dev-non-commercial-license"})
"""Licences whose repositories ask to be accepted before anything can be fetched."""


def licence(name: str) -> Licence:
    """A card's licence; one that isn't known says so in its summary. Ids are compared without case."""
    found = next((v for k, v in LICENCES.items() if k.lower() == name.strip().lower()), None)
    return found or Licence(name, "not among the licences known here: read it", commercial=None)
