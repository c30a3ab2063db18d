"""Students of the bundled teacher, trained by `allaprima distill` and measured side by side.

    python -m benchmarks.students data --data emoji64.tar     # latents and prompts of the training pictures, once
    python -m benchmarks.students train [NAME ...]            # two hours; run again to go on where it stopped
    python -m benchmarks.students measure                     # table and pictures of what is there

`train` runs one command a training, printed before it starts (`--list` prints them all); a training that is done is passed
over. Students of the teacher's size begin from the bundled consistency student and not from the teacher, which shortens
distribution matching from days to minutes; what is matched is the teacher with the card's guidance. Single and four students
begin from one network (`shared`), so that what sets them apart is their last 300 steps. Small students have 42 % fewer
parameters (three quarters of the channels) and begin from the teacher's weights, with or without score matching.

Measures are those of `benchmarks.quality`: Frechet distance on EfficientNet-Lite0 features (not Inception), whether the
judge finds the caption among all the card knows, the judge's and the oracle's score; captions that were never trained on
(`test`) and training captions. Seconds a picture: the student alone, batches of 16, medians of interleaved repeats.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from allaprima.bundled.emoji.dataset import known_concepts, load_tar
from allaprima.bundled.emoji.teacher import latents_of
from allaprima.core.errors import SettingError
from allaprima.data.images import save_png, to_pil
from allaprima.distill.architecture import count_parameters
from allaprima.evaluation.intervals import mean_interval, t_interval
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.models.multi_student.model import MultiStudent
from allaprima.pipeline import AdaptivePipeline
from benchmarks.quality import FIRST_SEED, TEST_IMAGES, Meter, Way, as_list, paint
from benchmarks.reference import load_reference

SEEDS = 3
TRAINING_CAPTIONS = 147
REPEATS = 7
SHOWN = (
    "red apple, noto", "owl, twemoji", "house, fluent 3d", "tiger face, noto", "sunflower, fluent flat", "rocket, twemoji",
    "pizza, fluent 3d", "snowman, noto",
)  # fmt: skip


@dataclass(frozen=True)
class Training:
    """One `allaprima distill` command."""

    name: str
    method: str
    changes: tuple[str, ...]
    words: str
    """What it is, for the table."""

    def command(self, out: Path) -> list[str]:
        """Its arguments; `{out}` in changes is the folder of all trainings."""
        changes = [c.format(out=out) for c in self.changes]
        return ["distill", self.method, f"data={out / 'latents.safetensors'}", *changes, "--out", str(out / self.name)]


STUDENT = load_card("emoji").path(load_card("emoji").student.source or "")
# The teacher as the card has it: guided less at the end. Pairs: one a training caption, painted once for all trainings.
MATCHED = (
    "options.guidance_scale=3.5", "options.guidance_interval=[100,1000]", "options.guidance_outside=2",
    "options.fake_learning_rate=1e-4", "options.pairs=1075", "options.pairs_steps=14",
    "options.pairs_file={out}/pairs.safetensors",
)  # fmt: skip
LOOP = ("loop.train_batch_size=16", "loop.warmup_steps=20", "loop.use_ema=0.97", "loop.sample_seconds=0",
        "loop.checkpoint_seconds=60")  # fmt: skip
DM = (*MATCHED, *LOOP, "options.regression_weight=1", "options.generator_every=2", "loop.learning_rate=5e-5")
BEGIN = ("loop.lr_scheduler=constant", "loop.max_train_steps=400")
END = ("loop.lr_scheduler=cosine", "loop.max_train_steps=300")
GAN = ("loop.lr_scheduler=cosine", "loop.max_train_steps=150")
# A network that never painted in one step has further to go: it follows the pairs first, with a larger step.
SMALL_BEGIN = (
    *MATCHED, *LOOP, "options.regression_weight=4", "options.generator_every=1", "loop.learning_rate=2e-4",
    "loop.lr_scheduler=constant", "loop.max_train_steps=300",
)  # fmt: skip
FOUR = ("partition.students=4",)
MATCHING = "distribution_matching"
TRAININGS = (
    Training("shared", MATCHING, (f"start={STUDENT}", *DM, *BEGIN), "what one and four students begin from"),
    Training("one", MATCHING, ("start={out}/shared/student", *DM, *END), "one student"),
    Training("four", MATCHING, ("start={out}/shared/student", *FOUR, *DM, *END), "four students"),
    Training(
        "small-tsm", "tsm",
        ("width=0.75", "loop.max_train_steps=2000", "loop.learning_rate=5e-4", "loop.train_batch_size=16",
         "loop.use_ema=0.99", "loop.lr_scheduler=cosine", "loop.sample_seconds=0"),
        "small network after score matching",
    ),
    Training(
        "small-shared", MATCHING, ("start={out}/small-tsm/student", *SMALL_BEGIN), "what four small students begin from"
    ),
    Training("small-four", MATCHING, ("start={out}/small-shared/student", *FOUR, *DM, *END), "four small students"),
    Training(
        "small-shared-no-tsm", MATCHING, ("width=0.75", *SMALL_BEGIN), "the same without score matching",
    ),
    Training(
        "small-four-no-tsm", MATCHING, ("start={out}/small-shared-no-tsm/student", *FOUR, *DM, *END),
        "four small students, without score matching",
    ),
    Training(
        "one-adversarial", "adversarial", ("start={out}/one/student", *DM, *GAN, "options.head_channels=128"),
        "one student, then adversarial",
    ),
    Training("one-matched", MATCHING, ("start={out}/one/student", *DM, *GAN), "one student, as long without the adversary"),
    Training(
        "four-adversarial", "adversarial", ("start={out}/four", *FOUR, *DM, *GAN, "options.head_channels=128"),
        "four students, then adversarial",
    ),
    Training(
        "one-longer", MATCHING, ("start={out}/shared/student", *DM, "loop.lr_scheduler=cosine", "loop.max_train_steps=1200"),
        "one student, trained as long as four together",
    ),
)  # fmt: skip


def make_data(tar: Path, out: Path) -> None:
    """Latents and prompts of the training split, as `allaprima distill` reads them."""
    data = load_tar(tar).pick(known_concepts())
    keep = [i for i, r in enumerate(data.rows) if r.split == "train"]
    teacher = load_pair(load_card("emoji")).teacher
    latents = latents_of(data, teacher.vae)[keep]
    captions = [data.rows[i].caption for i in keep]
    embeds = torch.cat([teacher.encode(captions[i : i + 64]) for i in range(0, len(captions), 64)])
    out.mkdir(parents=True, exist_ok=True)
    tensors = {"latents": latents.contiguous().clone(), "prompt_embeds": embeds.contiguous().clone()}
    save_file(tensors, out / "latents.safetensors", metadata={"captions": json.dumps(captions)})
    print(f"{len(captions)} pictures -> {out / 'latents.safetensors'}")


def train(names: Sequence[str], out: Path, trainings: Sequence[Training] = TRAININGS) -> None:
    """Run the trainings that aren't done; each is resumable by itself."""
    known = {t.name: t for t in trainings}
    odd = [n for n in names if n not in known]
    if odd:
        raise SettingError(f"training {odd[0]!r} is not known: {', '.join(known)} are.")
    for name in names or known:
        if (out / name / "card.yaml").exists():
            continue
        command = known[name].command(out)
        print("allaprima " + " ".join(command), file=sys.stderr, flush=True)
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "allaprima", *command], check=True)
        (out / name / "seconds.json").write_text(json.dumps(time.perf_counter() - begun), encoding="utf-8")


