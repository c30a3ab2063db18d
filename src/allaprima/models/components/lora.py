"""LoRA adapters (arXiv 2106.09685) on networks of diffusers, through peft: `W x + (alpha / rank) B A x`, B = 0 at first.

The file is diffusers' (`pytorch_lora_weights.safetensors`, read by a pipeline's `load_lora_weights`). peft is needed here
alone, and is imported when it is.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError, SettingError, UnsafeWeightsError

FILE = "pytorch_lora_weights.safetensors"
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
    "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""What LCM-LoRA adapts (arXiv 2311.05556): attention, feed-forward layers, resnets, resampling. By the names' ends."""
MIXINS: Mapping[str, tuple[str, str]] = {
    "UNet2DConditionModel": ("StableDiffusionLoraLoaderMixin", "unet"),
    "SD3Transformer2DModel": ("SD3LoraLoaderMixin", "transformer"),
    "FluxTransformer2DModel": ("FluxLoraLoaderMixin", "transformer"),
    "SanaTransformer2DModel": ("SanaLoraLoaderMixin", "transformer"),
    "QwenImageTransformer2DModel": ("QwenImageLoraLoaderMixin", "transformer"),
    "ZImageTransformer2DModel": ("ZImageLoraLoaderMixin", "transformer"),
}
"""By the network's class: who in diffusers reads and writes its LoRA files, and what they call the network."""


def add_adapters(
    network: Any, rank: int, alpha: float, targets: Sequence[str] = TARGETS, dropout: float = 0.0, seed: int = 0
) -> None:
    """Put fresh adapters on `network`, in place; they alone are trainable then. What it says doesn't change.

    `targets`: ends of module names; those that aren't there are passed over. A is drawn from `seed`.
    Raises `SettingError` where peft is missing or no target is there.
    """
    peft = _peft()
    network.requires_grad_(False)
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout, init_lora_weights=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network.add_adapter(config)
        except ValueError as e:
            raise SettingError(
                f"lora.targets={list(targets)!r}: {type(network).__name__} has no modules of these names ({e}). Name others,"
                f" such as {TARGETS[0]!r}."
            ) from e
    for name, p in network.named_parameters():
        p.requires_grad_(".lora_" in name)


def lora_layers(network: Any) -> dict[str, Tensor] | None:
    """Tensors of the adapter that is on `network`, scale multiplied into B, named as in a file; None: there is none.

    Raises `ModelError` for several at once: they are several files.
    """
    if not getattr(network, "peft_config", None):
        return None
    peft = _peft()
    on = [name for name in network.active_adapters()] if hasattr(network, "active_adapters") else list(network.peft_config)
    if len(on) != 1:
        raise ModelError(
            f"{len(on)} LoRA adapters are active ({', '.join(on)}): one is due. Fuse them (`fuse_lora`), or leave one."
        )
    # Under peft's own names. Diffusers' older ones (`convert_state_dict_to_diffusers`) exist for attention only, and its
    # loader reads a file with both as if it had one kind.
    layers: dict[str, Tensor] = peft.get_peft_model_state_dict(network, adapter_name=on[0])
    for name in layers:
        if ".lora_B." in name:
            # The scale is alpha / rank and what `set_adapters` says. Not every program reads alpha; without one all take 1.
            layers[name] = layers[name] * network.get_submodule(name.split(".lora_B.")[0]).scaling[on[0]]
    return {k: v.detach().float().contiguous().cpu() for k, v in layers.items()}


def read_lora(file: Path, component: str, scale: float = 1.0) -> dict[str, Tensor]:
    """Tensors of a file that `save_lora` wrote, as `lora_layers` names them; `scale` is multiplied into B as there."""
    from safetensors.torch import load_file

    found = {k.removeprefix(f"{component}."): v.float() for k, v in load_file(file).items()}
    return {k: v * scale if ".lora_B." in k else v for k, v in found.items()}


def save_lora(network: Any, folder: Path) -> Path:
    """Write the adapters of `network` in diffusers' format; returns the file. The scale is multiplied into B."""
    from diffusers.loaders import lora_pipeline

    mixin, component = _mixin(network)
    layers = lora_layers(network)
    getattr(lora_pipeline, mixin).save_lora_weights(folder, **{f"{component}_lora_layers": layers})
    return folder / FILE


