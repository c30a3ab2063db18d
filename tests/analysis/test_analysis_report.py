"""Observations on pairs whose answer was planted, and the page that shows them."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch

from allaprima.analysis import complexity, decisions, distance, diversity, prompts
from allaprima.analysis.measuring import MEASURES, chosen
from allaprima.analysis.pairs import CONFIRMED, NOT_SEEN, REFUTED, AnalyzedPairs
from allaprima.analysis.plots import PANELS, diversity_panels
from allaprima.analysis.report import Section, ends, page, scales_of, table_of, write
from allaprima.core.errors import SettingError

N, SEEDS = 60, 2


def planted(sign=+1, truth="judge", prompt="owl"):
    """Distance rises with complexity and length (times `sign`) and falls with influence; gaps grow with distance."""
    rng = np.random.default_rng(0)
    n = N * SEEDS
    d = rng.uniform(0.1, 0.9, n)
    jitter = lambda: rng.normal(scale=0.05, size=n)  # noqa: E731
    teacher = rng.normal(size=n)
    gap = d * np.where(d > 0.7, 1.0, rng.choice([-1.0, 1.0], n))  # The far ones are all the student's.
    columns = {
        "distance": d, "judge_teacher": teacher, "judge_student": teacher + gap,
        "oracle_teacher": teacher + jitter(), "oracle_student": teacher + gap + jitter(),
        "complexity_teacher": sign * d + jitter(), "complexity_student": sign * d + jitter() * (0.1 + d),
        "length": np.round(10 * (1 + sign * d)), "influence_student": 1 - sign * d + jitter(),
    }  # fmt: skip
    labels = dict.fromkeys((*columns, "judge", "oracle", "complexity", "influence"), "planted")
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return AnalyzedPairs(
        [f"{prompt} {i}" for i in range(N)], np.arange(n) // SEEDS, np.arange(n), columns, labels, images, images, truth, 0.3
    )  # fmt: skip


def verdicts(seen):
    return {f.key: f.verdict for f in seen.findings}


def test_what_was_planted_is_confirmed_and_its_opposite_refuted():
    as_paper, opposite = planted(), planted(-1)
    assert set(verdicts(distance.observe(as_paper)).values()) == {CONFIRMED}
    for observe, key in (
        (complexity.observe, "complexity-distance"), (prompts.observe_length, "length-distance"),
        (prompts.observe_influence, "influence-distance"),
    ):  # fmt: skip
        assert verdicts(observe(as_paper))[key] == CONFIRMED
        assert verdicts(observe(opposite))[key] == REFUTED


def test_what_is_not_there_is_not_seen():
    pairs = planted()
    pairs.columns["length"][:] = 7  # pyright: ignore
    assert verdicts(prompts.observe_length(pairs)) == {"length-distance": NOT_SEEN}


def test_wins_by_band_follow_the_tie():
    # |gap| = distance in .1 .. .9, ties up to .3: the nearest quarter has no wins, the rest only wins.
    pairs = planted()
    assert (pairs.outcome == 0).tolist() == (pairs.columns["distance"] <= 0.3).tolist()
    bands = distance.observe(pairs).numbers["bands"]
    assert bands[0]["tie"][0] == 1
    assert bands[4]["tie"][0] == 0
    assert bands[4]["student"][0] + bands[4]["teacher"][0] == pytest.approx(1)


def test_an_oracle_that_knows_decides_right_and_one_alone_is_not_its_own_judge():
    seen = decisions.observe(planted())
    assert seen.numbers["full_reference"].mean > 0.9
    assert verdicts(seen)["full-reference"] == CONFIRMED
    assert "agrees with itself" in decisions.observe(planted(truth="oracle")).missing


def test_less_diverse_is_said_of_what_is():
    values = {"student": {f"p{i}": 0.1 + i / 1000 for i in range(20)}, "teacher": {f"p{i}": 0.2 for i in range(20)}}
    seen = diversity.observe(values, "planted")
    assert verdicts(seen) == {"diversity": CONFIRMED}
    assert seen.findings[0].interval.mean == pytest.approx(-0.1 + 0.0095)


def test_ends_are_the_outermost_each_prompt_once():
    values, prompt = np.array([5.0, 1, 2, 9, 8, 3]), np.array([0, 1, 1, 2, 2, 3])
    assert ends(values, prompt, 2) == ([1, 5], [3, 0])


def sections(pairs):
    made = []
    observers = {
        "distance": distance.observe, "length": prompts.observe_length, "decisions": decisions.observe,
        "simulated": decisions.observe_simulated,
    }  # fmt: skip
    for key, observe in observers.items():
        seen = observe(pairs)
        made.append(Section(seen, PANELS[key](pairs, seen), scales_of(pairs, key)))
    values = {s: {p: 0.1 for p in pairs.prompts} for s in ("student", "teacher")}
    return [*made, Section(diversity.observe(values, "planted"), diversity_panels(values))]


def test_the_page_fetches_nothing_shows_prompts_as_text_and_reads_in_light_and_dark():
    pairs = planted(prompt="<script>alert(1)</script>")
    text = page("A <b> pair", ["lead & more"], pairs, sections(pairs), {"x": float("nan")})
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "A &lt;b&gt; pair" in text
    fetched = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert fetched
    assert all(f.startswith(("data:", "#")) for f in fetched)
    assert "url(http" not in text
    assert "@import" not in text
    assert text.count("currentColor") > 50
    assert "#15181c;" not in text.split("</style>")[1]
    assert "prefers-color-scheme:dark" in text
    ids = re.findall(r'<clipPath id="([^"]*)"', text)
    assert len(ids) == len(set(ids)), "two figures would share an id"


def test_files_hold_the_same_numbers(tmp_path):
    pairs = planted()
    write(tmp_path, "t", [], pairs, sections(pairs), {"command": "c"})
    rows = list(csv.DictReader(io.StringIO((tmp_path / "pairs.csv").read_text())))
    assert len(rows) == N * SEEDS
    assert [float(r["distance"]) for r in rows] == pytest.approx(pairs.columns["distance"].tolist())
    assert {r["preferred"] for r in rows} == {"student", "neither", "teacher"}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["observations"]["distance"]["findings"][0]["verdict"] == CONFIRMED
    assert (tmp_path / "figures" / "votes.png").stat().st_size > 1000
    assert table_of(pairs).count("\n") == N * SEEDS + 1


def test_measures_by_name():
    assert chosen((), ()) == list(MEASURES)
    assert chosen(("curvature",), ()) == ["distance", "curvature"]
    assert "lpips" not in chosen((), ("lpips",))
    with pytest.raises(SettingError, match="'beauty' is not known"):
        chosen(("beauty",), ())
    with pytest.raises(SettingError, match="Leave it in"):
        chosen((), ("distance",))
