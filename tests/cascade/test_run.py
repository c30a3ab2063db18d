"""The cascade on a toy pair with known answers: decisions, accounting, grouping, independence of batch mates."""

import dataclasses
import json

import pytest
import torch

from allaprima.cascade.latent_cascade import LatentCascade
from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.runner import run
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import PromptError, SettingError
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import ClassifierFreeGuidance, GuidanceInterval
from allaprima.diffusion.noising import Variance
from allaprima.diffusion.schedules import DiscreteVP
from allaprima.models.diffusion_model import DiffusionModel

VP = DiscreteVP.from_config({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})


class Toy(DiffusionModel):
    """Paints a picture of one grey per prompt ('0.3' -> .3 + its own bias), and records the shapes it is called with."""

    schedule = VP

    def __init__(self, bias=0.0):
        self.bias, self.batches = bias, []

    @property
    def denoiser(self):
        def x0(x_t, t, cond: Condition):
            self.batches.append(len(x_t))
            # A pinch of x_t, so that noise (and with it the seed) shows in the result.
            # Half of the prompt: the tests guide with scale 2, away from the empty prompt's 0.
            return cond.tensors["prompt_embeds"][:, :, None, None].expand_as(x_t) / 2 + self.bias + 0.01 * x_t

        x0.evaluations_per_call = 1
        return ClassifierFreeGuidance(x0)

    def latent_shape(self, height, width):
        return (1, height, width)

    def check_prompt(self, prompt):
        if not prompt.strip():
            raise PromptError("the prompt is empty")

    def condition(self, prompts):
        return Condition({"prompt_embeds": torch.tensor([[float(p or 0)] for p in prompts])})

    def decode(self, latents):
        return latents.expand(-1, 3, -1, -1).clamp(0, 1)


class Grey:
    """Scores a picture by its mean."""

    def __init__(self):
        self.batches = []

    def score(self, images, prompts):
        self.batches.append(len(images))
        return images.mean((1, 2, 3))


SETTINGS = CascadeSettings(
    student_steps=2,
    teacher_steps=3,
    student_guidance=2,
    teacher_guidance=2,
    batch_size=4,
    height=2,
    width=2,
    sigma=Variance(0.5),
)


def paint(prompts, policy, settings=SETTINGS, oracle=None, seeds=None):
    student, teacher = Toy(), Toy(bias=0.3)
    cascade = LatentCascade(student, teacher, oracle or Grey(), policy, settings)
    requests = [GenerationRequest(p, i if seeds is None else seeds[i], index=i) for i, p in enumerate(prompts)]
    results = sorted(run(cascade, requests), key=lambda r: r.request.index)
    return results, student, teacher


def test_only_what_falls_short_goes_to_the_teacher():
    results, _, teacher = paint(["0.2", "0.6", "0.1", "0.9"], ThresholdPolicy(0.4))
    assert [str(r.decision) for r in results] == ["refine", "accept", "refine", "accept"]
    assert all(torch.equal(r.image, r.draft) for r in results if r.decision is Decision.ACCEPT)
    for r in results:
        if r.decision is Decision.REFINE:
            assert float(r.image.mean() - r.draft.mean()) == pytest.approx(0.3, abs=0.05)
    assert len(teacher.batches) == 3


def test_costs_count_both_halves_of_guidance_and_any_sigma_is_n_steps():
    for sigma in (0.1, 0.5, 0.9):
        results, _, _ = paint(
            ["0.2", "0.6"], ThresholdPolicy(0.4), CascadeSettings(**{**SETTINGS.__dict__, "sigma": Variance(sigma)})
        )
        assert results[0].cost.evaluations == {"student": 4, "teacher": 6, "oracle": 1}
        assert results[1].cost.evaluations == {"student": 4, "oracle": 1}


def test_escalations_of_many_prompts_share_full_batches_of_one_shape():
    prompts = ["0.1", "0.9"] * 8
    _, student, teacher = paint(prompts, ThresholdPolicy(0.4))
    # 16 drafts in 4 batches of 2 steps; 8 escalations in 2 batches of 3 steps; guidance doubles each batch of 4.
    assert student.batches == [8] * 8
    assert teacher.batches == [8] * 6


@pytest.mark.parametrize("strategy", [Decision.REFINE, Decision.REGENERATE])
def test_a_picture_does_not_depend_on_its_mates(strategy):
    prompts, seeds = ["0.1", "0.9", "0.2", "0.3", "0.15", "0.7"], [5, 6, 7, 8, 9, 10]
    together, _, _ = paint(prompts, ThresholdPolicy(0.4, strategy), seeds=seeds)
    reverse, _, _ = paint(prompts[::-1], ThresholdPolicy(0.4, strategy), seeds=seeds[::-1])
    for i, r in enumerate(together):
        (alone,), _, _ = paint([prompts[i]], ThresholdPolicy(0.4, strategy), seeds=[seeds[i]])
        assert torch.equal(r.image, alone.image)
        assert torch.equal(r.image, reverse[-1 - i].image)
    assert not torch.equal(together[0].image, paint(["0.1"], ThresholdPolicy(0.4, strategy), seeds=[99])[0][0].image)


