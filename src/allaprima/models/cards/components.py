"""What each family's models are made of, by name alone: for reading cards, which needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ComponentNames:
    """Folders of a family's model."""

    component: str
    """Of the trained network."""
    shared: tuple[str, ...]
    """What a card's `share` may name."""

    def needed(self, share: Sequence[str] = ()) -> tuple[str, ...]:
        """Folders of a model that are read; those of `share` come from another."""
        return (self.component, "scheduler", *(name for name in self.shared if name not in share))


_ONE = ("text_encoder", "tokenizer", "vae")
_TWO = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
_THREE = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "vae")
PARTS: Mapping[str, ComponentNames] = {
    "sd": ComponentNames("unet", _ONE),
    "sdxl": ComponentNames("unet", _TWO),
    "sd3": ComponentNames("transformer", _THREE),
    "flux": ComponentNames("transformer", _TWO),
    "sana": ComponentNames("transformer", _ONE),
    "qwen-image": ComponentNames("transformer", _ONE),
    "z-image": ComponentNames("transformer", _ONE),
}
"""By the name a card gives the family; how they are read: `models.families.registry`."""
