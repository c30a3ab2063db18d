"""Smaller students made from a teacher's UNet by a map of what stays (arXiv 2305.15798; 2410.23274, appendix B.2).

`base`: the second resnet and attention of each down stage are left out; in up stages the first and third stay. `small`: also
without the mid block. `tiny`: also without the deepest stage. Generalised: of L layers in a down stage those at even places
stay; of the L + 1 in its up stage as many as stay below, plus one, evenly spread from the first to the last. A stage of one
layer has nothing to leave out, so a teacher with one layer a block (the bundled one) has itself as `base`.

Narrow students scale every stage's channels (`width`) in steps that keep norm groups and heads whole.

The result is a plain diffusers `UNet2DConditionModel`. Diffusers can express all of these: one layer fewer a block means one
fewer in its up block, `mid_block_type` may be None, a stage fewer is a shorter config. What it can't: leaving a stage's only
layer out, or keeping different layers than as many below plus one above; neither is needed here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from allaprima.core.errors import ModelError, SettingError
from allaprima.distill.feature_hooks import FeatureHooks
from allaprima.distill.weight_slicing import sliced

KINDS = ("full", "base", "small", "tiny")
DOWN, UP = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
PER_STAGE = (
    "block_out_channels", "attention_head_dim", "cross_attention_dim", "only_cross_attention", "layers_per_block",
    "transformer_layers_per_block", "down_block_types",
)  # fmt: skip
"""Config entries that may be a list, one entry a stage, highest resolution first."""


@dataclass(frozen=True)
class Cut:
    """What stays of a teacher: for each down and each up stage the places of its layers, in the order they run."""

    down: tuple[tuple[int, ...], ...]
    """By the teacher's down stages, highest resolution first; stages left out are missing at the end."""
    up: tuple[tuple[int, ...], ...]
    """By the teacher's up stages, lowest resolution first; stages left out are `()` at the beginning."""
    mid: bool

    @property
    def dropped(self) -> int:
        """How many of the deepest stages are left out."""
        return sum(not kept for kept in self.up)

    def origin(self, name: str) -> str:
        """Return the teacher's name of a student's tensor or module."""
        found = re.match(r"(down|up)_blocks\.(\d+)(?:\.(resnets|attentions)\.(\d+))?(.*)", name)
        if not found:
            return name
        side, stage, part, layer, rest = found.groups()
        place = int(stage) + (self.dropped if side == "up" else 0)
        inner = "" if part is None else f".{part}.{(self.down if side == 'down' else self.up)[place][int(layer)]}"
        return f"{side}_blocks.{place}{inner}{rest}"


@dataclass(frozen=True)
class SmallerStudent:
    """A student's UNet and where its weights come from."""

    unet: Any
    cut: Cut
    copied: Mapping[str, str]
    """Student's tensor -> the teacher's it equals."""
    sliced: Mapping[str, str]
    """Student's tensor -> the teacher's it is a part of, where shapes differ (see `distill.weight_slicing`)."""
    fresh: tuple[str, ...]
    """Tensors with random weights."""
    parameters: int
    teacher_parameters: int

    @property
    def parameters_removed(self) -> int:
        """How many fewer parameters than the teacher's."""
        return self.teacher_parameters - self.parameters

    def __str__(self) -> str:
        removed, share = self.parameters_removed, 100 * self.parameters_removed / self.teacher_parameters
        return (
            f"{self.parameters:,} of {self.teacher_parameters:,} parameters ({removed:,} removed, {share:.1f} %);"
            f" tensors: {len(self.copied)} copied, {len(self.sliced)} sliced, {len(self.fresh)} fresh"
        )


def make_cut(config: Mapping[str, Any], kind: str) -> Cut:
    """Return what `full`, `base`, `small` or `tiny` keeps of a teacher with this UNet config.

    Raises `SettingError` for another kind, or `tiny` of a single stage; `ModelError` for block types other than
    (CrossAttn)DownBlock2D and (CrossAttn)UpBlock2D.
    """
    if kind not in KINDS:
        raise SettingError(f"kind={kind!r} is not known: {', '.join(KINDS)} are.")
    for key, known in (("down_block_types", DOWN), ("up_block_types", UP)):
        odd = [b for b in config[key] if b not in known]
        if odd:
            raise ModelError(f"{key} has {odd[0]!r}: students can be made of {' and '.join(known)}. Use another teacher.")
    stages = len(config["down_block_types"])
    given = config["layers_per_block"]
    layers = [int(given)] * stages if isinstance(given, int) else [int(n) for n in given]
    down = [tuple(range(n)) if kind == "full" else tuple(range(0, n, 2)) for n in layers]
    # Halves go up, so that of four places the third is the middle one.
    up = [tuple(math.floor(i * n / len(d) + 0.5) for i in range(len(d) + 1)) for n, d in zip(layers, down, strict=True)][
        ::-1
    ]
    if kind != "tiny":
        return Cut(tuple(down), tuple(up), kind in ("full", "base") and config["mid_block_type"] is not None)
    if stages < 2:
        raise SettingError("tiny leaves the deepest stage out, and this teacher has only one: choose small.")
    return Cut(tuple(down[:-1]), ((), *up[1:]), False)


