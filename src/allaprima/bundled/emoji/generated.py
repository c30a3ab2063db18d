"""Pictures painted by the bundled pair, for training and calibrating oracles: kinds, captions and pictures in one file.

python -m allaprima.bundled.emoji.generated --out runs/generated.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.cascade.settings import CascadeSettings
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair


@dataclass(frozen=True)
class Generated:
    """`images: (N, 3, H, W)` uint8 with a caption and a kind (how it was painted) each."""

    images: Tensor
    captions: Sequence[str]
    kinds: Sequence[str]


def save_generated(data: Generated, path: Path) -> None:
    """One safetensors file; captions and kinds are its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"images": data.images}, path, {"captions": json.dumps(data.captions), "kinds": json.dumps(data.kinds)})


def load_generated(path: Path) -> Generated:
    """Inverse of `save_generated`."""
    with safe_open(path, "pt") as f:
        meta = f.metadata()
        return Generated(f.get_tensor("images"), json.loads(meta["captions"]), json.loads(meta["kinds"]))


PLANS: dict[str, tuple[Decision, CascadeSettings]] = {
    "student-5": (Decision.ACCEPT, CascadeSettings(student_steps=5)),
    "student-3": (Decision.ACCEPT, CascadeSettings(student_steps=3, student_guidance=3.5)),
    "student-2": (Decision.ACCEPT, CascadeSettings(student_steps=2)),
    "student-1": (Decision.ACCEPT, CascadeSettings(student_steps=1)),
    "teacher-4": (Decision.REGENERATE, CascadeSettings(teacher_steps=4)),
    "teacher-12": (Decision.REGENERATE, CascadeSettings(teacher_steps=12)),
}


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seed", type=int, default=10_000, help="first seed; every picture has its own")
    p.add_argument("--kinds", nargs="*", default=list(PLANS), choices=list(PLANS), help="one named twice is painted twice")
    args = p.parse_args()
    pair = load_pair(load_card("emoji"))
    captions = [f"{c}, {s}" for c in known_concepts() for s in STYLES]
    images: list[Tensor] = []
    texts: list[str] = []
    kinds: list[str] = []
    for k, kind in enumerate(args.kinds):
        decision, settings = PLANS[kind]
        cascade = LatentCascade(pair.student, pair.teacher, None, AlwaysPolicy(decision), settings)
        requests = (GenerationRequest(c, args.seed + k * len(captions) + i) for i, c in enumerate(captions))
        for result in run(cascade, requests):
            assert result.image is not None
            images.append((result.image * 255).round().byte())
            texts.append(result.request.prompt)
            kinds.append(kind)
        print(kind, len(images), flush=True)
    save_generated(Generated(torch.stack(images), texts, kinds), args.out)


if __name__ == "__main__":
    main()
