"""K students behind one painter: each paints the prompts that a partition gives it (arXiv 2410.23274).

To the cascade, calibration and serving this is a student like any other. A prompt is routed once, when it is encoded; its
negative half goes to the same student, whatever the negative prompt says.

Batches: rows of one call may belong to different students. Each student's rows are then padded with copies of their first
one to the shape of the whole call, so that a network sees the one shape it sees when it paints alone, and a picture's bits
depend on nothing else (see `cascade.latent_cascade`). A smaller shape would waste less and change bits. What a mixed call
wastes is saved where it can be without touching bits: `cascade.runner` gathers the drafts of each student into batches of
its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import ModelError, SettingError
from allaprima.core.types import Condition, Samples, Times
from allaprima.diffusion.guidance import GuidedDenoiser
from allaprima.diffusion.schedules import Schedule
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.loading import fingerprint, read_json, weight_files
from allaprima.models.families.family import Family, guidance_of
from allaprima.models.families.registry import FAMILIES
from allaprima.models.multi_student.partition import Partition, partition_fingerprint
from allaprima.models.multi_student.partition_file import load_partition

ALIKE = (
    "_class_name", "in_channels", "out_channels", "sample_size", "cross_attention_dim", "joint_attention_dim",
    "pooled_projection_dim", "projection_class_embeddings_input_dim", "patch_size", "time_cond_proj_dim",
)  # fmt: skip
"""What the configs of students must agree on; depth and width are each one's own."""


class Networks:
    """UNets or transformers by number, loaded when first asked for; at most `resident` of them stay, the latest used.

    Not for several threads at once: the machine is stepped by one.
    """

    def __init__(self, loaders: Sequence[Callable[[], Any]], resident: int | None = None) -> None:
        if resident is not None and resident < 1:
            raise SettingError(
                f"resident={resident!r} must be at least 1, the student that paints; None keeps all in memory."
            )
        self._loaders, self.resident = tuple(loaders), resident
        self._held: OrderedDict[int, Any] = OrderedDict()
        self.loads = 0
        """How often a network was loaded so far."""

    def __len__(self) -> int:
        return len(self._loaders)

    def through(self, change: Callable[[int, Callable[[], Any]], Any]) -> Networks:
        """Return the same with `change(number, load)` in place of what is loaded."""
        return Networks([partial(change, i, load) for i, load in enumerate(self._loaders)], self.resident)

    @property
    def held(self) -> tuple[int, ...]:
        """Numbers of the networks in memory, the latest used last."""
        return tuple(self._held)

    def __getitem__(self, student: int) -> Any:
        if student not in self._held:
            # Room first: two networks at once may be what there is no memory for.
            while self.resident is not None and len(self._held) >= self.resident:
                self._held.popitem(last=False)
            self._held[student] = self._loaders[student]()
            self.loads += 1
        self._held.move_to_end(student)
        return self._held[student]


