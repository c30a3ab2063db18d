"""Assemble the bundled weights: diffusers folders in float16, with provenance.

    python -m allaprima.bundled.scenes.export --vae runs/scenes/autoencoder --teacher runs/scenes/teacher \\
        --student runs/scenes/student --oracle runs/scenes/oracle

`--out` writes another folder; with `card.yaml` copied beside it, that is a card of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from allaprima.bundled.emoji.export import provenance, write_provenance
from allaprima.bundled.scenes.autoencoder import save_autoencoder
from allaprima.bundled.scenes.networks import SCHEDULER_CONFIG, new_tokenizer
from allaprima.bundled.scenes.teacher import TextToLatents, load_vae

INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _with_pooler(text_encoder: Any) -> Any:
    """Return a text encoder with a pooling layer of zeros, which nothing reads: without it, loading warns of its absence."""
    from transformers import BertModel

    made: Any = BertModel(text_encoder.config).half()
    zeros = {k: torch.zeros_like(v) for k, v in made.state_dict().items() if k.startswith("pooler.")}
    made.load_state_dict({**text_encoder.state_dict(), **zeros})
    return made


def export_vae(run: Path, out: Path) -> None:
    """Write an autoencoder in float16 with its provenance and curve."""
    save_autoencoder(load_vae(run / "vae").half(), out)
    shutil.copy(run / "curve.csv", out / "curve.csv")
    write_provenance(out, {"started_from": "an untrained decoder", **json.loads((run / "progress.json").read_text())})


def export_network(run: Path, out: Path, start: str, text_encoder: bool) -> None:
    """Write a teacher or a student in float16: network, scheduler, index, provenance and curve.

    Args:
        run: Run folder.
        out: Where to.
        start: What the training started from, if it didn't go on from the networks that lie in `out`.
        text_encoder: Whether the text encoder and the tokenizer are written too.
    """
    account = provenance(run, out, start)
    networks = TextToLatents.from_pretrained(run).half()
    networks.unet.save_pretrained(out / "unet")
    config = json.loads((out / "unet" / "config.json").read_text())
    _write(out / "unet" / "config.json", {k: v for k, v in config.items() if k != "_name_or_path"})
    if text_encoder:
        _with_pooler(networks.text_encoder).save_pretrained(out / "text_encoder")
        new_tokenizer().save_pretrained(out / "tokenizer")
    _write(out / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
    _write(out / "model_index.json", INDEX)
    shutil.copy(run / "curve.csv", out / "curve.csv")
    write_provenance(out, account)


def main() -> None:
    """Run from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vae", type=Path, help="run folder of the autoencoder")
    p.add_argument("--teacher", type=Path, help="run folder of the teacher")
    p.add_argument("--student", type=Path, help="run folder of the student")
    p.add_argument("--oracle", type=Path, help="run folder of the oracle")
    p.add_argument("--out", type=Path, default=Path(str(resources.files("allaprima.bundled.scenes") / "weights")))
    args = p.parse_args()
    if args.teacher:
        export_network(args.teacher, args.out / "teacher", "untrained networks", text_encoder=True)
    if args.vae:
        export_vae(args.vae, args.out / "teacher" / "vae")
    if args.student:
        export_network(args.student, args.out / "student", "teacher/unet", text_encoder=False)
    if args.oracle:
        account = provenance(args.oracle, args.out / "oracle", "teacher/unet and teacher/text_encoder")
        shutil.copytree(args.oracle / "model", args.out / "oracle", dirs_exist_ok=True)
        shutil.copy(args.oracle / "curve.csv", args.out / "oracle" / "curve.csv")
        write_provenance(args.out / "oracle", account)


if __name__ == "__main__":
    main()
