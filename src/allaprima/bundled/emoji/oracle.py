"""Recipe of the fidelity oracle (kind `image_text`): a reference-free score learned from references.

The card's oracle is another one now (`judge.py --office oracle`): fidelity proved a poor guide to what the judge prefers
(docs/decisions/0030). A card may still name one trained by this recipe.

At training time every caption has its real picture, so the fidelity of any picture for that caption can be measured:
`q = exp(-2 d)`, `d` the multi-scale L1 distance to the reference over how much the reference stands out from white.
The scorer sees only picture and caption and learns to predict q (binary cross-entropy on soft targets). It sees real
pictures (through the autoencoder, as every painted picture went), degraded ones (blur, noise, mixtures, shuffled
patches), wrong captions (another concept in the same style, the same concept in another style), and pictures the
student and the teacher painted in few and many steps.

    python -m allaprima.bundled.emoji.oracle --data emoji64.tar \\
        --generated runs/generated.safetensors --out runs/oracle
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allaprima.bundled.emoji.dataset import EmojiData, known_concepts, load_tar
from allaprima.bundled.emoji.generated import load_generated
from allaprima.bundled.emoji.start import load_autoencoder
from allaprima.bundled.emoji.text import embed, load_text_encoder
from allaprima.distill.loop import LoopConfig, Loss, TrainingProgress, train
from allaprima.oracles.image_text import ImageTextScorer

LOOP = LoopConfig(
    max_train_steps=1500,
    train_batch_size=64,
    learning_rate=1e-3,
    weight_decay=0.05,
    emas={"use": 0.995},
    checkpoint_seconds=60,
)


def fidelity(images: Tensor, references: Tensor) -> Tensor:
    """`q: (B,)` in (0, 1] of pictures in [0, 1] against their references."""
    d = torch.zeros(len(images))
    for scale in (1, 2, 4):
        a, b = F.avg_pool2d(images, scale), F.avg_pool2d(references, scale)
        d = d + (a - b).abs().mean((1, 2, 3)) / 3
    return torch.exp(-2 * d / ((1 - references).abs().mean((1, 2, 3)) + 0.05))


def degrade(x: Tensor, other: Tensor, g: torch.Generator) -> Tensor:
    """Each picture is blurred, noised, mixed with another or cut into shuffled patches, by a random amount."""
    n = len(x)
    amount = torch.rand(n, 1, 1, 1, generator=g)
    kind = torch.randint(4, (n, 1, 1, 1), generator=g)
    blur = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4.0, mode="bilinear")
    noise = (x + 0.4 * amount * torch.randn(x.shape, generator=g)).clamp(0, 1)
    mask = F.interpolate(torch.rand(n, 1, 4, 4, generator=g), size=x.shape[-2:], mode="bilinear")
    mixed = torch.where(mask < 0.6 * amount, other, x)
    tiles = F.unfold(x, 16, stride=16)
    shuffled = F.fold(tiles[..., torch.randperm(tiles.shape[-1], generator=g)], x.shape[-2:], 16, stride=16)
    stack = [amount * blur + (1 - amount) * x, noise, mixed, shuffled]
    out = x
    for i, candidate in enumerate(stack):
        out = torch.where(kind == i, candidate, out)
    return out


@dataclass(frozen=True)
class OracleData:
    """Real pictures (and their reconstructions), painted pictures, and where each painted one finds its reference."""

    real: Tensor
    rebuilt: Tensor
    texts: Tensor
    same_style: Tensor
    """`(N, N)` bool-like: rows of the same style (another concept)."""
    painted: Tensor
    painted_ref: Tensor
    """Index of each painted picture's reference in `real`."""


def make_data(data: EmojiData, rebuilt: Tensor, texts: Tensor, painted: Tensor, captions: list[str]) -> OracleData:
    """Join painted pictures with the references of this split; captions without one are dropped."""
    where = {r.caption: i for i, r in enumerate(data.rows)}
    keep = [i for i, c in enumerate(captions) if c in where]
    styles = [r.style for r in data.rows]
    same = torch.tensor([[a == b for b in styles] for a in styles], dtype=torch.float32)
    same.fill_diagonal_(0)
    return OracleData(
        data.images.float() / 255, rebuilt, texts, same, painted[keep], torch.tensor([where[captions[i]] for i in keep])
    )


