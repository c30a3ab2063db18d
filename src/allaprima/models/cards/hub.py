"""Model hub ids as a card's sources: `owner/name[@revision][:inside]`, fetched when they are first needed.

`inside` is a folder or a file of the repository. Only what a family reads is fetched: safetensors, configs, tokenizers; no
pickle, no other framework's weights, no half-precision copies. Files lie in huggingface_hub's own cache (HF_HOME), where
other tools find them too; with HF_HUB_OFFLINE=1, or without a network, what isn't there is named with the command that
fetches it.
"""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allaprima.core.errors import ModelError, UnsafeWeightsError
from allaprima.core.files import PICKLES, shards_of

PATTERN = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<inside>[\w./ -]+))?")
IGNORED = ("*.fp16*", "*.bf16*", "*.non_ema*", "*.msgpack", "*.onnx*", "*.h5", "*openvino*", *(f"*{p}" for p in PICKLES))
"""What is never fetched: what isn't read, and what must not be."""
REACH = 4.0
"""Seconds within which the hub must say what a repository holds."""
LOCAL_FILES = ("scheduler", "unet", "transformer")
"""Components that a model can't do without, whatever its index says."""


@dataclass(frozen=True)
class HubSource:
    """A repository of the hub, or something inside it."""

    id: str
    revision: str | None = None
    inside: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubSource | None:
        """None for what can only be a path: absolute, with one part or more than two, or a file's name without an id."""
        found = PATTERN.fullmatch(text)
        if found is None or Path(found["id"]).suffix in (".safetensors", ".yaml", ".yml", ".json", ".txt", ".csv", *PICKLES):
            return None
        return cls(found["id"], found["revision"], found["inside"])

    def __str__(self) -> str:
        return self.id + (f"@{self.revision}" if self.revision else "") + (f":{self.inside}" if self.inside else "")

    @property
    def is_file(self) -> bool:
        """Whether `inside` is one file."""
        return self.inside is not None and self.inside.endswith(".safetensors")


def cache_of(source: HubSource) -> Path:
    """Where a repository's files lie, or would: `HF_HOME/hub/models--OWNER--NAME`."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / ("models--" + source.id.replace("/", "--"))


def patterns_of(source: HubSource, components: Sequence[str] | None) -> list[str]:
    """What of a repository is fetched; `components` None is everything at `inside`."""
    if source.is_file:
        return [str(source.inside)]
    below = f"{source.inside}/" if source.inside else ""
    if components is None:
        return [f"{below}*.{kind}" for kind in ("json", "safetensors", "txt", "model")]
    return [f"{below}model_index.json", *(f"{below}{c}/*" for c in components)]


def command(source: HubSource, components: Sequence[str] | None = None) -> str:
    """The shell command that fetches it, the same files as `fetched`."""
    words = ["hf", "download", source.id, *(["--revision", source.revision] if source.revision else [])]
    if source.is_file:
        return shlex.join([*words, str(source.inside)])
    for pattern in patterns_of(source, components):
        words += ["--include", pattern]
    for pattern in IGNORED:
        words += ["--exclude", pattern]
    return shlex.join(words)


def here(source: HubSource) -> Path | None:
    """The source in the cache, complete or not; None where nothing of it is there. Never asks the network."""
    repository = cache_of(source)
    name = source.revision or "main"
    ref = repository / "refs" / name
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name
    found = repository / "snapshots" / commit
    found = found / source.inside if source.inside else found
    return found if found.exists() else None


def lacking(folder: Path, components: Sequence[str] | None) -> list[str]:
    """Which files of a cached folder aren't there yet. What only comes as a pickle is not lacking: reading it says so."""
    if folder.is_file():
        return []
    index = _index(folder)
    if components is None and index is not None:
        return [what for c in index if _named(index, c) for what in _lacks(folder / c)]
    if components is None:
        held = any(p.suffix in (".safetensors", *PICKLES) for p in folder.iterdir())
        return [name for name in shards_of(folder) if not (folder / name).exists()] or ([] if held else ["*.safetensors"])
    return [what for c in components if c in LOCAL_FILES or index is None or _named(index, c) for what in _lacks(folder / c)]


