"""`allaprima calibrate` on the toy pair: budgets in every unit, bad prompts and oracles, and runs that were stopped."""

import json

import numpy as np
import pytest
from calibrated import SETTINGS, Counting, allaprima, greys, serve, toy_pipeline

from allaprima.calibration.artifact import Calibration
from allaprima.cascade.policy import ThresholdPolicy, policy_from_dict
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.cascade.value import ValuePolicy
from allaprima.core.errors import CalibrationError

N = 24


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(greys(N)) + "\n")
    return path


def calibrate(prompts, out, *args, budget=3.5, expect=0):
    allaprima("calibrate", "--prompts-file", prompts, "--budget", budget, "--out", out, *args, expect=expect)


def timeless(path):
    raw = json.loads(path.read_text())
    assert raw.pop("seconds_per_draft") > 0
    return raw


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_the_artifact_holds_the_budget_it_was_made_for(tmp_path, prompts, monkeypatch, capsys):
    oracle = serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json")
    made = Calibration.load(tmp_path / "c.json")
    assert (made.prices.unit, made.prices.draft, made.prices.escalation) == ("steps", 2, 3)
    assert made.percentile == pytest.approx(50)
    assert sum(s < made.threshold for s in made.scores) == N / 2
    assert sorted(oracle.seen) == sorted(greys(N))
    assert not list(tmp_path.glob("*.scores.jsonl*"))
    assert f"threshold {made.threshold:.4f}" in said(capsys)
    # The very same drafts painted with it cost what was asked, in steps.
    pipe = toy_pipeline(Counting(), made)
    requests = [GenerationRequest(p, 1_000_000 + i, index=i) for i, p in enumerate(greys(N))]
    sent = [r.decision == "refine" for r in pipe.stream(requests, policy=pipe.policy(SETTINGS))]
    assert 2 + 3 * np.mean(sent) == 3.5


def test_evaluations_count_both_halves_of_guidance_and_the_oracle(tmp_path, prompts, monkeypatch):
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json", "--unit", "evaluations", budget=6.5)
    made = Calibration.load(tmp_path / "c.json")
    # 2 student steps are 4 evaluations and the oracle's look is 1; 3 teacher steps are 6.
    assert (made.prices.draft, made.prices.escalation) == (5, 6)
    assert made.percentile == pytest.approx(25)
    with pytest.raises(CalibrationError, match="teacher_steps"):
        pipe = toy_pipeline(Counting(), made)
        pipe.policy(SETTINGS.changed(teacher_steps=4))


def test_money_is_seconds_at_a_price(tmp_path, prompts, monkeypatch, capsys):
    serve(monkeypatch, Counting())
    ticks = iter(range(10**9))
    from allaprima.cascade.latent_cascade import LatentCascade

    start = LatentCascade.__init__

    def clocked(self, *args):
        start(self, *args)
        self._clock = lambda: 4.0 * next(ticks)  # Every stage takes 4 s, 1 s of each of four pictures.

    monkeypatch.setattr(LatentCascade, "__init__", clocked)
    calibrate(prompts, tmp_path / "s.json", "--unit", "seconds", budget=6)
    seconds = Calibration.load(tmp_path / "s.json").prices
    # Draft: text, 2 student steps, decoding, a look. Escalation: 3 teacher steps, decoding.
    assert (seconds.draft, seconds.escalation) == pytest.approx((5, 4))
    calibrate(prompts, tmp_path / "m.json", "--unit", "money", "--price-per-hour", "7200", budget=12)
    money = Calibration.load(tmp_path / "m.json")
    assert money.prices.unit == "money"
    assert (money.prices.draft, money.prices.escalation) == pytest.approx((10, 8))
    assert money.percentile == pytest.approx(25)
    calibrate(prompts, tmp_path / "x.json", "--unit", "seconds", budget=99, expect=2)
    assert "budget=99.0 mean seconds" in said(capsys)
    assert not (tmp_path / "x.json").exists()


