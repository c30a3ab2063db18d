"""Features of the real pictures, so that `benchmarks.quality` runs without the data set.

    python -m benchmarks.reference --data emoji64.tar

Writes `benchmarks/data/emoji_reference.safetensors`: EfficientNet-Lite0 features (float16) of every picture of the
concepts the card knows, their captions and splits, and the hash of the data.
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

from allaprima.bundled.emoji.dataset import known_concepts, load_tar
from allaprima.core.errors import ModelError
from allaprima.features.efficientnet_lite import EfficientNetLite0

FILE = Path(__file__).parent / "data" / "emoji_reference.safetensors"


@dataclass(frozen=True)
class Reference:
    """`features: (N, 1280)` of real pictures with their captions and splits."""

    features: Tensor
    captions: Sequence[str]
    splits: Sequence[str]
    data_sha256: str

    def split(self, name: str) -> tuple[list[str], Tensor]:
        """Captions and features of one split, `train` or `test`."""
        keep = [i for i, s in enumerate(self.splits) if s == name]
        return [self.captions[i] for i in keep], self.features[keep].float()


def load_reference(path: Path = FILE) -> Reference:
    """Read the file; raises `ModelError` if the features are another network's."""
    with safe_open(path, "pt") as f:
        meta = f.metadata()
        features = f.get_tensor("features")
    mine = EfficientNetLite0.pretrained().fingerprint
    if meta["network"] != mine:
        raise ModelError(
            f"{path} was made with feature network {meta['network']}, {mine} is installed: make it again with"
            " `python -m benchmarks.reference --data emoji64.tar`."
        )
    return Reference(features, json.loads(meta["captions"]), json.loads(meta["splits"]), meta["data_sha256"])


def main() -> None:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, default=FILE)
    args = p.parse_args()
    data = load_tar(args.data).pick(known_concepts())
    net = EfficientNetLite0.pretrained()
    features = net.features(data.images).to(torch.float16)
    meta = {
        "captions": json.dumps([r.caption for r in data.rows]),
        "splits": json.dumps([r.split for r in data.rows]),
        "network": net.fingerprint,
        "data_sha256": data.sha256,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"features": features}, args.out, meta)
    print(f"{len(features)} pictures -> {args.out}")


if __name__ == "__main__":
    main()
