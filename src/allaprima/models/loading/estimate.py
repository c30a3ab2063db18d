"""How much memory a card's models need, from configs alone: nothing is loaded.

Weights: `models.cards.sizes`. Activations: the largest sum of tensors alive at once in one network call and in one decoding,
followed operation by operation on torch's meta device; attention is taken to run in a fused kernel, which keeps no matrix of
weights. Not in it: the framework's own memory, workspaces of kernels, the text encoders' activations, the oracle.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allaprima.core.errors import ModelError
from allaprima.models.cards.card import Card
from allaprima.models.cards.components import PARTS
from allaprima.models.cards.configs import config_of
from allaprima.models.cards.sizes import Estimate, weights_of
from allaprima.models.components.latents import downsampling
from allaprima.models.components.meta import meta
from allaprima.models.families.sana import LENGTH as SANA_LENGTH
from allaprima.models.families.sdxl import REFINER_IDS, TIME_IDS, is_refiner


def estimate(card: Card, dtype: str = "float32", activations: bool = False) -> Estimate:
    """Of a card at its own size, one picture at a time; `activations` takes a few seconds more."""
    found = weights_of(card, dtype)
    base, family = card.teacher.source or "", PARTS[card.family]
    configs = [config_of(card, base, name) for name in (family.component, "vae")] if activations else [None]
    if not all(configs):
        return found
    net, vae = (meta(c) for c in configs if c)
    own = card.student.network or card.student.source
    mine = None if own is None else config_of(card, own, "" if card.student.network is not None else family.component)
    latents = _latents(card, net, vae)
    needs = [_network_peak(net, latents, _rows(net.config, card.teacher.guidance_scale), card)]
    if mine:
        few = meta(mine)
        needs.append(_network_peak(few, latents, _rows(few.config, card.student.guidance_scale), card))
    size = found.size
    return Estimate(found.parts, size, max(needs) * size // 4, _decoder_peak(vae, latents) * size // 4)


def _rows(config: Any, scale: float) -> int:
    """Rows of one call: classifier-free guidance asks for both halves at once, unless the network reads its scale."""
    embedded = getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None)
    return 1 if embedded or scale == 1 else 2


def _latents(card: Card, net: Any, vae: Any) -> tuple[int, int, int]:
    factor = downsampling(vae.config)
    return int(getattr(vae.config, "latent_channels", net.config.in_channels)), card.height // factor, card.width // factor


def _network_peak(net: Any, latents: tuple[int, int, int], rows: int, card: Card) -> int:
    c, h, w = latents
    config, long = net.config, card.text.max_sequence_length or 256
    width = getattr(config, "cross_attention_dim", None) or getattr(config, "joint_attention_dim", 0)
    pooled = torch.empty(rows, getattr(config, "pooled_projection_dim", 0) or 0, device="meta")
    t, kind = torch.empty(rows, device="meta"), type(net).__name__
    if kind == "FluxTransformer2DModel":
        told: dict[str, Any] = {"guidance": t} if config.guidance_embeds else {}
        ids = [torch.empty(n, 3, device="meta") for n in (long, h * w // 4)]
        x = torch.empty(rows, h * w // 4, 4 * c, device="meta")
        text = torch.empty(rows, long, width, device="meta")
        return peak(net, lambda: net(x, text, pooled, t, txt_ids=ids[0], img_ids=ids[1], **told))
    x = torch.empty(rows, c, h, w, device="meta")
    if kind == "SD3Transformer2DModel":
        # CLIP's tokens, then T5's.
        text = torch.empty(rows, 77 + long, width, device="meta")
        return peak(net, lambda: net(x, text, pooled, t))
    if kind == "SanaTransformer2DModel":
        read = card.text.max_sequence_length or SANA_LENGTH
        text = torch.empty(rows, read, config.caption_channels, device="meta")
        more = {"encoder_attention_mask": torch.empty(rows, read, device="meta")}
        more |= {"guidance": t} if config.guidance_embeds else {}
        return peak(net, lambda: net(x, encoder_hidden_states=text, timestep=t, **more))
    if kind != "UNet2DConditionModel":
        raise ModelError(f"activations of a {kind} can't be estimated: leave --activations out.")
    text, more = torch.empty(rows, card.text.max_length, width, device="meta"), dict[str, Any]()
    if config.addition_embed_type == "text_time":
        ids = REFINER_IDS if is_refiner(config) else TIME_IDS
        dim = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        added = {"text_embeds": torch.empty(rows, dim, device="meta"), "time_ids": torch.empty(rows, ids, device="meta")}
        more["added_cond_kwargs"] = added
    if config.time_cond_proj_dim:
        more["timestep_cond"] = torch.empty(rows, config.time_cond_proj_dim, device="meta")
    return peak(net, lambda: net(x, t, text, **more))


def _decoder_peak(vae: Any, latents: tuple[int, int, int]) -> int:
    z = torch.empty(1, *latents, device="meta")
    return peak(vae, lambda: vae.decode(z))


def peak(net: Any, call: Any) -> int:
    """Largest sum of bytes of tensors alive at once while `call` runs, the weights of `net` apart. Raises `ModelError`."""
    mode = _Peak(net)
    try:
        with torch.no_grad(), _FusedAttention(), mode:
            call()
    except (ValueError, RuntimeError) as e:
        why = " ".join(str(e).split())[:200]
        raise ModelError(
            f"a {type(net).__name__} can't be called with what its card says: {why} Mend height and width."
        ) from e
    return mode.most


class _FusedAttention(TorchFunctionMode):
    """Attention as a fused kernel has it: the result, and nothing as large as tokens by tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value"), args, strict=False)), **(kwargs or {})}
            query, value = given["query"], given["value"]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))


class _Peak(TorchDispatchMode):
    """Follows which storages are alive."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = {id(t.untyped_storage()): t.untyped_storage() for t in (*net.parameters(), *net.buffers())}
        self._alive = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in tree_leaves(out):
            if isinstance(made, Tensor):
                self._note(made.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key = id(storage)
        if key in self._known or key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size