def test_repeated_prompts_count_once_and_are_named(tmp_path, prompts, monkeypatch, capsys):
    oracle = serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "once.json")
    twice = tmp_path / "twice.txt"
    twice.write_text(prompts.read_text() + "\n\n" + "\n".join(greys(N)[5:7]) + "\n")
    oracle.seen.clear()
    calibrate(twice, tmp_path / "twice.json")
    assert f"2 of {N + 2} prompts are repeated, {greys(N)[5]!r} first" in said(capsys)
    assert len(oracle.seen) == N
    assert timeless(tmp_path / "twice.json") == timeless(tmp_path / "once.json")


@pytest.mark.parametrize(
    ("text", "args", "says"),
    [
        ("", [], "has 0 different prompts"),
        ("\n  \n", [], "has 0 different prompts"),
        ("0.1\n" * 30, [], "has 1 different prompts"),
        ("\n".join([*greys(12), "7"]), [], "seven is not painted"),
        (None, ["--samples", "9"], "samples=9"),
        (None, ["--unit", "euros"], "unit='euros'"),
        (None, ["--unit", "money"], "--price-per-hour"),
        (None, ["--unit", "money", "--price-per-hour", "-1"], "price_per_hour=-1"),
        (None, ["--policy", "bend"], "policy='bend'"),
        (None, ["--policy", "best_of_2"], "policy='best_of_2'"),
        (None, ["--policy", "band", "--unit", "seconds"], "--policy band"),
        (None, ["--budget", "5.5"], "budget=5.5"),
        (None, ["--budget", "nan"], "budget=nan"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_a_picture(tmp_path, prompts, monkeypatch, capsys, text, args, says):
    oracle = serve(monkeypatch, Counting())
    if text is not None:
        prompts.write_text(text)
    calibrate(prompts, tmp_path / "made" / "c.json", *args, expect=2)
    assert says in said(capsys)
    assert oracle.seen == []
    assert not (tmp_path / "made").exists()


def test_a_folder_is_not_written_over(tmp_path, prompts, monkeypatch, capsys):
    oracle = serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path, expect=2)
    assert "is a folder" in said(capsys)
    assert oracle.seen == []


@pytest.mark.parametrize("fault", ["blind", "broken"])
def test_an_oracle_that_fails_on_one_prompt_is_named_and_the_rest_kept(tmp_path, prompts, monkeypatch, capsys, fault):
    bad = greys(N)[9]
    serve(monkeypatch, Counting(**{fault: (bad,)}))
    calibrate(prompts, tmp_path / "c.json", expect=2)
    words = said(capsys)
    assert f"1 of {N} drafts have no score, the first is {bad!r}" in words
    assert ("no such weights" if fault == "broken" else "nan") in words
    assert not (tmp_path / "c.json").exists()
    kept = (tmp_path / "c.json.scores.jsonl").read_text().splitlines()[1:]
    assert sorted(json.loads(line)["index"] for line in kept) == [i for i in range(N) if i != 9]
    # Mended: only what is missing is painted, and nobody can tell from the artifact.
    oracle = serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json")
    assert oracle.seen == [bad]
    calibrate(prompts, tmp_path / "whole.json")
    assert timeless(tmp_path / "c.json") == timeless(tmp_path / "whole.json")


class Killed(BaseException):
    """Not an error that anything could take for a failed picture."""


@pytest.mark.parametrize("cut", [0, 5, 10_000])
def test_killed_in_the_middle_and_gone_on_with(tmp_path, prompts, monkeypatch, cut):
    class Mortal(Counting):
        def score(self, images, prompts):
            if len(self.seen) >= 12:
                raise Killed
            return super().score(images, prompts)

    serve(monkeypatch, Mortal())
    with pytest.raises(Killed):
        calibrate(prompts, tmp_path / "c.json")
    book = tmp_path / "c.json.scores.jsonl"
    whole = book.read_bytes()
    assert len(whole.splitlines()) == 13
    # A line that was being written when the power failed; with the whole of it gone, everything is painted again.
    book.write_bytes(whole[: max(len(whole) - cut, 20)])
    oracle = serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json")
    missing = {0: greys(N)[12:], 5: greys(N)[11:], 10_000: greys(N)}[cut]
    assert sorted(oracle.seen) == sorted(missing)
    calibrate(prompts, tmp_path / "whole.json")
    assert timeless(tmp_path / "c.json") == timeless(tmp_path / "whole.json")


def test_scores_of_other_drafts_are_not_gone_on_with(tmp_path, prompts, monkeypatch):
    serve(monkeypatch, Counting(blind=(greys(N)[0],)))
    calibrate(prompts, tmp_path / "c.json", expect=2)
    oracle = serve(monkeypatch, Counting(fingerprint="grey-2"))
    calibrate(prompts, tmp_path / "c.json")
    assert len(oracle.seen) == N


def test_another_oracles_artifact_is_refused(tmp_path, prompts, monkeypatch):
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json")
    made = Calibration.load(tmp_path / "c.json")
    other = toy_pipeline(Counting(fingerprint="grey-2"), made)
    with pytest.raises(CalibrationError, match=r"fingerprints\.oracle was 'grey-1', is now 'grey-2'"):
        other.policy(SETTINGS)
    with pytest.raises(CalibrationError, match=r"settings\.student_steps was 2, is now 3"):
        toy_pipeline(Counting(), made).policy(SETTINGS.changed(student_steps=3))
    assert isinstance(toy_pipeline(Counting(), made).policy(SETTINGS), ThresholdPolicy)


@pytest.mark.parametrize(
    ("name", "kind"), [("band", SequentialPolicy), ("value", ValuePolicy), ("best_of_2", SequentialPolicy)]
)
def test_another_policy_is_written_and_holds_the_budget(tmp_path, prompts, monkeypatch, name, kind):
    serve(monkeypatch, Counting())
    args = ("--drafts", "2") if name == "best_of_2" else ()
    calibrate(prompts, tmp_path / "c.json", "--policy", name, *args)
    made = Calibration.load(tmp_path / "c.json")
    policy = policy_from_dict(made.policy)
    assert isinstance(policy, kind)
    pipe = toy_pipeline(Counting(), made)
    assert pipe.policy(SETTINGS) == policy
    with pytest.raises(CalibrationError, match=r"fitted to 3\.5 steps, not to 4"):
        pipe.policy(SETTINGS, budget=4)
    requests = [GenerationRequest(p, 1_000_000 + i, index=i) for i, p in enumerate(greys(N))]
    results = list(pipe.stream(requests, policy=policy))
    spent = np.mean([2 * r.attempts + 3 * (r.decision != "accept") for r in results])
    # Draft features of a live run differ by rounding to bytes, so one picture may go the other way.
    assert 3.5 - 5 / N - 1e-9 <= spent <= 3.5 + (3 / N if name == "value" else 0) + 1e-9


def test_an_oracle_that_fails_on_what_the_teacher_made_loses_no_scores(tmp_path, prompts, monkeypatch, capsys):
    class Tiring(Counting):
        def score(self, images, prompts):
            if len(self.seen) >= 2 * N:  # Held-out drafts, and drafts for the policy.
                raise RuntimeError("tired")
            return super().score(images, prompts)

    serve(monkeypatch, Tiring())
    calibrate(prompts, tmp_path / "c.json", "--policy", "band", expect=2)
    assert "RuntimeError: tired" in said(capsys)
    assert not (tmp_path / "c.json").exists()
    assert len((tmp_path / "c.json.scores.jsonl").read_text().splitlines()) == N + 1


def test_the_table_says_what_prompts_buy(tmp_path, prompts, monkeypatch, capsys):
    serve(monkeypatch, Counting())
    calibrate(prompts, tmp_path / "c.json", "--table")
    words = said(capsys)
    assert "what more prompts would buy" in words
    assert all(f" {n} " in words for n in (50, 500, 25000))
    assert "24 prompts are few" in words
