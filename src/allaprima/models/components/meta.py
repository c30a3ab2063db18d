"""Networks without weights, on torch's meta device: what configs say of their size."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from allaprima.core.errors import ModelError
from allaprima.models.components.loading import CLASSES, class_of


def count(config: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters, and saved numbers in all, of a component by its config."""
    net = meta(config)
    return sum(p.numel() for p in net.parameters()), sum(t.numel() for t in net.state_dict().values())


def meta(config: Mapping[str, Any]) -> Any:
    """A component without weights, on torch's meta device. Raises `ModelError` for a config that makes no network."""
    name = class_of(config, "a config")
    cls = getattr(importlib.import_module(CLASSES[name]), name)
    try:
        with torch.device("meta"):
            if CLASSES[name] != "transformers":
                return cls.from_config(dict(config)).eval()
            return cls(cls.config_class.from_dict(dict(config))).eval()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as e:
        raise ModelError(f"a config of {name} makes no network: {e}. Check the folder's config.json.") from e
