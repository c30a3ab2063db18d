"""Editing in the cascade: what is kept of a picture against how well it became what was asked for (SDEdit's trade-off).

    python -m benchmarks.conditions edit --data emoji64.tar [--pairs 200] [--json] [--out runs/conditions]

Real pictures of the data set in one style are edited to another ("red apple, noto" to "red apple, fluent 3d") at strengths
.3 to .9, by the student alone, by the teacher alone (the card's solver and steps, and DDIM 50), and by the cascade, which
regenerates the half of the drafts that scores lowest (the threshold is the other half of the pairs' median at that
strength). The same pairs and seeds everywhere. arXiv 2312.10835 shows this in table 1 and figure 13.

Preservation: cosine similarity of EfficientNet-Lite0 features (the paper: DINOv2) between picture and edit. Editing: the
judge's score for the new prompt (the paper: ImageReward); the judge never decides. Intervals: 95 %, pairs resampled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.bundled.emoji import load_judge
from allaprima.bundled.emoji.dataset import STYLES, known_concepts, load_tar
from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.edit import Edit, ImageInput, share_of
from allaprima.core.errors import SettingError
from allaprima.data.images import save_png, to_pil
from allaprima.evaluation.intervals import mean_interval
from allaprima.features.efficientnet_lite import EfficientNetLite0
from allaprima.pipeline import AdaptivePipeline

STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FIRST_SEED = 7_000_000
SHOWN = 6


@dataclass(frozen=True)
class Pairs:
    """Pictures `(N, 3, H, W)` uint8 of one style and prompts for another."""

    pictures: Tensor
    prompts: tuple[str, ...]


def pairs_of(tar: Path, count: int) -> Pairs:
    """Pictures of known concepts, each to the next style that the concept has too; an even choice among all there are."""
    data = load_tar(tar).pick(known_concepts(), "train")
    there = {(r.concept, r.style): i for i, r in enumerate(data.rows)}
    found: list[tuple[int, str]] = []
    for (concept, style), i in there.items():
        following = [STYLES[(STYLES.index(style) + k) % len(STYLES)] for k in range(1, len(STYLES))]
        target = next((s for s in following if (concept, s) in there), None)
        if target is not None:
            found.append((i, f"{concept}, {target}"))
    if len(found) < count:
        raise SettingError(f"pairs={count!r}: the data set has {len(found)} only.")
    chosen = [found[k * len(found) // count] for k in range(count)]
    return Pairs(data.images[[i for i, _ in chosen]], tuple(p for _, p in chosen))


def painted(
    pipe: AdaptivePipeline, pairs: Pairs, strength: float, mode: str, out: Path, **changes: Any
) -> dict[str, Tensor]:
    """`images (N, 3, H, W)` uint8 and `scores (N,)` of drafts; read if an earlier run painted them."""
    settings = pipe.settings.changed(strategy="regenerate", **changes)
    digest = hashlib.sha256(pairs.pictures.numpy().tobytes()).hexdigest()
    what = json.dumps([mode, settings.to_dict(), pipe.fingerprints(), pairs.prompts, digest, strength], sort_keys=True)
    file = out / "pictures" / f"{hashlib.sha256(what.encode()).hexdigest()[:20]}.safetensors"
    if not file.exists():
        requests = [
            GenerationRequest(prompt, FIRST_SEED + i, "", i, edit=Edit(ImageInput.of(picture.float() / 255), strength))
            for i, (prompt, picture) in enumerate(zip(pairs.prompts, pairs.pictures, strict=True))
        ]
        results = sorted(pipe.stream(requests, settings, pipe.policy(settings, mode=mode)), key=lambda r: r.request.index)
        tensors = {"images": torch.stack([(r.image * 255).round().byte() for r in results if r.image is not None])}
        if mode == "student-only":
            tensors["scores"] = torch.tensor([r.score for r in results], dtype=torch.float64)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    print(f"strength {strength:g}, {mode} {changes}: {len(pairs.prompts)} edits", file=sys.stderr, flush=True)
    return load_file(file)


class Meter:
    """Preservation and editing, a number a picture."""

    def __init__(self, pipe: AdaptivePipeline, pairs: Pairs) -> None:
        self.net, self.judge, self.pairs, self.pipe = EfficientNetLite0.pretrained(), load_judge(), pairs, pipe
        parts = [pipe.student.encode(pairs.prompts[i : i + 64]) for i in range(0, len(pairs.prompts), 64)]
        self.texts = torch.cat([self.judge.embed_texts(p) for p in parts])
        self.before = self.net.features(pairs.pictures).float()

    @torch.no_grad()
    def measure(self, images: Tensor) -> dict[str, Tensor]:
        """`preservation`, `judge`, `oracle`: `(N,)` each."""
        assert self.pipe.oracle is not None
        x = images.float() / 255
        prompts = self.pairs.prompts
        oracle = [self.pipe.oracle.score(x[i : i + 64], prompts[i : i + 64]) for i in range(0, len(x), 64)]
        kept = torch.nn.functional.cosine_similarity(self.net.features(images).float(), self.before)
        return {"preservation": kept, "judge": self.judge.score(x, self.texts), "oracle": torch.cat(oracle)}


def edit(args: argparse.Namespace) -> dict[str, Any]:
    """Paint and measure the trade-off; a sheet beside it."""
    pipe, pairs = AdaptivePipeline.from_card("emoji"), pairs_of(args.data, args.pairs)
    s, meter = pipe.settings, Meter(pipe, pairs)
    n = len(pairs.prompts)
    halves = torch.arange(n) % 2
    ddim = {"teacher_steps": 50, "teacher_solver": "ddim", "teacher_last_time": None, "teacher_guidance_interval": None}
    rows: list[dict[str, Any]] = []
    lines: list[Tensor] = [torch.cat(list(pairs.pictures[:SHOWN]), 2)]
    for strength in STRENGTHS:
        draft = painted(pipe, pairs, strength, "student-only", args.out)
        made = painted(pipe, pairs, strength, "teacher-only", args.out)["images"]
        best = painted(pipe, pairs, strength, "teacher-only", args.out, **ddim)["images"]
        threshold = torch.stack([draft["scores"][halves != h].median() for h in (0, 1)])[halves]
        keep = draft["scores"] >= threshold
        mixed = torch.where(keep[:, None, None, None], draft["images"], made)
        teacher, whole = share_of(s.teacher_steps, strength), share_of(50, strength)
        mean = s.student_steps + teacher * float((~keep).double().mean())
        for method, images, steps in (
            ("student", draft["images"], float(s.student_steps)), ("adaptive", mixed, mean),
            ("teacher, card's settings", made, float(teacher)), ("teacher, DDIM 50", best, float(whole)),
        ):  # fmt: skip
            found = {k: mean_interval(v.tolist(), list(range(n))) for k, v in meter.measure(images).items()}
            values = {k: [i.mean, i.low, i.high] for k, i in found.items()}
            rows.append({"method": method, "strength": strength, "mean_steps": steps, **values})
        lines.append(torch.cat(list(mixed[:SHOWN]), 2))
    save_png(to_pil(torch.cat(lines, 1).float() / 255), args.out / "edit.png", {})
    return {"pairs": n, "rows": rows}


def draw(result: dict[str, Any], path: Path) -> None:
    """Return a curve a method: kept to the right, become what was asked for upwards."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5))
    for method in dict.fromkeys(r["method"] for r in result["rows"]):
        rows = [r for r in result["rows"] if r["method"] == method]
        axis.plot([r["preservation"][0] for r in rows], [r["judge"][0] for r in rows], marker="o", label=method)
    axis.set_xlabel("preservation (cosine of EfficientNet-Lite0 features)")
    axis.set_ylabel("judge's score for the new prompt")
    axis.set_title(f"{result['pairs']} edits, strengths {STRENGTHS[0]:g} (right) to {STRENGTHS[-1]:g} (left)")
    axis.legend()
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown for people."""
    lines = [
        "| method | strength | mean steps | preservation | judge's score | oracle's score |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = ["{:.3f} ({:.3f}..{:.3f})".format(*r[k]) for k in ("preservation", "judge", "oracle")]
        lines.append(f"| {r['method']} | {r['strength']:g} | {r['mean_steps']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=["edit"])
    p.add_argument("--data", type=Path, required=True, help="emoji64.tar")
    p.add_argument("--pairs", type=int, default=200)
    p.add_argument("--out", type=Path, default=Path("runs/conditions"))
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    result = edit(args)
    (args.out / "edit.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, args.out / "edit_curve.png")
    print(json.dumps(result, indent=1) if args.json else table(result["rows"]))


if __name__ == "__main__":
    main()
