"""The families by the name a card gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allaprima.models.cards.components import PARTS, ComponentNames
from allaprima.models.components.loading import load_component
from allaprima.models.families import flux, qwen_image, sana, sd, sd3, sdxl_refiner, z_image
from allaprima.models.families.family import Load


@dataclass(frozen=True)
class FamilyEntry:
    """How a family is read and written."""

    load: Load
    load_network: Callable[[Path], Any]
    """Reads the trained network's folder."""
    parts: ComponentNames

    @property
    def component(self) -> str:
        """Folder of the trained network."""
        return self.parts.component

    @property
    def shared(self) -> tuple[str, ...]:
        """What a card's `share` may name."""
        return self.parts.shared

    def needed(self, share: Sequence[str] = ()) -> tuple[str, ...]:
        """Folders of a model that are read; those of `share` come from another."""
        return self.parts.needed(share)


_LOAD: Mapping[str, tuple[Load, Callable[[Path], Any]]] = {
    "sd": (sd.load_sd, sd.load_unet),
    "sdxl": (sdxl_refiner.load_either, sd.load_unet),
    "sd3": (sd3.load_sd3, load_component),
    "flux": (flux.load_flux, load_component),
    "sana": (sana.load_sana, load_component),
    "qwen-image": (qwen_image.load_qwen_image, load_component),
    "z-image": (z_image.load_z_image, load_component),
}
FAMILIES: Mapping[str, FamilyEntry] = {name: FamilyEntry(*load, PARTS[name]) for name, load in _LOAD.items()}