@dataclass(frozen=True)
class Row:
    """A way of painting without the cascade: a card's student, or its teacher."""

    name: str
    pipe: AdaptivePipeline
    way: Way
    steps: int
    parameters: int
    """Of the network that paints one picture."""
    training: str = ""


def rows_of(out: Path) -> list[Row]:
    """Return the teacher, the bundled student in 1, 2, 4 and 5 steps, and every student that is trained."""
    emoji = AdaptivePipeline.from_card("emoji")
    usual = {"teacher_last_time": None, "teacher_guidance_interval": None, "teacher_guidance": 3.0}
    dpm = Way("teacher-only", {"teacher_steps": 25, "teacher_solver": "dpm_solver", **usual})
    teacher: Any = emoji.teacher
    rows = [
        Row("teacher, DPM-Solver++", emoji, dpm, 25, count_parameters(teacher.network)),
        Row("teacher, card's settings", emoji, Way("teacher-only", {}), emoji.settings.teacher_steps,
            count_parameters(teacher.network)),
    ]  # fmt: skip
    student: Any = emoji.student
    rows += [
        Row("consistency student", emoji, Way("student-only", {"student_steps": n}), n, count_parameters(student.network))
        for n in (1, 2, 4, 5)
    ]
    for t in TRAININGS:
        if (out / t.name / "card.yaml").exists():
            pipe = AdaptivePipeline.from_card(out / t.name)
            made: Any = pipe.student
            network = made.networks[0] if isinstance(made, MultiStudent) else made.network
            way = Way("student-only", {"height": emoji.settings.height, "width": emoji.settings.width})
            rows.append(Row(t.words, pipe, way, pipe.settings.student_steps, count_parameters(network), t.name))
    return rows


