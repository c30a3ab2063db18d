"""Configs of components without their weights: from a folder, the hub's cache, or those that come with the package.

The bundled ones (`cards/configs/`) hold what decides an architecture's size; each says where it was verified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from allaprima.core.files import read_json
from allaprima.models.cards.card import Card
from allaprima.models.cards.hub import HubSource, here


def _folder() -> Path:
    return Path(str(resources.files("allaprima"))) / "cards" / "configs"


@cache
def bundled_config(name: str) -> Mapping[str, Any]:
    """Return a config by its file's name, `sdxl-unet` for example; `like` takes what isn't said from another."""
    raw = json.loads((_folder() / f"{name}.json").read_text(encoding="utf-8"))
    base = dict(bundled_config(raw["like"])) if "like" in raw else {}
    return {**base, **{k: v for k, v in raw.items() if k not in ("like", "verified")}}


@cache
def repositories() -> Mapping[str, Mapping[str, str | None]]:
    """Repository id -> component -> name of its bundled config, None for one it does without; of a network alone: ''."""
    return json.loads((_folder() / "repositories.json").read_text(encoding="utf-8"))


@cache
def counts() -> Mapping[str, tuple[int, int]]:
    """Parameters and saved numbers of the configs that come with the package,
    by their hash (`models.cards.sizes.digest`)."""
    raw = json.loads((_folder() / "sizes.json").read_text(encoding="utf-8"))
    return {key: (int(found[0]), int(found[1])) for key, found in raw.items()}


def published(card: Card, source: str, component: str = "") -> Mapping[str, Any] | None:
    """Return the bundled config of a component of a hub id, as `config_of`, whether it is here or not."""
    return _bundled(card.hub(source), component)


def config_of(card: Card, source: str, component: str = "") -> Mapping[str, Any] | None:
    """Config of a component of a card's source ('' is the source itself); None where it can't be known without fetching it.

    An empty one says that the model does without the component.
    """
    hub = card.hub(source)
    folder = card.beside(source) if hub is None else here(hub)
    if folder is not None and (found := folder / component / "config.json").is_file():
        return read_json(found)
    if folder is not None and component and (folder / "model_index.json").is_file():
        said = read_json(folder / "model_index.json").get(component)
        if not said or not any(said):
            return {}
    return _bundled(hub, component)


def _bundled(hub: HubSource | None, component: str) -> Mapping[str, Any] | None:
    if hub is None or hub.inside is not None:
        return None
    known = repositories().get(hub.id, {})
    if component not in known:
        return None
    name = known[component]
    return {} if name is None else bundled_config(name)
