"""Published oracles in small: their tensor names and shapes as the public code lays them out, and their equations by hand.

Written from salesforce/BLIP (`models/vit.py`, `models/med.py`), THUDM/ImageReward (`ImageReward.py`), open_clip (`model.py`,
`transformer.py`) and improved-aesthetic-predictor, so that loaders are tested against what shares no code with them.
"""

import json
import math
import string
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Blip:
    """Sizes; the defaults are ImageReward's."""

    width: int = 1024
    depth: int = 24
    side: int = 224
    patch: int = 16
    hidden: int = 768
    layers: int = 12
    words: int = 30524
    places: int = 512


TINY_BLIP = Blip(width=128, depth=2, side=32, patch=8, hidden=128, layers=2, words=40, places=24)


def pair(name, out, into=None):
    return {f"{name}.weight": (out,) if into is None else (out, *into), f"{name}.bias": (out,)}


def head_shapes(dim, prefix=""):
    sizes = [(0, dim, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)]
    return {k: v for n, i, o in sizes for k, v in pair(f"{prefix}layers.{n}", o, (i,)).items()}


def reward_shapes(b):
    """Every tensor of ImageReward.pt."""
    eye, word, w, h = "blip.visual_encoder.", "blip.text_encoder.", b.width, b.hidden
    made = {eye + "cls_token": (1, 1, w), eye + "pos_embed": (1, (b.side // b.patch) ** 2 + 1, w)}
    made |= pair(eye + "patch_embed.proj", w, (3, b.patch, b.patch)) | pair(eye + "norm", w)
    for i in range(b.depth):
        at = f"{eye}blocks.{i}."
        made |= pair(at + "norm1", w) | pair(at + "norm2", w) | pair(at + "attn.qkv", 3 * w, (w,))
        made |= pair(at + "attn.proj", w, (w,)) | pair(at + "mlp.fc1", 4 * w, (w,)) | pair(at + "mlp.fc2", w, (4 * w,))
    made |= {
        word + "embeddings.position_ids": (1, b.places), word + "embeddings.word_embeddings.weight": (b.words, h),
        word + "embeddings.position_embeddings.weight": (b.places, h),
    }  # fmt: skip
    made |= pair(word + "embeddings.LayerNorm", h)
    for i in range(b.layers):
        at = f"{word}encoder.layer.{i}."
        for kind, into in (("attention", h), ("crossattention", w)):
            made |= pair(f"{at}{kind}.self.query", h, (h,)) | pair(f"{at}{kind}.output.dense", h, (h,))
            made |= pair(f"{at}{kind}.self.key", h, (into,)) | pair(f"{at}{kind}.self.value", h, (into,))
            made |= pair(f"{at}{kind}.output.LayerNorm", h)
        made |= pair(at + "intermediate.dense", 4 * h, (h,)) | pair(at + "output.dense", h, (4 * h,))
        made |= pair(at + "output.LayerNorm", h)
    made |= pair("blip.vision_proj", 256, (w,)) | pair("blip.text_proj", 256, (h,))
    return made | head_shapes(h, "mlp.")


@dataclass(frozen=True)
class Clip:
    """Sizes; the defaults are open_clip's ViT-H-14, of HPSv2."""

    width: int = 1280
    depth: int = 32
    side: int = 224
    patch: int = 14
    hidden: int = 1024
    layers: int = 24
    words: int = 49408
    places: int = 77
    dim: int = 1024


TINY_CLIP = Clip(width=128, depth=2, side=32, patch=8, hidden=128, layers=2, words=60, places=12, dim=24)


def clip_shapes(c):
    """Every tensor of an open_clip vision transformer's state dict."""
    made = {
        "positional_embedding": (c.places, c.hidden), "text_projection": (c.hidden, c.dim), "logit_scale": (),
        "token_embedding.weight": (c.words, c.hidden), "visual.class_embedding": (c.width,),
        "visual.positional_embedding": ((c.side // c.patch) ** 2 + 1, c.width), "visual.proj": (c.width, c.dim),
        "visual.conv1.weight": (c.width, 3, c.patch, c.patch),
    }  # fmt: skip
    made |= pair("visual.ln_pre", c.width) | pair("visual.ln_post", c.width) | pair("ln_final", c.hidden)
    for at, width, depth in (("visual.", c.width, c.depth), ("", c.hidden, c.layers)):
        for i in range(depth):
            b = f"{at}transformer.resblocks.{i}."
            made |= {b + "attn.in_proj_weight": (3 * width, width), b + "attn.in_proj_bias": (3 * width,)}
            made |= pair(b + "ln_1", width) | pair(b + "ln_2", width) | pair(b + "attn.out_proj", width, (width,))
            made |= pair(b + "mlp.c_fc", 4 * width, (width,)) | pair(b + "mlp.c_proj", width, (4 * width,))
    return made


def random_weights(shapes, seed=0):
    """Of a size at which every part of the network matters to the result."""
    g = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            made[name] = torch.arange(shape[1])[None]
        elif len(shape) == 1 and name.endswith("weight"):
            made[name] = 1 + 0.2 * torch.randn(shape, generator=g)
        elif not shape:
            made[name] = torch.tensor(2.3)
        else:
            fan = math.prod(shape[1:]) if len(shape) > 1 else 16
            made[name] = torch.randn(shape, generator=g) / fan**0.5
    return made


def layer_norm(x, w, name, eps):
    return F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)


def linear(x, w, name):
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def attend(q, k, v, heads, bias=None):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    scores = scores if bias is None else scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def blip_vision(w, x, b, at="blip.visual_encoder."):
    """`(B, 3, s, s)` normalised -> `(B, N, D)` (vit.py)."""
    patches = F.conv2d(x, w[at + "patch_embed.proj.weight"], w[at + "patch_embed.proj.bias"], stride=b.patch)
    x = torch.cat([w[at + "cls_token"].expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], 1) + w[at + "pos_embed"]
    for i in range(b.depth):
        p = f"{at}blocks.{i}."
        q, k, v = linear(layer_norm(x, w, p + "norm1", 1e-6), w, p + "attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, b.width // 64), w, p + "attn.proj")
        inner = F.gelu(linear(layer_norm(x, w, p + "norm2", 1e-6), w, p + "mlp.fc1"))
        x = x + linear(inner, w, p + "mlp.fc2")
    return layer_norm(x, w, at + "norm", 1e-6)


def blip_text(w, ids, mask, seen, b, at="blip.text_encoder."):
    """Post-norm BERT with cross attention between attention and MLP (med.py, mode multimodal) -> `(B, L, D)`."""
    x = w[at + "embeddings.word_embeddings.weight"][ids]
    x = x + w[at + "embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = layer_norm(x, w, at + "embeddings.LayerNorm", 1e-12)
    masked = (1 - mask[:, None, None].float()) * -10000.0
    for i in range(b.layers):
        for kind, bias in (("attention", masked), ("crossattention", None)):
            p = f"{at}encoder.layer.{i}.{kind}."
            source = x if kind == "attention" else seen
            q, k, v = (linear(s, w, p + f"self.{n}") for n, s in (("query", x), ("key", source), ("value", source)))
            out = linear(attend(q, k, v, b.hidden // 64, bias), w, p + "output.dense")
            x = layer_norm(out + x, w, p + "output.LayerNorm", 1e-12)
        p = f"{at}encoder.layer.{i}."
        out = linear(F.gelu(linear(x, w, p + "intermediate.dense")), w, p + "output.dense")
        x = layer_norm(out + x, w, p + "output.LayerNorm", 1e-12)
    return x


def head(w, x, at=""):
    for n in (0, 2, 4, 6, 7):
        x = linear(x, w, f"{at}layers.{n}")
    return x[:, 0]


def image_reward(w, pixels, ids, mask, b):
    """ImageReward.score."""
    read = blip_text(w, ids, mask, blip_vision(w, pixels, b), b)
    return (head(w, read[:, 0], "mlp.") - 0.16717362830052426) / 1.0333394966054072


def clip_blocks(w, x, at, depth, heads, act, bias=None):
    for i in range(depth):
        p = f"{at}transformer.resblocks.{i}."
        fused = layer_norm(x, w, p + "ln_1", 1e-5) @ w[p + "attn.in_proj_weight"].T + w[p + "attn.in_proj_bias"]
        x = x + linear(attend(*fused.chunk(3, -1), heads, bias), w, p + "attn.out_proj")
        x = x + linear(act(linear(layer_norm(x, w, p + "ln_2", 1e-5), w, p + "mlp.c_fc")), w, p + "mlp.c_proj")
    return x


def clip_image(w, x, c, act=F.gelu):
    """open_clip's encode_image, normalised."""
    patches = F.conv2d(x, w["visual.conv1.weight"], stride=c.patch).flatten(2).transpose(1, 2)
    x = torch.cat([w["visual.class_embedding"].expand(len(x), 1, -1), patches], 1) + w["visual.positional_embedding"]
    x = clip_blocks(w, layer_norm(x, w, "visual.ln_pre", 1e-5), "visual.", c.depth, c.width // 64, act)
    return F.normalize(layer_norm(x[:, 0], w, "visual.ln_post", 1e-5) @ w["visual.proj"], dim=-1)


def clip_text(w, ids, c, act=F.gelu):
    """open_clip's encode_text, normalised: causal, read at the highest token."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    causal = torch.full((ids.shape[1],) * 2, -math.inf).triu(1)
    x = layer_norm(clip_blocks(w, x, "", c.layers, c.hidden // 64, act, causal), w, "ln_final", 1e-5)
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(-1)] @ w["text_projection"], dim=-1)


def bert_tokenizer(folder):
    """38 words, as bert-base-uncased keeps them: vocab.txt and settings. BLIP's two marks come behind them."""
    folder.mkdir(parents=True)
    letters = list(string.ascii_lowercase)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, "red", "cat", "##s", "a", "owl", "##e", "!", "the"]
    words = list(dict.fromkeys(words))[: TINY_BLIP.words - 2]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    assert len(words) == TINY_BLIP.words - 2
    return words


def clip_tokenizer(folder, words=TINY_CLIP.words, length=TINY_CLIP.places):
    """Letters, with and without the end of a word, some merges; the marks come last, as in CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = list(string.ascii_lowercase)
    vocab = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>", "ca", "cat</w>", "ow", "owl</w>"]
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    assert len(vocab) == words
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(vocab)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\nc a\nca t</w>\no w\now l</w>\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
