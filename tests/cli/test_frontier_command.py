"""The frontier command on the toy pair: what it must know, what it may not paint twice, what it refuses."""

import csv
import dataclasses

import pytest

from allaprima.core.errors import PromptError, SettingError
from allaprima.experiments.frontier_report import FrontierOptions, frontier_command
from allaprima.pipeline import AdaptivePipeline
from tests.toys import SETTINGS, Grey, Toy


class Counting(Toy):
    """Counts the pictures it is asked for."""

    calls = 0

    def decode(self, latents):
        Counting.calls += len(latents)
        return super().decode(latents)


class Oracle(Grey):
    name, fingerprint, cost = "grey", "g", 0.1


@pytest.fixture
def toy(monkeypatch):
    settings = dataclasses.replace(SETTINGS, batch_size=8)
    pipe = AdaptivePipeline(Counting(), Counting(0.3), Oracle(), settings, card=object())
    monkeypatch.setattr(AdaptivePipeline, "from_card", lambda card: pipe)


def options(tmp_path, **changes):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"{i / 50:.3f}" for i in range(40)))
    fields = {"card": "toy", "prompts_file": str(prompts), "prompts": 40, "seeds": 2, "budgets": (4.0, 8.0), "quick": True,
              "reference": None, "usual_guidance": None, "out": tmp_path / "out"}  # fmt: skip
    return FrontierOptions(**{**fields, **changes})


def table(tmp_path):
    with (tmp_path / "out" / "frontier.csv").open() as f:
        return {(r["method"], float(r["budget"])): r for r in csv.DictReader(f)}


def test_every_policy_keeps_its_budget_and_none_beats_the_perfect_oracle(toy, tmp_path, capsys):
    frontier_command(options(tmp_path))
    rows = table(tmp_path)
    adaptive = {m for m, _ in rows if m.startswith("adaptive")}
    assert {"adaptive regenerate", "adaptive refine", "adaptive, value", "adaptive, best of 2"} <= adaptive
    for (method, budget), r in rows.items():
        if method in adaptive:
            assert float(r["steps"]) == pytest.approx(budget, rel=0.12), method
    for budget in (4.0, 8.0):
        best, chance = (float(rows[m, budget]["oracle"]) for m in ("perfect oracle", "chance"))
        # The toy teacher adds the same to every draft, so knowing whom to send is worth little, but never less than chance.
        assert best >= chance
        assert best >= float(rows["adaptive regenerate", budget]["oracle"]) - 1e-6
    assert float(rows["student", 2.0]["oracle"]) < float(rows["teacher, DDIM", 50.0]["oracle"])
    base = rows["teacher, DDIM", 50.0]
    assert [float(base[f"oracle_over_baseline{end}"]) for end in ("", "_low", "_high")] == [0, 0, 0]
    for r in rows.values():
        assert float(r["oracle_over_baseline"]) == pytest.approx(float(r["oracle"]) - float(base["oracle"]), abs=1e-6)
    student = rows["student", 2.0]
    wide, narrow = (float(student[f"{m}_high"]) - float(student[f"{m}_low"]) for m in ("oracle", "oracle_over_baseline"))
    assert narrow < wide / 2, "the prompt drops out of a difference"
    assert "| adaptive regenerate |" in capsys.readouterr().out
    assert (tmp_path / "out" / "frontier.html").stat().st_size > 10_000


def test_a_second_run_paints_nothing_and_says_the_same(toy, tmp_path, capsys):
    frontier_command(options(tmp_path))
    first, painted = table(tmp_path), Counting.calls
    frontier_command(options(tmp_path))
    assert Counting.calls == painted
    assert table(tmp_path) == first
    frontier_command(options(tmp_path, budgets=(6.0,)))
    assert Counting.calls == painted, "another budget needs no new pictures"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"budgets": (0.5,)}, r"budgets=\(0.5,\)"),
        ({"prompts": 5}, "prompts=5"),
    ],
)
def test_bad_options_are_refused(toy, tmp_path, changes, says):
    with pytest.raises(SettingError, match=says):
        frontier_command(options(tmp_path, **changes))


def test_too_few_prompts_are_refused(toy, tmp_path):
    (tmp_path / "few.txt").write_text("0.1\n0.1\n0.2\n")
    with pytest.raises(PromptError, match="2 different prompts"):
        frontier_command(options(tmp_path, prompts_file=str(tmp_path / "few.txt")))


def test_the_paper_tunes_apart_for_each_metric(toy, tmp_path, monkeypatch, capsys):
    """The oracle likes it bright, the reference is dark: what is best by one is not what is best by the other."""
    import torch

    from allaprima.evaluation.frontier import Measure
    from allaprima.experiments.scorers import Scorers

    def look(images, captions):
        grey = images.float().mean((1, 2, 3)) / 255
        return {"oracle": grey, "features": torch.stack([grey, grey**2], 1).half()}

    dark = torch.rand(200, 1, generator=torch.Generator().manual_seed(0)) * 0.5
    measures = (Measure("oracle", "oracle", True), Measure("frechet", "Frechet", False))
    scorers = Scorers(look, measures, {}, torch.cat([dark, dark**2], 1))
    monkeypatch.setattr("allaprima.experiments.frontier_report.scorers_for", lambda *_: scorers)
    frontier_command(options(tmp_path, budgets=(6.0,)))
    rows = table(tmp_path)
    names = ("adaptive, tuned for Frechet", "adaptive refine", "adaptive regenerate")
    frechet = {m: float(rows[m, 6.0]["frechet"]) for m in names}
    assert frechet[names[0]] == pytest.approx(min(frechet.values()), rel=0.1)
    assert max(frechet.values()) > 1.05 * frechet[names[0]]
    capsys.readouterr()
