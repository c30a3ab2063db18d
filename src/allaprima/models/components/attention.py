"""How much a network attends to each token of a prompt: cross-attention watched while it paints.

For layer l with queries `q` of every place and keys `k` of every token, the probabilities are `softmax(q k / sqrt(d))`, as
the layer itself makes them; kept is their mean over heads and places, one number a token, and of a call the mean over
layers. The network's own output is not touched. Maps are not resized to one size first, as DAAM does (arXiv 2210.04885):
the mean over places comes before the mean over layers, which is the same for nearest-neighbour resizing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from allaprima.core.errors import ModelError


class AttentionRecorder:
    """What was attended to since the last `take`."""

    def __init__(self) -> None:
        self._layers: list[Tensor] = []

    def note(self, layer: Any, hidden: Tensor, text: Tensor, mask: Tensor | None) -> None:
        """One call of one layer: `hidden (R, places, C)`, `text (R, L, D)`."""
        self._layers.append(attention_of(layer, hidden, text, mask))

    def take(self) -> Tensor:
        """`(R, L)`: mean over the layers, rows as the network was called with; then it is empty again.

        Raises `ModelError` where no layer was called with a prompt.
        """
        if not self._layers:
            raise ModelError("no cross-attention was called since the last look: paint with the watched network first.")
        seen, self._layers = torch.stack(self._layers).mean(0), []
        return seen


def cross_attentions(network: Any) -> dict[str, Any]:
    """The network's attention layers that read a prompt beside the picture, by name; empty for joint attention.

    Known by what diffusers' `Attention` has; layers that add projections of the prompt to the picture's (SD3, FLUX) attend
    to both at once and are none of these.
    """
    if not isinstance(network, nn.Module):
        return {}
    return {
        name: m
        for name, m in network.named_modules()
        if hasattr(m, "to_q") and getattr(m, "is_cross_attention", False) and getattr(m, "add_k_proj", None) is None
    }


@torch.inference_mode()
def attention_of(layer: Any, hidden: Tensor, text: Tensor, mask: Tensor | None = None) -> Tensor:
    """`(R, L)`: how much each token is attended to, mean over heads and places; rows sum to 1."""
    rows = len(hidden)
    if hidden.ndim == 4:
        hidden = hidden.flatten(2).transpose(1, 2)
    if getattr(layer, "norm_cross", None):
        text = layer.norm_encoder_hidden_states(text)
    if mask is not None:
        mask = layer.prepare_attention_mask(mask, text.shape[1], rows)
    query, key = layer.to_q(hidden), layer.to_k(text)
    query = query if getattr(layer, "norm_q", None) is None else layer.norm_q(query)
    key = key if getattr(layer, "norm_k", None) is None else layer.norm_k(key)
    made = layer.get_attention_scores(layer.head_to_batch_dim(query), layer.head_to_batch_dim(key), mask)
    return made.float().mean(1).unflatten(0, (rows, -1)).mean(1).cpu()


@contextmanager
def watched(network: Any) -> Generator[AttentionRecorder]:
    """While it lasts, every call of the network's cross-attention is noted. Raises `ModelError` if it has none."""
    layers = cross_attentions(network)
    if not layers:
        raise ModelError(
            f"{type(network).__name__} has no cross-attention that torch shows: prompt influence can't be measured on it."
            " Leave it out (--skip influence)."
        )
    watch = AttentionRecorder()

    def hook(layer: Any, args: Any, kwargs: Any, _output: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        text = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
        if text is not None:
            watch.note(layer, hidden, text, kwargs.get("attention_mask"))

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers.values()]
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def content_tokens(model: Any, prompts: Sequence[str]) -> Tensor:
    """`(B, L)` bool: which of the tokens that a model reads are words of the prompt: no begin, end or padding.

    Raises `ModelError` for a model whose tokenizer isn't to be had.
    """
    tokenizer, text = getattr(model, "tokenizer", None), getattr(model, "text", None)
    if tokenizer is None or text is None:
        raise ModelError(f"{type(model).__name__} shows no tokenizer: which tokens are words can't be told.")
    ids = tokenizer(
        list(prompts), padding="max_length", max_length=text.max_length, truncation=True, return_special_tokens_mask=True,
        return_tensors="pt",
    )  # fmt: skip
    return ids.attention_mask.bool() & ~ids.special_tokens_mask.bool()
