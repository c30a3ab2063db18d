"""Retrieval@k: does a judge find a picture's own caption among the first k of a pool of captions?"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from allaprima.core.errors import SettingError
from allaprima.evaluation.reward_judge import RewardJudge
from allaprima.features.module import weights_hash
from allaprima.oracles.dual_encoder import Encode


class ImageTextEncoder(Protocol):
    """Pictures and captions in one space, unit length. `clip_score.CLIPScore` is one too."""

    name: str
    fingerprint: str

    def embed_images(self, images: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] -> `(B, D)`."""
        ...

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """`(B, D)`."""
        ...


class JudgeEncoder:
    """The judge with the text encoder it was trained on."""

    name = "judge"

    def __init__(self, judge: RewardJudge, encode: Encode) -> None:
        self.judge, self.encode = judge, encode
        self.fingerprint = weights_hash(judge)

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Tensor:
        """`(B, 3, 64, 64)` -> `(B, D)`."""
        return self.judge.embed_images(images)

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """`(B, D)`."""
        parts = [captions[i : i + 64] for i in range(0, len(captions), 64)]
        return torch.cat([self.judge.embed_texts(self.encode(p)) for p in parts])


class Retrieval:
    """Scorer: 1 if fewer than k other captions of the pool fit at least as well, else 0; a tie counts against."""

    higher_is_better = True
    needs_prompts = True
    needs_references = False

    def __init__(self, judge: ImageTextEncoder, captions: Sequence[str], k: int = 1) -> None:
        self.captions = {c: i for i, c in enumerate(captions)}
        if len(self.captions) != len(captions):
            twice = next(c for i, c in enumerate(captions) if self.captions[c] != i)
            raise SettingError(f"caption {twice!r} is in the pool twice: each caption once is due.")
        if not 1 <= k < len(captions):
            raise SettingError(f"k={k} among {len(captions)} captions: at least 1 and fewer than the captions are due.")
        self.judge, self.k, self.name = judge, k, f"retrieval@{k} ({judge.name})"
        self.pool = judge.embed_captions(captions)

    def protocol(self) -> dict[str, Any]:
        """The judge and the pool: a larger pool is harder."""
        return {
            "formula": "1 if the own caption is among the k that fit best, ties against it, else 0",
            "judge": {"name": self.judge.name, "fingerprint": self.judge.fingerprint},
            "k": self.k,
            "pool": len(self.captions),
            "pool_sha256": hashlib.sha256("\n".join(self.captions).encode()).hexdigest()[:16],
        }

    def score(self, images: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] with captions of the pool -> `(B,)` of 0 and 1, nan where the judge said nan."""
        for p in prompts:
            if p not in self.captions:
                near = difflib.get_close_matches(p, self.captions, n=1, cutoff=0.4)
                raise SettingError(
                    f"prompt {p!r} is not in the pool of captions.{f' Did you mean {near[0]!r}?' if near else ''}"
                )
        fit = self.judge.embed_images(images) @ self.pool.T
        own = fit.gather(1, torch.tensor([self.captions[p] for p in prompts], device=fit.device)[:, None])
        found = ((fit >= own).sum(1) <= self.k).double()
        return torch.where(fit.isnan().any(1), torch.nan, found)