def fuse_lora(network: Any, file: Path, scale: float = 1.0) -> Any:
    """`network` with a LoRA file's adapters multiplied into its weights, in place: `W + scale B A`, at no cost in use.

    Raises `ModelError` and `UnsafeWeightsError` as `adapted` does.
    """
    network = _placed(network, file)
    network.fuse_lora(lora_scale=scale)
    network.unload_lora()
    return network.eval().requires_grad_(False)


def adapted(network: Any, file: Path, scale: float = 1.0) -> Any:
    """Another network that is `network` with a LoRA file's adapters beside its weights: `W x + scale B A x`.

    The weights are the very tensors of `network`, which is left as it is: the modules are other ones, so that neither knows
    of the other, whoever is asked in between or at once. Published files load as diffusers' pipelines load them: their own
    names, peft's, and kohya's with alpha.

    Raises `ModelError` for a missing file, one that doesn't fit, or where peft is missing; `UnsafeWeightsError` for pickles.
    """
    tensors = (*network.parameters(), *network.buffers())
    made = _placed(copy.deepcopy(network, {id(v): v for v in tensors}), file)
    try:
        (name,) = made.peft_config
    except ValueError as e:
        raise ModelError(f"{file}: the network below has adapters already. Fuse them first, or give its own source.") from e
    made.set_adapters([name], [scale])
    return made.eval().requires_grad_(False)


def _placed(network: Any, file: Path) -> Any:
    """`network` with the adapters of a file on it, in place.

    Raises `ModelError` for a missing file, one that doesn't fit, or where peft is missing; `UnsafeWeightsError` for pickles.
    """
    check_lora(file)
    from diffusers.loaders import lora_pipeline

    mixin, component = _mixin(network)
    try:
        loader = getattr(lora_pipeline, mixin)
        known = {"unet_config": network.config} if component == "unet" else {}
        read = loader.lora_state_dict(
            str(file.parent), weight_name=file.name, use_safetensors=True, local_files_only=True,
            return_lora_metadata=True, **known,
        )  # fmt: skip
        state, alphas, metadata = read if len(read) == 3 else (read[0], None, read[1])
        others = {k.split(".")[0] for k in state} - {component}
        if others:
            raise ValueError(f"it adapts {', '.join(sorted(others))}, and only a {component} can be adapted")
        network.load_lora_adapter(state, prefix=component, network_alphas=alphas, metadata=metadata)
        # What finds no place is logged by diffusers, no more: half a LoRA would paint, and nobody would know.
        due, placed = (sum(".alpha" not in k for k in state), sum(".lora_" in k for k, _ in network.named_parameters()))
        if placed != due or not due:
            raise ValueError(f"{placed} of its {due} tensors have a place there")
    except Exception as e:
        why = " ".join(str(e).split())[:300]
        raise ModelError(f"{file} doesn't fit {type(network).__name__}: {why}. Check the card's lora and source.") from e
    return network


def check_lora(file: Path) -> None:
    """Raise `ModelError` for a missing file, or where peft is missing; `UnsafeWeightsError` for pickles."""
    if file.suffix != ".safetensors":
        raise UnsafeWeightsError(f"{file}: a LoRA is read from .safetensors alone; pickles can run code. Convert it.")
    if not file.is_file():
        raise ModelError(f"{file} is missing: a LoRA file is due. Check the card's student.lora.")
    try:
        _peft()
    except SettingError as e:
        raise ModelError(f"{file}: {e}") from e


def fused_fingerprint(base: str, file: Path, scale: float = 1.0) -> str:
    """Of a network with fingerprint `base` and the LoRA in `file`."""
    told = b"" if scale == 1 else f" at {scale:g} ".encode()
    return hashlib.sha256(base.encode() + told + file.read_bytes()).hexdigest()[:16]


def _mixin(network: Any) -> tuple[str, str]:
    name = type(network).__name__
    if name not in MIXINS:
        raise ModelError(f"LoRA files of {name} are not known: those of {', '.join(MIXINS)} are.")
    return MIXINS[name]


def _peft() -> Any:
    try:
        import peft
    except ImportError as e:
        raise SettingError(f"LoRA needs peft ({e}): pip install 'allaprima[train]'.") from e
    return peft
