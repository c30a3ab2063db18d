"""The trainings of `benchmarks.students` are commands that `allaprima distill` takes, each after what it starts from."""

from pathlib import Path

from allaprima.distill.methods import METHODS
from allaprima.distill.recipe import checked, read_recipe
from benchmarks.students import TRAININGS, markdown


def recipes(out):
    for t in TRAININGS:
        _, method, *changes = t.command(out)
        changes = changes[: changes.index("--out")]
        yield t.name, read_recipe(None, method, changes)


def test_every_command_is_a_recipe():
    for _, recipe in recipes(Path("runs")):
        checked(METHODS[recipe.method].load()[1], recipe.options, recipe.method)


def test_what_a_training_starts_from_was_made_before():
    made = {}
    for name, recipe in recipes(Path("runs")):
        start = Path(recipe.start or "/")
        if not start.is_absolute():
            before = start.parts[1]
            assert before in made
            several = start.name != "student"
            assert several == made[before], "of several the folder is named, of one its student"
            assert not several or recipe.partition is not None, "several go on as several"
        made[name] = recipe.partition is not None


def test_the_table_has_a_line_a_row():
    value = [1.0, 0.5, 1.5]
    measures = dict.fromkeys(("frechet", "found", "judge", "oracle"), value)
    row = {"name": "one student", "steps": 1, "parameters": 11_455_112, "milliseconds": value, "test": measures}
    text = markdown({"sets": {"test": {"captions": 49, "pictures": 294}}, "rows": [row]})
    line = text.splitlines()[-1]
    assert line.startswith("| one student | 1 | 11.5 M | 1.0 (0.5..1.5) | 1.0 (0.5..1.5) | 1.000 (0.500..1.500) |")
    assert line.count("|") == text.splitlines()[-3].count("|")