def student_config(config: Mapping[str, Any], cut: Cut, width: float = 1.0) -> dict[str, Any]:
    """Return the student's UNet config.

    `width` in (0, 1]; channels are the nearest that keep norm groups and heads whole.
    """
    made = {k: v for k, v in config.items() if not k.startswith("_") or k == "_class_name"}
    stages = len(cut.down)
    for key in PER_STAGE:
        if isinstance(made.get(key), list | tuple):
            made[key] = list(made[key])[:stages]
    made["up_block_types"] = list(made["up_block_types"])[cut.dropped :]
    made["layers_per_block"] = [len(kept) for kept in cut.down]
    for key, kept in (("transformer_layers_per_block", cut.down), ("reverse_transformer_layers_per_block", cut.up)):
        value = made.get(key)
        if key.startswith("reverse") and value is not None:
            value, kept = list(value)[cut.dropped :], kept[cut.dropped :]
        if isinstance(value, list | tuple):
            made[key] = [
                [v[i] for i in places] if isinstance(v, list | tuple) else v for v, places in zip(value, kept, strict=True)
            ]
    if not cut.mid:
        made["mid_block_type"] = None
    if width != 1.0:
        _narrow(made, width)
    return made


def _narrow(config: dict[str, Any], width: float) -> None:
    """Scale channels in place. Where all stages have heads of one size, heads are left out; else heads get smaller."""
    if not 0 < width <= 1:
        raise SettingError(f"width={width!r} is out of range: 0 < width <= 1; 0.75 makes three quarters of the channels.")
    channels, groups = list(config["block_out_channels"]), config["norm_num_groups"] or 1
    heads = config["attention_head_dim"]
    # In diffusers' UNet configs `attention_head_dim` is, for historical reasons, the number of heads.
    several = list(heads) if isinstance(heads, list | tuple) else [heads] * len(channels)
    sizes = {c // h for c, h in zip(channels, several, strict=True)}
    one_size = len(sizes) == 1 and isinstance(heads, list | tuple)
    steps = [math.lcm(groups, next(iter(sizes)) if one_size else h) for h in several]
    narrow = [max(1, math.floor(c * width / step + 0.5)) * step for c, step in zip(channels, steps, strict=True)]
    if any(n > c for n, c in zip(narrow, channels, strict=True)):
        raise SettingError(
            f"width={width!r}: channels {channels} in steps of {steps} can't be narrower. Choose a wider one."
        )
    config["block_out_channels"] = narrow
    if one_size:
        config["attention_head_dim"] = [n // next(iter(sizes)) for n in narrow]


def make_student(
    teacher: Any, kind: str = "base", width: float = 1.0, weights: Literal["teacher", "random"] = "teacher", seed: int = 0
) -> SmallerStudent:
    """Return a student UNet of a teacher's `UNet2DConditionModel`, float32, in evaluation mode, trainable.

    `weights="teacher"`: tensors of the same shape are copied, the others are slices (`width` below 1; and the entry of the
    deepest remaining stage of `tiny`, if the stage left out was wider). `"random"`: diffusers' own initialisation, seeded.
    Raises `SettingError` and `ModelError` as `make_cut` and `student_config` do.
    """
    if weights not in ("teacher", "random"):
        raise SettingError(f"weights={weights!r} is not known: 'teacher' or 'random'.")
    cut = make_cut(teacher.config, kind)
    config = student_config(teacher.config, cut, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = type(teacher).from_config(config).float().eval()
    copied: dict[str, str] = {}
    parts: dict[str, str] = {}
    names = list(unet.state_dict())
    if weights == "teacher":
        source: Mapping[str, Tensor] = teacher.state_dict()
        loaded: dict[str, Tensor] = {}
        for name, mine in unet.state_dict().items():
            origin = cut.origin(name)
            if origin not in source:
                raise ModelError(f"{name} of the student is due from {origin}, which this teacher doesn't have.")
            same = source[origin].shape == mine.shape
            (copied if same else parts)[name] = origin
            value = source[origin] if same else sliced(name, source[origin], mine.shape, teacher.config, config, cut.dropped)
            loaded[name] = value.detach().clone().float()
        unet.load_state_dict(loaded)
    fresh = tuple(n for n in names if n not in copied and n not in parts)
    return SmallerStudent(unet, cut, copied, parts, fresh, count_parameters(unet), count_parameters(teacher))


def count_parameters(net: torch.nn.Module) -> int:
    """Numbers in all parameters."""
    return sum(p.numel() for p in net.parameters())


class HiddenStates(FeatureHooks):
    """Hooks on a UNet's blocks: the hidden states that students imitate; gradients pass.

    A down block gives its last layer's output `(B, C, H, W)`, before the downsampler, which the deepest stage of a student
    may lack; mid and up blocks give their output.
    """

    def _hook(self, name: str) -> Any:
        def hook(block: Any, _inputs: Any, output: Any) -> None:
            self.outputs[name] = output[1][len(block.resnets) - 1] if isinstance(output, tuple) else output

        return hook
