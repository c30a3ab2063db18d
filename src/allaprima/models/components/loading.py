"""Loading of the diffusers folder format: safetensors only, no pickle, no remote code, each component once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from allaprima.core.errors import ModelError
from allaprima.core.files import fingerprint as fingerprint
from allaprima.core.files import read_json as read_json
from allaprima.core.files import refuse_unreadable
from allaprima.core.files import weight_files as weight_files
from allaprima.models.components.tokenizer_lock import one_at_a_time

# Where a class named in a folder's config lives: only these are ever imported.
CLASSES: Mapping[str, str] = {
    "UNet2DConditionModel": "diffusers.models.unets.unet_2d_condition",
    "SD3Transformer2DModel": "diffusers.models.transformers.transformer_sd3",
    "FluxTransformer2DModel": "diffusers.models.transformers.transformer_flux",
    "SanaTransformer2DModel": "diffusers.models.transformers.sana_transformer",
    "QwenImageTransformer2DModel": "diffusers.models.transformers.transformer_qwenimage",
    "ZImageTransformer2DModel": "diffusers.models.transformers.transformer_z_image",
    "ControlNetModel": "diffusers.models.controlnets.controlnet",
    "AutoencoderKL": "diffusers.models.autoencoders.autoencoder_kl",
    "AutoencoderDC": "diffusers.models.autoencoders.autoencoder_dc",
    "AutoencoderKLQwenImage": "diffusers.models.autoencoders.autoencoder_kl_qwenimage",
    "AutoencoderTiny": "diffusers.models.autoencoders.autoencoder_tiny",
    "PixelShuffleAutoencoder": "allaprima.models.autoencoder",
    "BertModel": "transformers",
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    "T5EncoderModel": "transformers",
    "Gemma2Model": "transformers",
    "Qwen2_5_VLForConditionalGeneration": "transformers",
    "Qwen3Model": "transformers",
}
WITHOUT_HEAD: Mapping[str, str] = {"Gemma2ForCausalLM": "Gemma2Model", "Qwen3ForCausalLM": "Qwen3Model"}
"""Language models that are read for their hidden states: what stands in for them, without the head that says words."""


def class_of(config: Mapping[str, Any], where: Path | str) -> str:
    """Name of the class that a component's config is one of. Raises `ModelError` for one that can't be loaded."""
    name = str(config.get("_class_name") or (config.get("architectures") or ["?"])[0])
    name = WITHOUT_HEAD.get(name, name)
    if name not in CLASSES:
        raise ModelError(f"{where} names the class {name!r}: {', '.join(CLASSES)} can be loaded.")
    return name


def load_component(folder: Path) -> Any:
    """Return a network from its folder, float32, frozen, in evaluation mode."""
    name = class_of(read_json(folder / "config.json"), folder / "config.json")
    weight_files(folder)
    _quiet()
    cls = getattr(importlib.import_module(CLASSES[name]), name)
    try:
        net = cls.from_pretrained(folder, use_safetensors=True, torch_dtype=torch.float32, **_low_memory(name))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as e:
        raise ModelError(f"{folder} cannot be loaded as {name}: {e}. Copy or download the model again.") from e
    return net.float().eval().requires_grad_(False)


def load_weights(folder: Path, file: Path) -> Any:
    """Return a network of diffusers' with the config of `folder` and the weights of a .safetensors file that has no config.

    Raises `ModelError` for weights of another architecture, or under other names than diffusers'.
    """
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    config = read_json(folder / "config.json")
    name = class_of(config, folder / "config.json")
    check_weights(file)
    with init_empty_weights():
        net = getattr(importlib.import_module(CLASSES[name]), name).from_config(config)
    state = load_file(file)
    own = net.state_dict()
    odd = [k for k in state if k not in own] or [k for k in own if k not in state]
    odd = odd or [k for k in own if own[k].shape != state[k].shape]
    if odd:
        have = tuple(state[odd[0]].shape) if odd[0] in state else "missing"
        raise ModelError(
            f"{file} doesn't fit the {name} of {folder}: {odd[0]!r} is {have} there, {_shape(own, odd[0])} here. Weights"
            " under diffusers' names for this architecture are due; a whole checkpoint of another tool's is not read."
        )
    net.load_state_dict(state, assign=True)
    return net.float().eval().requires_grad_(False)


def check_weights(file: Path) -> None:
    """Raise `ModelError` for what is no file of weights."""
    if not file.is_file() or file.suffix != ".safetensors":
        raise ModelError(f"{file} is no .safetensors file: weights of a network are due. Check the card's student.network.")
    refuse_unreadable(file)


def _shape(state: Mapping[str, torch.Tensor], key: str) -> Any:
    return tuple(state[key].shape) if key in state else "unknown"


def _low_memory(name: str) -> dict[str, Any]:
    return {} if CLASSES[name] == "transformers" else {"low_cpu_mem_usage": True}


def _quiet() -> None:
    """Progress bars of weight loading belong to long downloads, not to a folder read in milliseconds."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def load_tokenizer(folder: Path) -> Any:
    """Return a tokenizer from its folder, safe to call from several threads."""
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder: a tokenizer is due. Check the card's sources.")
    try:
        return one_at_a_time(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    except (OSError, ValueError) as e:
        raise ModelError(f"{folder} cannot be loaded as a tokenizer: {e}. Copy or download the model again.") from e
