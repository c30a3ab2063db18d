"""Oracles that look at pixels, nothing else."""

import torch


class Brightness:
    """Mean of the pixels; counts what it sees."""

    name, fingerprint, cost = "brightness", "brightness-1", 0.0

    def score(self, images, prompts):
        return images.mean((1, 2, 3))


class Fails:
    name, fingerprint, cost = "fails", "fails-1", 0.0

    def score(self, images, prompts):
        raise RuntimeError("out of order")


def seeded(k):
    return torch.Generator().manual_seed(k)
