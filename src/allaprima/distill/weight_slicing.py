"""Which part of a teacher's tensor a narrower student begins with: the first channels, where the network means channels.

Four kinds of axes are made of parts, and each part is cut by itself: what an up block's layer reads (hidden states, then the
skip connection), the rows of a gated feed-forward layer (values, then gates), attention's inner axis (head by head), and the
time embedding's input (sine and cosine by frequency, of which the nearest lower is taken). An initialisation, no more: group
norms see other groups, and the student must be trained.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

UP_INPUT = re.compile(r"up_blocks\.(\d+)\.resnets\.(\d+)\.(norm1\.weight|norm1\.bias|conv1\.weight|conv_shortcut\.weight)")
HEAD_ROWS = re.compile(r".*\.attn[12]\.to_[qkv]\.weight")
HEAD_COLUMNS = re.compile(r".*\.attn[12]\.to_out\.0\.weight")
GATED = re.compile(r".*\.ff\.net\.0\.proj\.(weight|bias)")


def sliced(
    name: str, value: Tensor, shape: Sequence[int], teacher: Mapping[str, Any], student: Mapping[str, Any], dropped: int = 0
) -> Tensor:
    """The student's beginning for its tensor `name`, of `shape`, from the teacher's `value`.

    `teacher`, `student`: their UNet configs, the student's with `layers_per_block` by stage; `dropped`: how many of the
    deepest stages the student lacks.
    """
    axes = {axis: torch.arange(size) for axis, size in enumerate(shape)}
    old, new = list(teacher["block_out_channels"]), list(student["block_out_channels"])
    up = UP_INPUT.fullmatch(name)
    if up:
        stage, layer = int(up[1]), int(up[2])
        last = layer == list(student["layers_per_block"])[::-1][stage]
        axis = 0 if up[3].startswith("norm1") else 1
        axes[axis] = _parts(_up_inputs(old, stage + dropped, layer == 0, last), _up_inputs(new, stage, layer == 0, last))
    elif GATED.fullmatch(name):
        axes[0] = _parts([len(value) // 2] * 2, [shape[0] // 2] * 2)
    elif HEAD_ROWS.fullmatch(name) or HEAD_COLUMNS.fullmatch(name):
        axis, stage = int(bool(HEAD_COLUMNS.fullmatch(name))), _stage(name, len(new))
        axes[axis] = _by_head(value.shape[axis], _heads(teacher, stage), shape[axis], _heads(student, stage))
    elif name == "time_embedding.linear_1.weight":
        axes[1] = _frequencies(old[0], new[0])
    for axis, index in axes.items():
        value = value.index_select(axis, index)
    return value


def _parts(old: Sequence[int], new: Sequence[int]) -> Tensor:
    """The first of each part."""
    starts = [sum(old[:i]) for i in range(len(old))]
    return torch.cat([torch.arange(start, start + size) for start, size in zip(starts, new, strict=True)])


def _up_inputs(channels: Sequence[int], stage: int, first: bool, last: bool) -> list[int]:
    """Channels of hidden states and skip connection that a layer of an up stage reads, as diffusers lays them out."""
    order = list(channels)[::-1]
    hidden = order[max(0, stage - 1)] if first else order[stage]
    return [hidden, order[min(stage + 1, len(order) - 1)] if last else order[stage]]


def _stage(name: str, stages: int) -> int:
    """Which stage a block belongs to, highest resolution first; the mid block to the deepest."""
    side, place = name.split(".")[:2]
    return {"down_blocks": int, "up_blocks": lambda n: stages - 1 - int(n)}.get(side, lambda _: stages - 1)(place)


def _heads(config: Mapping[str, Any], stage: int) -> int:
    """Number of heads, which diffusers' UNet configs call `attention_head_dim`."""
    heads = config["attention_head_dim"]
    return heads if isinstance(heads, int) else list(heads)[stage]


def _by_head(old: int, old_heads: int, new: int, new_heads: int) -> Tensor:
    """The first channels of each of the first heads."""
    starts = torch.arange(new_heads)[:, None] * (old // old_heads)
    return (starts + torch.arange(new // new_heads)).flatten()


def _frequencies(old: int, new: int) -> Tensor:
    """Places of the nearest lower (or the same) frequencies of an embedding of `new` channels in one of `old`."""
    same = torch.arange(new // 2) * (old // 2) // (new // 2)
    return torch.cat([same, old // 2 + same])