class RoutedGuidance:
    """Guidance that tells the network whose each row is: `route: (B,)` in the condition, else the prompt's own."""

    def __init__(self, guidance: GuidedDenoiser, route: Callable[[Tensor], Tensor]) -> None:
        self.guidance, self.route = guidance, route
        self.evaluations_per_call = guidance.evaluations_per_call

    def __call__(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """`(B,C,H,W), (B,), B rows -> (B,C,H,W)`. `route` has no negative, so both halves carry the prompt's."""
        return self.guidance(x_t, t, self._routed(cond))

    def unguided(self, x_t: Samples, t: Times, cond: Condition) -> Samples:
        """Return the conditional half alone."""
        return self.guidance.unguided(x_t, t, self._routed(cond))

    def _routed(self, cond: Condition) -> Condition:
        if "route" in cond.tensors:
            return cond
        return Condition({**cond.tensors, "route": self.route(cond.tensors["prompt_embeds"])})


@dataclass(frozen=True)
class MultiStudent:
    """A `DiffusionModel` made of K networks, one partition, and text encoders and autoencoder for all."""

    shell: Family
    """All but the networks: its own has a config and no weights, its fingerprints cover every student and the partition."""
    partition: Partition
    networks: Networks

    def __post_init__(self) -> None:
        """Check the parts.

        Raises `ModelError` for a partition of another number of students or of another text encoder.
        """
        if self.partition.students != len(self.networks):
            raise ModelError(
                f"{len(self.networks)} students are given, the partition ({self.partition.method}) is one for"
                f" {self.partition.students}: give as many students, or fit a partition for {len(self.networks)}."
            )
        dim, width = self.partition.dim, _text_width(self.shell.network.config)
        if isinstance(width, int) and dim != width:
            raise ModelError(
                f"the partition was fitted on embeddings of {dim} dimensions, these students read {width}: fit it on the"
                " embeddings of their own text encoder."
            )

    @classmethod
    def of(cls, models: Sequence[Family], partition: Partition) -> MultiStudent:
        """From loaded models, which must share everything but the network (compared by fingerprint)."""
        if not models:
            raise ModelError("no students are given: at least one is due.")
        common = [{k: v for k, v in m.fingerprints.items() if k != m.component} for m in models]
        odd = next((i for i, c in enumerate(common) if c != common[0]), None)
        if odd is not None:
            different = sorted(k for k in common[0] if common[odd].get(k) != common[0][k])
            raise ModelError(f"student {odd} differs from student 0 in {', '.join(different)}: only networks may differ.")
        for i, m in enumerate(models):
            _check_alike(dict(models[0].network.config), dict(m.network.config), f"student {i}")
        prints = [m.fingerprints[m.component] for m in models]
        shell = models[0].with_network(_shape(dict(models[0].network.config)), common[0])
        loaders = [partial(_same, m.network) for m in models]
        return cls(_signed(shell, prints, partition), partition, Networks(loaders))

    @property
    def students(self) -> int:
        """K."""
        return len(self.networks)

    def route(self, embeds: Tensor) -> Tensor:
        """Whose each prompt is: `(B, L, D) -> (B,)` int64, 0..K-1."""
        return self.partition.route(embeds)

    def student(self, number: int) -> Family:
        """One of the students as a model of its own (it is loaded for it)."""
        name = self.shell.component
        prints = {k: v for k, v in self.fingerprints.items() if k != "partition" and not k.startswith(f"{name}.")}
        prints[name] = self.fingerprints[f"{name}.{number}"]
        return self.shell.with_network(self.networks[number], prints)

    @property
    def denoiser(self) -> RoutedGuidance:
        """Guided denoiser: two network evaluations a row (one if guidance is embedded), of the row's own student."""
        return RoutedGuidance(guidance_of(self.shell, self._network), self.route)

    def _network(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        route, told = cond.tensors["route"], Condition({k: v for k, v in cond.tensors.items() if k != "route"})
        output = torch.empty(0)
        for student in route.unique().tolist():
            rows = (route == student).nonzero()[:, 0]
            # One shape, whoever else is in the call: copies of the first row fill the places of the others' rows.
            filled = torch.cat([rows, rows[:1].expand(len(x_t) - len(rows))])
            made = self.shell.output(self.networks[student], x_t[filled], t[filled], told.rows(filled))
            if len(output) == 0:
                output = torch.empty_like(made)
            output[rows] = made[: len(rows)]
        return output

    @property
    def schedule(self) -> Schedule:
        """Noise schedule, the same for all."""
        return self.shell.schedule

    def schedule_at(self, height: int, width: int) -> Schedule:
        """Return the schedule for pictures of a size, in pixels."""
        return self.shell.schedule_at(height, width)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Hash of each shared component, of each network (`unet.0`, ...) and of the partition."""
        return self.shell.fingerprints

    @property
    def fingerprint(self) -> str:
        """One hash of all of it."""
        return self.shell.fingerprint

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of one latent."""
        return self.shell.latent_shape(height, width)

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for a prompt that can't be painted."""
        self.shell.check_prompt(prompt)

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt, begin and end included."""
        return self.shell.token_count(prompt)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> everything the students read of them, a row each."""
        return self.shell.condition(prompts)

    @property
    def prompts_read(self) -> int:
        """As the students' family."""
        return self.shell.prompts_read

    @property
    def most_clip_skip(self) -> int:
        """As the students' family."""
        return self.shell.most_clip_skip

    @property
    def rescales_guidance(self) -> bool:
        """As the students' family."""
        return self.shell.rescales_guidance

    def check_prompts(self, inputs: PromptInputs, negative: bool = False) -> None:
        """Raise `PromptError` for words that can't be painted."""
        self.shell.check_prompts(inputs, negative)

    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """As `condition`, of rows that say something else to each encoder."""
        return self.shell.encode_prompts(inputs, clip_skip)

    def negative(self, prompts: Sequence[str]) -> Condition:
        """Return what guidance leads away from, as the students' family reads it."""
        return self.shell.negative(prompts)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> hidden states `(B, L, D)`, what they are routed by."""
        return self.shell.encode(prompts)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pictures `(B, 3, H, W)` in [0, 1]."""
        return self.shell.decode(latents)

    @property
    def preview_decoder(self) -> bool:
        """Whether `decode_preview` is another autoencoder's."""
        return self.shell.preview_decoder

    def decode_preview(self, latents: Tensor) -> Tensor:
        """Latents -> pictures to be scored."""
        return self.shell.decode_preview(latents)

    reads_images = True
    refines_only = False

    @property
    def controls(self) -> tuple[int, ...]:
        """Channels that each of the students' ControlNets reads; none if there are none."""
        return self.shell.controls

    def encode_images(self, images: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` in [0, 1] -> latents."""
        return self.shell.encode_images(images)


def _same(network: Any) -> Any:
    return network


def _text_width(config: Any) -> Any:
    """D of the hidden states a network reads, of either kind; None where the config doesn't say."""
    names = ("caption_channels", "cap_feat_dim", "cross_attention_dim", "joint_attention_dim")
    return next((found for name in names if (found := getattr(config, name, None))), None)


def _shape(config: Mapping[str, Any]) -> SimpleNamespace:
    """Return what stands for a network where only its config is asked for."""
    return SimpleNamespace(config=SimpleNamespace(**config))


def _signed(shell: Family, networks: Sequence[str], partition: Partition) -> Family:
    prints = {**shell.fingerprints, **{f"{shell.component}.{i}": p for i, p in enumerate(networks)}}
    return shell.with_network(shell.network, {**prints, "partition": partition_fingerprint(partition)})


def _check_alike(first: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    for key in ALIKE:
        if first.get(key) != other.get(key):
            raise ModelError(
                f"{name} has {key}={other.get(key)!r}, the first student {first.get(key)!r}: students of one model must"
                " agree on it. Distil them from one teacher."
            )


def load_multi_student(
    folders: Sequence[Path], partition_file: Path, text: TextSettings, share: Family | None = None,
    shared: Sequence[str] = (), resident: int | None = None, family: str = "sd",
) -> MultiStudent:  # fmt: skip
    """Students from folders in diffusers' format, each with its network and `scheduler`; networks are loaded when needed.

    Components not in `shared` are those of the first folder. Every file is looked at here, so that a broken one is named
    before anything is painted. Raises `ModelError`; `SettingError` for `resident` below 1.
    """
    if not folders:
        raise ModelError("no student folders are given: at least one is due.")
    entry = FAMILIES[family]
    parts = [folder / entry.component for folder in folders]
    first = read_json(parts[0] / "config.json")
    scheduler = read_json(folders[0] / "scheduler" / "scheduler_config.json")
    for folder, part in zip(folders, parts, strict=True):
        _check_alike(first, read_json(part / "config.json"), str(folder))
        if read_json(folder / "scheduler" / "scheduler_config.json") != scheduler:
            raise ModelError(f"{folder / 'scheduler'} differs from {folders[0] / 'scheduler'}: students share one schedule.")
        weight_files(part)
    partition = load_partition(partition_file)
    shell = entry.load(folders[0], text, share, shared, _shape(first))
    prints = [fingerprint(part) for part in parts]
    networks = Networks([partial(entry.load_network, part) for part in parts], resident)
    return MultiStudent(_signed(shell, prints, partition), partition, networks)
