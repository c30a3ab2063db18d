"""What methods share that train a ControlNet beside a frozen base: the net, what it reads, and the two together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from allaprima.core.errors import SettingError, TrainingError
from allaprima.core.types import Condition, Samples, Times
from allaprima.data.control_maps import GIVEN, HOLE, MAPS, channels_of, training_map
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.distill.methods.common import TrainingSetup, trainable
from allaprima.distill.network import folder_of
from allaprima.distill.training_data import TrainingData
from allaprima.models.adapters.conditional_unet import ConditionalUNet
from allaprima.models.adapters.controlnet import ControlNet, controlled
from allaprima.models.components.latents import downsampling

EMBEDDING = (16, 32, 96, 256)
"""Channels of a ControlNet's way from pixels to latents, as diffusers has them: one more than there are halvings."""


FIT_RATE = 5e-3
"""Learning rate of `fit_embedding`, at its highest."""


def fresh_net(setup: TrainingSetup, name: str, full: bool = False, fit_steps: int = 0) -> nn.Module:
    """Return a ControlNet from the teacher's UNet, whose zero convolutions change nothing; or the recipe's `start`.

    `full`: a `ConditionalUNet` instead, whose mu changes nothing yet. `fit_steps`: of `fit_embedding`.
    Raises `SettingError` for an unknown map, a family without ControlNets, or a start of another kind or that reads another
    map's channels.
    """
    channels = channels_read(setup.data, name)
    teacher: Any = setup.teacher
    if teacher.component != "unet":
        raise SettingError(f"{type(teacher).__name__} takes no ControlNets: teachers of the families sd and sdxl do.")
    if setup.recipe.lora is not None or setup.recipe.smaller:
        raise SettingError("lora, network and width are about a student's own weights: leave them out for a ControlNet.")
    if setup.recipe.start is not None:
        net = ControlNet.load(folder_of(setup.recipe.start, "controlnet"))
        if net.channels != channels or net.whole != full:
            raise SettingError(
                f"start is {'a conditional UNet' if net.whole else 'an adapter'} that reads pictures of {net.channels}"
                f" channels; {'a conditional UNet' if full else 'an adapter'} for the map {name!r} ({channels}"
                " channels) is due: start from a net of the same kind and map, or from none."
            )
        return trainable(net.network, setup.recipe.loop)
    from diffusers.models.controlnets.controlnet import ControlNetModel

    halvings = round(float(torch.tensor(float(_factor(setup))).log2()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.recipe.loop.seed)
        if full:
            made: Any = ConditionalUNet.from_unet(teacher.network, channels, EMBEDDING[: halvings + 1])
        else:
            made = ControlNetModel.from_unet(
                teacher.network, conditioning_embedding_out_channels=EMBEDDING[: halvings + 1],
                conditioning_channels=channels,
            )  # fmt: skip
    # A training that goes on has its weights in the checkpoint.
    if fit_steps and not (setup.folder / "checkpoint.safetensors").exists():
        fit_embedding(setup, (made.encoder if full else made).controlnet_cond_embedding, name, fit_steps)
    return trainable(made, setup.recipe.loop)


def fit_embedding(setup: TrainingSetup, embedding: Any, name: str, steps: int) -> float:
    """Teach the way from pixels to say what the UNet's first convolution says of the picture's latents; in place.

    The copied encoder then knows what it is shown from the first step on, as if it read latents (CoDi's does,
    arXiv 2310.01407), where ControlNet's random convolutions need tens of thousands of samples before colours arrive.
    What is added to the base stays zero. Masks and further channels are left to the training. Returns the last steps'
    squared error, as a share of the target's power.
    """
    teacher: Any = setup.teacher
    vae = next(teacher.vae.parameters())
    embedding.to(vae.device).requires_grad_(True)
    nn.init.kaiming_normal_(embedding.conv_out.weight, nonlinearity="linear")
    optimizer = torch.optim.AdamW(embedding.parameters(), lr=FIT_RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, FIT_RATE, total_steps=steps)
    g, last = torch.Generator().manual_seed(setup.recipe.loop.seed), list[float]()
    first = teacher.network.conv_in
    for _ in range(steps):
        index = torch.randint(len(setup.data), (setup.recipe.loop.train_batch_size,), generator=g)
        maps = torch.stack([shown(setup.data, name, i, g) for i in index.tolist()]).to(vae)
        seen = maps[:, :3] if maps.shape[1] >= 3 else maps[:, :1].expand(-1, 3, -1, -1)
        with torch.no_grad():
            latents = teacher.encode_images(seen).clone().to(first.weight)
            # Without the bias, which the base adds.
            target = functional.conv2d(latents, first.weight, stride=first.stride, padding=first.padding)
        error = (embedding(maps) - target).square().mean() / target.square().mean().clamp(min=1e-12)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        rate.step()
        last = [*last[-9:], float(error.detach())]
    embedding.cpu()
    return sum(last) / len(last)


def channels_read(data: TrainingData, name: str) -> int:
    """Of what a network of that map reads. Raises `SettingError` for an unknown map, `TrainingError` for data without it."""
    if name == GIVEN:
        return _controls_of(data).shape[1]
    if name != HOLE and name not in MAPS:
        raise SettingError(f"map={name!r} is not known: {', '.join((*MAPS, HOLE, GIVEN))} are.")
    return channels_of(name)


def _controls_of(data: TrainingData) -> Tensor:
    if data.controls is None:
        raise TrainingError(
            "the map 'given' is what comes with the data, and nothing does: a safetensors with `controls (N, C, H, W)`"
            " uint8 beside `latents` is due."
        )
    return data.controls


def shown(data: TrainingData, name: str, i: int, g: torch.Generator) -> Tensor:
    """Return what a network that learns the map of that name is shown for row `i`: `(C, H, W)` in [0, 1].

    Raises `TrainingError` for data without what it takes.
    """
    if name == GIVEN:
        return _controls_of(data)[i].float() / 255
    if data.pictures is None:
        raise TrainingError(
            "the data holds latents only, and this method looks at pictures: give a folder of pictures, or a safetensors"
            " with `pictures (N, 3, H, W)` uint8 beside `latents`."
        )
    return training_map(name, data.pictures[i].float() / 255, g)


def _factor(setup: TrainingSetup) -> int:
    """Pixels a latent, along one side."""
    pictures = setup.data.controls if setup.data.pictures is None else setup.data.pictures
    if pictures is None:
        return downsampling(setup.teacher.vae.config)
    return int(pictures.shape[-1] // setup.data.latents.shape[-1])


def draw_with_map(setup: TrainingSetup, name: str, drop: float, g: torch.Generator) -> tuple[Samples, Condition]:
    """Latents and conditions with `control_0` and `control_scale`; a share `drop` of the prompts is the empty one.

    Raises `TrainingError` for data without pictures.
    """
    data, batch = setup.data, setup.recipe.loop.train_batch_size
    index = torch.randint(len(data), (batch,), generator=g)
    latents, cond = data.rows(index)
    cond = cond.replaced(torch.rand(batch, generator=g) < drop, setup.null)
    maps = torch.stack([shown(data, name, i, g) for i in index.tolist()])
    told = {"control_0": maps, "control_scale": torch.ones(batch, 1)}
    device = setup.devices.device
    return latents.to(device), Condition({**cond.tensors, **told}).to(device)


class Adapted:
    """The frozen base with a net on it, or a conditional UNet, as denoisers of clean predictions."""

    def __init__(self, setup: TrainingSetup, net: nn.Module) -> None:
        self.setup = setup
        self.model: Any = controlled(setup.teacher, [ControlNet(net, "in training")])

    def _output(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        return self.model.output(self.model.network, x_t, t, cond)

    @property
    def denoiser(self) -> NetworkDenoiser:
        """Without guidance."""
        return NetworkDenoiser(self._output, self.setup.schedule, self.setup.teacher.prediction)

    def predict(self, x_t: Samples, t: Times, cond: Condition, scale: float = 1.0) -> Samples:
        """x0_hat; guided if `scale` isn't 1, the map being told to both halves."""
        if scale == 1:
            return self.denoiser(x_t, t, cond)
        told = self.setup.with_guidance(Condition({k: v for k, v in cond.tensors.items() if k in self.setup.null.tensors}),
                                        torch.full((len(x_t),), scale))  # fmt: skip
        maps = {k: v for k, v in cond.tensors.items() if k.startswith("control_")}
        return ClassifierFreeGuidance(self.denoiser)(x_t, t, Condition({**told.tensors, **maps}))
