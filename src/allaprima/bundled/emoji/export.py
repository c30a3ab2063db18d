"""Assemble the bundled weights: diffusers folders in float16, one shared text encoder with a pruned vocabulary.

    python -m allaprima.bundled.emoji.export --text minilm --vae runs/autoencoder --teacher runs/teacher \\
        --student runs/student --oracle runs/oracle --judge runs/judge

The text encoder keeps the first 22,000 entries of BERT's vocabulary (ordered by frequency) and every one the known
concepts, styles and keywords need; a dropped word falls back to its pieces, all of which are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from allaprima.bundled.emoji.dataset import STYLES, known_concepts
from allaprima.bundled.emoji.teacher import SCHEDULER_CONFIG
from allaprima.bundled.emoji.text import load_text_encoder
from allaprima.evaluation.reward_judge import RewardJudge
from allaprima.models.autoencoder import PixelShuffleAutoencoder
from allaprima.oracles.dual_encoder import DualEncoder

FREQUENT = 22_000


def kept_vocabulary(tokenizer: Any, needed: list[str]) -> list[str]:
    """Tokens to keep, in their old order."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    used = {i for text in needed for i in tokenizer(text).input_ids}
    special = set(tokenizer.all_special_ids)
    keep = [
        (i, token)
        for token, i in vocabulary.items()
        if (i < FREQUENT or i in used or i in special or len(token.removeprefix("##")) == 1)
        and not token.startswith("[unused")
    ]
    return [token for _, token in sorted(keep)]


def export_text(source: Path, out: Path) -> None:
    """Write `tokenizer/` and `text_encoder/` with the pruned vocabulary."""
    from transformers import BertTokenizer

    tokenizer, encoder = load_text_encoder(source)
    keep = kept_vocabulary(tokenizer, [f"{c}, {s}" for c in known_concepts() for s in STYLES])
    old = tokenizer.get_vocab()
    rows = torch.tensor([old[token] for token in keep])
    weight = encoder.embeddings.word_embeddings.weight.data[rows]
    encoder.embeddings.word_embeddings = torch.nn.Embedding.from_pretrained(weight, padding_idx=keep.index("[PAD]"))
    encoder.config.vocab_size = len(keep)
    encoder.config.pad_token_id = keep.index("[PAD]")
    # Understood by diffusers' pipelines: hand the padding mask to the encoder.
    encoder.config.use_attention_mask = True
    small = BertTokenizer(vocab={token: i for i, token in enumerate(keep)}, do_lower_case=True, model_max_length=16)
    small.save_pretrained(out / "tokenizer")
    encoder.half().save_pretrained(out / "text_encoder")


def export_unet(source: Path, out: Path, run: Path) -> None:
    """Write `unet/` in float16 and the run's provenance and curve beside it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    UNet2DConditionModel.from_pretrained(source, use_safetensors=True).half().save_pretrained(out / "unet")
    (out / "scheduler").mkdir(parents=True, exist_ok=True)
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER_CONFIG, indent=2) + "\n")
    shutil.copy(run / "curve.csv", out / "curve.csv")


def export_scorer(run: Path, out: Path, kind: type[DualEncoder]) -> None:
    """Write the oracle's or the judge's network in float16 with its provenance and curve."""
    account = provenance(run, out, "a fresh network")
    kind.from_pretrained(run / "model").half().save_pretrained(out)
    shutil.copy(run / "curve.csv", out / "curve.csv")
    write_provenance(out, account)


def provenance(run: Path, out: Path, start: str) -> dict[str, Any]:
    """Return a run's words (recipe, samples, seconds, metrics) and what it started from: bundled weights it went on
    from are told by their own provenance, which this one replaces."""
    progress = json.loads((run / "progress.json").read_text())
    earlier = out / "provenance.json"
    before = json.loads(earlier.read_text()) if progress["recipe"].get("goes_on") and earlier.exists() else None
    return {"started_from": start if before is None else before, **progress}


def write_provenance(out: Path, what: dict[str, Any]) -> None:
    """`provenance.json` beside the weights, with the hash of each weight file."""
    hashes = {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.rglob("*.safetensors"))
    }
    (out / "provenance.json").write_text(json.dumps({**what, "sha256": hashes}, indent=2) + "\n")


def model_index(out: Path) -> None:
    """Write the index that diffusers reads a pipeline folder by."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "BertModel"],
        "tokenizer": ["transformers", "BertTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["allaprima.models.autoencoder", "PixelShuffleAutoencoder"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", type=Path, help="text encoder folder (all-MiniLM-L6-v2)")
    p.add_argument("--vae", type=Path, help="run folder of the autoencoder")
    p.add_argument("--teacher", type=Path, help="run folder of the teacher")
    p.add_argument("--student", type=Path, help="run folder of the student")
    p.add_argument("--oracle", type=Path, help="run folder of the oracle")
    p.add_argument("--judge", type=Path, help="run folder of the judge")
    p.add_argument("--out", type=Path, default=Path(str(resources.files("allaprima.bundled.emoji") / "weights")))
    args = p.parse_args()
    teacher, student = args.out / "teacher", args.out / "student"
    if args.text:
        export_text(args.text, teacher)
        kept = f"word table pruned to BERT's {FREQUENT} most frequent entries and those the captions need; float16"
        write_provenance(teacher / "text_encoder", {"started_from": "all-MiniLM-L6-v2 (Apache-2.0)", "changes": kept})
    if args.vae:
        PixelShuffleAutoencoder.from_pretrained(args.vae / "vae").half().save_pretrained(teacher / "vae")
        shutil.copy(args.vae / "curve.csv", teacher / "vae" / "curve.csv")
        write_provenance(teacher / "vae", provenance(args.vae, teacher / "vae", "the warm start's autoencoder"))
    sources = ((args.teacher, teacher, "the warm start's teacher, 160,000 samples"), (args.student, student, "teacher/unet"))
    for run, out, start in sources:
        if run:
            account = provenance(run, out, start)
            export_unet(run / "unet", out, run)
            write_provenance(out, account)
            model_index(out)
    if args.oracle:
        export_scorer(args.oracle, args.out / "oracle", DualEncoder)
    if args.judge:
        export_scorer(args.judge, args.out / "judge", RewardJudge)


if __name__ == "__main__":
    main()
