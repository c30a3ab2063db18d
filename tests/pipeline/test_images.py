"""The cascade of whole pictures paints what diffusers' pipelines paint when they are called by hand."""

import math

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoPipelineForImage2Image, StableDiffusionPipeline
from tiny_folders import SIZE, model
from tiny_oracles import Brightness, seeded

from allaprima.cascade.generator_adapter import GeneratorAdapter
from allaprima.cascade.pixel_cascade import derived
from allaprima.cascade.policy import PreRoute, ThresholdPolicy
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.core.errors import ModelError, PaintingError, PromptError, SettingError
from allaprima.data.images import to_pil
from allaprima.diffusion.noising import Strength, Variance
from allaprima.models.external.diffusers_generator import DiffusersGenerator
from allaprima.models.external.image_generator import GeneratedImage, GeneratorRequest, steps_for_strength
from allaprima.models.loading.from_pipelines import as_model
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "a blue owl", "red"], [11, 12, 13]
SETTINGS = {
    "student_steps": 2, "teacher_steps": 3, "teacher_guidance": 3.0, "height": SIZE, "width": SIZE, "sigma": Strength(0.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    from test_from_pipelines import diffusers_pipe

    pipe = diffusers_pipe("sd", model("sd", tmp_path_factory.mktemp("sd") / "model"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def whole(sd):
    return AdaptivePipeline.from_pipelines(sd, sd, Brightness(), level="images", **SETTINGS)


def by_hand(sd, prompt, seed, steps, guidance, **more):
    # Chosen apart from the code under test: seeds, steps and scales are what the docs say.
    return sd(
        prompt, num_inference_steps=steps, guidance_scale=guidance, generator=seeded(seed), output_type="np", **more
    ).images[0]


def test_drafts_and_repaintings_are_the_pipelines_own(sd, whole):
    assert whole.level == "images"
    drafts = whole(PROMPTS, seed=SEEDS, mode="student-only", output_type="np").images
    anew = whole(PROMPTS, seed=SEEDS, mode="teacher-only", output_type="np").images
    over = whole(PROMPTS, seed=SEEDS, mode="refine-all", output_type="np")
    image_to_image = AutoPipelineForImage2Image.from_pipe(sd)
    image_to_image.set_progress_bar_config(disable=True)
    for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        draft = by_hand(sd, prompt, seed, 2, 1.0, height=SIZE, width=SIZE)
        assert draft.std() > 0.02
        np.testing.assert_allclose(drafts[i], draft, atol=1e-6)
        np.testing.assert_allclose(anew[i], by_hand(sd, prompt, seed, 3, 3.0, height=SIZE, width=SIZE), atol=1e-6)
        picture = to_pil(torch.from_numpy(draft).permute(2, 0, 1))
        due = by_hand(image_to_image, prompt, derived(seed, "rollback", 0), 6, 3.0, image=picture, strength=0.5)
        np.testing.assert_allclose(over.images[i], due, atol=1e-6)
    # Two steps without guidance; three of six with it, two evaluations each.
    assert over.costs[0].evaluations == {"student": 2, "oracle": 1, "teacher": 6}
    assert over.results[0].steps == 5
    assert over.results[0].record()["steps"] == 5


def test_adaptive_from_end_to_end(whole):
    out = whole(PROMPTS, seed=SEEDS, mode="student-only")
    scores = sorted(r.draft.mean().item() for r in out.results)
    threshold = (scores[0] + scores[1]) / 2
    mixed = whole(PROMPTS, seed=SEEDS, threshold=threshold, output_type="pt")
    assert sorted(mixed.decisions) == ["accept", "accept", "refine"]
    for r, d in zip(mixed.results, mixed.decisions, strict=True):
        assert torch.equal(r.image, r.draft) is (d == "accept")
        assert r.threshold == threshold
    anew = whole(PROMPTS, seed=SEEDS, threshold=threshold, strategy="regenerate", output_type="pt")
    assert torch.equal(anew.images[mixed.decisions.index("refine")], whole(
        PROMPTS[mixed.decisions.index("refine")], seed=SEEDS[mixed.decisions.index("refine")], mode="teacher-only",
        output_type="pt").images[0])  # fmt: skip


def test_policies_draft_again_and_look_again(whole):
    requests = requests_of(PROMPTS, SEEDS)
    twice = list(whole.stream(requests, policy=SequentialPolicy(9.0, 3, margin=math.inf)))
    assert {r.attempts for r in twice} == {3}
    assert {r.cost.evaluations["student"] for r in twice} == {6}
    drafts = {r.request.index: r for r in twice}
    seeds = [SEEDS[0], derived(SEEDS[0], "initial", 1), derived(SEEDS[0], "initial", 2)]
    three = whole([PROMPTS[0]] * 3, seed=seeds, mode="student-only").results
    assert drafts[0].score == max(r.draft.mean().item() for r in three)
    for r in whole.stream(requests, policy=SequentialPolicy(9.0)):
        assert r.selected == ("draft" if r.score > r.final_score else "final")


def requests_of(prompts, seeds):
    from allaprima.cascade.request import GenerationRequest

    return [GenerationRequest(p, s, "", i) for i, (p, s) in enumerate(zip(prompts, seeds, strict=True))]


def test_several_rows_a_call_paint_the_same(sd, whole):
    rows = AdaptivePipeline.from_pipelines(
        DiffusersGenerator.of(sd, rows=2), DiffusersGenerator.of(sd, rows=2), Brightness(), batch_size=4, **SETTINGS
    )
    run = {"seed": SEEDS, "mode": "refine-all", "output_type": "pt", "negative_prompt": ["", "a", ""]}
    three = rows(PROMPTS, **run)
    torch.testing.assert_close(three.images, whole(PROMPTS, **run).images, atol=1e-5, rtol=0)
    alone = rows(PROMPTS[2], seed=SEEDS[2], mode="refine-all", output_type="pt")
    assert torch.equal(alone.images[0], three.images[2])
    assert three.costs[0].evaluations == {"student": 2, "oracle": 1, "teacher": 6}


def test_a_known_family_stands_beside_an_unknown_one(sd, whole):
    model_ = as_model(sd)
    steps = AdaptivePipeline.from_pipelines(sd, sd, Brightness(), level="steps", **SETTINGS, batch_size=2)
    mixed = AdaptivePipeline(
        model_, whole.teacher, Brightness(), whole.settings.changed(student_solver="ddim", batch_size=2)
    )
    assert mixed.level == "images"
    request = {"seed": SEEDS, "mode": "student-only", "output_type": "pt", "student_solver": "ddim"}
    assert torch.equal(mixed(PROMPTS, **request).images, steps(PROMPTS, **request).images), "step by step, to the bit"
    over = mixed(PROMPTS, seed=SEEDS, mode="refine-all").results
    assert {tuple(sorted(r.cost.evaluations.items())) for r in over} == {(("oracle", 1), ("student", 2), ("teacher", 6))}
    teacher = GeneratorAdapter(model_, False)
    seen = GeneratorRequest("red", 1, 3, 3.0, SIZE, SIZE, solver="ddim", image=over[0].draft, strength=0.5)
    (found,) = teacher.paint([seen], 1)
    assert isinstance(found, GeneratedImage)
    assert found.evaluations == 6


class Breaks:
    """A teacher whose every picture fails but one prompt's."""

    fingerprint, paints_over = "breaks-1", True

    def check(self, request):
        pass

    def paint(self, requests, batch):
        return [
            GeneratedImage(torch.zeros(3, SIZE, SIZE), 1, 1) if a.prompt == "red" else RuntimeError("no") for a in requests
        ]

    def encode(self, prompts):
        raise NotImplementedError


def test_a_failure_costs_that_picture_only(whole):
    settings = whole.settings.changed(batch_size=4)
    kept = AdaptivePipeline(whole.student, Breaks(), Brightness(), settings)
    out = kept(PROMPTS, seed=SEEDS, mode="refine-all")
    assert [r.warning for r in out.results] == ["the teacher failed: RuntimeError: no; the draft is kept"] * 2 + [None]
    assert torch.equal(out.results[0].image, out.results[0].draft)
    assert "teacher" not in out.costs[0].evaluations
    with pytest.raises(PaintingError, match=r"2 of 3 pictures failed, the first: the teacher failed: RuntimeError: no") as e:
        kept(PROMPTS, seed=SEEDS, mode="teacher-only")
    assert [r.image is None for r in e.value.results] == [True, True, False]
    broken = AdaptivePipeline(Breaks(), whole.teacher, Brightness(), settings)
    with pytest.raises(PaintingError, match="the student failed"):
        broken(PROMPTS, seed=SEEDS, mode="student-only")
    with pytest.raises(PaintingError, match=r"it painted \(3, 16, 16\), not \(3, 32, 32\)"):
        broken(["red"], seed=1, mode="student-only", height=32, width=32)


class Once(Breaks):
    """A student that paints seeds under 100 only: derived ones, of later drafts, are far larger."""

    def __init__(self, inner):
        self.inner = inner

    def paint(self, requests, batch):
        found = self.inner.paint(requests, batch)
        return [p if a.seed < 100 else RuntimeError("no") for a, p in zip(requests, found, strict=True)]


def test_a_later_draft_that_fails_leaves_the_one_before_it(whole):
    pipe = AdaptivePipeline(Once(whole.student), whole.teacher, Brightness(), whole.settings.changed(batch_size=4))
    drafts = whole(PROMPTS, seed=SEEDS, mode="student-only", output_type="pt").images
    found = sorted(
        pipe.stream(requests_of(PROMPTS, SEEDS), policy=SequentialPolicy(9.0, 3, margin=math.inf)),
        key=lambda r: r.request.index,
    )
    assert [r.warning for r in found] == ["the student failed: RuntimeError: no; the draft before it is kept"] * 3
    assert all(torch.equal(r.image, draft) for r, draft in zip(found, drafts, strict=True))


def test_policies_that_read_prompts_are_refused(whole):
    with pytest.raises(SettingError, match="PreRoute reads prompts' hidden states"):
        list(whole.stream(requests_of(PROMPTS, SEEDS), policy=PreRoute(ThresholdPolicy(0.5), None, 0.3)))


def test_what_cannot_be_is_refused_before_anything_is_painted(sd, whole):
    for words, request in {
        "share of the schedule": {"sigma": Variance(0.5)},
        "own scheduler": {"student_solver": "ddim"},
        "show no steps": {"callback_on_step_end": lambda *a: None},
        "no last_time": {"teacher_solver": "ddim", "teacher_last_time": 20.0},
    }.items():
        with pytest.raises(SettingError, match=words):
            whole("red", mode="refine-all", **request)
    with pytest.raises(PromptError, match="empty"):
        whole(" ", mode="student-only")
    with pytest.raises(PromptError, match="tokens"):
        whole("red, " * 12, mode="student-only")
    with pytest.raises(SettingError, match="known family"):
        whole("red", image=torch.zeros(3, SIZE, SIZE), mode="student-only")
    only_text = AdaptivePipeline(whole.student, DiffusersGenerator(sd), Brightness(), whole.settings)
    with pytest.raises(SettingError, match="can't paint over"):
        only_text("red", mode="refine-all")
    assert AdaptivePipeline.from_pipelines(sd, DiffusersGenerator(sd)).settings.strategy == "regenerate"
    with pytest.raises(ModelError, match="takes no prompt"):
        DiffusersGenerator(object())


def test_a_teacher_that_only_paints_over_pictures_does(sd, whole):
    image_to_image = AutoPipelineForImage2Image.from_pipe(sd)
    image_to_image.set_progress_bar_config(disable=True)
    only = AdaptivePipeline(whole.student, DiffusersGenerator(image=image_to_image), Brightness(), whole.settings)
    request = {"seed": 11, "mode": "refine-all", "output_type": "pt"}
    assert torch.equal(only("red", **request).images, whole("red", **request).images)
    with pytest.raises(SettingError, match="can't paint from a prompt alone"):
        only("red", mode="teacher-only")


@pytest.mark.parametrize("steps", [1, 3, 7, 20, 29])
@pytest.mark.parametrize("strength", [0.1, 0.29, 0.3, 0.5, 0.57, 0.7, 0.9])
def test_n_steps_are_n_steps_whatever_the_strength(steps, strength):
    n = steps_for_strength(steps, strength)
    assert min(int(n * strength), n) == steps
    assert int((n - 1) * strength) < steps


def test_a_card_of_any_family_from_the_command_line(sd, tmp_path):
    import json

    from command_line import allaprima

    from allaprima.data.images import read_chunks
    from allaprima.models.cards.card import load_card

    folder = tmp_path / "model"
    sd.save_pretrained(folder, safe_serialization=True)
    side = {"source": "model", "license": "Apache-2.0"}
    raw = {
        "name": "whole", "family": "any", "description": "tiny", "height": SIZE, "width": SIZE,
        "student": {**side, "steps": 2, "guidance_scale": 1.0}, "teacher": {**side, "steps": 3, "guidance_scale": 3.0},
        "oracle": {"kind": "none", "source": "none", "license": "none"},
        "cascade": {"strategy": "refine", "sigma": 0.5, "sigma_is": "strength"},
    }  # fmt: skip
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(raw))
    assert load_card(tmp_path).student.solver == "own"
    out = tmp_path / "out"
    allaprima("generate", "red fox", "--card", tmp_path, "--out", out, "--seed", 11, "--teacher-only")
    (row,) = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert (row["steps"], row["decision"], row["evaluations"]) == (3, "regenerate", {"teacher": 6})
    record = json.loads(read_chunks(out / "images" / "00000.png")["allaprima"])
    assert record["settings"]["teacher_solver"] == "own"
    due = by_hand(sd, "red fox", 11, 3, 3.0, height=SIZE, width=SIZE)
    from PIL import Image

    np.testing.assert_array_equal(np.asarray(Image.open(out / "images" / "00000.png")), (due * 255).round().astype(np.uint8))
    allaprima("show", out / "images" / "00000.png", "--repeat")
    assert isinstance(sd, StableDiffusionPipeline)
