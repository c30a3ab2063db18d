"""allaprima: a few-step student paints first, an oracle looks, and a teacher retouches only what falls short.

>>> from allaprima import AdaptivePipeline
>>> pipe = AdaptivePipeline.from_card("emoji")          # doctest: +SKIP
>>> pipe("red apple, noto", seed=1).images[0]           # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from allaprima._version import __version__

if TYPE_CHECKING:
    from allaprima.cascade.settings import CascadeSettings
    from allaprima.diffusion.noising import Strength, Variance
    from allaprima.pipeline import AdaptiveOutput, AdaptivePipeline

__all__ = ["AdaptiveOutput", "AdaptivePipeline", "CascadeSettings", "Strength", "Variance", "__version__"]

_WHERE = {
    "AdaptivePipeline": "allaprima.pipeline",
    "AdaptiveOutput": "allaprima.pipeline",
    "CascadeSettings": "allaprima.cascade.settings",
    "Variance": "allaprima.diffusion.noising",
    "Strength": "allaprima.diffusion.noising",
}


def __getattr__(name: str) -> Any:
    """Names are handed out lazily, so that `import allaprima` stays instant."""
    if name not in _WHERE:
        raise AttributeError(f"module 'allaprima' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
