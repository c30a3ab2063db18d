"""How well the exact judge of scenes reads pictures whose content is known.

    python -m benchmarks.scenes_judge [--clean 10000] [--altered 2000] [--changed 1000] [--card scenes] [--json]

Clean renderings of training captions; renderings with a caption altered in one thing, where a verdict of right is checked
against the layout that was drawn (of a diagonal layout two relations hold); renderings in 8 bits, with noise and blur; and
renderings through the card's autoencoder.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from allaprima.bundled.scenes.geometry import Floats
from allaprima.bundled.scenes.grammar import RELATIONS, Scene, altered, draw_scene, draw_training_scene
from allaprima.bundled.scenes.judge import judge
from allaprima.bundled.scenes.renderer import DrawnObject, draw_layout, render
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair

Change = Callable[[Floats], Floats]


def shows(layout: Sequence[DrawnObject], scene: Scene) -> bool:
    """Return whether a layout shows a scene, from what was drawn and not from what was seen."""

    def match(left: frozenset[int], groups: Sequence[int], taken: list[tuple[int, ...]]) -> bool:
        if not groups:
            return not left and (scene.relation is None or _holds(layout, taken, scene.relation))
        group = scene.groups[groups[0]]
        fits = [i for i in left if layout[i].shape == group.shape and group.colour in (None, layout[i].colour)]
        return any(
            match(left - set(chosen), groups[1:], [*taken, chosen]) for chosen in combinations(sorted(fits), group.count)
        )

    return match(frozenset(range(len(layout))), range(len(scene.groups)), [])


def _holds(layout: Sequence[DrawnObject], taken: Sequence[Sequence[int]], relation: str) -> bool:
    dx, dy = RELATIONS[relation]
    pairs = ((layout[i], layout[j]) for i in taken[0] for j in taken[1])
    return all((a.x - b.x) * dx + (a.y - b.y) * dy > 0 for a, b in pairs)


def rendered(count: int, name: str) -> list[tuple[Scene, list[DrawnObject], Floats]]:
    """Return scenes with layouts and pictures; a quarter may have combinations that training never shows."""
    found: list[tuple[Scene, list[DrawnObject], Floats]] = []
    for i in range(count):
        rng = random.Random(f"{name} {i}")
        scene = draw_scene(rng) if i % 4 == 0 else draw_training_scene(rng)
        layout = draw_layout(scene, rng)
        found.append((scene, layout, render(layout, rng.uniform(-0.03, 0.03))))
    return found


def changes() -> dict[str, Change]:
    """Return what is done to pictures, by name."""
    noise = np.random.default_rng(0)

    def blurred(sigma: float) -> Change:
        return lambda x: ndimage.gaussian_filter(x, (sigma, sigma, 0))

    def noisy(sigma: float) -> Change:
        return lambda x: np.clip(x + noise.normal(0, sigma, x.shape), 0, 1).astype(np.float32)

    return {
        "8 bits": lambda x: np.round(x * 255) / 255,
        "noise .02": noisy(0.02), "noise .05": noisy(0.05), "noise .1": noisy(0.1),
        "blur .4": blurred(0.4), "blur .6": blurred(0.6), "blur .8": blurred(0.8),
        "blur .5, noise .03": lambda x: noisy(0.03)(blurred(0.5)(x)),
    }  # fmt: skip


@torch.inference_mode()
def reconstructed(card: str, images: Sequence[Floats]) -> list[Floats]:
    """Return pictures in 8 bits after the autoencoder of a card's teacher."""
    teacher: Any = load_pair(load_card(card)).teacher
    found: list[Floats] = []
    for first in range(0, len(images), 100):
        x = torch.from_numpy(np.stack(images[first : first + 100])).permute(0, 3, 1, 2)
        y = teacher.decode(teacher.encode_images(x)).permute(0, 2, 3, 1).numpy()
        found += list(np.round(y * 255) / 255)
    return found


def main() -> None:
    """Run from the command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--clean", type=int, default=10_000)
    p.add_argument("--altered", type=int, default=2_000)
    p.add_argument("--changed", type=int, default=1_000, help="pictures for each change, and through the autoencoder")
    p.add_argument("--card", help="card whose autoencoder is asked; default: none")
    p.add_argument("--json", action="store_true")
    args = p.parse_args()
    console = Console(stderr=True)
    clean = rendered(args.clean, "clean")
    begun = time.perf_counter()
    right = [judge(x, scene).right for scene, _, x in track(clean, "clean", console=console, transient=True)]
    seconds = (time.perf_counter() - begun) / len(clean)
    called_right, wrongly = 0, list[str]()
    for i, (scene, layout, x) in enumerate(rendered(args.altered, "altered")):
        other = altered(scene, random.Random(i))
        if other is not None and judge(x, other).right:
            called_right += 1
            if not shows(layout, other):
                wrongly.append(f"{other.caption()!r} for {scene.caption()!r}")
    several = rendered(args.changed, "changed")
    table = {name: float(np.mean([judge(f(x), scene).right for scene, _, x in several])) for name, f in changes().items()}
    if args.card is not None:
        through = reconstructed(args.card, [x for _, _, x in several])
        table["autoencoder, 8 bits"] = float(
            np.mean([judge(x, scene).right for x, (scene, _, _) in zip(through, several, strict=True)])
        )
    made = {
        "clean": {"pictures": len(right), "right": float(np.mean(right)), "milliseconds": 1e3 * seconds},
        "altered": {"captions": args.altered, "called_right": called_right, "wrongly": wrongly},
        "changed": {"pictures": len(several), "right": table},
    }
    if args.json:
        json.dump(made, sys.stdout, indent=1)
        print()
        return
    print(f"clean renderings: {sum(right)} of {len(right)} right, {1e3 * seconds:.1f} ms each")
    print(f"captions altered in one thing: {called_right} of {args.altered} called right, {len(wrongly)} of them wrongly")
    for line in wrongly:
        print(f"  {line}")
    print(f"\n| change, {len(several)} pictures | right |\n|---|---|")
    for name, share in table.items():
        print(f"| {name} | {share:.3f} |")


if __name__ == "__main__":
    main()
