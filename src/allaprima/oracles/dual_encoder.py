"""A small dual encoder, trained by contrast: how well a picture fits a caption is the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.oracles.encoder import SavedModule

Encode = Callable[[Sequence[str]], Tensor]
"""`prompts -> (B, L, D)` hidden states, zero where padded."""


def pool_text(hidden: Tensor) -> Tensor:
    """Return the mean of the live hidden states: `(B, L, D)`, zero where padded -> `(B, D)`."""
    live = (hidden.abs().sum(-1, keepdim=True) > 0).to(hidden.dtype)
    return (hidden * live).sum(1) / live.sum(1).clamp(min=1)


class _Block(nn.Module):
    """Depthwise 5x5, channel norm, two pointwise layers, residual (ConvNeXt, arXiv 2201.03545)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = nn.GroupNorm(1, channels)
        self.wide = nn.Conv2d(channels, 3 * channels, 1)
        self.back = nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.wide(self.norm(self.depth(x)))))


class DualEncoder(SavedModule):
    """`(images, text hidden states) -> unit embeddings`; a logit is their product times `exp(log_scale)`."""

    def __init__(self, text_dim: int = 384, widths: Sequence[int] = (64, 128, 224), dim: int = 128) -> None:
        super().__init__()
        self.config = {"text_dim": text_dim, "widths": list(widths), "dim": dim}
        a, b, c = widths
        self.image = nn.Sequential(
            nn.Conv2d(3, a, 4, stride=4), nn.GroupNorm(1, a), _Block(a), _Block(a),
            nn.Conv2d(a, b, 2, stride=2), nn.GroupNorm(1, b), _Block(b), _Block(b), _Block(b),
            nn.Conv2d(b, c, 2, stride=2), nn.GroupNorm(1, c), _Block(c), _Block(c),
        )  # fmt: skip
        # Four quadrants keep a little of where things are.
        self.image_head = nn.Sequential(nn.LayerNorm(4 * c), nn.Linear(4 * c, dim))
        self.text = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, 256), nn.GELU(), nn.Linear(256, dim))
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def embed_images(self, images: Tensor) -> Tensor:
        """`(B, 3, 64, 64)` in [0, 1] -> `(B, dim)`, unit length."""
        x = self.image((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        return F.normalize(self.image_head(F.adaptive_avg_pool2d(x, 2).flatten(1)), dim=1)

    def embed_texts(self, hidden: Tensor) -> Tensor:
        """`(B, L, D)` zero where padded, or `(B, D)` already pooled by `pool_text` -> `(B, dim)`, unit length."""
        return F.normalize(self.text(pool_text(hidden) if hidden.ndim == 3 else hidden), dim=1)

    def logits(self, images: Tensor, texts: Tensor) -> Tensor:
        """`(B, dim), (N, dim) -> (B, N)` scaled similarities."""
        return self.log_scale.exp() * images @ texts.T

    @torch.inference_mode()
    def score(self, images: Tensor, texts: Tensor, batch: int = 128) -> Tensor:
        """Scaled similarity of each picture to its own text embedding: `(B, 3, 64, 64), (B, dim) -> (B,)`."""
        parts = [self.embed_images(x) for x in images.split(batch)]
        return self.log_scale.exp() * (torch.cat(parts) * texts).sum(1)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Self:
        """Inverse of `save_pretrained`, in the memory format that convolutions are fastest in."""
        return super().from_pretrained(folder).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class DualEncoderOracle:
    """The encoder behind the oracle protocol, as CLIP score is; it shares the pair's text encoder."""

    def __init__(
        self,
        encoder: DualEncoder | Any,
        encode: Encode,
        name: str,
        fingerprint: str,
        cost: float = 0.06,
    ) -> None:
        self.encoder, self.encode = encoder, encode
        self.name, self.fingerprint, self.cost = name, fingerprint, cost

    @torch.inference_mode()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine of picture and prompt, in [-1, 1], higher is better."""
        return (self.encoder.embed_images(images) * self.encoder.embed_texts(self.encode(prompts))).sum(1)

    def through(self, method: Callable[[Any, str | None, str], Any], encode: Encode, mark: str) -> DualEncoderOracle:
        """Return the same with `method(network, its method, fingerprint)` in place of each of its networks' methods.

        `encode` too: text encoders may have moved. `mark` says so in the fingerprint.
        """
        parts = {n: method(self.encoder, n, self.fingerprint) for n in ("embed_images", "embed_texts")}
        return DualEncoderOracle(SimpleNamespace(**parts), encode, self.name, f"{self.fingerprint}@{mark}", self.cost)
