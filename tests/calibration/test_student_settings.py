"""A calibration holds for the student's settings it was made with: each that changes a draft is part of what is checked."""

import pytest

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.budget import Prices
from allaprima.core.errors import CalibrationError
from allaprima.pipeline import AdaptivePipeline
from tests.toys import SETTINGS, Grey, Toy


class Oracle(Grey):
    name, fingerprint = "grey", "grey-1"


def calibrated():
    pipe = AdaptivePipeline(Toy(), Toy(0.3), Oracle(), SETTINGS)
    prices = Prices.from_steps(SETTINGS.student_steps, SETTINGS.teacher_steps)
    pipe.calibration = Calibration.make(
        [i / 100 for i in range(100)], 3.5, prices, pipe.student_settings(SETTINGS), pipe.action_settings(SETTINGS),
        pipe.fingerprints(), "0" * 64,
    )  # fmt: skip
    return pipe


def test_it_is_accepted_with_the_settings_it_was_made_with():
    assert calibrated().policy(SETTINGS, budget=3.5).threshold == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("student_guidance", 3.0), ("student_steps", 3), ("student_solver", "ddim"), ("height", 8), ("width", 8),
        ("student_guidance_rescale", 0.5), ("clip_skip", 1),
    ],
)  # fmt: skip
def test_it_is_refused_with_others(name, value):
    pipe = calibrated()
    with pytest.raises(CalibrationError, match=rf"settings\.{name} was .*, is now"):
        pipe.policy(SETTINGS.changed(**{name: value}), budget=3.5)


def test_a_call_with_another_guidance_scale_is_refused_before_anything_is_generated():
    pipe = calibrated()
    assert pipe("0.9", seed=1, budget=3.5).results[0].error is None
    with pytest.raises(CalibrationError, match="student_guidance was 2"):
        pipe("0.9", seed=1, budget=3.5, guidance_scale=3.0)


def test_a_saved_calibration_is_still_tied_to_the_guidance(tmp_path):
    pipe = calibrated()
    pipe.calibration.save(tmp_path / "c.json")
    pipe.calibration = Calibration.load(tmp_path / "c.json")
    pipe.policy(SETTINGS, budget=3.5)
    with pytest.raises(CalibrationError, match="student_guidance"):
        pipe.policy(SETTINGS.changed(student_guidance=2.5), budget=3.5)