def batch(d: OracleData, n: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, hidden states and targets q: a quarter each real, degraded, miscaptioned and (twice) painted."""
    q4 = n // 8
    index = torch.randint(len(d.real), (3 * q4 + 2 * q4,), generator=g)
    clean, broken, wrong = index[: q4 * 2], index[q4 * 2 : q4 * 3], index[q4 * 3 : q4 * 5]
    other = torch.randint(len(d.real), (q4,), generator=g)
    p = torch.randint(len(d.painted), (n - 5 * q4,), generator=g)
    painted, ref = d.painted[p].float() / 255, d.painted_ref[p]
    bad = degrade(d.rebuilt[broken], d.rebuilt[other], g)
    # Wrong captions: half of another concept in the same style, half any other picture's.
    near = torch.multinomial(d.same_style[wrong[:q4]], 1, generator=g)[:, 0]
    claimed = torch.cat([near, torch.randint(len(d.real), (q4,), generator=g)])
    images = torch.cat([d.rebuilt[clean], bad, d.rebuilt[wrong], painted])
    refs = torch.cat([clean, broken, claimed, ref])
    shift = torch.randint(-1, 2, (2,), generator=g).tolist()
    moved = torch.roll(images, shift, dims=(2, 3))
    target = fidelity(images, d.real[refs])
    # A wrong caption is wrong however alike the pictures are (a yellow face is not another yellow face).
    target[3 * q4 : 5 * q4] *= torch.where(claimed == wrong, 1.0, 0.3)
    return moved, d.texts[refs], target


def oracle_loss(d: OracleData, n: int) -> Loss:
    """Binary cross-entropy to the soft fidelity."""

    def loss(model: nn.Module, emas: Mapping[str, nn.Module], g: torch.Generator) -> Tensor:
        images, texts, target = batch(d, n, g)
        return F.binary_cross_entropy_with_logits(model(images, texts), target)

    return loss


@torch.no_grad()
def held_out(model: nn.Module, d: OracleData) -> dict[str, float]:
    """Rank correlation with true fidelity on painted pictures, and right-against-wrong caption accuracy on real ones."""
    images = d.painted.float() / 255
    q = fidelity(images, d.real[d.painted_ref])
    scores = torch.cat([model(i, t) for i, t in zip(images.split(128), d.texts[d.painted_ref].split(128), strict=True)])
    ranks = torch.stack([scores.argsort().argsort().double(), q.argsort().argsort().double()])
    right, wrong = model(d.rebuilt, d.texts), model(d.rebuilt, d.texts.roll(1, 0))
    return {"spearman": float(torch.corrcoef(ranks)[0, 1]), "caption_accuracy": float((right > wrong).double().mean())}


def main() -> None:
    """Command line of the recipe."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--vae", type=Path, help="folder of the autoencoder; default: the bundled one")
    p.add_argument("--text", type=Path, help="folder of a text encoder; default: the bundled one")
    p.add_argument("--generated", type=Path, required=True, help="made by `python -m allaprima.bundled.emoji.generated`")
    p.add_argument("--model", type=Path, help="go on from this scorer's folder instead of a fresh network")
    p.add_argument("--out", type=Path, required=True, help="run folder; run again to resume")
    p.add_argument("--steps", type=int, default=LOOP.max_train_steps)
    p.add_argument("--lr", type=float, default=LOOP.learning_rate)
    args = p.parse_args()
    whole = load_tar(args.data)
    autoencoder = load_autoencoder(args.vae)
    tokenizer, encoder = load_text_encoder(args.text)
    painted = load_generated(args.generated)
    parts: dict[str, OracleData] = {}
    for split in ("train", "test"):
        data = whole.pick(known_concepts(), split)
        with torch.no_grad():
            rebuilt = torch.cat([autoencoder(x.float() / 127.5 - 1).sample for x in data.images.split(64)])
        rebuilt = (rebuilt / 2 + 0.5).clamp(0, 1)
        texts = embed(tokenizer, encoder, [r.caption for r in data.rows])
        parts[split] = make_data(data, rebuilt, texts, painted.images, list(painted.captions))
    config = replace(LOOP, max_train_steps=args.steps, learning_rate=args.lr)
    kinds = dict(Counter(painted.kinds))
    recipe = {"name": "emoji-oracle", "data_sha256": whole.sha256, "painted": kinds, "goes_on": args.model is not None}
    torch.manual_seed(0)

    def on_checkpoint(emas: Mapping[str, nn.Module], progress: TrainingProgress) -> None:
        found = held_out(emas["use"], parts["test"])
        emas["use"].save_pretrained(args.out / "model")  # pyright: ignore[reportCallIssue]
        (args.out / "progress.json").write_text(json.dumps({"recipe": recipe, **progress.__dict__, **found}, indent=1))
        print(f"step {progress.step}  {progress.seconds:.0f} s  loss {progress.loss:.4f}  {found}", flush=True)

    model = ImageTextScorer() if args.model is None else ImageTextScorer.from_pretrained(args.model)
    train(
        model.train().requires_grad_(True),
        oracle_loss(parts["train"], config.train_batch_size),
        config,
        args.out,
        recipe,
        on_checkpoint,
    )


if __name__ == "__main__":
    main()
