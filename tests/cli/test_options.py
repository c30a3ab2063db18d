"""How verbs declare and share options: signatures that typer reads, and the dataclasses that the work takes."""

import inspect
from dataclasses import dataclass
from typing import Any

import pytest

from allaprima.cli.edit import edit
from allaprima.cli.generate import BEYOND_IMAGES, generate
from allaprima.cli.options import like, names, numbers, options_of
from allaprima.core.errors import SettingError


def base(prompts: str = "", demo: bool = False, card: str = "emoji", steps: int = 5, resume: bool = False) -> None:
    """Have five options."""


@like(base, {"demo"})
def verb(mask: str = "", prompts: str = "a fox", *, steps: int = 7, **shared: Any) -> dict[str, Any]:
    return {"mask": mask, "prompts": prompts, "steps": steps, **shared}


def test_a_verb_like_another_has_its_own_options_first_and_stands_in_for_the_others():
    parameters = inspect.signature(verb).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "mask": "", "prompts": "a fox", "card": "emoji", "steps": 7, "resume": False,
    }  # fmt: skip
    assert list(parameters) == ["mask", "prompts", "card", "steps", "resume"]
    assert {p.annotation for p in parameters.values()} == {str, int, bool}
    assert verb(card="scenes", resume=True)["card"] == "scenes"


def test_every_option_that_edit_leaves_out_is_one_of_generates():
    shared, own = (inspect.signature(v).parameters for v in (generate, edit))
    assert set(BEYOND_IMAGES) <= shared.keys()
    assert shared.keys() - own.keys() == set(BEYOND_IMAGES)


@dataclass(frozen=True)
class Options:
    seed: int
    budgets: tuple[float, ...]


def test_a_dataclass_is_filled_by_name():
    values = {"seed": 3, "budgets": "5,8", "other": None}
    assert options_of(Options, values, budgets=numbers("budgets", "5,8", "5,8")) == Options(3, (5.0, 8.0))
    with pytest.raises(KeyError, match="budgets"):
        options_of(Options, {"seed": 3})


def test_lists_with_commas():
    assert names(" a, b,,") == ("a", "b")
    with pytest.raises(SettingError, match=r"strengths='a' are not numbers with commas between: 0\.4"):
        numbers("strengths", "a", "0.4")
