"""Nets that read a picture, trained by `allaprima distill` on the bundled teacher, and measured: control, super-resolution,
inpainting, instructed editing.

    python -m benchmarks.nets data --data emoji64.tar    # latents, pictures, prompts; pairs of one concept in two styles
    python -m benchmarks.nets train [NAME ...]           # run again to go on where it stopped; --list prints the commands
    python -m benchmarks.nets measure --data emoji64.tar [--seeds 3] [TASK ...]

All is measured on concept-style pairs that neither the teacher nor a net was trained on. `super-resolution` (16 by 16 pixels
to 64 by 64) and `inpainting` (one to three rectangles) compare a fine-tuned many-step conditional model (a ControlNet on the
teacher, DDIM, 2, 4, 50 and 250 steps) with conditional diffusion distillation in 2 and 4 (arXiv 2310.01407; an adapter, and
the full kind), with what was given enlarged or left grey, and with plain SDEdit; without guidance, which would only move
away from what is given. `edges`, `colours`: the teacher with its net in 20 UniPC steps against the cascade, student and
teacher with the same net, the oracle looking at prompt and map (arXiv 2312.10835, section 4.3). `instructed`: "make it
fluent 3d".

Measures: distance of the LPIPS kind and Frechet distance on EfficientNet-Lite0 features (not LPIPS's and Inception's
networks), PSNR in dB, the judge's score of the caption, agreement with edges or colours (`oracles.conditional`).
Intervals: 95 %, with pictures resampled; Frechet distance: Student's t over seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from allaprima.bundled.emoji import load_judge
from allaprima.bundled.emoji.dataset import EmojiData, known_concepts, load_tar
from allaprima.bundled.emoji.teacher import latents_of
from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.core.errors import SettingError
from allaprima.data.control_maps import HOLE, training_map
from allaprima.data.images import save_png, to_pil
from allaprima.evaluation.frechet import frechet_distance
from allaprima.evaluation.intervals import mean_interval, t_interval
from allaprima.evaluation.lpips import LPIPSType
from allaprima.features.efficientnet_lite import EfficientNetLite0
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.oracles.conditional import AGREEMENTS
from allaprima.pipeline import AdaptivePipeline
from benchmarks.quality import as_list
from benchmarks.reference import load_reference
from benchmarks.students import Training, train

FIRST_SEED = 9_000_000
SHOWN = 8
DRAWN_ALIKE = ("fluent 3d", "fluent flat")
"""Styles between which instructions are learned: the same drawing, shaded or flat. Others draw a concept anew, and what one
says of the other's pixels is a blur (three trainings on pairs of all styles failed: docs/negative-results.md)."""
LOOP = (
    "loop.train_batch_size=16", "loop.warmup_steps=50", "loop.lr_scheduler=cosine", "loop.use_ema=0.995",
    "loop.sample_seconds=0", "loop.checkpoint_seconds=60",
)  # fmt: skip
NET = (*LOOP, "loop.learning_rate=1e-3", "loop.max_train_steps=800")
MANY = ("options.snr_floor=1", *NET)
FULL = (*LOOP, "loop.learning_rate=3e-4", "loop.max_train_steps=800", "options.kind=full")
LONG = "loop.max_train_steps=1600"
"""In place of 800."""
TRAININGS = (
    Training("edges", "controlnet", ("options.map=canny", *MANY), "ControlNet, edges"),
    Training(
        "edges-codi",
        "conditional",
        ("options.map=canny", "teacher={out}/edges/card.yaml", "start={out}/edges/controlnet", *NET, LONG),
        "CoDi, adapter",
    ),
    Training("colours", "controlnet", ("options.map=colours", *MANY), "ControlNet, flat colours"),
    Training("larger", "controlnet", ("options.map=low-resolution", *MANY), "ControlNet"),
    Training("holes", "controlnet", ("options.map=hole", *MANY), "ControlNet"),
    Training("larger-codi", "conditional", ("options.map=low-resolution", *NET), "CoDi, adapter"),
    Training("holes-codi", "conditional", ("options.map=hole", *NET), "CoDi, adapter"),
    Training(
        "larger-codi-begun",
        "conditional",
        ("options.map=low-resolution", "teacher={out}/larger/card.yaml", "start={out}/larger/controlnet", *NET),
        "CoDi, begun from the net",
    ),
    Training(
        "holes-codi-begun",
        "conditional",
        ("options.map=hole", "teacher={out}/holes/card.yaml", "start={out}/holes/controlnet", *NET, LONG),
        "CoDi, begun from the net",
    ),
    Training("larger-codi-full", "conditional", ("options.map=low-resolution", *FULL), "CoDi, full"),
    Training("holes-codi-full", "conditional", ("options.map=hole", *FULL, LONG), "CoDi, full"),
    Training(
        "instructed",
        "conditional",
        (
            "options.map=given",
            "data={out}/instructed.safetensors",
            "start={out}/larger-codi/controlnet",
            *NET,
        ),
        "instructed",
    ),
)


