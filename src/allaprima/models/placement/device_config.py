"""Where and how a card's networks run: device, dtype, backend, what is loaded when. The default changes no bit.

Noise, solvers, guidance and decisions stay on the CPU in float32, wherever the networks are: what goes to a device is a
network's arguments, and what comes back is its answer (`models.placement.offloaded`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import SettingError
from allaprima.models.backends.backend import DTYPES as COMPUTED
from allaprima.models.backends.backend import NAMES, make_backend

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
OFFLOADS = ("none", "model", "sequential")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
DEFAULT = "eager-float32-cpu"
"""Fingerprint of the default."""


@dataclass(frozen=True)
class DeviceConfig:
    """How networks run. Raises `SettingError` for what contradicts itself, `resolved` for what this machine hasn't got."""

    backend: str = "eager"
    """`eager`, or a compiler for the CPU: `openvino`, `onnxruntime` (each an extra)."""
    device: str = "cpu"
    """`cpu`, `cuda`, `cuda:1`, ..., or `auto`: a GPU if there is one."""
    teacher_device: str | None = None
    """The teacher's network, when it is to be elsewhere; None: on `device`, where all the rest is."""
    dtype: str = "float32"
    """`float32`, `bfloat16`, `float16` (not on a CPU), or `auto`: bfloat16 on a GPU that knows it."""
    lazy_teacher: bool = False
    """The teacher's network is read when the first draft falls short."""
    offload: str = "none"
    """`model`: one network at a time is on the device; `sequential`: one layer at a time, slowest and smallest."""
    vae_slicing: bool = False
    """Pictures are decoded one at a time."""
    vae_tiling: bool = False
    """Large pictures are decoded in overlapping tiles."""
    attention: str | None = None
    """One of diffusers' attention backends (`set_attention_backend`), of the diffusion networks."""
    compile: str | None = None
    """`torch.compile` of the diffusion networks, by mode; `reduce-overhead` is the one with CUDA graphs."""
    channels_last: bool = False
    """The autoencoder's convolutions too (UNets always are)."""
    cache: Path | None = None
    """Where compiled graphs are kept; None: `backends.store.default_cache`."""

    def __post_init__(self) -> None:
        _among("backend", self.backend, ("eager", *NAMES))
        _among("dtype", self.dtype, ("auto", *DTYPES))
        _among("offload", self.offload, OFFLOADS)
        if self.compile is not None:
            _among("compile", self.compile, COMPILE_MODES)
        for name in ("device", "teacher_device"):
            _check_device(name, getattr(self, name))
        if self.backend != "eager":
            known = {f.name for f in dataclasses.fields(self)} - {"backend", "cache", "lazy_teacher", "device", "dtype"}
            odd = [n for n in sorted(known) if getattr(self, n) != getattr(_PLAIN, n)]
            if odd or self.device not in ("cpu", "auto") or self.dtype not in ("auto", *COMPUTED[self.backend]):
                name = odd[0] if odd else "device" if self.device not in ("cpu", "auto") else "dtype"
                raise SettingError(
                    f"backend={self.backend!r} runs on the CPU in {' or '.join(COMPUTED[self.backend])}, with nothing else:"
                    f" leave out {name}={getattr(self, name)!r}, or use backend='eager'."
                )
        if self.compile is not None and self.offload != "none":
            raise SettingError(f"compile={self.compile!r} and offload change a network under each other: give one of them.")

    @property
    def plain(self) -> bool:
        """Whether everything is as if nothing had been said."""
        return dataclasses.replace(self, cache=None) == _PLAIN

    def resolved(self) -> DeviceConfig:
        """With devices and dtype in place of `auto`. Raises `SettingError` for a device that isn't there."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() and self.backend == "eager" else "cpu"
        for name, at in (("device", device), ("teacher_device", self.teacher_device)):
            if at is not None and torch.device(at).type == "cuda" and not torch.cuda.is_available():
                raise SettingError(f"{name}={at!r}: torch sees no GPU here. Use 'cpu', or 'auto' for what there is.")
        devices = {torch.device(d).type for d in (device, self.teacher_device or device)}
        dtype = self.dtype
        if dtype == "auto":
            dtype = "bfloat16" if devices == {"cuda"} and torch.cuda.is_bf16_supported() else "float32"
        if dtype == "float16" and "cpu" in devices:
            raise SettingError("dtype='float16' is for GPUs: on a CPU use float32, the fastest there, or bfloat16.")
        if self.offload != "none" and devices == {"cpu"}:
            raise SettingError(
                f"offload={self.offload!r} moves networks between CPU and GPU, and device is 'cpu': leave it out."
            )
        return dataclasses.replace(self, device=device, dtype=dtype)

    def device_of(self, teacher: bool) -> torch.device:
        """Where one of the diffusion networks is."""
        return torch.device(self.teacher_device if teacher and self.teacher_device is not None else self.device)

    @property
    def signature(self) -> str:
        """All that changes bits, for fingerprints: `eager-float32-cpu` is the default."""
        if self.backend != "eager":
            dtype = "float32" if self.dtype == "auto" else self.dtype
            return f"{make_backend(self.backend, dtype).signature}-{dtype}-cpu"
        kinds = [torch.device(d).type for d in (self.device, self.teacher_device or self.device)]
        where = kinds[0] if kinds[0] == kinds[1] else "+".join(kinds)
        said: dict[str, Any] = {
            "slicing": self.vae_slicing, "tiling": self.vae_tiling, "channels_last": self.channels_last,
            f"attention={self.attention}": self.attention is not None,
            f"compile={self.compile}": self.compile is not None,
        }  # fmt: skip
        return "-".join(["eager", self.dtype, where, *(k for k, there in said.items() if there)])

    def to_dict(self) -> dict[str, Any]:
        """What was said of it, JSON-ready and without the cache, whose place says nothing of a picture."""
        fields = (f.name for f in dataclasses.fields(self) if f.name != "cache")
        return {n: getattr(self, n) for n in fields if getattr(self, n) != getattr(_PLAIN, n)}

    @classmethod
    def of(cls, **options: Any) -> DeviceConfig:
        """From options by name, None for those not given. Raises `SettingError` for an unknown one."""
        known = [f.name for f in dataclasses.fields(cls)]
        odd = next((k for k in options if k not in known), None)
        if odd is not None:
            raise SettingError(f"{odd!r} says nothing of where networks run: {', '.join(known)} do.")
        return cls(**{k: v for k, v in options.items() if v is not None})


def _among(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingError(f"{name}={value!r} is not known: {', '.join(known)} are.")


def _check_device(name: str, value: str | None) -> None:
    if value is None or (value == "auto" and name == "device"):
        return
    try:
        kind = torch.device(value).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        also = ", or 'auto'" if name == "device" else ""
        raise SettingError(f"{name}={value!r} is no device: 'cpu', 'cuda' and 'cuda:1' are{also}.")


_PLAIN = DeviceConfig()
