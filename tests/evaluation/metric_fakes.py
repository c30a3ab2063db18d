"""A tiny feature network, and pictures whose features are known."""

import torch


class Pixels:
    """Features are the first values of the picture itself; layers are the picture and its half."""

    name = "pixels"
    layer_names = ("whole", "half")

    def __init__(self, dim=4, fingerprint="p1"):
        self.dim, self.fingerprint, self.calls = dim, fingerprint, 0
        self.preprocessing = {"resize": "none"}

    def features(self, images):
        self.calls += 1
        return images.flatten(1)[:, : self.dim]

    def layers(self, images):
        return [images, images[..., ::2, ::2]]


def pictures(n, seed=0, low=0.0, high=1.0):
    g = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(n, 3, 4, 4, generator=g, dtype=torch.float64)