def moved(images: Tensor, g: torch.Generator) -> Tensor:
    """Pictures `(N, 3, H, W)` uint8 mirrored or not, turned by up to 25 degrees, at .7 to 1.05 of their size and elsewhere,
    on white."""
    n = len(images)
    angle = (torch.rand(n, generator=g) * 2 - 1) * math.radians(25)
    size, mirror = 0.7 + 0.35 * torch.rand(n, generator=g), torch.randint(2, (n,), generator=g) * 2 - 1
    shift = (torch.rand(n, 2, generator=g) * 2 - 1) * (1.05 - size)[:, None]
    cos, sin = angle.cos() / size, angle.sin() / size
    theta = torch.stack([torch.stack([cos * mirror, -sin * mirror], 1), torch.stack([sin, cos], 1)], 1)
    theta = torch.cat([theta, -(theta @ shift[:, :, None])], 2)
    grid = functional.affine_grid(theta, [n, *images.shape[1:]], align_corners=False)
    ink = functional.grid_sample(1 - images.float() / 255, grid, mode="bicubic", align_corners=False)
    return ((1 - ink).clamp(0, 1) * 255).round().byte()


def make_data(tar: Path, out: Path) -> None:
    """Training pictures with latents and prompts; and, for instructions, pairs of styles of a concept.

    The teacher's concepts as they are and moved three times, all others moved once. The teacher remembers the few pictures
    it was trained on: from those alone, and where they always lie, a net learns nothing that the prompt doesn't say (tried:
    after 1,200 steps edges were hardly heeded).
    """
    data = load_tar(tar).pick(None, "train")
    teacher = load_pair(load_card("emoji")).teacher
    out.mkdir(parents=True, exist_ok=True)

    def save(name: str, images: Tensor, captions: Sequence[str], **more: Tensor) -> None:
        different = list(dict.fromkeys(captions))
        place = {c: i for i, c in enumerate(different)}
        embeds = torch.cat([teacher.encode(different[i : i + 64]) for i in range(0, len(different), 64)]).half()
        tensors = {
            "latents": latents_of(EmojiData(images, [], ""), teacher.vae), "pictures": images,
            "prompt_embeds": embeds[[place[c] for c in captions]], **more,
        }  # fmt: skip
        path = out / name
        whole = {k: v.contiguous().clone() for k, v in tensors.items()}
        save_file(whole, path, metadata={"captions": json.dumps(list(captions))})
        print(f"{len(captions)} rows -> {path}")

    names, g = set(known_concepts()), torch.Generator().manual_seed(5)
    known, others = ([i for i, r in enumerate(data.rows) if (r.concept in names) == k] for k in (True, False))
    images = torch.cat([data.images[known], moved(data.images[known * 3 + others], g)])
    save("latents.safetensors", images, [data.rows[i].caption for i in known * 4 + others])
    there = {(r.concept, r.style): i for i, r in enumerate(data.rows)}
    pairs = [
        (i, there[concept, other], f"make it {other}")
        for (concept, style), i in there.items() for other in DRAWN_ALIKE
        if style in DRAWN_ALIKE and other != style and (concept, other) in there
    ]  # fmt: skip
    given, targets = (data.images[[pair[k] for pair in pairs]] for k in (0, 1))
    # As they are, and both mirrored.
    words, given, targets = (
        [w for _, _, w in pairs] * 2,
        torch.cat([given, given.flip(-1)]),
        torch.cat([targets, targets.flip(-1)]),
    )
    save("instructed.safetensors", targets, words, controls=given)


