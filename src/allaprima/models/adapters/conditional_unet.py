"""CoDi's full kind (arXiv 2310.01407, section 4.1): a UNet, a copy of its encoder that reads a picture, and how they mix.

At every place where the encoder's features enter the decoder, `h' = (1 - mu) h(x_t) + mu h_c(c)`; mu is one learnable
number, 0 at the start, so that the start is the base to the bit. All weights learn, unlike beside a ControlNet.

Departures: the picture comes to the encoder through a ControlNet's few convolutions from pixels, not through the
autoencoder, so that a map may have any number of channels; what the encoder reads in place of x_t is zero.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from allaprima.core.errors import ModelError
from allaprima.diffusion.schedules import expand
from allaprima.models.components.loading import fingerprint, load_component, read_json

CLASS = "ConditionalUNet"
MU_RATE = 10.0
"""How many times faster mu learns than a weight: Adam moves each number by at most about the learning rate a step, and at
a rate that suits weights (3e-4) a thousand steps would leave mu near its zero."""


class ConditionalUNet(nn.Module):
    """`(x_t, t, prompt, picture) -> output`: a UNet of diffusers and a ControlNet without zero convolutions."""

    def __init__(self, unet: Any, encoder: Any, mu: float = 0.0) -> None:
        super().__init__()
        self.unet, self.encoder = unet, encoder
        self.slow_mu = nn.Parameter(torch.tensor(mu / MU_RATE))

    @classmethod
    def from_unet(cls, unet: Any, conditioning_channels: int, embedding: tuple[int, ...]) -> Self:
        """A copy of `unet`, and one of its encoder; `embedding`: channels of the way from pixels to latents.

        Fresh convolutions are drawn from PyTorch's global generator.
        """
        from diffusers.models.controlnets.controlnet import ControlNetModel

        encoder: Any = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=embedding, conditioning_channels=conditioning_channels
        )
        # Features as they are: mu is what begins at zero here.
        for conv in (*encoder.controlnet_down_blocks, encoder.controlnet_mid_block):
            nn.init.dirac_(conv.weight)
            nn.init.zeros_(conv.bias)
        # Were the picture multiplied by zero, too, nothing of it would come through when mu moves.
        embed = encoder.controlnet_cond_embedding.conv_out
        nn.init.kaiming_normal_(embed.weight)
        return cls(copy.deepcopy(unet), encoder)

    @property
    def mu(self) -> Tensor:
        """Share of the picture's features, a scalar."""
        return MU_RATE * self.slow_mu

    @property
    def config(self) -> Any:
        """The UNet's."""
        return self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.slow_mu.dtype

    def enable_gradient_checkpointing(self) -> None:
        """Of both networks."""
        self.unet.enable_gradient_checkpointing()
        self.encoder.enable_gradient_checkpointing()

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, picture: Tensor, scale: Tensor, **told: Any
    ) -> Any:
        """As the UNet's forward; `picture: (B, C, H, W)` in [0, 1], `scale: (B,)` multiplies mu (0: the base)."""
        added = {k: v for k, v in told.items() if k == "added_cond_kwargs"}
        blocks, middle = self.encoder(
            torch.zeros_like(sample), timestep, encoder_hidden_states, picture, return_dict=False,
            **{k: dict(v) for k, v in added.items()},
        )  # fmt: skip
        weight, left = self.mu * scale, list(blocks)

        def mixed(h: Tensor, c: Tensor) -> Tensor:
            w = expand(weight, h)
            return (1 - w) * h + w * c

        def at_middle(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return mixed(output, middle)

        def at_up(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            given = kwargs["res_hidden_states_tuple"]
            mine = left[len(left) - len(given) :]
            del left[len(left) - len(given) :]
            both = tuple(mixed(h, c) for h, c in zip(given, mine, strict=True))
            return args, {**kwargs, "res_hidden_states_tuple": both}

        # On the way, not built in: the UNet stays diffusers' own, which loads and saves it.
        handles = [self.unet.mid_block.register_forward_hook(at_middle)]
        handles += [block.register_forward_pre_hook(at_up, with_kwargs=True) for block in self.unet.up_blocks]
        try:
            return self.unet(sample, timestep, encoder_hidden_states, **told)
        finally:
            for handle in handles:
                handle.remove()

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """`config.json`, and `unet/` and `encoder/` in diffusers' format."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("unet", "encoder"):
            getattr(self, name).save_pretrained(folder / name, safe_serialization=safe_serialization)
        config = {"_class_name": CLASS, "mu": float(self.mu.detach())}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Inverse of `save_pretrained`; float32, frozen. Raises `ModelError` for a broken folder."""
        mu = read_json(folder / "config.json").get("mu")
        if not isinstance(mu, float | int):
            raise ModelError(f"{folder / 'config.json'} says mu={mu!r}: a number is due. Copy or download the model again.")
        made = cls(load_component(folder / "unet"), load_component(folder / "encoder"), float(mu))
        return made.eval().requires_grad_(False)


def is_conditional_unet(folder: Path) -> bool:
    """Whether a folder holds one."""
    return (folder / "config.json").exists() and read_json(folder / "config.json").get("_class_name") == CLASS


def fingerprint_of(folder: Path) -> str:
    """Hash of everything in the folder."""
    return fingerprint(folder, folder / "unet", folder / "encoder")