def seconds_a_picture(rows: Sequence[Row], captions: Sequence[str]) -> dict[tuple[str, int], list[float]]:
    """Milliseconds a picture (median, lowest, highest) of each row, repeats interleaved."""
    found: dict[tuple[str, int], list[float]] = {(r.name, r.steps): [] for r in rows}
    for repeat in range(REPEATS + 1):
        for r in rows:
            begun = time.perf_counter()
            r.pipe(list(captions), seed=1, mode=r.way.mode, **r.way.changes)
            if repeat:
                found[r.name, r.steps].append(1000 * (time.perf_counter() - begun) / len(captions))
    return {k: [float(np.median(v)), min(v), max(v)] for k, v in found.items()}


def measure(out: Path) -> dict[str, Any]:
    """Paint and measure what is there."""
    rows, reference = rows_of(out), load_reference()
    result: dict[str, Any] = {"sets": {}, "rows": []}
    table: dict[tuple[str, int], dict[str, Any]] = {}
    for name in ("test", "train"):
        captions, features = reference.split(name)
        chosen = [c for c in captions for _ in range(TEST_IMAGES)] if name == "test" else [
            captions[i * len(captions) // TRAINING_CAPTIONS] for i in range(min(TRAINING_CAPTIONS, len(captions)))
        ]  # fmt: skip
        meter = Meter(rows[0].pipe, chosen, features)
        groups = [list(dict.fromkeys(chosen)).index(c) for c in chosen] * SEEDS
        result["sets"][name] = {"captions": len(set(chosen)), "pictures": len(chosen) * SEEDS}
        for r in rows:
            seeds = [FIRST_SEED + 100_000 * j for j in range(SEEDS)]
            note = f"{name}, {r.name} {r.steps}"
            images = torch.stack([paint(r.pipe, r.way, chosen, s, out / "pictures", note).images for s in seeds])
            m = meter.measure(images)
            found = {"frechet": as_list(t_interval(m.frechet))}
            found |= {k: as_list(mean_interval(getattr(m, k), groups)) for k in ("found", "judge", "oracle")}
            table.setdefault((r.name, r.steps), {})[name] = found
    times = seconds_a_picture(rows, reference.split("test")[0][:16])
    for r in rows:
        seconds = out / r.training / "seconds.json"
        result["rows"].append({
            "name": r.name, "steps": r.steps, "parameters": r.parameters, "training": r.training,
            "trained_seconds": json.loads(seconds.read_text()) if r.training and seconds.exists() else None,
            "milliseconds": times[r.name, r.steps], **table[r.name, r.steps],
        })  # fmt: skip
    return result


def grid(rows: Sequence[Row], path: Path) -> None:
    """Return a line of pictures a row, the same prompts and seeds."""
    lines: list[np.ndarray] = []
    for r in rows:
        images = r.pipe(list(SHOWN), seed=3, mode=r.way.mode, **r.way.changes).images
        lines.append(np.concatenate([np.asarray(i.convert("RGB")) for i in images], 1))
    picture = torch.from_numpy(np.concatenate(lines)).permute(2, 0, 1).float() / 255
    save_png(to_pil(picture), path, {})


def markdown(result: dict[str, Any]) -> str:
    """Return the table for people."""

    def cell(values: Sequence[float], digits: int) -> str:
        return "{:.{d}f} ({:.{d}f}..{:.{d}f})".format(*values, d=digits)

    lines: list[str] = []
    for name, about in result["sets"].items():
        lines += [
            f"\n**{name}**: {about['captions']} captions, {about['pictures']} pictures a row\n",
            "| | steps | parameters | ms a picture | Frechet (Lite0) | judge finds caption | judge's score"
            " | oracle's score |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for r in result["rows"]:
            m = r[name]
            lines.append(
                f"| {r['name']} | {r['steps']} | {r['parameters'] / 1e6:.1f} M | {cell(r['milliseconds'], 1)} |"
                f" {cell(m['frechet'], 1)} | {cell(m['found'], 3)} | {cell(m['judge'], 2)} | {cell(m['oracle'], 3)} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["data", "train", "measure"])
    p.add_argument("names", nargs="*", help="trainings; default all")
    p.add_argument("--data", type=Path, help="emoji64.tar")
    p.add_argument("--out", type=Path, default=Path("runs/students"))
    p.add_argument("--list", action="store_true", help="print the commands and stop")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    if args.list:
        for t in TRAININGS:
            print(f"{t.name}: allaprima " + " ".join(t.command(args.out)))
    elif args.what == "data":
        if args.data is None:
            raise SettingError("--data is missing: give the data set's tar.")
        make_data(args.data, args.out)
    elif args.what == "train":
        train(args.names, args.out)
    else:
        result = measure(args.out)
        (args.out / "students.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        grid(rows_of(args.out), args.out / "students.png")
        print(json.dumps(result, indent=1) if args.json else markdown(result))


if __name__ == "__main__":
    main()
