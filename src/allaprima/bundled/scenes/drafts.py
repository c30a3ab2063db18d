"""Drafts for the oracle: pictures that student and teacher paint of training captions, with the exact judge's verdicts.

    python -m allaprima.bundled.scenes.drafts --card CARD --out runs/scenes/drafts.safetensors

Three quarters are the student's in one to four steps, one quarter the teacher's in five to ten. What is kept of a picture
is what the oracle reads, its latents after decoding and encoding. A file that is there is gone on with.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.bundled.scenes.grammar import Scene, altered, draw_training_scene
from allaprima.bundled.scenes.judge import judge
from allaprima.bundled.scenes.networks import new_tokenizer
from allaprima.bundled.scenes.teacher import token_ids
from allaprima.core.errors import SettingError
from allaprima.models.cards.card import OracleSource, load_card
from allaprima.pipeline import AdaptivePipeline

CHUNK = 400
"""Drafts painted between two writes of the file, of which each is of one network and one number of steps."""


def load_pair(card: str) -> AdaptivePipeline:
    """Return a card's student and teacher without an oracle, which may not be there yet."""
    read = load_card(card)
    return AdaptivePipeline.from_card(read.model_copy(update={"oracle": OracleSource(kind="none", license="Apache-2.0")}))


def paint_chunk(pipe: AdaptivePipeline, tokenizer: Any, number: int, seed: int, size: int = CHUNK) -> dict[str, Tensor]:
    """Paint and judge a chunk of drafts.

    Args:
        pipe: The pair.
        tokenizer: Of the captions.
        number: Of the chunk; its scenes, seeds and steps follow from it.
        seed: Of the whole file.
        size: Drafts of the chunk.

    Returns:
        `latents (N, C, h, w)` in float16, `ids (N, TOKENS)`, `labels (N,)`; a right draft comes a second time with a
        caption that is altered in one thing and wrong.
    """
    rng = random.Random(f"drafts {seed} {number}")
    scenes = [draw_training_scene(rng) for _ in range(size)]
    by_student, steps = number % 4 != 3, (1, 2, 3, 4)[number // 4 % 4] if number % 4 != 3 else (5, 6, 8, 10)[number // 4 % 4]
    by: dict[str, Any] = {"student_steps": steps} if by_student else {"teacher_steps": steps}
    images = pipe(
        [scene.caption() for scene in scenes],
        seed=[rng.getrandbits(31) for _ in scenes],
        mode="student-only" if by_student else "teacher-only",
        output_type="pt",
        batch_size=100,
        **by,
    ).images
    images = (images * 255).round() / 255
    student: Any = pipe.student
    latents = torch.cat([student.encode_images(x) for x in images.split(100)])
    captions: list[Scene] = list(scenes)
    rows, labels = list(range(size)), []
    for i, (image, scene) in enumerate(zip(images.permute(0, 2, 3, 1).numpy(), scenes, strict=True)):
        labels.append(judge(image, scene).right)
        if labels[i] and (other := altered(scene, rng)) is not None and not judge(image, other).right:
            rows.append(i)
            captions.append(other)
    labels += [False] * (len(rows) - size)
    ids = token_ids(tokenizer, [scene.caption() for scene in captions])
    return {"latents": latents[rows].half(), "ids": ids, "labels": torch.tensor(labels)}


def main() -> None:
    """Run from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--card", default="scenes", help="card of the pair; its oracle is not needed")
    p.add_argument("--out", type=Path, required=True, help="the safetensors file to write or go on with")
    p.add_argument("--chunks", type=int, default=40, help="how many chunks of drafts")
    p.add_argument("--chunk", type=int, default=CHUNK, help="drafts of a chunk")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    torch.set_num_threads(1)
    pipe = load_pair(args.card)
    belongs = json.dumps({"seed": args.seed, "chunk": args.chunk, "models": pipe.fingerprints()}, sort_keys=True)
    parts, first = list[dict[str, Tensor]](), 0
    if args.out.exists():
        from safetensors import safe_open

        with safe_open(args.out, "pt") as f:
            meta = f.metadata()
        if meta["belongs"] != belongs:
            raise SettingError(f"{args.out} holds drafts of other models or another seed: choose another file.")
        parts, first = [load_file(args.out)], int(meta["chunks"])
    for number in track(range(first, args.chunks), "drafts"):
        parts.append(paint_chunk(pipe, new_tokenizer(), number, args.seed, args.chunk))
        whole = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        beside = args.out.with_suffix(".part")
        save_file(whole, beside, metadata={"belongs": belongs, "chunks": str(number + 1)})
        beside.replace(args.out)
        parts = [whole]
    if parts:
        labels = parts[0]["labels"]
        print(f"{args.out}: {len(labels)} pairs, {int(labels.sum())} right")


if __name__ == "__main__":
    main()
