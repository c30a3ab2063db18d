"""Editing in the cascade, on a pair with known answers: where painting begins, what it costs, what a mask keeps."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allaprima.cascade.image_conditioning import student_steps
from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.conditioning.edit import Edit, ImageInput, last_steps
from allaprima.core.errors import SettingError
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import ClassifierFreeGuidance
from allaprima.diffusion.solvers import make_solver
from allaprima.pipeline import AdaptivePipeline
from tests.toys import SETTINGS, VP, Grey, Toy

SIDE = 4
EDITING = dataclasses.replace(
    SETTINGS, height=SIDE, width=SIDE, student_guidance=1, teacher_guidance=1, teacher_solver="ddim", teacher_steps=10,
    strategy="regenerate",
)  # fmt: skip


class Editor(Toy):
    """A Gaussian around the prompt's grey, whose exact denoiser is known; latents are the grey of a pixel."""

    spread = 0.3

    @property
    def denoiser(self):
        def x0(x_t, t, cond: Condition):
            a, s = VP.alpha(t)[:, None, None, None], VP.sigma(t)[:, None, None, None]
            mean = cond.tensors["prompt_embeds"][..., None].double() + self.bias
            gain = a * self.spread**2 / (a**2 * self.spread**2 + s**2)
            return (mean + gain * (x_t.double() - a * mean)).float()

        x0.evaluations_per_call = 1
        return ClassifierFreeGuidance(x0)

    def encode_images(self, images):
        return images.mean(1, keepdim=True)

    def decode(self, latents):
        return latents.expand(-1, 3, -1, -1)


def grey(value):
    return torch.full((3, SIDE, SIDE), value)


def edited(strength=0.5, value=0.2, mask=None):
    return Edit(ImageInput.of(grey(value)), strength, None if mask is None else ImageInput.of(mask))


def paint(edits, policy, prompts=None, settings=EDITING, student=None, seeds=None):
    prompts = prompts or ["0.8"] * len(edits)
    cascade = LatentCascade(student or Editor(), Editor(), Grey(), policy, settings)
    seeds = seeds or range(len(edits))
    requests = [
        GenerationRequest(p, s, index=i, edit=e) for i, (p, s, e) in enumerate(zip(prompts, seeds, edits, strict=True))
    ]
    return sorted(run(cascade, requests), key=lambda r: r.request.index)


TEACHER = AlwaysPolicy(Decision.REGENERATE)


def test_an_edit_of_a_gaussian_is_its_closed_form():
    """The flow of a Gaussian is linear: what is left of the picture and of the noise follows from the two ends."""
    settings = dataclasses.replace(EDITING, teacher_steps=500)
    (result,) = paint([edited(0.6)], TEACHER, settings=settings)
    t = torch.tensor([last_steps(make_solver("ddim", VP).timesteps(500), 0.6)[0].t], dtype=torch.float64)
    a, s, mean, spread = VP.alpha(t), VP.sigma(t), 0.8, Editor.spread
    noise = noise_batch([0], "initial", [0], (1, SIDE, SIDE))[0].double()
    start = a * 0.2 + s * noise
    due = mean + (start - a * mean) * spread / (a**2 * spread**2 + s**2).sqrt()
    assert float((result.image[:1].double() - due).abs().max()) < 0.01
    assert float((due - 0.2).abs().min()) > 0.05, "something has changed"


def test_the_less_strength_the_more_is_left():
    away = []
    for strength in (0.2, 0.5, 0.9):
        (result,) = paint([edited(strength)], TEACHER)
        away.append(float((result.image - 0.2).abs().mean()))
    assert away[0] < away[1] < away[2]


@pytest.mark.parametrize("solver", ["ddim", "dpm_solver", "unipc", "euler"])
def test_the_teacher_takes_the_end_of_its_grid_and_pays_for_no_more(solver):
    settings = dataclasses.replace(EDITING, teacher_solver=solver)
    results = paint([edited(0.35), edited(0.9), edited(0.01)], TEACHER, settings=settings)
    assert [r.cost.evaluations["teacher"] for r in results] == [3, 9, 1]
    whole = make_solver(solver, VP).timesteps(10)
    assert last_steps(whole, 0.35) == whole[7:]


def test_steps_of_two_parts_are_kept_whole():
    plan = last_steps(make_solver("heun", VP).timesteps(11), 0.5)
    assert plan[0].phase == 0
    assert len([p for p in plan if p.phase == 0]) == 3


def test_a_student_takes_all_its_steps_at_times_it_was_trained_on():
    solver = make_solver("consistency", VP)
    assert [p.t for p in student_steps(edited(0.6), solver, 3)] == [581, 381, 181]
    assert [p.t for p in solver.timesteps(5)] == [981, 781, 581, 381, 181]
    assert len(student_steps(edited(0.03), solver, 5)) == 5, "more steps than grid points: the promise is kept"
    assert [p.t for p in student_steps(edited(0.6), make_solver("ddim", VP), 2)] == [600, 300]
    results = paint([edited(0.6)], AlwaysPolicy(Decision.ACCEPT), settings=dataclasses.replace(EDITING, student_steps=3))
    assert results[0].cost.evaluations["student"] == 3


def test_drafts_that_fall_short_are_edited_by_the_teacher_from_the_same_noise():
    both = paint([edited(0.6, 0.1), edited(0.6, 0.9)], ThresholdPolicy(0.6, Decision.REGENERATE), ["0.2", "0.9"])
    assert [str(r.decision) for r in both] == ["regenerate", "accept"]
    (alone,) = paint([edited(0.6, 0.1)], TEACHER, ["0.2"])
    assert torch.equal(both[0].image, alone.image)
    assert torch.equal(both[1].image, both[1].draft)


