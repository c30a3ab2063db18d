"""What students are trained on: latents with captions, encoded once and kept, then read at random.

Encoding first and training from what is kept costs disk, and buys three things: the autoencoder and the text encoder leave
memory and time to the networks in training, any row can be read at any step (so a resumed training draws what an
uninterrupted one would), and a stopped encoding goes on at its last whole shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from allaprima.core.errors import TrainingError
from allaprima.core.types import Condition
from allaprima.data.captioned import Captioned
from allaprima.data.images import covering, write_bytes_atomically

SHARD = 1024
"""Pictures a file."""
INDEX = "index.json"
Encode = Callable[[Tensor], Tensor]
"""Pictures `(B, 3, H, W)` in [-1, 1] -> latents `(B, C, h, w)`, scaled as the network knows them."""


@dataclass(frozen=True)
class TrainingData:
    """`latents: (N, C, h, w)`, `conditions` of the M different captions, `caption_of: (N,)` into them."""

    latents: Tensor
    conditions: Condition
    caption_of: Tensor
    captions: tuple[str, ...]
    identity: str
    """Hash of latents and captions: part of a training's recipe."""
    pictures: Tensor | None = None
    """`(N, 3, H, W)` uint8, for methods whose networks read something made of the picture; else None."""
    controls: Tensor | None = None
    """`(N, C, H, W)` uint8, what a network reads that isn't made of the picture (the map `given`): depths, or the pictures
    that an instruction changes; else None."""

    def __post_init__(self) -> None:
        n, m = len(self.latents), len(self.captions)
        if not n or len(self.caption_of) != n or len(self.conditions) != m or int(self.caption_of.max()) >= m:
            raise TrainingError(
                f"{n} latents, {len(self.caption_of)} captions named, {m} captions, {len(self.conditions)} conditions: one"
                " or more pictures, a caption each and a condition a caption are due. Encode the data again."
            )

        for name, given in (("pictures", self.pictures), ("controls", self.controls)):
            if given is not None and len(given) != n:
                raise TrainingError(f"{len(given)} {name} for {n} latents: one each is due. Encode the data again.")

    def __len__(self) -> int:
        return len(self.latents)

    def rows(self, index: Tensor) -> tuple[Tensor, Condition]:
        """Latents and conditions of rows `index: (B,)`, float32."""
        return self.latents[index].float(), self.conditions.rows(self.caption_of[index]).float()

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
        """Rows drawn with replacement."""
        return self.rows(torch.randint(len(self), (count,), generator=generator))

    def keep(self, mask: Tensor) -> TrainingData:
        """Return the rows of a mask `(N,)` bool, with the captions they name. Raises `TrainingError` when none is left."""
        if not bool(mask.any()):
            raise TrainingError("no picture is left: this part of the data is empty. Choose fewer parts, or more data.")
        of = self.caption_of[mask]
        used, place = of.unique(return_inverse=True)
        captions = tuple(self.captions[i] for i in used.tolist())
        latents = self.latents[mask]
        pictures, controls = (None if x is None else x[mask] for x in (self.pictures, self.controls))
        identity = identity_of(latents, captions, place, controls)
        return TrainingData(latents, self.conditions.rows(used), place, captions, identity, pictures, controls)


def identity_of(latents: Tensor, captions: Sequence[str], caption_of: Tensor, controls: Tensor | None = None) -> str:
    """Return a hash of what is trained on; conditions follow from captions and are left out, and pictures from latents."""
    h = hashlib.sha256(latents.contiguous().numpy().tobytes())
    if controls is not None:
        h.update(controls.contiguous().numpy().tobytes())
    h.update(json.dumps([list(captions), caption_of.tolist()]).encode())
    return h.hexdigest()[:16]


