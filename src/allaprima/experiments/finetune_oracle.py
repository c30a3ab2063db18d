"""Fine-tuning of an oracle on labelled pairs, and a card that uses it."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from allaprima.core.errors import SettingError
from allaprima.data.images import covering, write_bytes_atomically
from allaprima.distill.labels import Agreement, PreferencePairs
from allaprima.distill.oracle_finetune import FinetuneConfig, finetune
from allaprima.models.cards.card import Card, load_card
from allaprima.models.loading.pair import load_pair
from allaprima.oracles.dual_encoder import DualEncoder
from allaprima.oracles.image_text import ImageTextScorer

COLUMNS = ("prompt", "a", "b", "preference")
CHOICES = {"a": 1.0, "b": 0.0, "tie": 0.5}


class CosineLogits(nn.Module):
    """A dual encoder as `(images, hidden states) -> (B,)` logits: what it scores by, in the unit it was trained in."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        """`(B, 3, H, W)` in [0, 1], `(B, L, D)` zero where padded -> `(B,)`."""
        e = self.encoder
        return e.log_scale.exp() * (e.embed_images(images) * e.embed_texts(hidden)).sum(1)


def read_pairs(path: Path, width: int, height: int) -> tuple[list[str], Tensor, Tensor, Tensor]:
    """Prompts, both pictures `(N, 3, H, W)` uint8 and preferences `(N,)` of a CSV; paths are relative to it.

    `preference` is `a`, `b`, `tie`, or a number in [0, 1], the share that prefers a. Raises `SettingError` that names
    the row.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as e:
        raise SettingError(f"{path} cannot be read: {e}. Give a CSV with the columns {', '.join(COLUMNS)}.") from e
    missing = [c for c in COLUMNS if not rows or c not in rows[0]]
    if missing:
        raise SettingError(f"{path} has no column {missing[0]!r}, or no row: {', '.join(COLUMNS)} are due, a pair a row.")
    made: list[Tensor] = []
    labels: list[float] = []
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        try:
            told = row["preference"].strip().lower()
            labels.append(CHOICES[told] if told in CHOICES else float(told))
        except (AttributeError, ValueError) as e:
            raise SettingError(f"{where}: preference={row['preference']!r}: a, b, tie or a number in [0, 1] is due.") from e
        if not (row["prompt"] or "").strip():
            raise SettingError(f"{where}: the prompt is empty. Say what both pictures should show, or leave the row out.")
        made += [_picture(path.parent / (row[side] or ""), where, width, height) for side in ("a", "b")]
    both = torch.stack(made)
    return [r["prompt"] for r in rows], both[::2], both[1::2], torch.tensor(labels)


def _picture(path: Path, where: str, width: int, height: int) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.array(covering(image.convert("RGB"), width, height))
    except OSError as e:
        raise SettingError(f"{where}: {path} cannot be read as a picture: {e}. Mend the path, or leave the row out.") from e
    return torch.from_numpy(pixels).permute(2, 0, 1)


def scorer_of(card: Card) -> tuple[nn.Module, Any]:
    """Return the card's oracle as logits to train, and what of it is saved. Raises `SettingError` for other kinds."""
    folder = card.path(card.oracle.source)
    if card.oracle.kind == "dual_encoder":
        encoder = DualEncoder.from_pretrained(folder)
        return CosineLogits(encoder).requires_grad_(True), encoder
    if card.oracle.kind == "image_text":
        scorer = ImageTextScorer.from_pretrained(folder)
        return scorer.requires_grad_(True), scorer
    raise SettingError(f"oracle kind {card.oracle.kind!r} can't be fine-tuned: dual_encoder and image_text can.")


def finetune_command(
    pairs: Path, card_name: str, steps: int, batch_size: int, learning_rate: float, held_out: float, seed: int, out: Path
) -> None:
    """Train, report agreement before and after on prompts of neither training nor stopping, write oracle and card."""
    console = Console(stderr=True, highlight=False)
    if steps < 1 or batch_size < 1 or not learning_rate > 0:
        raise SettingError(f"steps={steps!r}, batch_size={batch_size!r}, learning_rate={learning_rate!r}: all above 0.")
    card = load_card(card_name)
    prompts, a, b, preference = read_pairs(pairs, card.width, card.height)
    encode = load_pair(card).student.encode
    labels = PreferencePairs.of(a, b, preference, prompts, lambda p: encode(p).clone())
    model, saved = scorer_of(card)
    default = FinetuneConfig()
    changes = {
        "max_train_steps": steps, "train_batch_size": batch_size, "learning_rate": learning_rate, "seed": seed,
    }  # fmt: skip
    config = dataclasses.replace(default, loop=dataclasses.replace(default.loop, **changes), held_out=held_out)
    recipe = {"pairs": hashlib.sha256(a.numpy().tobytes() + b.numpy().tobytes()).hexdigest()[:16], "card": card.name}
    console.print(f"{len(prompts)} pairs of {len(set(prompts))} prompts; a stopped training goes on when this is run again")
    report = finetune(model, labels, config, out / "training", {**recipe, "labels": preference.tolist()})
    saved.save_pretrained(out / "oracle")
    bundled = card.name if card.folder.parent.name == "bundled" else str((card.folder / "card.yaml").resolve())
    text = {
        "extends": bundled,
        "name": f"{card.name}-oracle",
        "description": f"{card.name} with an oracle fine-tuned on {len(prompts)} pairs. Calibrate before adaptive use.",
        "oracle": {"kind": card.oracle.kind, "source": "oracle", "license": card.oracle.license},
    }
    write_bytes_atomically(out / "card.yaml", yaml.safe_dump(text, sort_keys=False).encode())

    def said(x: Agreement) -> str:
        return f"{x.accuracy:.3f} ({x.low:.3f}..{x.high:.3f})"

    console.print(
        f"agrees with the labels on {report.prompts['report']} held-out prompts: before {said(report.before)}, after"
        f" {said(report.after)}; best at step {report.best_step} of {report.steps}. It is another oracle now:"
        f" allaprima calibrate --card {out / 'card.yaml'} --budget 15 --out calibration.json"
    )
