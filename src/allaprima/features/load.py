"""Feature networks by name."""

from __future__ import annotations

from pathlib import Path

from allaprima.core.errors import ModelError
from allaprima.features.module import Features, LayeredFeatures

DEFAULT = "efficientnet-lite0"


def load_features(what: str | Path = DEFAULT) -> Features:
    """Return a feature network by name, or from a path.

    `efficientnet-lite0`: the weights of the installed package. A folder: any transformers vision model. A `.safetensors`
    file: weights of the Inception network that published FIDs are made with. Raises `ModelError` for anything else.
    """
    if what == DEFAULT:
        return default_features()
    path = Path(what)
    if path.is_dir():
        from allaprima.features.vision import VisionFeatures

        return VisionFeatures.from_folder(path)
    if path.suffix == ".safetensors" and path.is_file():
        from allaprima.features.inception import InceptionFeatures

        return InceptionFeatures.from_file(path)
    raise ModelError(
        f"features={str(what)!r} is not known: {DEFAULT!r}, the folder of a transformers vision model, or a .safetensors"
        " file with Inception weights is due."
    )


def default_features() -> LayeredFeatures:
    """EfficientNet-Lite0, the one network that needs no model hub."""
    from allaprima.features.efficientnet_lite import EfficientNetLite0

    return EfficientNetLite0.pretrained()
