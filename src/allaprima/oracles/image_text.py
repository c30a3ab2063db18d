"""A small image-text scorer: residual convolutions on a pixel-unshuffled picture, modulated by the prompt (FiLM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.oracles.encoder import SavedModule


class _FiLMBlock(nn.Module):
    """`x + conv(silu((1 + a) norm(conv(silu(norm(x)))) + b))`, with a, b from the text."""

    def __init__(self, channels: int, text: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(text, 2 * channels)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        a, b = self.film(text)[..., None, None].chunk(2, dim=1)
        h = self.n2(self.c1(F.silu(self.n1(x))))
        return x + self.c2(F.silu(h * (1 + a) + b))


class ImageTextScorer(SavedModule):
    """`(images, text hidden states) -> logit`; the sigmoid of it is the expected fidelity in [0, 1].

    About 0.17 GFLOP a picture: a tenth of a guided step of the bundled teacher.
    """

    def __init__(self, text_dim: int = 384, width: int = 64, hidden: int = 192) -> None:
        super().__init__()
        self.config = {"text_dim": text_dim, "width": width, "hidden": hidden}
        self.text = nn.Sequential(
            nn.LayerNorm(2 * text_dim), nn.Linear(2 * text_dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        self.stem = nn.Conv2d(48, width, 3, padding=1)
        self.high = nn.ModuleList([_FiLMBlock(width, hidden) for _ in range(2)])
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.low = nn.ModuleList([_FiLMBlock(2 * width, hidden) for _ in range(3)])
        self.head = nn.Sequential(nn.Linear(4 * width + hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """`images: (B, 3, 64, 64)` in [0, 1], `hidden: (B, L, D)` zero where padded -> `(B,)` logits."""
        live = (hidden.abs().sum(-1, keepdim=True) > 0).to(hidden.dtype)
        mean = (hidden * live).sum(1) / live.sum(1).clamp(min=1)
        text = self.text(torch.cat([mean, hidden[:, 0]], dim=1))
        x = self.stem(F.pixel_unshuffle(images * 2 - 1, 4))
        for block in self.high:
            x = block(x, text)
        x = self.down(x)
        for block in self.low:
            x = block(x, text)
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)
        return self.head(torch.cat([pooled, text], dim=1))[:, 0]


class ImageTextOracle:
    """The scorer behind the oracle protocol; it shares the pair's text encoder."""

    def __init__(
        self,
        scorer: ImageTextScorer | Any,
        encode: Callable[[Sequence[str]], Tensor],
        name: str,
        fingerprint: str,
        cost: float = 0.1,
    ) -> None:
        self.scorer, self.encode = scorer, encode
        self.name, self.fingerprint, self.cost = name, fingerprint, cost

    @torch.inference_mode()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the expected fidelity in (0, 1), higher is better."""
        return torch.sigmoid(self.scorer(images, self.encode(prompts)))

    def through(
        self, method: Callable[[Any, str | None, str], Any], encode: Callable[[Sequence[str]], Tensor], mark: str
    ) -> ImageTextOracle:
        """Return the same with `method(network, its method, fingerprint)` in place of its network
        (`DualEncoderOracle.through`)."""
        scorer = method(self.scorer, None, self.fingerprint)
        return ImageTextOracle(scorer, encode, self.name, f"{self.fingerprint}@{mark}", self.cost)