def test_same_bits_alone_and_among_others():
    half = torch.zeros(1, SIDE, SIDE)
    half[:, :2] = 1
    edits = [edited(0.3), edited(0.7, 0.9, half), None, edited(1.0, 0.4, half), edited(0.3, 0.5)]
    policy = ThresholdPolicy(0.5, Decision.REGENERATE)
    prompts = ["0.3", "0.8", "0.4", "0.9", "0.7"]
    together = paint(edits, policy, prompts)
    for i, edit in enumerate(edits):
        (alone,) = paint([edit], policy, [prompts[i]], seeds=[i])
        assert torch.equal(alone.image, together[i].image), i


@given(strength=st.floats(0.05, 1.0), seed=st.integers(0, 1000))
def test_outside_a_mask_a_picture_is_untouched(strength, seed):
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 1:3, 1:3] = 1
    picture = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    edit = Edit(ImageInput.of(picture), strength, ImageInput.of(mask))
    for policy in (TEACHER, AlwaysPolicy(Decision.ACCEPT), AlwaysPolicy(Decision.REFINE)):
        (result,) = paint([edit], policy, seeds=[seed])
        outside = (mask == 0).expand_as(picture)
        assert torch.equal(result.image[outside], picture[outside])
        assert not torch.equal(result.image[~outside], picture[~outside])


def test_what_is_painted_inside_a_mask_knows_what_is_outside():
    """A Gaussian whose pixels are all alike: the kept half tells the rest."""

    class Flat(Editor):
        @property
        def denoiser(self):
            def x0(x_t, t, cond: Condition):
                a, s = VP.alpha(t)[:, None, None, None], VP.sigma(t)[:, None, None, None]
                n, spread = SIDE * SIDE, 1.0
                mean = x_t.double().mean((2, 3), keepdim=True)
                level = 0.5 + a * spread**2 / (a**2 * spread**2 + s**2 / n) * (mean - a * 0.5)
                return level.expand_as(x_t).float()

            x0.evaluations_per_call = 1
            return ClassifierFreeGuidance(x0)

    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :1] = 1
    settings = dataclasses.replace(EDITING, teacher_steps=50)
    cascade = LatentCascade(Flat(), Flat(), Grey(), TEACHER, settings)
    edit = Edit(ImageInput.of(grey(0.9)), 1.0, ImageInput.of(mask))
    levels = []
    for start in (edit, None):
        results = list(run(cascade, [GenerationRequest("0.5", seed, index=seed, edit=start) for seed in range(16)]))
        levels.append(torch.stack([r.image[0, 0].mean() for r in results]))
    assert float((levels[0] - 0.9).abs().max()) < 0.2, "blending is near to conditioning, not equal to it"
    assert float(levels[1].std()) > 0.5, "without the picture it may be anything"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: edited(0.0), "above 0"),
        (lambda: edited(1.0), "forgets the picture"),
        (lambda: edited(float("nan")), "out of range"),
    ],
)
def test_strengths_that_mean_nothing_are_refused(make, says):
    with pytest.raises(SettingError, match=says):
        make()


def test_a_picture_of_another_size_costs_itself_only():
    wrong = Edit(ImageInput.of(torch.zeros(3, SIDE, SIDE + 2)), 0.5)
    badly = edited(0.5, 0.2, torch.ones(1, 2, 2))
    results = paint([edited(0.5), wrong, badly], TEACHER)
    assert [r.error is None for r in results] == [True, False, False]
    assert "6x4" in results[1].error
    assert "mask of 2x2" in results[2].error


def test_a_painter_that_reads_no_pictures_says_so():
    (result,) = paint([edited(0.5)], TEACHER, student=Toy())
    assert "encode_images" in result.error


def test_the_pipeline_takes_diffusers_arguments():
    pipe = AdaptivePipeline(Editor(), Editor(), Grey(), EDITING)
    out = pipe(["0.3", "0.9"], image=grey(0.2), strength=0.5, seed=1, threshold=0.5)
    assert out.decisions == ["regenerate", "accept"]
    assert [r.row()["edit"]["strength"] for r in out.results] == [0.5, 0.5]
    again = pipe(["0.3", "0.9"], image=[grey(0.2)] * 2, strength=[0.5, 0.5], seed=1, threshold=0.5)
    assert all(torch.equal(a.image, b.image) for a, b in zip(out.results, again.results, strict=True))
    assert pipe(["0.3"], image=grey(0.2), seed=1, mode="student-only").results[0].request.edit.strength == 0.8
    masked = pipe(["0.3"], image=grey(0.2), mask_image=torch.ones(SIDE, SIDE), seed=1, mode="student-only")
    assert masked.results[0].request.edit.strength == 1
    refined = pipe(["0.3"], image=grey(0.2), strength=0.5, seed=1, threshold=0.5, strategy="refine")
    assert refined.decisions == ["refine"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"strength": 0.5}, "without a picture"),
        ({"mask_image": torch.ones(SIDE, SIDE)}, "without a picture"),
        ({"image": [grey(0.2)] * 3}, "3 of image for 2 prompts"),
        ({"image": grey(0.2), "strength": [0.5]}, "1 strengths for 2 prompts"),
        ({"image": grey(1.2)}, "values in"),
        ({"image": grey(0.2)[0]}, r"shape \(4, 4\)"),
        ({"image": grey(0.2), "mask_image": torch.full((SIDE, SIDE), 2.0)}, "a mask of shape"),
        ({"image": torch.zeros(3, 2, 2)}, "2x2"),
    ],
)
def test_the_pipeline_refuses_before_it_paints(arguments, says):
    pipe = AdaptivePipeline(Editor(), Editor(), Grey(), EDITING)
    with pytest.raises(SettingError, match=says):
        pipe(["0.3", "0.9"], seed=1, mode="teacher-only", **arguments)
