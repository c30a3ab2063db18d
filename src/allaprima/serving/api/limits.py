"""What one request may ask for; everything is checked before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from allaprima.cascade.settings import MAX_STEPS, CascadeSettings
from allaprima.core.errors import SettingError

MAX_SEED = 2**53 - 1
"""Numbers up to here survive every JSON reader, also those that know doubles only."""
MAX_SIDE = 16_384
LEAST_LATENCY = 0.1
"""Seconds: no picture is painted, encoded and sent sooner, so asking for less is asking for a refusal."""
ALIAS = "allaprima"
"""A name by which every card answers."""


@dataclass(frozen=True)
class Limits:
    """Caps of the API. Raises `SettingError` for one that is not above 0."""

    body_bytes: int = 128 * 1024
    """Of a JSON body: two prompts of 4,000 characters, each escaped, and a little more."""
    upload_bytes: int = 24 * 2**20
    """Of a multipart body: a picture, a mask, fields."""
    held_bytes: int = 256 * 2**20
    """Of all bodies that are being read or used at the same time."""
    body_seconds: float = 60.0
    """In which a body must have come."""
    upload_pixels: int = 2**24
    """Of an uploaded picture or mask, as its header says, before it is decoded."""
    prompt_chars: int = 4_000
    n: int = 10
    """Pictures a request."""
    pixels: int = 2**20
    """Of a picture that is painted."""
    steps: int = 100
    """The teacher's."""
    cost: int = 10 * 2**20 * 100
    """Pictures x pixels x steps (the student's and the teacher's) of a request."""
    client_pictures: int = 64
    """Of one client's, waiting or being painted at the same time."""

    def __post_init__(self) -> None:
        for f in fields(self):
            if not getattr(self, f.name) > 0:
                raise SettingError(f"limits: {f.name}={getattr(self, f.name)!r} must be above 0.")
        if self.client_pictures < self.n:
            raise SettingError(f"limits: client_pictures={self.client_pictures} is below n={self.n}: raise it, or lower n.")
        if self.steps > MAX_STEPS:
            raise SettingError(f"limits: steps={self.steps!r} is out of range: 1..{MAX_STEPS}.")

    @classmethod
    def of(cls, settings: CascadeSettings, **changes: Any) -> Limits:
        """For a card that paints pictures of this size: up to four times its pixels, ten of them in a hundred steps each."""
        pixels = settings.height * settings.width
        fitting: dict[str, Any] = {"pixels": 4 * pixels, "cost": 10 * pixels * 120}
        return cls(**{**fitting, **{k: v for k, v in changes.items() if v is not None}})
