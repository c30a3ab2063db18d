"""The bundled text encoder: all-MiniLM-L6-v2 (Apache-2.0), hidden states, padding masked to zero."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.bundled.emoji import weights

MAX_LENGTH = 16
"""Tokens a caption may have, begin and end included."""


def load_text_encoder(folder: Path | None = None) -> tuple[Any, Any]:
    """`(tokenizer, encoder)` from a transformers folder; without one, the bundled pair's own, as every painter has it."""
    from transformers import AutoTokenizer, BertModel

    words, network = folder or weights("teacher/tokenizer"), folder or weights("teacher/text_encoder")
    encoder = BertModel.from_pretrained(network, use_safetensors=True).float().eval().requires_grad_(False)
    return AutoTokenizer.from_pretrained(words), encoder


@torch.no_grad()
def embed(tokenizer: Any, encoder: Any, captions: Sequence[str], batch: int = 256) -> Tensor:
    """Captions -> `(N, 16, 384)` hidden states, zero where padded."""
    out: list[Tensor] = []
    for i in range(0, len(captions), batch):
        ids = tokenizer(
            list(captions[i : i + batch]), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        )
        hidden = encoder(input_ids=ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state
        out.append(hidden * ids.attention_mask[..., None])
    return torch.cat(out)
