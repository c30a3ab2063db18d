"""A tiny random SD1.5-shaped model, real classes of diffusers, and data to train on."""

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from allaprima.core.types import Condition
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.distill.methods.common import TrainingSetup
from allaprima.distill.recipe import Recipe
from allaprima.distill.training_data import TrainingData, identity_of
from allaprima.models.cards.card import TextSettings
from allaprima.models.families.sd import SDModel

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def tiny_unet(seed=0, width=8, **changes):
    torch.manual_seed(seed)
    config = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": (width, 2 * width),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 6, "norm_num_groups": 4, "attention_head_dim": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


def tiny_model(seed=0, prediction="epsilon"):
    schedule = DiscreteVP.from_config(SCHEDULER)
    return SDModel(
        unet=tiny_unet(seed), vae=None, text_encoder=None, tokenizer=None, schedule=schedule, prediction=prediction,
        text=TextSettings(), fingerprints={"unet": str(seed)},
    )  # fmt: skip


def tiny_data(n=12, captions=4):
    g = torch.Generator().manual_seed(5)
    latents, embeds = torch.randn(n, 4, 8, 8, generator=g), torch.randn(captions, 3, 6, generator=g)
    of, names = torch.arange(n) % captions, tuple(map(str, range(captions)))
    return TrainingData(latents, Condition({"prompt_embeds": embeds}), of, names, identity_of(latents, names, of))


def setup(folder, method, teacher=None, options=None, stop=None, **loop):
    """A training of three small steps; with `stop`, one that is killed right after that step's checkpoint."""
    fields = {
        "max_train_steps": 3, "train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0, "checkpoint_seconds": 1e-9,
        **loop,
    }  # fmt: skip
    recipe = Recipe.model_validate({"method": method, "options": options or {}, "loop": fields})

    def watch(emas, progress):
        if stop is not None and progress.step == stop:
            raise KeyboardInterrupt

    null = Condition({"prompt_embeds": torch.zeros(1, 3, 6)})
    return TrainingSetup(teacher or tiny_model(), tiny_data(), null, recipe, folder, watch)
