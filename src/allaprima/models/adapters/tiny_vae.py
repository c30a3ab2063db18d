"""A second, small autoencoder for drafts (AutoencoderTiny): most drafts are only looked at by the oracle.

A draft that is accepted is decoded again by the full one: what is small never paints a picture that is handed out.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.models.cards.card import Card
from allaprima.models.components.latents import downsampling
from allaprima.models.components.loading import fingerprint, load_component
from allaprima.models.families.family import Family
from allaprima.models.multi_student.model import MultiStudent


@dataclass(frozen=True)
class TinyVAE:
    """The full autoencoder, with the draft's beside it."""

    full: Any
    draft: Any

    @property
    def config(self) -> Any:
        """The full one's."""
        return self.full.config

    def decode(self, latents: Tensor, **told: Any) -> Any:
        """The full one's."""
        return self.full.decode(latents, **told)

    def encode(self, images: Tensor) -> Any:
        """The full one's."""
        return self.full.encode(images)


def with_tiny_vae(card: Card, student: Family | MultiStudent) -> Family | MultiStudent:
    """The student with the card's `draft_vae`, or as it is. Raises `ModelError` for one that reads other latents."""
    if card.draft_vae is None:
        return student
    folder = card.path(card.draft_vae)
    tiny = load_component(folder)
    channels, height, _ = student.latent_shape(card.height, card.width)
    found = (getattr(tiny.config, "latent_channels", None), _factor(tiny))
    if found != (channels, card.height // height):
        raise ModelError(
            f"{folder}: {type(tiny).__name__} reads latents of {found[0]} channels, {found[1]} pixels each; the student's"
            f" have {channels} and {card.height // height}. Name one that was made for these latents as draft_vae."
        )
    shell: Any = student.shell if isinstance(student, MultiStudent) else student
    prints = {**shell.fingerprints, "draft_vae": fingerprint(folder)}
    changed = dataclasses.replace(shell, vae=TinyVAE(shell.vae, tiny), fingerprints=prints)
    return dataclasses.replace(student, shell=changed) if isinstance(student, MultiStudent) else changed


def _factor(tiny: Any) -> int | None:
    return downsampling(tiny.config) if hasattr(tiny.config, "block_out_channels") else None
