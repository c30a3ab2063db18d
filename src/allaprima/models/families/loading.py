"""A model's folder, read part by part: what a family's own loader makes its model of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from allaprima.core.errors import ModelError
from allaprima.models.components.loading import fingerprint, load_component, load_tokenizer, read_json
from allaprima.models.families.family import Family

ABSENT = "absent"
"""Fingerprint of a component that a folder does without."""


def load_fields(
    folder: Path, component: str, names: Sequence[str], share: Family | None, shared: Sequence[str], network: Any,
    load: Callable[[Path], Any] = load_component, optional: Sequence[str] = (),
    check: Callable[[Path, Any], None] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The scheduler's config, and fields of a model: its network (by its name, `component`), `names` and `fingerprints`.

    The rest as of `load_own` and `load_parts`. `check`: is told folder and the network's config before other parts are read.
    """
    config, network, own = load_own(folder, component, network, load)
    if check is not None:
        check(folder, network.config)
    parts, prints = load_parts(folder, names, share, shared, optional)
    return config, {component: network, **parts, "fingerprints": {**own, **prints}}


def load_own(
    folder: Path, component: str, network: Any, load: Callable[[Path], Any] = load_component
) -> tuple[dict[str, Any], Any, dict[str, str]]:
    """What no other model has: the scheduler's config, the network and the fingerprints of both.

    `network`: taken as it is where it isn't None, without a fingerprint; else `load` reads the folder `component`.
    """
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    prints = {"scheduler": fingerprint(folder / "scheduler")}
    if network is None:
        network, prints[component] = load(folder / component), fingerprint(folder / component)
    return config, network, prints


def load_parts(
    folder: Path, names: Sequence[str], share: Family | None, shared: Sequence[str], optional: Sequence[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """Components by name, the autoencoder first, and their fingerprints. An `optional` one that has no folder is None.

    Those in `shared` are the model `share`'s. Raises `ModelError` for one that it hasn't.
    """
    parts: dict[str, Any] = {}
    prints: dict[str, str] = {}
    for name in sorted(names, key=lambda name: name != "vae"):
        if share is not None and name in shared and name not in share.fingerprints:
            raise ModelError(
                f"{folder} is to share {name}, and the other model has none (a refiner has but the second text encoder)."
                " Leave it out of the card's share, and give the student's own."
            )
        if share is not None and name in shared:
            parts[name], prints[name] = getattr(share, name), share.fingerprints[name]
        elif name in optional and not (folder / name).is_dir():
            parts[name], prints[name] = None, ABSENT
        else:
            parts[name] = (load_tokenizer if name.startswith("tokenizer") else load_component)(folder / name)
            prints[name] = fingerprint(folder / name)
    return parts, prints
