"""Recipes: files, overrides, and errors that name the field."""

import pytest

from allaprima.core.errors import SettingError
from allaprima.distill.recipe import LoopSettings, override, read_recipe


def test_a_file_with_changes_on_top(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "method: consistency\ndata: pictures\nloop: {learning_rate: 1e-5, max_train_steps: 7}\noptions: {w: [1, 8]}\n"
    )
    r = read_recipe(path, None, ["loop.learning_rate=2e-4", "options.huber=0.01", "teacher=sd15/card.yaml"])
    assert (r.method, r.data, r.teacher) == ("consistency", "pictures", "sd15/card.yaml")
    assert r.loop == LoopSettings(learning_rate=2e-4, max_train_steps=7)
    assert r.options == {"w": [1, 8], "huber": 0.01}
    assert read_recipe(None, "tsm", []).method == "tsm"


def test_changes_leave_the_original_alone():
    raw = {"loop": {"a": 1}}
    assert override(raw, ["loop.a=2", "x.y=[1, 2e-3]"]) == {"loop": {"a": 2}, "x": {"y": [1, 0.002]}}
    assert raw == {"loop": {"a": 1}}


@pytest.mark.parametrize(
    ("changes", "data_description"),
    [
        (["loop.learning_rat=1"], "Did you mean 'learning_rate'"),
        (["loop.max_train_steps=0"], r"loop\.max_train_steps=0"),
        (["lopo=1"], "Did you mean 'loop'"),
        (["fast"], "key=value is due"),
        (["teacher.x=1"], "'teacher' is a value"),
        (["method=tsm"], None),
    ],
)
def test_refused(tmp_path, changes, data_description):
    path = tmp_path / "r.yaml"
    path.write_text("method: consistency\nteacher: emoji\n")
    if data_description is None:
        with pytest.raises(SettingError, match="leave one of them out"):
            read_recipe(path, "tsm", [])
        return
    with pytest.raises(SettingError, match=data_description):
        read_recipe(path, None, changes)


def test_no_recipe_at_all(tmp_path):
    (tmp_path / "r.yaml").write_text("- a\n")
    with pytest.raises(SettingError, match="not a mapping"):
        read_recipe(tmp_path / "r.yaml", None, [])
    (tmp_path / "r.yaml").write_text("a: [\n")
    with pytest.raises(SettingError, match="cannot be read as YAML"):
        read_recipe(tmp_path / "r.yaml", None, [])
    with pytest.raises(SettingError, match="method"):
        read_recipe(None, None, [])
