"""The families by the name a card gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allaprima.models.families import flux, qwen_image, sana, sd, sd3, sdxl, sdxl_refiner, z_image
from allaprima.models.families.family import Load
from allaprima.models.load import load_component


@dataclass(frozen=True)
class FamilyEntry:
    """How a family is read and written."""

    load: Load
    component: str
    """Folder of the trained network."""
    load_network: Callable[[Path], Any]
    """Reads that folder."""
    shared: tuple[str, ...]
    """What a card's `share` may name."""

    def needed(self, share: Sequence[str] = ()) -> tuple[str, ...]:
        """Folders of a model that are read; those of `share` come from another."""
        return (self.component, "scheduler", *(name for name in self.shared if name not in share))


FAMILIES: Mapping[str, FamilyEntry] = {
    "sd": FamilyEntry(sd.load_sd, "unet", sd.load_unet, sd.SHARED),
    "sdxl": FamilyEntry(sdxl_refiner.load_either, "unet", sd.load_unet, sdxl.SHARED),
    "sd3": FamilyEntry(sd3.load_sd3, "transformer", load_component, sd3.SHARED),
    "flux": FamilyEntry(flux.load_flux, "transformer", load_component, flux.SHARED),
    "sana": FamilyEntry(sana.load_sana, "transformer", load_component, sana.SHARED),
    "qwen-image": FamilyEntry(qwen_image.load_qwen_image, "transformer", load_component, qwen_image.SHARED),
    "z-image": FamilyEntry(z_image.load_z_image, "transformer", load_component, z_image.SHARED),
}
