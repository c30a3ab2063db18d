import pytest
from hypothesis import given
from hypothesis import strategies as st

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.budget import Prices
from allaprima.calibration.threshold import threshold_for
from allaprima.cascade.policy import Decision, ThresholdPolicy
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.core.errors import CalibrationError, SettingError


def test_the_papers_accounting():
    assert Prices.from_steps(5, 20).mean(0.5) == 15
    assert Prices.from_steps(5, 20).share_for(15) == 0.5


@given(st.floats(5, 25))
def test_a_budget_and_its_share_are_inverse(budget):
    prices = Prices.from_steps(5, 20)
    assert prices.mean(prices.share_for(budget)) == pytest.approx(budget)


@given(st.lists(st.floats(0, 1), min_size=50, max_size=80, unique=True), st.floats(0, 1))
def test_the_threshold_sends_the_share(scores, share):
    tau = threshold_for(scores, share)
    assert sum(s < tau for s in scores) / len(scores) == pytest.approx(share, abs=1.01 / len(scores))


@pytest.mark.parametrize("budget", [4.9, 25.1])
def test_a_budget_that_cannot_be_spent_is_refused(budget):
    with pytest.raises(SettingError, match=r"5 .* to 25"):
        Prices.from_steps(5, 20).share_for(budget)


STUDENT, PRINTS, ACTION = {"student_steps": 5}, {"student": "a", "oracle": "b"}, {"teacher_steps": 20, "strategy": "refine"}


def made(**changes):
    fields = {"scores": [i / 100 for i in range(101)], "budget": 15, "prices": Prices.from_steps(5, 20), "settings": STUDENT,
              "action": ACTION, "fingerprints": PRINTS, "prompts_sha256": "p"}  # fmt: skip
    return Calibration.make(**{**fields, **changes})


def test_an_artifact_gives_any_budget_and_survives_the_disk(tmp_path):
    c = made()
    assert c.threshold == pytest.approx(0.5)
    assert c.threshold_for_budget(10, ACTION) == pytest.approx(0.25)
    assert c.threshold_for_budget(10, {**ACTION, "teacher_steps": 10}) == pytest.approx(0.5), "half of 10 steps are 5"
    below = sum(score < c.threshold for score in c.scores) / len(c.scores)
    assert c.prices.mean(below) == pytest.approx(15, abs=0.2)
    assert c.policy_for(None, ACTION) == ThresholdPolicy(c.threshold, Decision.REFINE)
    assert c.cost_interval[0] < 15 < c.cost_interval[1]
    c.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == c


def test_seconds_hold_for_the_settings_they_were_measured_with():
    c = made(budget=0.2, prices=Prices("seconds", 0.1, 0.2))
    assert c.threshold == pytest.approx(0.5)
    assert c.threshold_for_budget(0.15, ACTION) == pytest.approx(0.25)
    with pytest.raises(CalibrationError, match=r"action\.teacher_steps was 20, is now 10"):
        c.threshold_for_budget(0.15, {**ACTION, "teacher_steps": 10})


def test_a_fitted_policy_holds_for_its_budget_and_action(tmp_path):
    c = made(policy=SequentialPolicy(0.6, regenerate_below=0.2))
    c.save(tmp_path / "c.json")
    c = Calibration.load(tmp_path / "c.json")
    assert c.policy_for(None, ACTION) == SequentialPolicy(0.6, regenerate_below=0.2)
    with pytest.raises(CalibrationError, match=r"\(sequential\) was fitted to 15 steps, not to 10"):
        c.policy_for(10, ACTION)
    with pytest.raises(CalibrationError, match=r"action\.strategy was 'refine', is now 'regenerate'"):
        c.policy_for(15, {**ACTION, "strategy": "regenerate"})


def test_an_artifact_of_others_is_refused_with_the_difference_named():
    made().check({"student_steps": 5}, {"student": "a", "oracle": "b"})
    with pytest.raises(CalibrationError, match=r"settings\.student_steps was 5, is now 4"):
        made().check({"student_steps": 4}, {"student": "a", "oracle": "b"})
    with pytest.raises(CalibrationError, match=r"fingerprints\.oracle was 'b', is now 'c'"):
        made().check({"student_steps": 5}, {"student": "a", "oracle": "c"})


def test_an_artifact_of_an_older_schema_is_refused(tmp_path):
    made().save(tmp_path / "c.json")
    (tmp_path / "c.json").write_text((tmp_path / "c.json").read_text().replace('"schema": 2', '"schema": 1'))
    with pytest.raises(CalibrationError, match=r"schema 1, this version reads 2: calibrate again"):
        Calibration.load(tmp_path / "c.json")


def test_a_broken_artifact_says_what_to_do(tmp_path):
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(CalibrationError, match="allaprima calibrate"):
        Calibration.load(tmp_path / "c.json")