@dataclass(frozen=True)
class Sample:
    """What is painted: a caption, the real picture `(3, H, W)`, and what is given of it `(C, H, W)`, in [0, 1]."""

    caption: str
    real: Tensor
    given: Tensor
    prompt: str = ""
    """What is asked for, where it isn't the caption."""


@dataclass(frozen=True)
class Way:
    """A line of a table: pictures `(seeds, N, 3, H, W)` in [0, 1] and the mean steps they took."""

    name: str
    steps: float
    images: Tensor


class Painting:
    """Pictures of all samples and seeds, kept."""

    def __init__(self, samples: Sequence[Sample], seeds: int, out: Path) -> None:
        self.samples, self.seeds, self.out = samples, seeds, out / "pictures"

    def requests(self, edit: float | None = None, lead: bool = True) -> list[GenerationRequest]:
        """One a seed and sample; `edit`: strength of an edit of what is given, which then controls nothing; nor does it
        without `lead`."""
        made: list[GenerationRequest] = []
        for j in range(self.seeds):
            for k, s in enumerate(self.samples):
                picture = ImageInput.of(s.given)
                more: dict[str, Any] = {"controls": (picture,)} if lead else {}
                if edit is not None:
                    more = {"edit": Edit(picture, edit)}
                seed = FIRST_SEED + 100_000 * j + k
                made.append(GenerationRequest(s.prompt or s.caption, seed, "", len(made), **more))
        return made

    def __call__(
        self,
        name: str,
        pipe: AdaptivePipeline,
        mode: str,
        steps: float,
        edit: float | None = None,
        lead: bool = True,
        **changes: Any,
    ) -> tuple[Way, Tensor]:
        """Return the pictures and the drafts' scores `(seeds, N)`, nan where there are none."""
        settings = pipe.settings.changed(**changes)
        requests = self.requests(edit, lead)
        asked = [
            [r.prompt, r.seed, [c.digest for c in r.controls], None if r.edit is None else r.edit.row()] for r in requests
        ]
        what = json.dumps([mode, settings.to_dict(), pipe.fingerprints(), asked], sort_keys=True)
        file = self.out / f"{hashlib.sha256(what.encode()).hexdigest()[:20]}.safetensors"
        if not file.exists():
            found = sorted(pipe.stream(requests, settings, pipe.policy(settings, mode=mode)), key=lambda r: r.request.index)
            images = torch.stack([(r.image * 255).round().byte() for r in found if r.image is not None])
            scores = torch.tensor([float("nan") if r.score is None else r.score for r in found], dtype=torch.float64)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"images": images, "scores": scores}, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        print(f"{name}: {len(requests)} pictures", file=sys.stderr, flush=True)
        kept = load_file(file)
        images = kept["images"].float().unflatten(0, (self.seeds, len(self.samples))) / 255
        return Way(name, steps, images), kept["scores"].reshape(self.seeds, -1)