def _index(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _named(index: dict[str, Any], component: str) -> bool:
    """Whether a pipeline has a component: `[null, null]` says it does without."""
    value = index.get(component)
    return isinstance(value, list) and any(value)


def _lacks(folder: Path) -> list[str]:
    name = folder.name
    if not folder.is_dir():
        return [f"{name}/"]
    if name == "scheduler":
        return [] if (folder / "scheduler_config.json").exists() else [f"{name}/scheduler_config.json"]
    if name.startswith("tokenizer") or name.endswith(("extractor", "processor")):
        return [] if any(folder.iterdir()) else [f"{name}/"]
    if not (folder / "config.json").exists():
        return [f"{name}/config.json"]
    missing = [f"{name}/{shard}" for shard in shards_of(folder) if not (folder / shard).exists()]
    held = any(p.suffix in (".safetensors", *PICKLES) for p in folder.iterdir())
    return missing if missing or held else [f"{name}/*.safetensors"]


def complete(source: HubSource, components: Sequence[str] | None = None) -> Path | None:
    """The source in the cache with all that is needed of it; None where something isn't there. Never asks the network."""
    found = here(source)
    return None if found is None or lacking(found, components) else found


def fetched(source: HubSource, components: Sequence[str] | None = None) -> Path:
    """The folder or file of a source, from the cache, or fetched into it.

    `components`: folders that are needed (`unet`, `vae`, ...); None is all there is. Raises `ModelError` within 5 s where it
    isn't here and can't be had, with the command that fetches it; `UnsafeWeightsError` for a repository of pickles.
    """
    found = here(source)
    missing = [] if found is None else lacking(found, components)
    if found is not None and not missing:
        return found
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _absent(source, components, missing, "HF_HUB_OFFLINE is set")
    info = _asked(source, components, missing)
    _refuse_pickles(source, components, [str(s.rfilename) for s in info.siblings or []])
    _download(source, components, missing)
    found = here(source)
    if found is None:
        raise ModelError(f"{source.id} holds no {source.inside!r}: mend the card's source. Its page lists what there is.")
    return found


def fetched_configs(source: HubSource) -> Path:
    """The folder of a source with its configs and its page at least; weights only if they are here. Raises as `fetched`."""
    found = here(source)
    if found is not None:
        return found
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise _absent(source, None, (), "HF_HUB_OFFLINE is set")
    _asked(source, None, ())
    _download(source, None, (), ["*.json", "README.md"])
    found = here(source)
    if found is None:
        raise ModelError(f"{source.id} holds no {source.inside!r}: mend the id. Its page lists what there is.")
    return found


def _absent(source: HubSource, components: Sequence[str] | None, missing: Sequence[str], why: str) -> ModelError:
    lacks = f" (here, but without {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''})" if missing else ""
    return ModelError(
        f"{source} is not on this machine{lacks} and can't be fetched: {why}. It would lie in {cache_of(source)}. Fetch it"
        f" where there is a network, and copy that folder here:\n  {command(source, components)}\n"
        "A folder of that name beside the card does as well."
    )


def _asked(source: HubSource, components: Sequence[str] | None, missing: Sequence[str]) -> Any:
    """What the hub says of a repository."""
    from huggingface_hub import HfApi

    try:
        return within(REACH, lambda: HfApi().model_info(source.id, revision=source.revision, timeout=REACH - 1))
    except Exception as e:
        raise _refused(source, components, missing, e) from e


def _download(
    source: HubSource, components: Sequence[str] | None, missing: Sequence[str], patterns: list[str] | None = None
) -> None:
    """Fetch files of these patterns; None: what the components need."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            source.id, revision=source.revision, allow_patterns=patterns or patterns_of(source, components),
            ignore_patterns=list(IGNORED),
        )  # fmt: skip
    except Exception as e:
        raise _refused(source, components, missing, e) from e


def _refused(source: HubSource, components: Sequence[str] | None, missing: Sequence[str], error: Exception) -> ModelError:
    """The hub's errors in our words."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            f"{source.id} is behind a licence that must be accepted: read and accept it at https://huggingface.co/{source.id},"
            f" then `hf auth login`, then:\n  {command(source, components)}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{source.id} has no revision {source.revision!r}: mend the card's source.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(
            f"{source} is neither a folder beside the card nor a repository of the hub (or a private one): mend the card's"
            " source, or `hf auth login` with an account that may read it."
        )
    return _absent(source, components, missing, f"{type(error).__name__}: {' '.join(str(error).split())[:160]}")


def _refuse_pickles(source: HubSource, components: Sequence[str] | None, files: Sequence[str]) -> None:
    """Raise `UnsafeWeightsError` for a component whose weights come as pickles only, before anything is fetched."""
    below = f"{source.inside}/" if source.inside and not source.is_file else ""
    for component in components if components is not None else ("",):
        at = f"{below}{component}/" if component else below
        held = [f for f in files if f.startswith(at) and "/" not in f[len(at) :]]
        pickles = [f for f in held if f.endswith(PICKLES)]
        if pickles and not any(f.endswith(".safetensors") for f in held):
            raise UnsafeWeightsError(
                f"{source.id} has {pickles[0]}, a pickle, which can run code when it is read, and no safetensors in its"
                " place: use another revision (its page lists conversions), or convert it on a machine you can lose."
            )


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; `TimeoutError` after so many seconds, whatever it waits for (a name server, too)."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"the hub didn't answer within {seconds:g} s")
    return found[0]
