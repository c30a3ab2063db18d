"""How much memory a card's models need, from configs alone: weights are counted on torch's meta device, nothing is loaded.

Weights: every tensor that is saved, at the dtype's size; what student and teacher share is counted once. Activations: the
largest sum of tensors alive at once in one network call and in one decoding, followed operation by operation on the meta
device; attention is taken to run in a fused kernel, which keeps no matrix of weights. Not in it: the framework's own memory,
workspaces of kernels, the text encoders' activations, the oracle.
"""

from __future__ import annotations

import importlib
import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allaprima.core.errors import ModelError, SettingError
from allaprima.models.card import Card
from allaprima.models.configs import config_of
from allaprima.models.families.registry import FAMILIES
from allaprima.models.load import CLASSES, class_of

BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""By the name of a dtype. Everything is painted in float32 today."""


@dataclass(frozen=True)
class Part:
    """One network of a card."""

    whose: str
    """`student` or `teacher`; of a shared one, the teacher."""
    name: str
    source: str
    parameters: int | None
    """None where its config isn't known here."""
    numbers: int = 0
    """Parameters and saved buffers: what takes memory."""


@dataclass(frozen=True)
class Estimate:
    """What `estimate` found."""

    parts: tuple[Part, ...]
    size: int
    """Bytes a number."""
    network: int | None
    """Bytes of the activations of the larger of both networks; None where they weren't asked for or aren't known."""
    decoder: int | None
    """Bytes of the activations of decoding one picture."""

    @property
    def unknown(self) -> tuple[Part, ...]:
        """Parts whose config isn't here."""
        return tuple(p for p in self.parts if p.parameters is None)

    @property
    def weights(self) -> int:
        """Bytes of all weights that are known."""
        return sum(p.numbers for p in self.parts) * self.size

    @property
    def total(self) -> int:
        """Weights, and the larger of what a network call and a decoding need beside them."""
        return self.weights + max(self.network or 0, self.decoder or 0)


def parts_of(card: Card) -> list[Part]:
    """The networks that a card loads, shared ones once. Raises `ModelError` for a family that isn't known."""
    if card.family not in FAMILIES:
        raise ModelError(f"card {card.name!r} is of the family {card.family!r}: sizes of {', '.join(FAMILIES)} are known.")
    family, student = FAMILIES[card.family], card.student
    base, networks = card.teacher.source or "", (family.component, *(s for s in family.shared if "tokenizer" not in s))
    found = [_part(card, "teacher", base, name) for name in networks]
    source = student.source or base
    if student.students:
        found += [_part(card, f"student {k}", f, family.component) for k, f in enumerate(student.students)]
    elif student.network is not None and not student.network.endswith(".safetensors"):
        found.append(_part(card, "student", student.network, "", family.component))
    else:
        found.append(_part(card, "student", source, family.component))
    others = [name for name in networks[1:] if name not in student.share]
    return [p for p in (*found, *(_part(card, "student", source, name) for name in others)) if p is not None]


def _part(card: Card, whose: str, source: str, component: str, name: str | None = None) -> Part | None:
    config = config_of(card, source, component)
    if config is None:
        return Part(whose, name or component, source, None)
    if not config:
        return None
    return Part(whose, name or component, source, *counted(json.dumps(dict(config), sort_keys=True)))


@cache
def counted(config: str) -> tuple[int, int]:
    """Parameters, and saved numbers in all, of a component by its config as JSON."""
    net = meta(json.loads(config))
    return sum(p.numel() for p in net.parameters()), sum(t.numel() for t in net.state_dict().values())


def meta(config: Mapping[str, Any]) -> Any:
    """A component without weights, on torch's meta device. Raises `ModelError` for a config that makes no network."""
    name = class_of(config, "a config")
    cls = getattr(importlib.import_module(CLASSES[name]), name)
    try:
        with torch.device("meta"):
            if CLASSES[name] != "transformers":
                return cls.from_config(dict(config)).eval()
            return cls(cls.config_class.from_dict(dict(config))).eval()
    except (ValueError, TypeError, KeyError, RuntimeError, AttributeError) as e:
        raise ModelError(f"a config of {name} makes no network: {e}. Check the folder's config.json.") from e


def estimate(card: Card, dtype: str = "float32", activations: bool = False) -> Estimate:
    """Of a card at its own size, one picture at a time; `activations` takes a few seconds more."""
    if dtype not in BYTES:
        raise SettingError(f"dtype={dtype!r} is not known: {', '.join(BYTES)} are.")
    parts, size = tuple(parts_of(card)), BYTES[dtype]
    if not activations:
        return Estimate(parts, size, None, None)
    base, family = card.teacher.source or "", FAMILIES[card.family]
    configs = [config_of(card, base, name) for name in (family.component, "vae")]
    if not all(configs):
        return Estimate(parts, size, None, None)
    net, vae = (meta(c) for c in configs if c)
    own = card.student.network or card.student.source
    mine = None if own is None else config_of(card, own, "" if card.student.network is not None else family.component)
    latents = _latents(card, net, vae)
    needs = [_network_peak(net, latents, _rows(net.config, card.teacher.guidance_scale), card)]
    if mine:
        few = meta(mine)
        needs.append(_network_peak(few, latents, _rows(few.config, card.student.guidance_scale), card))
    return Estimate(parts, size, max(needs) * size // 4, _decoder_peak(vae, latents) * size // 4)


def _rows(config: Any, scale: float) -> int:
    """Rows of one call: classifier-free guidance asks for both halves at once, unless the network reads its scale."""
    embedded = getattr(config, "guidance_embeds", False) or getattr(config, "time_cond_proj_dim", None)
    return 1 if embedded or scale == 1 else 2


def _latents(card: Card, net: Any, vae: Any) -> tuple[int, int, int]:
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
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
    if kind != "UNet2DConditionModel":
        raise ModelError(f"activations of a {kind} can't be estimated: leave --activations out.")
    text, more = torch.empty(rows, card.text.max_length, width, device="meta"), dict[str, Any]()
    if config.addition_embed_type == "text_time":
        dim = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.empty(rows, dim, device="meta"), "time_ids": torch.empty(rows, 6, device="meta")}
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
