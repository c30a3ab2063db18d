"""Whether a student and a teacher fit together: latents and prompts' hidden states are handed over as they are."""

from __future__ import annotations

from typing import Any

from allaprima.core.errors import ModelError
from allaprima.models.cards.card import Card

NUMBERS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""What an autoencoder's config says of how its latents are scaled for a network."""


def check_pair(card: Card, student: Any, teacher: Any) -> None:
    """Raise `ModelError` for latents of other channels, sizes or scales, and for prompts of another width."""
    mine, theirs = getattr(student, "shell", student), teacher
    for whose, model in (("student", mine), ("teacher", theirs)):
        _check_autoencoder(card, whose, model)
    shapes = [m.latent_shape(card.height, card.width) for m in (mine, theirs)]
    if shapes[0] != shapes[1]:
        raise ModelError(
            f"card {card.name!r}: the student's latents are {_said(shapes[0])} for a picture of {card.width}x{card.height},"
            f" the teacher's {_said(shapes[1])}: a draft can't be handed over. Pair models of one latent space."
        )
    if mine.vae is not theirs.vae:
        for name in NUMBERS:
            a, b = (getattr(m.vae.config, name, None) for m in (mine, theirs))
            if a != b:
                raise ModelError(
                    f"card {card.name!r}: {name} of the student's autoencoder is {a!r}, of the teacher's {b!r}: their"
                    " latents mean different pictures. Pair models of one latent space."
                )
    widths = [_text_width(m.network.config) for m in (mine, theirs)]
    # A refiner reads prompts of its own (`sdxl_refiner.telling`).
    apart = getattr(mine, "also", None) is not None
    if not apart and None not in widths and widths[0] != widths[1]:
        raise ModelError(
            f"card {card.name!r}: the student reads prompts of {widths[0]} numbers a token, the teacher of {widths[1]}:"
            " prompts are encoded once, for both. Pair models with the same text encoders."
        )


def _check_autoencoder(card: Card, whose: str, model: Any) -> None:
    due = model.latent_shape(card.height, card.width)[0]
    have = getattr(model.vae.config, "latent_channels", None)
    if have is not None and int(have) != due:
        raise ModelError(
            f"card {card.name!r}: the {whose}'s network reads latents of {due} channels, its autoencoder makes {have}: one"
            " of the folders, or of student.share, is another model's. Give both from one model."
        )


def _said(shape: tuple[int, int, int]) -> str:
    return f"{shape[0]} channels of {shape[2]}x{shape[1]}"


def _text_width(config: Any) -> Any:
    """Of the hidden states that a network reads; None where its config doesn't say."""
    return getattr(config, "cross_attention_dim", None) or getattr(config, "joint_attention_dim", None)