class Meter:
    """Numbers of a way."""

    def __init__(self, samples: Sequence[Sample], agreement: str | None, all_concepts: bool = False) -> None:
        self.samples, self.agreement = samples, agreement
        self.net, self.lpips, self.judge = EfficientNetLite0.pretrained(), LPIPSType(), load_judge()
        student = load_pair(load_card("emoji")).student
        captions = [s.caption for s in samples]
        parts = [student.encode(captions[i : i + 64]) for i in range(0, len(captions), 64)]
        self.texts = torch.cat([self.judge.embed_texts(p) for p in parts])
        self.real = torch.stack([s.real for s in samples])
        reals = (self.real * 255).round().byte()
        self.reference = self.net.features(reals) if all_concepts else load_reference().split("test")[1]

    @torch.no_grad()
    def row(self, way: Way) -> dict[str, Any]:
        """Of a table."""
        seeds, n = way.images.shape[:2]
        found: dict[str, list[float]] = {"lpips": [], "psnr": [], "judge": []}
        frechet: list[float] = []
        for images in way.images:
            frechet.append(frechet_distance(self.net.features((images * 255).round().byte()), self.reference))
            found["lpips"] += self.lpips.score(images, [], self.real).tolist()
            error = (images - self.real).square().mean((1, 2, 3)).clamp(min=1e-8)
            found["psnr"] += (-10 * error.log10()).tolist()
            found["judge"] += self.judge.score(images, self.texts).tolist()
            if self.agreement is not None:
                measure = AGREEMENTS[self.agreement]
                found.setdefault("agreement", []).extend(
                    measure(image, s.given) for image, s in zip(images, self.samples, strict=True)
                )
        groups = list(range(n)) * seeds
        spread = as_list(t_interval(frechet)) if seeds > 1 else [frechet[0]] * 3
        numbers = {k: as_list(mean_interval(v, groups)) for k, v in found.items()}
        return {"name": way.name, "steps": way.steps, "frechet": spread, **numbers}


def held_out(data: EmojiData, name: str) -> list[Sample]:
    """Every test picture with its map."""
    g = torch.Generator().manual_seed(4)
    return [
        Sample(r.caption, real, training_map(name, real, g))
        for r, real in zip(data.rows, data.images.float() / 255, strict=True)
    ]


def pipe_of(out: Path, name: str, condition: str, weight: float = 0.0) -> AdaptivePipeline:
    """Return the card of a training with its net on; `weight`: of the map in the oracle's score.

    Raises `SettingError` where it isn't trained.
    """
    if not (out / name / "card.yaml").exists():
        raise SettingError(f"{name} is not trained: python -m benchmarks.nets train {name}.")
    return AdaptivePipeline.from_card(out / name).with_controlnets([condition], condition_weight=weight)


def restored(
    args: argparse.Namespace, data: EmojiData, condition: str, stem: str, floor: str
) -> tuple[list[Sample], list[Way]]:
    """Super-resolution and inpainting."""
    samples = held_out(data, condition)
    painting = Painting(samples, args.seeds, args.out)
    given = torch.stack([s.given[:3] for s in samples]).expand(args.seeds, -1, -1, -1, -1)
    ways = [Way(floor, 0, given)]
    plain = AdaptivePipeline.from_card("emoji")
    if condition != HOLE:
        usual = plain.settings.teacher_steps
        ways.append(painting("SDEdit, strength .5", plain, "teacher-only", usual / 2, edit=0.5)[0])
    net = pipe_of(args.out, stem, condition)
    free: dict[str, Any] = {"teacher_guidance": 1.0, "teacher_guidance_interval": None, "teacher_last_time": None}
    for steps in (2, 4, 50, 250):
        changes: dict[str, Any] = {"teacher_steps": steps, "teacher_solver": "ddim", **free}
        ways.append(painting(f"ControlNet, DDIM {steps}", net, "teacher-only", steps, **changes)[0])
    for name, words in ((t.name, t.words) for t in TRAININGS if t.name.startswith(f"{stem}-codi")):
        if (args.out / name / "card.yaml").exists():
            pipe = pipe_of(args.out, name, condition)
            ways += [
                painting(words, pipe, "student-only", steps, student_steps=steps, student_guidance=1.0)[0]
                for steps in (2, pipe.settings.student_steps)
            ]
    return samples, ways


