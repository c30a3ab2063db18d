"""Recipe of the judge that evaluates the bundled pair, and, run apart, of the oracle: contrast on real pictures only.

Neither sees a painted picture. Trained on the training split of all 1,807 concepts (the pair knows 281 of them), half of
the pictures through the autoencoder, as painted ones are, all of them shifted, scaled and lightly recoloured.

Loss: cross-entropy of each picture over every caption of the training split (image to text), plus, for each caption, a
logistic loss of the picture against a damaged twin of it (melted by a smooth warp, smeared, partly erased or crossed
with another picture): the score is to fall when the picture does.

    python -m allaprima.bundled.emoji.judge --data emoji64.tar --out runs/judge
    python -m allaprima.bundled.emoji.judge --office oracle --data emoji64.tar --out runs/oracle
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.bundled.emoji.dataset import known_concepts, load_tar
from allaprima.bundled.emoji.start import load_autoencoder
from allaprima.bundled.emoji.text import embed, load_text_encoder
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train
from allaprima.evaluation.reward_judge import RewardJudge
from allaprima.oracles.dual_encoder import DualEncoder, pool_text

LOOP = LoopConfig(
    max_train_steps=1200,
    train_batch_size=96,
    learning_rate=1.5e-3,
    weight_decay=0.05,
    emas={"use": 0.998},
    seed=77,
    checkpoint_seconds=120,
)


@dataclass(frozen=True)
class Office:
    """What the encoder is for, and what sets it apart."""

    kind: type[DualEncoder]
    loop: LoopConfig
    shape: Mapping[str, Any]


OFFICES = {
    "judge": Office(RewardJudge, LOOP, {}),
    "oracle": Office(
        DualEncoder,
        replace(LOOP, max_train_steps=1400, train_batch_size=64, seed=4242),
        {"widths": (48, 112, 192), "dim": 96},
    ),
}


def _grid(n: int, g: torch.Generator, bend: Tensor | float = 0.0) -> Tensor:
    """Sampling grid `(n, 64, 64, 2)`: a random small shift and scale, and a smooth warp of size `bend`."""
    scale = 1 + 0.16 * (torch.rand(n, 1, 1, generator=g) - 0.5)
    shift = 0.16 * (torch.rand(n, 2, 1, generator=g) - 0.5)
    theta = torch.cat([torch.eye(2)[None] * scale, shift], dim=2)
    grid = F.affine_grid(theta, [n, 3, 64, 64], align_corners=False)
    waves = F.interpolate(torch.randn(n, 2, 5, 5, generator=g), size=64, mode="bicubic", align_corners=True)
    return grid + bend * waves.permute(0, 2, 3, 1)


def _sample(x: Tensor, grid: Tensor) -> Tensor:
    """Bilinear, white outside."""
    return 1 - F.grid_sample(1 - x, grid, align_corners=False)


def augment(x: Tensor, g: torch.Generator) -> Tensor:
    """Shift, scale, a little colour; `(B, 3, 64, 64)` in [0, 1]. What an augmented picture shows stays the same."""
    n = len(x)
    gain = 1 + 0.2 * (torch.rand(n, 3, 1, 1, generator=g) - 0.5)
    return (1 - (1 - _sample(x, _grid(n, g))) * gain).clamp(0, 1)


def damage(x: Tensor, other: Tensor, g: torch.Generator) -> Tensor:
    """Melt, smear, erase or cross each picture, by a random amount from slight to hopeless."""
    n = len(x)
    amount = 0.15 + 0.85 * torch.rand(n, 1, 1, 1, generator=g)
    kind = torch.randint(4, (n, 1, 1, 1), generator=g)
    melted = _sample(x, _grid(n, g, 0.25 * amount))
    small = F.avg_pool2d(x, 8, stride=4, padding=2, count_include_pad=False)
    smeared = (1 - amount) * x + amount * F.interpolate(small, size=64, mode="bicubic", align_corners=False).clamp(0, 1)
    patch = F.interpolate(torch.rand(n, 1, 8, 8, generator=g), size=64, mode="nearest")
    erased = torch.where(patch < 0.4 * amount, x.mean((2, 3), keepdim=True), x)
    crossed = (1 - 0.6 * amount) * x + 0.6 * amount * other
    out = melted
    for i, candidate in enumerate((smeared, erased, crossed), start=1):
        out = torch.where(kind == i, candidate, out)
    return out


def judge_loss(images: Tensor, rebuilt: Tensor, texts: Tensor, n: int) -> Loss:
    """A `Loss` for the loop. `images, rebuilt: (N,3,64,64)` uint8, `texts: (N,D)` pooled."""

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        assert isinstance(model, DualEncoder)
        pick = torch.randint(len(images), (n,), generator=g)
        through = torch.rand(n, 1, 1, 1, generator=g) < 0.5
        x = torch.where(through, rebuilt[pick], images[pick]).float() / 255
        clean = augment(x, g)
        twins = damage(clean[: n // 2], clean[n // 2 :], g)
        seen, every = model.embed_images(torch.cat([clean, twins])), model.embed_texts(texts)
        right = F.cross_entropy(model.logits(seen[:n], every), pick, label_smoothing=0.05)
        own = every[pick[: n // 2]]
        gap = model.log_scale.exp() * ((seen[: n // 2] - seen[n:]) * own).sum(1)
        return right + 0.5 * F.softplus(-gap).mean()

    return loss


@torch.no_grad()
def held_out(model: DualEncoder, images: Tensor, targets: Tensor, pool: Tensor, g: torch.Generator) -> dict[str, float]:
    """On real held-out pictures: top-1 caption of the pool, and how often a damaged twin scores lower."""
    x = images.float() / 255
    every = model.embed_texts(pool)
    found = model.logits(model.embed_images(x), every).argmax(1)
    worse = damage(x, x.roll(1, 0), g)
    falls = model.score(x, every[targets]) > model.score(worse, every[targets])
    return {"retrieval": float((found == targets).double().mean()), "twin_accuracy": float(falls.double().mean())}


def main() -> None:
    """Command line of the recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--vae", type=Path, help="folder of the autoencoder; default: the bundled one")
    p.add_argument("--text", type=Path, help="folder of a text encoder; default: the bundled one")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--office", default="judge", choices=list(OFFICES), help="what to train")
    p.add_argument("--steps", type=int, help="default: the office's own number")
    args = p.parse_args()
    office = OFFICES[args.office]
    whole = load_tar(args.data)
    autoencoder = load_autoencoder(args.vae)
    tokenizer, encoder = load_text_encoder(args.text)
    data, test = whole.pick(None, "train"), whole.pick(known_concepts(), "test")
    with torch.no_grad():
        rebuilt = [autoencoder(x.float() / 127.5 - 1).sample for x in data.images.split(64)]
    rebuilt = torch.cat([(255 * (x / 2 + 0.5).clamp(0, 1)).round().byte() for x in rebuilt])
    texts = pool_text(embed(tokenizer, encoder, [r.caption for r in data.rows]))
    both = [r.caption for r in (*whole.pick(known_concepts()).rows,)]
    pool, targets = embed(tokenizer, encoder, both), torch.tensor([both.index(r.caption) for r in test.rows])
    config = replace(office.loop, max_train_steps=args.steps or office.loop.max_train_steps)
    recipe = {
        "name": f"emoji-{args.office}",
        "method": "contrast",
        "data_sha256": whole.sha256,
        "pictures": len(data.rows),
        "pool": len(both),
    }
    torch.manual_seed(config.seed)

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        use = emas["use"]
        assert isinstance(use, DualEncoder)
        found = held_out(use, test.images, targets, pool, torch.Generator().manual_seed(1))
        use.save_pretrained(args.out / "model")
        (args.out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__, **found}, indent=1))
        print(f"step {progress.step}  {progress.seconds:.0f} s  loss {progress.loss:.4f}  {found}", flush=True)

    model = office.kind(**office.shape).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    train(model, judge_loss(data.images, rebuilt, texts, config.train_batch_size), config, args.out, recipe, on_checkpoint)


if __name__ == "__main__":
    main()
