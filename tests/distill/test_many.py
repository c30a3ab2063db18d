"""Multi-student trainings: parts of the data, starts of earlier stages, nothing trained on another's prompts."""

import pytest
import torch
from tiny import setup, tiny_data

from allaprima.core.errors import SettingError, TrainingError
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.distill.many import fitted_partition, part_of, recipe_of, student_folder
from allaprima.distill.methods.common import SharedPartition
from allaprima.distill.methods.pairs import painted_pairs
from allaprima.distill.recipe import Recipe, checked
from allaprima.distill.training_data import TrainingData, identity_of


def data(captions=8, each=3):
    g = torch.Generator().manual_seed(2)
    n = captions * each
    latents, embeds = torch.randn(n, 4, 8, 8, generator=g), torch.randn(captions, 3, 6, generator=g)
    of, names = torch.arange(n) % captions, tuple(map(str, range(captions)))
    return TrainingData(latents, Condition({"prompt_embeds": embeds}), of, names, identity_of(latents, names, of))


@pytest.mark.parametrize("kind", ["pca_median", "balanced_kmeans", "random"])
def test_parts_are_disjoint_equal_and_everything(tmp_path, kind):
    whole = data()
    partition = fitted_partition(kind, 4, 0, whole, tmp_path / "p.safetensors")
    parts = [part_of(whole, partition, k) for k in range(4)]
    assert [len(p) for p in parts] == [6] * 4
    assert sorted(c for p in parts for c in p.captions) == sorted(whole.captions)
    again = fitted_partition(kind, 4, 0, whole, tmp_path / "p.safetensors")
    assert part_of(whole, again, 2).identity == parts[2].identity


def test_a_part_with_more_pictures_counts_for_more(tmp_path):
    """Six captions, one of which has as many pictures as the five others together: alone on its side."""
    g = torch.Generator().manual_seed(0)
    embeds = torch.zeros(6, 1, 2)
    embeds[:, 0, 0] = torch.tensor([0.0, 1, 2, 3, 4, 9])
    of = torch.tensor([0, 1, 2, 3, 4, 5, 5, 5, 5, 5])
    names = tuple(map(str, range(6)))
    latents = torch.randn(10, 1, 2, 2, generator=g)
    whole = TrainingData(latents, Condition({"prompt_embeds": embeds}), of, names, "x")
    partition = fitted_partition("pca_median", 2, 0, whole, tmp_path / "p.safetensors")
    assert sorted(len(part_of(whole, partition, k)) for k in (0, 1)) == [5, 5]


def test_another_partition_in_the_folder_is_refused(tmp_path):
    fitted_partition("pca_median", 4, 0, data(), tmp_path / "p.safetensors")
    with pytest.raises(TrainingError, match="another recipe or other data"):
        fitted_partition("pca_median", 2, 0, data(), tmp_path / "p.safetensors")
    with pytest.raises(TrainingError, match="another recipe or other data"):
        fitted_partition("pca_median", 4, 0, data(16), tmp_path / "p.safetensors")


def test_a_student_without_pictures_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"student 2 of 4 gets none|student \d of 4 gets none"):
        fitted_partition("pca_median", 4, 0, data(2, 1), tmp_path / "p.safetensors")


def test_a_student_starts_where_its_predecessor_ended(tmp_path):
    for k in range(2):
        student_folder(tmp_path, k).mkdir(parents=True)
    recipe = Recipe.model_validate({"method": "adversarial", "start": str(tmp_path), "partition": {"students": 2}})
    assert recipe_of(recipe, 1).start == str(tmp_path / "students" / "1")
    with pytest.raises(SettingError, match="no student 2"):
        recipe_of(recipe, 2)
    one = recipe.model_copy(update={"start": str(tmp_path / "students" / "0")})
    assert recipe_of(one, 1).start == one.start, "one network for all"


def test_pairs_are_everybodys(tmp_path):
    """Filtered pairs lose modes: a student regresses on pictures of prompts that aren't its own."""
    b = setup(tmp_path / "a", "distribution_matching")
    mine = tiny_data().keep(torch.arange(12) % 4 == 0)
    b = type(b)(b.teacher, mine, b.null, b.recipe, b.folder, whole=SharedPartition(tiny_data(), tmp_path))
    _, ends, captions = painted_pairs(b, 8, 1, 2.0, tmp_path / "pairs.safetensors")
    assert captions.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert len(ends) == 8
    alone = type(b)(b.teacher, mine, b.null, b.recipe, b.folder)
    assert set(painted_pairs(alone, 8, 1, 2.0, tmp_path / "own.safetensors")[2].tolist()) == {0}


def test_pairs_of_another_painting_are_refused(tmp_path):
    """A file shared by trainings holds the same pictures for each, or none."""
    b, path = setup(tmp_path / "a", "distribution_matching"), tmp_path / "pairs.safetensors"
    inside = GuidanceInterval(0, 1000, 9.0)
    ends = painted_pairs(b, 4, 2, 2.0, path, inside)[1]
    assert torch.equal(painted_pairs(b, 4, 2, 2.0, path, inside)[1], ends)
    plain = painted_pairs(b, 4, 2, 2.0, tmp_path / "plain.safetensors")[1]
    assert torch.equal(plain, ends), "an interval that holds all times is none"
    low = painted_pairs(b, 4, 2, 2.0, tmp_path / "low.safetensors", GuidanceInterval(0, 500, 9.0))[1]
    assert not torch.allclose(low, ends), "the first step's guidance is what is outside"
    for other in ({"steps": 1}, {"scale": 3.0}, {"interval": None}):
        with pytest.raises(TrainingError, match="painted by another teacher, for other data or otherwise"):
            painted_pairs(b, 4, **{"steps": 2, "scale": 2.0, "interval": inside, "path": path, **other})


def test_settings():
    r = checked(Recipe, {"method": "tsm", "partition": {"only": 3}, "loop": {"report_to": "tensorboard"}}, "recipe")
    assert r.partition is not None
    assert (r.partition.numbers, r.loop.report_to) == ((3,), ("tensorboard",))
    with pytest.raises(SettingError, match="student 4 is not among"):
        checked(Recipe, {"method": "tsm", "partition": {"only": [4]}}, "recipe")
    with pytest.raises(SettingError, match=r"partition\.students=1"):
        checked(Recipe, {"method": "tsm", "partition": {"students": 1}}, "recipe")