def test_regenerating_after_a_draft_equals_the_teacher_alone():
    """The paper's regeneration starts from the same noise as the draft."""
    (after,), _, _ = paint(["0.1"], ThresholdPolicy(0.4, Decision.REGENERATE))
    (alone,), student, _ = paint(["0.1"], AlwaysPolicy(Decision.REGENERATE))
    assert torch.equal(after.image, alone.image)
    assert student.batches == []
    assert alone.draft is None


def test_one_bad_prompt_does_not_stop_the_rest():
    results, _, _ = paint(["0.5", "  ", "0.6"], ThresholdPolicy(0.4))
    assert [r.error for r in results] == [None, "the prompt is empty", None]
    assert results[1].image is None


def test_a_score_that_is_no_number_goes_to_the_teacher():
    assert ThresholdPolicy(0.1).decide([float("nan"), 0.1, 0.2, 0.0]) == ["refine", "accept", "accept", "refine"]


@pytest.mark.parametrize(
    "change",
    [{"teacher_steps": 0}, {"student_steps": 1001}, {"batch_size": 0}, {"teacher_solver": "ddmi"}, {"strategy": "repaint"},
     {"teacher_guidance": -1}, {"teacher_last_time": 20.0}],
)  # fmt: skip
def test_settings_out_of_range_name_the_value(change):
    ((name, value),) = change.items()
    with pytest.raises(SettingError, match=f"{name}={value!r}"):
        CascadeSettings(**{"teacher_solver": "heun", **change})


def test_a_last_time_belongs_to_its_solver():
    tuned = CascadeSettings(teacher_solver="dpm_solver", teacher_last_time=20.0)
    assert tuned.changed(teacher_steps=25).teacher_last_time == 20
    assert tuned.changed(teacher_solver="heun").teacher_last_time is None
    assert tuned.changed(teacher_solver="unipc", teacher_last_time=9.0).teacher_last_time == 9


def test_settings_survive_json():
    guided = dataclasses.replace(SETTINGS, teacher_guidance_interval=GuidanceInterval(100, 800, 2.0))
    for settings in (SETTINGS, guided):
        assert CascadeSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


def test_guidance_is_full_inside_its_interval_and_none_costs_one_evaluation():
    """The toy's prompt is .5 and its negative 0, half of which it paints unguided: about .25 w at scale w."""
    teacher = Toy()
    settings = dataclasses.replace(
        SETTINGS, strategy="regenerate", teacher_guidance=3, teacher_solver="ddim", teacher_steps=4
    )

    def painted(interval):
        teacher.batches.clear()
        changed = dataclasses.replace(settings, teacher_guidance_interval=interval)
        cascade = LatentCascade(Toy(), teacher, None, AlwaysPolicy(Decision.REGENERATE), changed)
        results = list(run(cascade, [GenerationRequest("0.5", seed) for seed in range(3)]))
        return float(results[0].image.mean()), results[0].cost.evaluations["teacher"], list(teacher.batches)

    size = SETTINGS.batch_size
    assert painted(None) == (pytest.approx(0.75, abs=0.02), 8, [2 * size] * 4)
    # DDIM's four times are 751, 501, 251 and 1: the last is what the picture is.
    assert painted(GuidanceInterval(100, 1000)) == (pytest.approx(0.25, abs=0.02), 7, [2 * size] * 3 + [size])
    assert painted(GuidanceInterval(100, 1000, 1.2)) == (pytest.approx(0.3, abs=0.02), 8, [2 * size] * 4)
    assert painted(GuidanceInterval(0, 600)) == (pytest.approx(0.75, abs=0.02), 7, [size] + [2 * size] * 3)


class Stumbling(Toy):
    """Raises for one prompt, when it is encoded."""

    def condition(self, prompts):
        if "0.9" in prompts:
            raise RuntimeError("no such token")
        return super().condition(prompts)


def test_a_prompt_whose_encoder_raises_costs_itself_only():
    requests = [GenerationRequest(p, seed, index=seed) for seed, p in enumerate(("0.3", "0.9", "0.5"))]

    def painted(student, some):
        cascade = LatentCascade(student, Toy(0.1), None, AlwaysPolicy(Decision.REFINE), SETTINGS)
        return {r.request.index: r for r in run(cascade, some)}

    found, alone = painted(Stumbling(), requests), painted(Toy(), [requests[0], requests[2]])
    assert (found[1].image, found[1].error) == (None, "RuntimeError: no such token")
    for i in (0, 2):
        assert torch.equal(found[i].image, alone[i].image)
        assert found[i].cost.evaluations == alone[i].cost.evaluations
    cascade = LatentCascade(Stumbling(), Toy(0.1), None, AlwaysPolicy(Decision.REFINE), SETTINGS)
    with pytest.raises(RuntimeError, match="no such token"):
        list(run(cascade, requests, isolate=False))