def led(args: argparse.Namespace, data: EmojiData, condition: str, name: str) -> tuple[list[Sample], list[Way]]:
    """Measure the teacher's ControlNet on both models, and the cascade: the worse half of the drafts is regenerated.

    Where a student's own net is trained (CoDi), the drafts of the cascade are its.
    """
    samples = held_out(data, condition)
    painting, pipe = Painting(samples, args.seeds, args.out), pipe_of(args.out, name, condition, 1.0)
    plain, s = AdaptivePipeline.from_card("emoji"), pipe.settings
    usual: dict[str, Any] = {"teacher_last_time": None, "teacher_guidance_interval": None, "teacher_guidance": 3.0}
    ways = [painting("teacher without the net", plain, "teacher-only", s.teacher_steps, lead=False)[0]]
    changes: dict[str, Any] = {"teacher_steps": 20, "teacher_solver": "unipc", **usual}
    ways.append(painting("teacher, UniPC 20", pipe, "teacher-only", 20, **changes)[0])
    draft, scores = painting("student, the teacher's net", pipe, "student-only", s.student_steps)
    ways.append(draft)
    own = args.out / f"{name}-codi"
    if (own / "card.yaml").exists():
        pipe = pipe_of(args.out, own.name, condition, 1.0)
        s = pipe.settings
        draft, scores = painting("student, a net of its own (CoDi)", pipe, "student-only", s.student_steps)
        ways.append(draft)
    for way, mode in (("regenerate", "teacher-only"), ("refine", "refine-all")):
        made, _ = painting(f"all {way}d", pipe, mode, s.teacher_steps)
        halves = torch.arange(len(samples)) % 2
        # A threshold from the other half of the captions.
        limit = torch.stack([scores[:, halves != h].median() for h in (0, 1)])[halves]
        keep = scores >= limit
        mixed = torch.where(keep[:, :, None, None, None], draft.images, made.images)
        mean = s.student_steps + s.teacher_steps * float((~keep).double().mean())
        ways += [made, Way(f"adaptive, {way}", mean, mixed)]
        # The machine's second look: what the teacher made stays only where its score is no lower than the draft's.
        again = torch.where(scored(pipe, samples, made) >= scores, ~keep, False)
        better = torch.where(again[:, :, None, None, None], made.images, draft.images)
        ways.append(Way(f"adaptive, {way}, looked at again", mean, better))
    return samples, ways


def scored(pipe: AdaptivePipeline, samples: Sequence[Sample], way: Way) -> Tensor:
    """Return what the cascade's oracle says of pictures, `(seeds, N)`."""
    oracle: Any = pipe.oracle
    prompts, given = [s.caption for s in samples], torch.stack([s.given for s in samples])
    with torch.no_grad():
        return torch.stack([oracle.score_given(images, prompts, [given]).double() for images in way.images])


def instructed(args: argparse.Namespace, data: EmojiData, whole: EmojiData) -> tuple[list[Sample], list[Way]]:
    """Return a trained picture of the concept in the style that is drawn alike, told to become the held-out one."""
    there = {(r.concept, r.style): i for i, r in enumerate(whole.rows)}
    samples: list[Sample] = []
    for r, real in zip(data.rows, data.images.float() / 255, strict=True):
        source = next((there[r.concept, s] for s in DRAWN_ALIKE if s != r.style and (r.concept, s) in there), None)
        if source is not None and r.style in DRAWN_ALIKE:
            samples.append(Sample(r.caption, real, whole.images[source].float() / 255, f"make it {r.style}"))
    painting, pipe = Painting(samples, args.seeds, args.out), pipe_of(args.out, "instructed", "given")
    ways = [
        Way("the picture that is changed", 0, torch.stack([s.given for s in samples]).expand(args.seeds, -1, -1, -1, -1))
    ]
    ways.append(painting("CoDi, adapter", pipe, "student-only", pipe.settings.student_steps, student_guidance=1.0)[0])
    captioned = [Sample(s.caption, s.real, s.given) for s in samples]
    plain = AdaptivePipeline.from_card("emoji")
    usual = plain.settings.teacher_steps
    told = Painting(captioned, args.seeds, args.out)
    ways.append(told("SDEdit with the whole caption, strength .7", plain, "teacher-only", 0.7 * usual, edit=0.7)[0])
    return samples, ways


