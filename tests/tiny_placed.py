"""Pairs put elsewhere, painted with and asked."""

import torch

from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.models.placement.placer import ModelPlacer
from allaprima.pipeline import AdaptivePipeline, card_settings


def placed_pair(path, **options):
    return load_pair(load_card(path), ModelPlacer(DeviceConfig.of(**options)))


def painted(pair, path, **settings):
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, card_settings(load_card(path)))
    return pipe(["red", "a red"], seed=0, batch_size=2, **settings).results


def says(model, prompt="red"):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, *model.latent_shape(16, 16), generator=g)
    with torch.inference_mode():
        return model.output(model.network, x, torch.tensor([500.0]), model.condition([prompt]))
