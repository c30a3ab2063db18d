"""ControlNets (arXiv 2302.05543) on a model: what they add to its UNet follows from pictures in the condition.

The paper plugs the teacher's ControlNet into the student unchanged (arXiv 2312.10835, section 4.3): `controlled` puts the
same networks on both. Several are summed, each with a scale of its own, as in diffusers' pipelines. A whole conditional UNet
(`conditional_unet`) stands in the network's own place instead, alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.diffusion.schedules import expand
from allaprima.models.adapters.conditional_unet import ConditionalUNet, fingerprint_of, is_conditional_unet
from allaprima.models.components.loading import fingerprint, load_component
from allaprima.models.families.family import Family
from allaprima.models.families.sd import SDModel, run_unet
from allaprima.models.families.sdxl import SDXLModel
from allaprima.models.multi_student.model import MultiStudent


@dataclass(frozen=True)
class ControlNet:
    """One of them, in diffusers' format; or a `ConditionalUNet`, which has one inside."""

    network: Any
    fingerprint: str

    @property
    def whole(self) -> bool:
        """Whether it is a network of its own rather than something on another."""
        return isinstance(self.network, ConditionalUNet)

    @property
    def channels(self) -> int:
        """Of the picture that it reads."""
        net = self.network.encoder if self.whole else self.network
        return int(net.config.conditioning_channels)

    @classmethod
    def load(cls, folder: Path) -> ControlNet:
        """Raises `ModelError` for a folder that holds no ControlNet."""
        if is_conditional_unet(folder):
            whole: Any = ConditionalUNet.from_pretrained(folder)
            return cls(whole.to(memory_format=torch.channels_last), fingerprint_of(folder))
        network = load_component(folder)
        if type(network).__name__ != "ControlNetModel":
            raise ModelError(f"{folder} holds a {type(network).__name__}: a ControlNetModel is due.")
        return cls(network.to(memory_format=torch.channels_last), fingerprint(folder))


class ControlNetMixin:
    """What both families with ControlNets answer alike."""

    nets: tuple[ControlNet, ...]

    @property
    def controls(self) -> tuple[int, ...]:
        """Channels that each reads."""
        return tuple(net.channels for net in self.nets)


@dataclass(frozen=True)
class ControlledSD(ControlNetMixin, SDModel):
    """An `sd` model with ControlNets; its condition holds `control_0 (B, 3, H, W)`, ... and `control_scale (B, K)`."""

    nets: tuple[ControlNet, ...] = ()

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raw output `(B, C, H, W)` of a network of this family with what the ControlNets add."""
        embeds = cond.tensors["prompt_embeds"]
        return run_unet(network, x_t, t, embeds, cond.get("guidance_scale"), None, residuals(self.nets, x_t, t, cond))


@dataclass(frozen=True)
class ControlledSDXL(ControlNetMixin, SDXLModel):
    """The same for an `sdxl` model."""

    nets: tuple[ControlNet, ...] = ()

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)` of a network of this family with what the ControlNets add."""
        added = self.added(x_t, cond)
        more = residuals(self.nets, x_t, t, cond, added)
        return run_unet(network, x_t, t, cond.tensors["prompt_embeds"], cond.get("guidance_scale"), added, more)


@dataclass(frozen=True)
class ConditionalSD(ControlNetMixin, SDModel):
    """An `sd` model whose network is a `ConditionalUNet`."""

    nets: tuple[ControlNet, ...] = ()

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raw output `(B, C, H, W)`, of a network that reads the picture itself."""
        embeds = cond.tensors["prompt_embeds"]
        return run_unet(network, x_t, t, embeds, cond.get("guidance_scale"), None, _read(cond))


@dataclass(frozen=True)
class ConditionalSDXL(ControlNetMixin, SDXLModel):
    """The same of an `sdxl` model."""

    nets: tuple[ControlNet, ...] = ()

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)`, of a network that reads the picture itself."""
        embeds, added = cond.tensors["prompt_embeds"], self.added(x_t, cond)
        return run_unet(network, x_t, t, embeds, cond.get("guidance_scale"), added, _read(cond))


def _read(cond: Condition) -> dict[str, Tensor]:
    return {"picture": cond.tensors["control_0"], "scale": cond.tensors["control_scale"][:, 0]}


def residuals(
    nets: Sequence[ControlNet], x_t: Tensor, t: Tensor, cond: Condition, added: Mapping[str, Tensor] | None = None
) -> dict[str, Any]:
    """What the ControlNets add to each of a UNet's down blocks, and to its middle: the sum over nets, each by its scale.

    By the names that diffusers' UNet takes it under.
    """
    down, mid = list[Tensor](), torch.empty(0)
    x_t, t = x_t.contiguous(memory_format=torch.channels_last), t.float().to(x_t.device)
    scales = cond.tensors["control_scale"]
    told = {} if added is None else {"added_cond_kwargs": dict(added)}
    for k, net in enumerate(nets):
        image = cond.tensors[f"control_{k}"]
        blocks, middle = net.network(x_t, t, cond.tensors["prompt_embeds"], image, return_dict=False, **told)
        parts = [expand(scales[:, k], b) * b for b in (*blocks, middle)]
        down = parts[:-1] if k == 0 else [a + b for a, b in zip(down, parts, strict=False)]
        mid = parts[-1] if k == 0 else mid + parts[-1]
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def controlled(model: Any, nets: Sequence[ControlNet]) -> Any:
    """A model (or several students of one) with ControlNets on its network; the same kind of painter.

    Raises `ModelError` for a family without ControlNets, and for nets that don't fit the network.
    """
    whole = next((net for net in nets if net.whole), None)
    if whole is not None and (len(nets) > 1 or isinstance(model, MultiStudent)):
        raise ModelError(
            "a conditional UNet is a network of its own: it goes with no other net, and not on several students. Use it"
            " alone, or make an adapter (distill conditional, options.kind=adapter)."
        )
    if isinstance(model, MultiStudent):
        return replace(model, shell=controlled(model.shell, nets))
    kinds: dict[type, type] = {SDModel: ControlledSD, SDXLModel: ControlledSDXL}
    if whole is not None:
        kinds = {SDModel: ConditionalSD, SDXLModel: ConditionalSDXL}
    kind = kinds.get(type(model))
    if kind is None:
        raise ModelError(f"{type(model).__name__} takes no ControlNets: models of the families sd and sdxl do.")
    for number, net in enumerate(nets):
        _check_fits(model, net.network.config, number)
    prints = {f"controlnet.{k}": net.fingerprint for k, net in enumerate(nets)}
    parts = {f.name: getattr(model, f.name) for f in fields(model)}
    if whole is not None:
        parts[model.component] = whole.network
    return kind(**{**parts, "fingerprints": {**model.fingerprints, **prints}}, nets=tuple(nets))


def _check_fits(model: Family, config: Any, number: int) -> None:
    own = model.network.config
    for name in ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block"):
        mine, theirs = getattr(own, name, None), getattr(config, name, None)
        mine, theirs = (tuple(v) if isinstance(v, list) else v for v in (mine, theirs))
        if mine != theirs:
            raise ModelError(
                f"ControlNet {number} has {name}={theirs!r}, the network {mine!r}: it was made for another base. Use one"
                " that was trained on this model."
            )