def encode_data(
    pictures: Iterator[Captioned], encode: Encode, width: int, height: int, folder: Path, belongs: str,
    batch_size: int = 16, note: Callable[[int], None] | None = None, keep_pictures: bool = False,
) -> None:  # fmt: skip
    """Encode pictures into `folder`: `latents-00000.safetensors`, ..., and `index.json` when all are there.

    `belongs` names source, size and autoencoder; a folder of something else raises `TrainingError`. What is there already
    is passed over. `note` is told how many pictures are done. `keep_pictures`: pixels are kept beside the latents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "belongs.txt"
    if owner.exists() and owner.read_text(encoding="utf-8") != belongs:
        raise TrainingError(
            f"{folder} holds other data: {owner.read_text(encoding='utf-8')!r}, now {belongs!r}. Choose another folder."
        )
    write_bytes_atomically(owner, belongs.encode())
    if (folder / INDEX).exists():
        return
    captions: list[str] = []
    number = 0
    while rows := list(islice(pictures, SHARD)):
        captions += [r.caption for r in rows]
        path = folder / f"latents-{number:05d}.safetensors"
        if not path.exists():
            pixels = torch.stack([_pixels(r, width, height) for r in rows])
            parts = [encode(pixels[i : i + batch_size].float() / 127.5 - 1) for i in range(0, len(rows), batch_size)]
            beside = path.with_name(path.name + ".part")
            kept = {"pictures": pixels} if keep_pictures else {}
            save_file({"latents": torch.cat(parts).contiguous().clone(), **kept}, beside)
            beside.replace(path)
        number += 1
        if note is not None:
            note(len(captions))
    if not captions:
        raise TrainingError(f"no captioned picture was found for {folder}: nothing can be trained on nothing.")
    write_bytes_atomically(folder / INDEX, json.dumps({"captions": captions, "shards": number}).encode())


def _pixels(row: Captioned, width: int, height: int) -> Tensor:
    return torch.from_numpy(np.array(covering(row.image, width, height))).permute(2, 0, 1).contiguous()


def read_data(folder: Path, embed: Callable[[Sequence[str]], Condition], batch_size: int = 64) -> TrainingData:
    """Return what `encode_data` wrote, with captions embedded by `embed` (prompts -> a row each).

    Raises `TrainingError` for a folder that is not whole.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        shards = [load_file(folder / f"latents-{i:05d}.safetensors") for i in range(index["shards"])]
    except Exception as e:
        raise TrainingError(f"{folder} holds no whole set of latents: {e}. Encode the data again.") from e
    captions = list(dict.fromkeys(index["captions"]))
    place = {c: i for i, c in enumerate(captions)}
    of = torch.tensor([place[c] for c in index["captions"]])
    conditions = embedded(captions, embed, batch_size)
    latents = torch.cat([s["latents"] for s in shards])
    pictures = torch.cat([s["pictures"] for s in shards]) if all("pictures" in s for s in shards) else None
    return TrainingData(latents, conditions, of, tuple(captions), identity_of(latents, captions, of), pictures)


def embedded(captions: Sequence[str], embed: Callable[[Sequence[str]], Condition], batch_size: int = 64) -> Condition:
    """Conditions of captions, in memory that can be trained with."""
    parts = [embed(captions[i : i + batch_size]) for i in range(0, len(captions), batch_size)]
    return Condition.cat(parts).clone()


def read_latents(path: Path) -> TrainingData:
    """Latents and embeddings made elsewhere: a safetensors with `latents (N, C, h, w)` and `prompt_embeds (N, L, D)`.

    Whatever else the family reads of a prompt (`pooled`, ...) is there under its name, N rows each.
    `pictures (N, 3, H, W)` uint8 are those of the latents, for methods that look at them; `controls (N, C, H, W)` uint8 are
    what a conditional network is shown instead (the map `given`). Metadata `captions`, a JSON list
    of N strings, is optional. Raises `TrainingError` for anything else.
    """
    try:
        with safe_open(path, "pt") as f:
            meta = f.metadata() or {}
        tensors = load_file(path)
        latents, pictures, controls = tensors.pop("latents"), tensors.pop("pictures", None), tensors.pop("controls", None)
        conditions = Condition({"prompt_embeds": tensors["prompt_embeds"], **tensors})
        captions = tuple(json.loads(meta["captions"])) if "captions" in meta else tuple(map(str, range(len(latents))))
    except Exception as e:
        raise TrainingError(
            f"{path} cannot be read: {e}. A safetensors with latents (N, C, h, w) and prompt_embeds (N, L, D) is due."
        ) from e
    of = torch.arange(len(latents))
    identity = identity_of(latents, captions, of, controls)
    return TrainingData(latents, conditions, of, captions, identity, pictures, controls)
