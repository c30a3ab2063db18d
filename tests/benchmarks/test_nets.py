"""The trainings of `benchmarks.nets` are commands that `allaprima distill` takes; what they learn from is moved as said."""

from pathlib import Path

import torch
from torch.nn import functional

from allaprima.distill.methods import METHODS
from allaprima.distill.recipe import checked, read_recipe
from benchmarks.nets import MAPS, TRAININGS, moved, table


def test_every_command_is_a_recipe():
    for t in TRAININGS:
        _, method, *changes = t.command(Path("runs"))
        recipe = read_recipe(None, method, changes[: changes.index("--out")])
        checked(METHODS[recipe.method].load()[1], recipe.options, recipe.method)


def test_a_net_extends_the_card_of_one_trained_before():
    made = set()
    for t in TRAININGS:
        made.add(t.name)
        for change in t.changes:
            if change.startswith("teacher="):
                assert Path(change.removeprefix("teacher={out}/")).parent.name in made - {t.name}
    assert set(MAPS) <= made


def dot():
    """A black square off the middle of a white picture."""
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    image[:, 20:28, 14:22] = 0
    return image


def test_moved_pictures_stay_on_white_and_keep_their_ink():
    images = dot().repeat(200, 1, 1, 1)
    out = moved(images, torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8 and out.shape == images.shape
    ink = (255 - out[:, 0].float()).sum((1, 2)) / 255
    # Sizes .7 to 1.05 have areas .49 to 1.1 of 64 pixels; what leaves the picture is missing.
    assert ink.max() < 1.2 * 64 and ink.median() > 0.45 * 64
    assert ((255 - out[:, 0, :2].float()).mean() < 2) and len(out.unique(dim=0)) > 190


def test_half_are_mirrored():
    image = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    image[:, 24:40, 24:40] = 0
    image[:, 24:32, 24:32] = 255
    out = moved(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(1))
    # Two corners of the shape differ by handedness only after a turn: count which side of the missing corner is left.
    ink = 1 - functional.interpolate(out.float() / 255, size=16, mode="area")[:, 0]
    columns = torch.arange(16.0)
    centre = (ink.sum(1) * columns).sum(1) / ink.sum((1, 2))
    top = ink.cumsum(1)[:, :8].sum((1,))
    side = (top * columns).sum(1) / top.sum(1).clamp(min=1e-6) - centre
    assert 0.3 < float((side > 0).float().mean()) < 0.7


def test_the_table_has_a_line_a_row():
    value = [1.0, 0.5, 1.5]
    row = {"name": "student", "steps": 3, **dict.fromkeys(("lpips", "frechet", "psnr", "judge"), value)}
    line = table([row]).splitlines()[-1]
    assert line.startswith("| student | 3 | 1.000 (0.500..1.500) | 1.0 (0.5..1.5) |")
    assert line.count("|") == table([row]).splitlines()[0].count("|")
