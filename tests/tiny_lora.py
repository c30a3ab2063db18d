"""Tiny random LoRA files under the names that published ones have."""

import torch
from safetensors.torch import save_file

RANK = 2


def modules(network):
    """What published files adapt: attention and convolutions."""
    ends, kinds = ("to_q", "to_k", "to_out.0", "conv1", "proj_in"), (torch.nn.Linear, torch.nn.Conv2d)
    return [(name, m) for name, m in network.named_modules() if name.endswith(ends) and isinstance(m, kinds)]


def pairs_of(module, g):
    shape = module.weight.shape
    down = torch.randn(RANK, *shape[1:], generator=g) * 0.3
    up = torch.randn(shape[0], RANK, *[1] * (len(shape) - 2), generator=g) * 0.3
    return down, up


def lora_file(path, network, names, component="unet"):
    """A LoRA in peft's names (LCM-LoRA's), or in kohya's with an alpha that isn't the rank (Lightning's, Hyper-SD's)."""
    g, state = torch.Generator().manual_seed(5), {}
    for name, module in modules(network):
        down, up = pairs_of(module, g)
        if names == "peft":
            state |= {f"{component}.{name}.lora_A.weight": down, f"{component}.{name}.lora_B.weight": up}
        else:
            key = f"lora_{component}_{name.replace('.', '_')}"
            state |= {
                f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(3.0),
            }  # fmt: skip
    save_file(state, path)
    return path
