"""A card's oracle on a study's pictures."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from allaprima.core.errors import SettingError
from allaprima.data.images import as_tensor, covering
from allaprima.pipeline import AdaptivePipeline
from allaprima.study.create import PICTURES
from allaprima.study.store.store import StudyStore


def scores_of(card: str, store: StudyStore, folder: Path) -> dict[tuple[str, str], float]:
    """Score of each picture that was voted on, by its file's name and prompt."""
    import torch
    from PIL import Image

    pipe = AdaptivePipeline.from_card(card)
    if pipe.oracle is None:
        raise SettingError(f"card {card!r} has no oracle: name one that has, for example emoji.")
    wanted = sorted({(name, v.prompt) for v in store.votes() for name in v.files})
    made: dict[tuple[str, str], float] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, prompt in wanted:
        groups[prompt].append(name)
    for prompt, names in groups.items():
        pictures = []
        for name in names:
            with Image.open(folder / PICTURES / name) as image:
                pictures.append(as_tensor(covering(image.convert("RGB"), pipe.settings.width, pipe.settings.height)))
        found = pipe.oracle.score(torch.stack(pictures), [prompt] * len(names))
        made.update({(n, prompt): float(s) for n, s in zip(names, found, strict=True)})
    return made
