"""Networks on a device and in a dtype of their own, read when first asked, or one at a time (accelerate's hooks)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.models.backends.flat import Call, Output, flattened, rebuilt
from allaprima.models.backends.stand_in import StandIn
from allaprima.models.components.latents import mean_of
from allaprima.models.placement.device_config import DTYPES, DeviceConfig


class OffloadedModule(StandIn):
    """A network, or a function of one, elsewhere. Arguments are moved there, what it says is moved back.

    Vectors (times, guidance scales) stay float32 in any dtype: 999 and 998 are one number in bfloat16.
    """

    def __init__(
        self, network: Callable[[], Any], config: Any, device: torch.device, dtype: torch.dtype,
        function: Callable[..., Any] | None = None, before: Callable[[Any], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config)
        self._load, self._at, self._in = network, device, dtype
        self._function, self._before = function, before
        self._held: list[Any] = []
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the network is in memory."""
        return bool(self._held)

    @property
    def held(self) -> Any:
        """The network, read now if it wasn't yet."""
        with self._lock:
            if not self._held:
                self._held.append(self._load())
            return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network says, on the CPU in float32."""
        network = self.held
        call = Call.of(args, kwargs)
        if self._before is not None:
            self._before(network)
        function = network if self._function is None else lambda *a, **k: self._hooked(network, *a, **k)
        said: list[Tensor] = []
        plan = flattened(call.made(function, [self._there(x) for x in call.tensors]), said, True)
        return rebuilt(plan, [_here(x) for x in said])

    def _there(self, x: Tensor) -> Tensor:
        return x.to(self._at, self._in) if x.is_floating_point() and x.ndim > 1 else x.to(self._at)

    def _hooked(self, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Accelerate's hooks see `forward` alone: here they are called around another function."""
        assert self._function is not None
        hook = getattr(network, "_hf_hook", None)
        if hook is None:
            return self._function(network, *args, **kwargs)
        hook.pre_forward(network)
        return hook.post_forward(network, self._function(network, *args, **kwargs))


def _here(x: Tensor) -> Tensor:
    return x.float().cpu() if x.is_floating_point() else x.cpu()


class OffloadedAutoencoder:
    """An autoencoder elsewhere."""

    def __init__(self, vae: Any, device: torch.device, dtype: torch.dtype, before: Callable[[Any], None] | None) -> None:
        self.config = vae.config
        self.decode = OffloadedModule(lambda: vae, vae.config, device, dtype, _decode, before)
        self._encode = OffloadedModule(lambda: vae, vae.config, device, dtype, _encode, before)

    def encode(self, images: Tensor) -> Any:
        """Something with `latent`, the mean of what the autoencoder says."""
        return Output({"latent": self._encode(images)})


def _decode(vae: Any, latents: Tensor, **told: Any) -> Any:
    return vae.decode(latents, **told)


def _encode(vae: Any, images: Tensor) -> Tensor:
    return mean_of(vae.encode(images))


class OneAtATime:
    """Networks of which one is on the device: as `enable_model_cpu_offload`, in any order of calls.

    diffusers' own chains its models in a fixed order; in a cascade what comes next is decided as it goes.
    """

    def __init__(self) -> None:
        self._hooks: dict[int, Any] = {}
        self._there: int | None = None

    def add(self, network: Any, device: torch.device) -> None:
        """Put hooks on a network; it is on the CPU then."""
        from accelerate import cpu_offload_with_hook

        _, self._hooks[id(network)] = cpu_offload_with_hook(network, device)

    def __call__(self, network: Any) -> None:
        """Before a network is called: the one that is there makes room."""
        if id(network) not in self._hooks:
            return  # It lives on the CPU.
        if self._there not in (None, id(network)):
            self._hooks[self._there].offload()
        self._there = id(network)


def prepared(network: Any, name: str, device: torch.device, p: DeviceConfig, room: OneAtATime | None) -> Any:
    """A loaded network as a placement wants it. Raises `SettingError` for what this network doesn't take.

    `name`: `network` is a diffusion network; others are neither compiled nor given an attention backend.
    """
    diffusion, vae = name == "network", name == "vae"
    if dtype_of(network, p) != torch.float32:
        network = network.to(dtype_of(network, p))
    if vae:
        for switch, on in (("enable_slicing", p.vae_slicing), ("enable_tiling", p.vae_tiling)):
            if on:
                _switch(network, switch)
        if p.channels_last:
            network = network.to(memory_format=torch.channels_last)
    if diffusion and p.attention is not None:
        _attend(network, p.attention)
    if room is not None and p.offload == "model" and device.type != "cpu":
        room.add(network, device)
    elif p.offload == "sequential" and device.type != "cpu":
        sequential(network, device)
    else:
        network = network.to(device)
    return torch.compile(network, mode=p.compile, dynamic=False) if diffusion and p.compile is not None else network


def sequential(network: Any, device: torch.device) -> None:
    """Layer by layer on the device, weights waiting on the CPU."""
    from accelerate import cpu_offload

    cpu_offload(network, device, offload_buffers=True)


def dtype_of(network: Any, p: DeviceConfig) -> torch.dtype:
    """The placement's, but float32 for an autoencoder that overflows in float16 (SDXL's own)."""
    upcast = p.dtype == "float16" and bool(getattr(network.config, "force_upcast", False))
    return torch.float32 if upcast else DTYPES[p.dtype]


def _switch(vae: Any, switch: str) -> None:
    try:
        getattr(vae, switch)()
    except (AttributeError, NotImplementedError) as e:
        name = switch.replace("enable_", "vae_")
        raise SettingError(f"{name}=True: {type(vae).__name__} can't be decoded so. Leave {name} out.") from e


def _attend(network: Any, attention: str) -> None:
    from diffusers.models.attention_dispatch import attention_backend

    name = type(network).__name__
    try:
        # diffusers makes it everyone's default too, which is put back: other models of this process keep their bits.
        with attention_backend("native"):
            network.set_attention_backend(attention)
    except Exception as e:
        why = " ".join(str(e).split())[:300]
        raise SettingError(f"attention={attention!r} can't be used by {name}: {why}. Leave it out for torch's own.") from e
    # Older attention processors know no backends, and diffusers passes them over without a word.
    if not any(hasattr(getattr(m, "processor", None), "_attention_backend") for m in network.modules()):
        raise SettingError(
            f"attention={attention!r}: the attention of {name} takes no backend of diffusers', it is torch's. Leave it out."
        )
