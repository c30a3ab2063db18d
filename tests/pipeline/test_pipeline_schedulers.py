"""A pipeline's scheduler as a solver's name: what diffusers' call paints with it, ours does, no solver being named."""

import diffusers
import numpy as np
import pytest
from tiny_folders import SIZE, VP, model
from tiny_pipes import diffusers_pipe

from allaprima.core.errors import ModelError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.schedulers import SOLVERS
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS, STEPS = ["red fox", "a blue owl"], [11, 12], 4
TEXT = TextSettings(max_length=12)
SD = {k: VP[k] for k in ("beta_schedule", "beta_start", "beta_end")}
DRAWS = {
    "LCMScheduler": "scheduling_lcm", "TCDScheduler": "scheduling_tcd",
    "EulerAncestralDiscreteScheduler": "scheduling_euler_ancestral_discrete",
}  # fmt: skip
"""Module of each that draws noise on its way."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model("sd", tmp_path_factory.mktemp("sd") / "model")


@pytest.fixture
def pipe(folder):
    made = diffusers_pipe("sd", folder)
    made.set_progress_bar_config(disable=True)
    return made


def given(pipe, kind, **config):
    pipe.scheduler = getattr(diffusers, kind)(**SD, **config)
    return pipe


def adapted(pipe, **changes):
    more = {"text": TEXT, "batch_size": 2, "height": SIZE, "width": SIZE, "teacher_guidance": 3.0, "student_steps": STEPS}
    return AdaptivePipeline.from_pipelines(pipe, pipe, **{**more, "teacher_steps": STEPS, **changes})


def same(pipe, monkeypatch, side, bound=1e-4):
    """Pictures of ours and of diffusers' own call, from the same noise."""
    ours, kind = adapted(pipe), type(pipe.scheduler).__name__
    if kind in DRAWS:
        count = iter(range(100))
        monkeypatch.setattr(
            f"diffusers.schedulers.{DRAWS[kind]}.randn_tensor",
            lambda shape, **_: noise_batch(SEEDS, side, [next(count)] * 2, tuple(shape[1:])),
        )
    noise = noise_batch(SEEDS, "initial", [0, 0], ours.teacher.latent_shape(SIZE, SIZE))
    scale = 1.0 if side == "student" else 3.0
    due = pipe(
        PROMPTS, height=SIZE, width=SIZE, latents=noise, guidance_scale=scale, num_inference_steps=STEPS, output_type="np"
    ).images
    mine = ours(PROMPTS, seed=SEEDS, mode=f"{side}-only", output_type="np").images
    assert due.std() > 0.02, "pictures that show something are due"
    np.testing.assert_allclose(mine, due, atol=bound)
    return ours.settings


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
def test_a_student_paints_at_its_schedulers_times(pipe, kind, spacing, monkeypatch):
    more = {"clip_sample": False, "set_alpha_to_one": True} if kind == "DDIMScheduler" else {}
    given(pipe, kind, timestep_spacing=spacing, steps_offset=1, **more)
    due = SOLVERS[kind] + ("" if spacing == "leading" else f"@{spacing}")
    if (kind, spacing) == ("DDIMScheduler", "linspace"):
        # Diffusers' DDIM steps by T // n whatever its times are (tests/diffusion/test_spacing.py).
        assert adapted(pipe).settings.student_solver == due
        return
    assert same(pipe, monkeypatch, "student").student_solver == due


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_teacher_paints_at_its_schedulers_times(pipe, kind, spacing, monkeypatch):
    given(pipe, kind, timestep_spacing=spacing, steps_offset=1, final_sigmas_type="zero")
    due = SOLVERS[kind] + ("" if spacing == "linspace" else f"@{spacing}")
    assert same(pipe, monkeypatch, "teacher").teacher_solver == due


@pytest.mark.parametrize("original", [50, 20])
@pytest.mark.parametrize(("kind", "due"), [("LCMScheduler", "lcm"), ("TCDScheduler", "tcd:0")])
def test_consistency_students_paint_at_lcms_times(pipe, kind, due, original, monkeypatch):
    """Also those of another training grid, said one by one. The eta of a call that doesn't say one is 0."""
    given(pipe, kind, original_inference_steps=original)
    times = "" if original == 50 else "@999,749,499,249"
    assert same(pipe, monkeypatch, "student").student_solver == due + times
    assert pipe.scheduler.config.original_inference_steps == original
    if original == 20:
        assert adapted(pipe, student_steps=2).settings.student_solver == due + "@999,499"
        with pytest.raises(ModelError, match="has no 30 times"):
            adapted(pipe, student_steps=30)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_schedule_may_end_without_signal(pipe, kind, monkeypatch):
    """arXiv 2305.08891; but for DDIM, diffusers keeps 2^-24 of signal (tests/diffusion/test_spacing.py)."""
    more = {"DDIMScheduler": {"clip_sample": False}, "DPMSolverMultistepScheduler": {"final_sigmas_type": "zero"}}
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **more.get(kind, {})}
    given(pipe, kind, prediction_type="v_prediction", **zero)
    assert same(pipe, monkeypatch, "teacher", bound=1e-4 if kind == "DDIMScheduler" else 1e-3)
    schedule = adapted(pipe).teacher.schedule
    assert schedule.zero_terminal
    with pytest.raises(ModelError, match="rescale_betas_zero_snr with prediction_type='epsilon'"):
        adapted(given(pipe, kind, **zero))


@pytest.mark.parametrize("odd", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_noise_levels_in_place_of_times_are_refused(pipe, odd):
    given(pipe, "DPMSolverMultistepScheduler", **{odd: True})
    with pytest.raises(ModelError, match=rf"{odd}=True: .*leading, trailing, linspace.*teacher_solver='dpm_solver'"):
        adapted(pipe)
    named = adapted(pipe, student_solver="lcm", teacher_solver="dpm_solver@trailing")
    assert (named.settings.student_solver, named.settings.teacher_solver) == ("lcm", "dpm_solver@trailing")


def test_a_scheduler_that_is_not_known_has_the_usual_solver(pipe):
    given(pipe, "PNDMScheduler", skip_prk_steps=True, steps_offset=1)
    settings = adapted(pipe).settings
    assert (settings.student_solver, settings.teacher_solver) == ("consistency", "dpm_solver")


def test_times_said_one_by_one_hold_for_as_many_steps(pipe):
    ours = adapted(given(pipe, "LCMScheduler", original_inference_steps=20))
    with pytest.raises(SettingError, match="steps=3 with 4 times"):
        ours(PROMPTS, seed=SEEDS, mode="student-only", student_steps=3)
