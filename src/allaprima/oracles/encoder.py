"""What oracles with a network of their own share: where it runs, batches, prompts that are too long, what identifies it."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.core.files import fingerprint
from allaprima.oracles.settings import EncoderSettings

Step = Callable[[], float]
"""Floating-point operations of the teacher's guided step for a picture (`models.loading.flops`); asked when a cost is asked
for."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def on_device(module: Any, settings: EncoderSettings) -> Any:
    """Return a frozen network on its device, in its dtype. Raises `SettingError` for a device that isn't there."""
    try:
        return module.to(device=settings.device, dtype=DTYPES[settings.dtype]).eval().requires_grad_(False)
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise SettingError(
            f"device={settings.device!r}, dtype={settings.dtype}: {str(e)[:200]}. Choose another device."
        ) from e


def identity(kind: str, settings: EncoderSettings, *folders: Path) -> str:
    """Hash of an oracle: its files' and the settings that change its scores."""
    said = [kind, fingerprint(*folders), settings.scoring()]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def share(flops: float, settings: EncoderSettings, step: Step | None) -> float:
    """Return the cost of a score: as it was set, else `flops` over the teacher's step's, else nan, for nothing says it."""
    if settings.cost is not None:
        return settings.cost
    return math.nan if step is None else flops / step()


def in_batches(
    one: Callable[[Tensor, Sequence[str]], Tensor], images: Tensor, prompts: Sequence[str], settings: EncoderSettings
) -> Tensor:
    """`(B, 3, H, W)` with prompts -> `(B,)` float32 where the pictures are; a picture that holds no numbers scores nan.

    Raises `SettingError` for as many prompts as there are no pictures for.
    """
    if len(images) != len(prompts):
        raise SettingError(f"{len(images)} pictures with {len(prompts)} prompts: a prompt a picture is due.")
    scores = torch.full((len(images),), math.nan, device=images.device)
    finite = images.isfinite().flatten(1).all(1)
    moved = images.nan_to_num(0.0)
    for begin in range(0, len(images), settings.batch_size):
        end = begin + settings.batch_size
        found = one(moved[begin:end].to(settings.device), list(prompts[begin:end]))
        scores[begin:end] = found.float().to(images.device)
    return torch.where(finite, scores, math.nan)


class SavedModule(nn.Module):
    """A network of an oracle that is saved as `config.json` and safetensors; `config` holds its arguments."""

    config: dict[str, Any]

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"_class_name": type(self).__name__, **self.config}, indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Inverse of `save_pretrained`; float32, frozen. Raises `ModelError` for a broken folder."""
        try:
            config: dict[str, Any] = json.loads((folder / "config.json").read_text())
            config.pop("_class_name", None)
            net = cls(**config)
            net.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        except Exception as e:
            raise ModelError(f"{folder} cannot be loaded as a {cls.__name__}: {e}. Copy or download it again.") from e
        return net.eval().requires_grad_(False)


class EncoderOracle(ABC):
    """An oracle with a network of its own: its scores come in batches, its cost is a share of a teacher's guided step."""

    settings: Any
    """`EncoderSettings`, or a kind's own."""
    _step: Step | None

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of one score, without a head's (some millionths)."""
        raise NotImplementedError

    @property
    def cost(self) -> float:
        """Share of a teacher's guided step (`encoder.share`)."""
        return share(self.flops, self.settings, self._step)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] with prompts -> `(B,)`, higher is better."""
        return in_batches(self._score, images, prompts, self.settings)

    @abstractmethod
    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores of one batch, on the network's device."""


def tokens_of(
    tokenizer: Any, prompts: Sequence[str], length: int, name: str, settings: EncoderSettings
) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask (B, length)`, padded and cut, on the device; what is cut is said, or refused.

    Raises `PromptError` when `settings.long_prompts` says so.
    """
    counts = [len(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]]
    over = [i for i, n in enumerate(counts) if n > length]
    if over:
        first = over[0]
        said = f"{name} reads {length} tokens; the prompt {prompts[first][:60]!r}... has {counts[first]}"
        if settings.long_prompts == "refuse":
            raise PromptError(f"{said}. Shorten it, or let it be cut: oracle.settings.long_prompts: warn.")
        more = f" ({len(over)} prompts of this batch are longer)" if len(over) > 1 else ""
        warnings.warn(f"{said}: the rest doesn't count{more}.", UserWarning, stacklevel=2)
    made = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt", verbose=False
    )
    return {k: made[k].to(settings.device) for k in ("input_ids", "attention_mask")}


def loaded(cls: Any, folder: Path) -> Any:
    """Return a transformers model from its folder: float32, safetensors, no remote code; every weight must be there.

    Raises `ModelError` for a broken folder or missing weights, which transformers would make up at random.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    level = transformers.utils.logging.get_verbosity()
    # Its report of leftover weights (the text half, for a vision model) is a page long; missing ones are refused below.
    transformers.utils.logging.set_verbosity_error()
    try:
        model, info = cls.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, torch_dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as e:
        raise ModelError(f"{folder} cannot be loaded as {cls.__name__}: {e}. Copy or download it again.") from e
    finally:
        transformers.utils.logging.set_verbosity(level)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"{folder} has no {missing[0]} ({len(missing)} weights are missing): download the model again.")
    return model


def loaded_tokenizer(folder: Path) -> Any:
    """Return a tokenizer from its folder; raises `ModelError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ModelError(f"{folder} cannot be loaded as a tokenizer: {e}. Copy the published one there.") from e


def transformer_flops(layers: int, width: int, inner: int, tokens: int, cross: tuple[int, int] | None = None) -> float:
    """Floating-point operations of a transformer's layers for one sample, two a multiplication with addition.

    A layer has four products `tokens x width x width`, two of attention `tokens^2 x width` and two of the MLP; with
    `cross=(tokens, width)` of another sequence, as many again whose keys and values are of it. Softmax, norms and
    activations aren't counted.
    """
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * inner
    if cross is not None:
        others, theirs = cross
        layer += 2 * tokens * width**2 + 2 * others * theirs * width + 2 * tokens * others * width
    return 2.0 * layers * layer


def vision_flops(config: Any) -> float:
    """Of a vision transformer (CLIP's, BLIP's) for one picture: patches and layers."""
    patches = (config.image_size // config.patch_size) ** 2
    patching = 2.0 * patches * 3 * config.patch_size**2 * config.hidden_size
    return patching + transformer_flops(config.num_hidden_layers, config.hidden_size, config.intermediate_size, patches + 1)
