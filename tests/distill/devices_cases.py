"""Small trainings for any `Devices`."""

import torch
from tiny import setup, tiny_unet
from torch import nn

from allaprima.core.types import Condition
from allaprima.diffusion.denoiser import NetworkDenoiser
from allaprima.distill.distribution_matching import Adversary, DistributionMatching
from allaprima.distill.feature_hooks import FeatureHooks
from allaprima.distill.generators import RenoisedChain
from allaprima.distill.loop import LoopConfig, train
from allaprima.distill.losses.adversarial import DiscriminatorHead
from allaprima.distill.two_time_scale import TwoTimeScaleConfig, train_two_time_scale

CONFIG = LoopConfig(
    max_train_steps=4, train_batch_size=2, learning_rate=1e-3, warmup_steps=0, lr_scheduler="constant", emas={"use": 0.5},
    checkpoint_seconds=1e9, log_every=1,
)  # fmt: skip


def plain_training(folder, devices, stop_at=None, nan_on=None):
    """Denoising with a UNet; returns model and EMA copy."""
    unet = tiny_unet(1, width=4, norm_num_groups=2, layers_per_block=1).requires_grad_(True).train()

    def loss(model, emas, g):
        x, cond = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 3, 6, generator=g)
        t = torch.randint(1000, (2,), generator=g).float()
        value = (model(x, t, cond).sample - x).square().mean()
        return value * float("nan") if nan_on == devices.rank else value

    def stop(emas, step):
        return stop_at is not None and step >= stop_at

    emas = train(unet, loss, CONFIG, folder, {"case": "plain"}, stop=stop, devices=devices)
    return unet, emas["use"]


def matching_training(folder, devices):
    """Distribution matching with an adversary: gradients run through all three networks."""
    b = setup(folder, "adversarial")
    unets = [tiny_unet(i, width=4, norm_num_groups=2, layers_per_block=1).requires_grad_(True).train() for i in (1, 2)]
    torch.manual_seed(3)
    networks = {"generator": unets[0], "fake_score": unets[1], "head": DiscriminatorHead(8, 4, 2).train()}
    teacher = tiny_unet(5, width=4, norm_num_groups=2, layers_per_block=1)

    def output(network, x, t, cond):
        return network(x, t.float(), cond.tensors["prompt_embeds"]).sample

    def denoiser(network):
        return NetworkDenoiser(lambda x, t, c: output(network, x, t, c), b.schedule, "epsilon")

    def features(network, x, t, cond):
        with FeatureHooks(network, ["mid_block"]) as taps:
            output(network, x, t, cond)
        return taps["mid_block"]

    def conditions(n, g):
        return Condition({"prompt_embeds": torch.randn(n, 3, 6, generator=g)})

    way = DistributionMatching(
        b.schedule, denoiser, denoiser(teacher), conditions, (4, 8, 8), 2, RenoisedChain(b.schedule, [981.0]),
        adversary=Adversary(lambda n, g: (torch.randn(n, 4, 8, 8, generator=g), conditions(n, g)), features),
    )  # fmt: skip
    emas = train_two_time_scale(
        networks, way.generator_loss, way.critic_loss, TwoTimeScaleConfig(CONFIG, 2), folder, {"case": "matching"},
        devices=devices,
    )  # fmt: skip
    return networks, emas["use"]


class Line(nn.Module):
    """Two numbers."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0]))