MAPS = {"edges": "canny", "colours": "colours"}
"""Of the tasks that a ControlNet leads."""
TASKS = (*MAPS, "super-resolution", "inpainting", "instructed")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Tables of the tasks asked for, and a sheet of each."""
    whole = load_tar(args.data)
    test = whole.pick(known_concepts(), "test")
    result: dict[str, Any] = {}
    for task in args.names or TASKS:
        if task in MAPS:
            samples, ways = led(args, test, MAPS[task], task)
        elif task == "super-resolution":
            samples, ways = restored(args, test, "low-resolution", "larger", "bicubic")
        elif task == "inpainting":
            samples, ways = restored(args, test, HOLE, "holes", "grey")
        else:
            samples, ways = instructed(args, *(whole.pick(None, split) for split in ("test", "train")))
        meter = Meter(samples, MAPS.get(task), task == "instructed")
        result[task] = {"pictures": len(samples), "seeds": args.seeds, "rows": [meter.row(w) for w in ways]}
        step = max(1, len(samples) // SHOWN)
        columns = list(range(0, len(samples), step))[:SHOWN]
        lines = [torch.cat([w.images[0, i] for i in columns], 2) for w in ways]
        if task in MAPS:
            lines.insert(0, torch.cat([samples[i].given for i in columns], 2))
        lines.append(torch.cat([samples[i].real for i in columns], 2))
        save_png(to_pil(torch.cat(lines, 1)), args.out / f"{task}.png", {})
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown for people."""
    names = {
        "lpips": "LPIPS-type",
        "frechet": "Frechet (Lite0)",
        "psnr": "PSNR",
        "judge": "judge's score",
        "agreement": "agreement with the map",
    }
    there = [k for k in names if k in rows[0]]
    digits = {"lpips": 3, "agreement": 3, "frechet": 1, "psnr": 1, "judge": 2}
    lines = ["| | steps | " + " | ".join(names[k] for k in there) + " |", "|---" * (2 + len(there)) + "|"]
    for r in rows:
        cells = ["{:.{d}f} ({:.{d}f}..{:.{d}f})".format(*r[k], d=digits[k]) for k in there]
        lines.append(f"| {r['name']} | {r['steps']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["data", "train", "measure"])
    p.add_argument("names", nargs="*", help="trainings or tasks; default all")
    p.add_argument("--data", type=Path, help="emoji64.tar")
    p.add_argument("--out", type=Path, default=Path("runs/nets"))
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--list", action="store_true", help="print the commands and stop")
    p.add_argument("--json", action="store_true")
    args = p.parse_intermixed_args()
    if args.list:
        for t in TRAININGS:
            print(f"{t.name}: allaprima " + " ".join(t.command(args.out)))
        return
    if args.what == "train":
        train(args.names, args.out, TRAININGS)
        return
    if args.data is None:
        raise SettingError("--data is missing: give the data set's tar.")
    if args.what == "data":
        make_data(args.data, args.out)
        return
    odd = next((t for t in args.names if t not in TASKS), None)
    if odd is not None:
        raise SettingError(f"task {odd!r} is not known: {', '.join(TASKS)} are.")
    result = measure(args)
    path = args.out / "nets.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**before, **result}, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(result, indent=1))
        return
    for task, found in result.items():
        print(f"\n**{task}**: {found['pictures']} pictures, {found['seeds']} seeds\n\n{table(found['rows'])}")


if __name__ == "__main__":
    main()
