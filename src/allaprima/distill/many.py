"""Multi-student trainings (arXiv 2410.23274): one recipe, one partition, K trainings, each resumable by itself.

`F(D, Y_k)`: a student sees the pictures and prompts of its own part; what a student starts from, if the recipe says, is the
student of the same number of an earlier multi-student training (score matching, then distribution matching, then the
adversarial stage), or one network for all. Pairs for regression are never filtered (section 4: filtering loses modes).

What K costs: inference is one student's, whatever K is; training is K times one student's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from allaprima.core.errors import SettingError, TrainingError
from allaprima.distill.recipe import Recipe
from allaprima.distill.training_data import TrainingData
from allaprima.models.multi_student.partition import (
    Partition,
    check_sizes,
    fit_balanced_kmeans,
    fit_pca_median,
    fit_random,
    partition_fingerprint,
    pool,
)
from allaprima.models.multi_student.partition_file import load_partition, save_partition

FILE = "partition.safetensors"


def student_folder(out: Path, number: int) -> Path:
    """Where student `number` of a multi-student training is."""
    return out / "students" / str(number)


def fitted_partition(kind: str, students: int, seed: int, data: TrainingData, path: Path) -> Partition:
    """Return the partition in `path`, or one fitted on the data's pictures and kept there.

    A caption counts as often as it has pictures, so that parts are equal in pictures. Raises `TrainingError` when the file
    holds another partition than this data would give, `SettingError` for a partition that leaves a student empty.
    """
    embeds = pool(data.conditions.tensors["prompt_embeds"].float())[data.caption_of]
    fits: Mapping[str, Callable[[Tensor], Partition]] = {
        "pca_median": lambda x: fit_pca_median(x, students),
        "balanced_kmeans": lambda x: fit_balanced_kmeans(x, students, seed),
        "random": lambda x: fit_random(x, students, seed),
    }
    made = fits[kind](embeds)
    check_sizes(made, embeds)
    if path.exists():
        kept = load_partition(path)
        if partition_fingerprint(kept) != partition_fingerprint(made):
            raise TrainingError(
                f"{path} holds a partition ({kept.method}, {kept.students} students) of another recipe or other data, now"
                f" {kind} for {students}: a student would be trained on another's prompts. Choose another --out."
            )
        return kept
    save_partition(made, path)
    return made


def part_of(data: TrainingData, partition: Partition, number: int) -> TrainingData:
    """Return what student `number` is trained on. Raises `TrainingError` when that is nothing."""
    route = partition.route(data.conditions.tensors["prompt_embeds"].float())
    try:
        return data.keep(route[data.caption_of] == number)
    except TrainingError as e:
        raise TrainingError(f"student {number} of {partition.students}: {e}") from e


def recipe_of(recipe: Recipe, number: int) -> Recipe:
    """Return the recipe of one student:
    it starts from its predecessor where `start` is a multi-student training's folder."""
    if recipe.start is None:
        return recipe
    before = student_folder(Path(recipe.start).expanduser(), number)
    if not before.parent.is_dir():
        return recipe
    if not before.is_dir():
        raise SettingError(
            f"start={recipe.start!r} has no student {number}: it was made for fewer. Give the same number of students."
        )
    return recipe.model_copy(update={"start": str(before)})
