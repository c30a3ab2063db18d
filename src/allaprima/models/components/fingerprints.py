"""Fingerprints by content: what a component is, wherever it is kept and however its files are written.

A folder's fingerprint (`core.files`) hashes files; a pipeline in memory has none. Here tensors are hashed by name, shape
and float32 value, and configs without what only says who wrote them. Saved and loaded again, a component keeps its
fingerprint. Not the files' fingerprint of the same weights: a card says which is meant (`fingerprints: content`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from allaprima.models.components.loading import read_json
from allaprima.models.components.lora import lora_layers

VOLATILE = {"transformers_version", "torch_dtype", "dtype", "architectures", "name_or_path"}
"""Entries of configs that say who wrote them; so do those that begin with an underscore."""


class ContentPrints(Mapping[str, str]):
    """Fingerprints of parts by name, each computed when it is first asked for: hashing gigabytes takes its time.

    `known`: those that were computed elsewhere. A part that several of these hold is hashed once, if they share `cache`.
    """

    def __init__(
        self,
        parts: Mapping[str, Any],
        known: Mapping[str, str] | None = None,
        cache: dict[int, tuple[Any, str]] | None = None,
    ) -> None:
        self._parts, self._known = dict(parts), dict(known or {})
        self.cache: dict[int, tuple[Any, str]] = {} if cache is None else cache

    def __getitem__(self, name: str) -> str:
        if name not in self._known:
            part = self._parts[name]
            # The part is kept beside its print, so that its id isn't another's one day.
            if id(part) not in self.cache:
                self.cache[id(part)] = part, content_fingerprint(part)
            self._known[name] = self.cache[id(part)][1]
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        yield from dict.fromkeys((*self._parts, *self._known))

    def __len__(self) -> int:
        return len({*self._parts, *self._known})


def content_fingerprint(part: Any) -> str:
    """Of a network (with adapters that aren't fused: of both), a tokenizer, a scheduler, an image processor, or None."""
    if part is None:
        return "absent"
    if isinstance(part, nn.Module):
        layers = lora_layers(part)
        base = network_fingerprint(part)
        return base if layers is None else with_lora(base, layers)
    if hasattr(part, "get_vocab"):
        return _hashed([type(part).__name__, _tokenizer(part)])
    config = getattr(part, "config", None)
    config = config if config is not None else part.to_dict() if hasattr(part, "to_dict") else part
    return _of_config(type(part).__name__, config) if isinstance(config, Mapping) else _hashed([repr(config)])


def scheduler_fingerprint(folder: Path) -> str:
    """What `content_fingerprint` says of the scheduler that a folder holds."""
    config = read_json(folder / "scheduler_config.json")
    return _of_config(str(config.get("_class_name")), config)


def with_lora(base: str, layers: Mapping[str, Tensor]) -> str:
    """Of a network with fingerprint `base` and a LoRA file's tensors on it."""
    return _hashed([base, "lora"], sorted(layers.items()))


def _of_config(name: str, config: Mapping[str, Any]) -> str:
    return _hashed([name, _plain(config)])


def network_fingerprint(network: nn.Module) -> str:
    """Of a network alone, whatever adapters are on it."""
    found: Any = getattr(network, "config", {})
    config = found.to_dict() if hasattr(found, "to_dict") else dict(found)
    state = {k.replace(".base_layer.", "."): v for k, v in network.state_dict().items() if ".lora_" not in k}
    return _hashed([type(network).__name__, _plain(config)], sorted(state.items()))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without who wrote it, and as JSON would have it: tuples are lists."""
    kept = {str(k): v for k, v in config.items() if not str(k).startswith("_") and k not in VOLATILE}
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # How it last padded and cut is its state, not what it is.
    model = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    kept = {k: v for k, v in model.items() if k not in ("truncation", "padding")}
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    return {"model": kept, "special": special, "length": int(tokenizer.model_max_length)}


def _hashed(texts: Iterable[Any], tensors: Iterable[tuple[str, Tensor]] = ()) -> str:
    digest = hashlib.sha256(json.dumps(list(texts), sort_keys=True, default=str).encode())
    for name, value in tensors:
        plain = value.detach().cpu()
        plain = plain.float() if plain.is_floating_point() else plain
        digest.update(f"\x1f{name}\x1f{tuple(plain.shape)}\x1f{plain.dtype}".encode())
        # In the order of its places, however it lies in memory (channels last or not).
        digest.update(np.ascontiguousarray(plain.numpy()).data)
    return digest.hexdigest()[:16]


def same(a: Any, b: Any) -> bool:
    """Whether two parts are one, or equal by content."""
    return a is b or content_fingerprint(a) == content_fingerprint(b)
