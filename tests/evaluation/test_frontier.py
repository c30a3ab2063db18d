"""The frontier's arithmetic and files: interpolation, cost to reach a quality, table, page, picture."""

import csv
import json
import math

import pytest
from PIL import Image
from pyarrow import parquet

from allaprima.core.errors import SettingError
from allaprima.evaluation.frontier import FrontierPoint, Measure, at_cost, by_method, draw, markdown, steps_to_reach, write
from allaprima.evaluation.intervals import Interval

JUDGE, FRECHET = Measure("judge", "judge's score", True), Measure("frechet", "Frechet", False)


def point(method, steps, judge, frechet=None, bound=False):
    values = {"judge": Interval(judge, judge - 0.1, judge + 0.1)}
    if frechet is not None:
        values["frechet"] = Interval(frechet, frechet - 1, frechet + 1)
    return FrontierPoint(method, steps, steps, values, bound)


TEACHER = [point("teacher", 10, 1.0, 30), point("teacher", 20, 2.0, 20), point("teacher", 50, 2.3, 10)]


def test_between_points_it_is_linear_and_outside_unknown():
    assert at_cost(TEACHER, "judge", 15) == pytest.approx(1.5)
    assert at_cost(TEACHER[::-1], "frechet", 35) == pytest.approx(15)
    assert math.isnan(at_cost(TEACHER, "judge", 9))
    assert math.isnan(at_cost([], "judge", 9))


def test_the_cost_of_a_quality_is_the_inverse():
    assert steps_to_reach(TEACHER, JUDGE, 1.5) == pytest.approx(15)
    assert steps_to_reach(TEACHER, FRECHET, 15) == pytest.approx(35)
    assert steps_to_reach(TEACHER, JUDGE, 0.2) == 10, "the cheapest point is better than asked"
    assert math.isnan(steps_to_reach(TEACHER, JUDGE, 9.0))
    assert math.isnan(steps_to_reach(TEACHER, FRECHET, 5.0))


def test_methods_keep_their_order():
    assert list(by_method([*TEACHER, point("student", 5, 0.5), TEACHER[0]])) == ["teacher", "student"]


def test_files_say_the_same(tmp_path):
    points = [*TEACHER, point("perfect <oracle>", 15, 3.0, bound=True)]
    write(tmp_path, points, [JUDGE, FRECHET], "a & b", {"card": "x"})
    rows = list(csv.DictReader((tmp_path / "frontier.csv").read_text().splitlines()))
    columns = parquet.read_table(tmp_path / "frontier.parquet").to_pylist()
    assert [{k: "" if v is None else str(v) for k, v in r.items()} for r in columns] == rows
    assert [(r["method"], float(r["steps"]), float(r["judge"])) for r in rows] == [
        (p.method, p.steps, p.values["judge"].mean) for p in points
    ]
    assert rows[3]["frechet"] == ""
    assert json.loads((tmp_path / "frontier.json").read_text())["points"][1]["frechet_low"] == 19
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.width > 800
    page = (tmp_path / "frontier.html").read_text()
    assert "perfect &lt;oracle&gt;" in page
    assert "http" not in page.replace("http-equiv", ""), "it fetches nothing"
    assert page.count("<tr") == 5
    assert "2.300 (2.200..2.400)" in (tmp_path / "frontier.md").read_text()


def test_no_points_is_an_error():
    with pytest.raises(SettingError, match="no points"):
        draw([], [JUDGE], "x")
    assert markdown([], [JUDGE]).count("\n") == 1
