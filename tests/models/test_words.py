"""`prompt_2`, `prompt_3`, their negatives, `clip_skip` and `guidance_rescale`: pictures of diffusers' own pipelines."""

import dataclasses
import json

import pytest
import torch
from tiny_folders import SIZE, card
from tiny_pipes import diffusers_pipe

from allaprima.calibration.artifact import Calibration
from allaprima.calibration.budget import Prices
from allaprima.cascade.settings import CascadeSettings
from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import CalibrationError, PromptError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.guidance import rescaled
from allaprima.diffusion.noising import Strength, Variance
from allaprima.models.cards.card import load_card
from allaprima.models.external.diffusers_generator import DiffusersGenerator
from allaprima.models.families.flux import packed
from allaprima.models.loading.pair import load_pair
from allaprima.models.multi_student.model import MultiStudent
from allaprima.models.multi_student.partition import fit_pca_median
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "blue owl"], [11, 12]
SECOND, THIRD = ["a hut", "sea"], ["a tree", "red sun"]
SETTINGS = CascadeSettings(
    student_steps=4, teacher_steps=4, student_guidance=3, teacher_guidance=3, batch_size=2, height=SIZE, width=SIZE,
    sigma=Variance(0.5),
)  # fmt: skip
SOLVERS = {"sd": "ddim", "sdxl": "ddim", "sd3": "euler", "flux": "euler"}


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    made = {f: card(f, tmp_path_factory.mktemp(f)) for f in ("sd", "sdxl")}
    made["sd3"] = card("sd3", tmp_path_factory.mktemp("sd3"), t5=True)
    made["without_t5"] = card("sd3", tmp_path_factory.mktemp("without_t5"))
    return made | {n: card("flux", tmp_path_factory.mktemp(n), dev=n == "dev") for n in ("dev", "schnell")}


@pytest.fixture(scope="module")
def pairs(cards):
    return {f: load_pair(load_card(path)) for f, path in cards.items()}


def family_of(name):
    return "flux" if name in ("dev", "schnell") else name


@pytest.fixture(scope="module")
def pipes(cards):
    made = {}
    for name in ("sd", "sdxl", "dev", "schnell"):
        made[name] = diffusers_pipe(family_of(name), cards[name].parent / "teacher")
    from diffusers import StableDiffusion3Pipeline

    made["sd3"] = StableDiffusion3Pipeline.from_pretrained(cards["sd3"].parent / "teacher", torch_dtype=torch.float32)
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(autouse=True)
def clip_skip_of_diffusers(monkeypatch):
    """diffusers' StableDiffusionPipeline asks for `text_model`, which this version of transformers has no longer."""
    from transformers import CLIPTextModel

    if "text_model" not in vars(CLIPTextModel):
        monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)


def paint(pair, prompts=PROMPTS, seeds=SEEDS, mode="teacher-only", **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(prompts, seed=seeds, mode=mode, **changes)
    return torch.stack([r.image for r in out.results])


def theirs(pipes, pair, name, **told):
    family = family_of(name)
    noise = noise_batch(SEEDS, "initial", [0, 0], pair.teacher.latent_shape(SIZE, SIZE))
    ask = {"prompt": PROMPTS, "height": SIZE, "width": SIZE, "latents": noise, "guidance_scale": 3.0}
    ask["num_inference_steps"] = 4
    if family == "sd3":
        del ask["num_inference_steps"]
        ask |= {"sigmas": [1.0, 0.75, 0.5, 0.25], "max_sequence_length": 8}
    if family == "flux":
        ask |= {"latents": packed(noise), "max_sequence_length": 8}
    if name == "schnell":
        told = {"negative_prompt": ["", ""], **told}
        ask |= {"true_cfg_scale": ask.pop("guidance_scale")}
    return torch.from_numpy(pipes[name](**{**ask, **told}, output_type="np").images).permute(0, 3, 1, 2)


CASES = [
    ("sdxl", {"prompt_2": SECOND}),
    ("sdxl", {"negative_prompt": ["grey", "sea"], "negative_prompt_2": ["mud", "fog"]}),
    ("sdxl", {"negative_prompt": ["", ""], "negative_prompt_2": ["mud", "fog"]}),
    ("sdxl", {"prompt_2": SECOND, "negative_prompt": ["grey", "sea"]}),
    ("sd3", {"prompt_2": SECOND}),
    ("sd3", {"prompt_3": THIRD}),
    ("sd3", {"negative_prompt_2": ["mud", "fog"]}),
    ("sd3", {"negative_prompt_3": ["mud", "fog"]}),
    ("sd3", {"prompt_2": SECOND, "prompt_3": THIRD, "negative_prompt": ["a", "b"], "negative_prompt_3": ["c", "d"]}),
    ("dev", {"prompt_2": SECOND}),
    ("schnell", {"prompt_2": SECOND, "negative_prompt": ["grey", "sea"], "negative_prompt_2": ["mud", "fog"]}),
    ("sd", {"clip_skip": 1}),
    ("sd", {"clip_skip": 2}),
    ("sdxl", {"clip_skip": 1}),
    ("sd3", {"clip_skip": 1}),
    ("sdxl", {"clip_skip": 1, "prompt_2": SECOND, "negative_prompt": ["grey", "sea"], "negative_prompt_2": ["mud", "fog"]}),
    ("sd", {"guidance_rescale": 0.7}),
    ("sdxl", {"guidance_rescale": 0.7}),
    ("sdxl", {"guidance_rescale": 1.0}),
]


@pytest.mark.parametrize("mode", ["teacher-only", "student-only"])
@pytest.mark.parametrize(("name", "told"), CASES)
def test_diffusers_own_pipeline_paints_the_same(pairs, pipes, name, told, mode):
    pair, solver = pairs[name], SOLVERS[family_of(name)]
    how = {"mode": mode, "teacher_solver": solver, "student_solver": solver}
    due = theirs(pipes, pair, name, **told)
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(paint(pair, **how, **told), due, atol=1e-4, rtol=0)
    for left_out in told:
        if told[left_out] != ["", ""]:
            without = paint(pair, **how, **{k: v for k, v in told.items() if k != left_out})
            assert float((without - due).abs().max()) > 1e-3, f"{left_out} is heeded"


def test_a_rescaled_prediction_spreads_as_the_conditional_half():
    g = torch.Generator().manual_seed(0)
    guided, plain = 5 * torch.randn(2, 3, 4, 4, generator=g) + 1, torch.randn(2, 3, 4, 4, generator=g)
    whole = rescaled(guided, plain, torch.ones(2))
    torch.testing.assert_close(whole.flatten(1).std(1), plain.flatten(1).std(1))
    assert torch.equal(rescaled(guided, plain, torch.zeros(2)), guided)
    half = rescaled(guided, plain, torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(half[0], (whole[0] + guided[0]) / 2)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "schnell"])
def test_a_picture_is_its_own_whoever_is_in_the_batch(pairs, name):
    pair = pairs[name]
    mixed = paint(pair, prompt_2=["", "sea"], negative_prompt_2=["", "fog"], mode="refine-all")
    assert torch.equal(mixed[0], paint(pair, PROMPTS[:1], SEEDS[:1], mode="refine-all")[0])
    assert torch.equal(
        mixed[1], paint(pair, PROMPTS[1:], SEEDS[1:], prompt_2="sea", negative_prompt_2="fog", mode="refine-all")[0]
    )


def test_several_students_read_the_same(pairs):
    pair = pairs["sdxl"]
    several = MultiStudent.of([pair.student] * 2, fit_pca_median(pair.student.encode([*PROMPTS, "sea", "hut"]), 2))
    told = {"prompt_2": SECOND, "clip_skip": 1, "guidance_rescale": 0.5, "mode": "student-only"}
    assert torch.equal(paint(type(pair)(several, pair.teacher), **told), paint(pair, **told))


def test_results_and_settings_tell_it_only_where_it_is_said(pairs):
    pair = pairs["sdxl"]
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)
    told = {"prompt_2": "hut", "negative_prompt_2": "fog", "clip_skip": 1, "guidance_rescale": 0.5}
    (said,) = pipe("fox", seed=1, mode="student-only", **told).results
    assert {k: said.row()[k] for k in ("prompt_2", "negative_prompt_2")} == {"prompt_2": "hut", "negative_prompt_2": "fog"}
    written = json.loads(json.dumps(said.settings.to_dict()))
    assert written["clip_skip"] == 1 and written["student_guidance_rescale"] == written["teacher_guidance_rescale"] == 0.5
    assert CascadeSettings.from_dict(written) == said.settings
    (plain,) = pipe("fox", seed=1, mode="student-only").results
    names = {"prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"}
    assert not names & plain.row().keys()
    rare = {"clip_skip", "student_guidance_rescale", "teacher_guidance_rescale"}
    assert not rare & plain.settings.to_dict().keys()
    assert CascadeSettings.from_dict(plain.settings.to_dict()) == plain.settings


def test_a_calibration_holds_for_what_it_was_made_with():
    plain, how = SETTINGS, ("student_settings", "action_settings")
    student, action = (getattr(AdaptivePipeline, n)(plain) for n in how)
    assert set(student) == {"student_steps", "student_solver", "student_guidance", "height", "width"}
    made = Calibration.make([0.1, 0.5, 0.9], 6.0, Prices.from_steps(4, 4), student, action, {}, "")
    for changes in ({"clip_skip": 1}, {"student_guidance_rescale": 0.5}):
        with pytest.raises(CalibrationError, match=next(iter(changes))):
            made.check(AdaptivePipeline.student_settings(plain.changed(**changes)), {})
    made.check(AdaptivePipeline.student_settings(plain.changed(teacher_guidance_rescale=0.5)), {})
    assert AdaptivePipeline.action_settings(plain.changed(teacher_guidance_rescale=0.5))["teacher_guidance_rescale"] == 0.5
    assert made.applied(plain.changed(clip_skip=1, teacher_guidance_rescale=0.3)) == plain, "taken with its settings"


@pytest.mark.parametrize(("name", "told", "says"), [
    ("sd", {"prompt_2": "hut"}, "prompt_2='hut': these models read one prompt"),
    ("sd", {"negative_prompt_2": "hut"}, "negative_prompt_2='hut'"),
    ("sdxl", {"prompt_3": "hut"}, "prompt_3='hut': these models read two"),
    ("without_t5", {"prompt_3": "hut"}, "prompt_3='hut': these models read two"),
    ("dev", {"clip_skip": 1}, "clip_skip=1"),
    ("sd", {"clip_skip": 3}, "clip_skip=3 is too much: 0..2"),
    ("sdxl", {"clip_skip": 2}, "clip_skip=2 is too much: 0..1"),
    ("sd", {"clip_skip": -1}, "clip_skip=-1"),
    ("sd", {"guidance_rescale": 1.5}, "1.5 is out of range"),
    ("sd3", {"guidance_rescale": 0.5}, "student_guidance_rescale=0.5"),
    ("dev", {"teacher_guidance_rescale": 0.5}, "teacher_guidance_rescale=0.5"),
    ("sdxl", {"prompt_2": ["a", "b", "c"]}, "prompt_2: 3 of them for 2"),
])  # fmt: skip
def test_what_a_family_has_not_is_refused(pairs, name, told, says):
    with pytest.raises(SettingError, match=says):
        paint(pairs[name], **told)


def test_what_would_be_cut_is_refused(pairs):
    for name, told, reads in (
        ("sdxl", {"prompt_2": "z" * 20}, 12),
        ("sd3", {"prompt_3": "z" * 10}, 8),
        ("schnell", {"negative_prompt_2": "z" * 10}, 8),
        # What CLIP cuts off T5 would have read of the same prompt, but it is told another.
        ("dev", {"prompts": ["z" * 20] * 2, "prompt_2": "hut"}, 12),
    ):
        with pytest.raises(PromptError, match=f"reads {reads}"):
            paint(pairs[name], **told)
    with pytest.raises(PromptError, match="empty"):
        paint(pairs["sdxl"], prompts=["", ""], prompt_2="hut")
    paint(pairs["sdxl"], prompts=["z" * 8] * 2, prompt_2="hut")


def test_pipelines_that_are_called_are_told_the_same(pairs, pipes):
    settings = dataclasses.replace(
        SETTINGS, student_solver="own", teacher_solver="own", strategy="regenerate", sigma=Strength(0.5), batch_size=1
    )
    painter = DiffusersGenerator(pipes["sdxl"])
    pipe = AdaptivePipeline(painter, painter, None, settings)
    told = {"prompt_2": ["hut", ""], "negative_prompt": "grey", "negative_prompt_2": "mud"}
    more = {"clip_skip": 1, "guidance_rescale": 0.5}
    mine = pipe(PROMPTS, seed=SEEDS, mode="student-only", output_type="pt", **told, **more).images
    for i, second in enumerate(("hut", None)):
        due = pipes["sdxl"](
            PROMPTS[i], prompt_2=second, negative_prompt="grey", negative_prompt_2="mud", num_inference_steps=4,
            guidance_scale=3.0, height=SIZE, width=SIZE, generator=torch.Generator().manual_seed(SEEDS[i]),
            output_type="np", **more,
        ).images  # fmt: skip
        torch.testing.assert_close(mine[i], torch.from_numpy(due)[0].permute(2, 0, 1))
    with pytest.raises(SettingError, match="takes no prompt_3"):
        pipe(PROMPTS, mode="student-only", prompt_3="hut")
    mixed = AdaptivePipeline(pairs["sdxl"].student, painter, None, settings.changed(student_solver="ddim"))
    own = mixed(PROMPTS, seed=SEEDS, mode="student-only", output_type="pt", **told, **more).images
    due = paint(pairs["sdxl"], mode="student-only", student_solver="ddim", batch_size=1, **told, **more)
    assert torch.equal(own, due)


def test_rows_with_a_prompt_alone_are_read_to_the_bit(pairs):
    for name in ("sd", "sdxl", "sd3", "dev"):
        student = pairs[name].student
        plain, worded = (
            student.condition(PROMPTS).tensors,
            student.encode_prompts([PromptInputs(p) for p in PROMPTS]).tensors,
        )
        assert plain.keys() == worded.keys() and all(torch.equal(plain[k], worded[k]) for k in plain)


def test_a_setting_that_no_card_has_is_not_lost_in_saving(pairs, tmp_path):
    pair = pairs["sdxl"]
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS.changed(clip_skip=1))
    with pytest.raises(SettingError, match="clip_skip=1: a card has no place"):
        pipe.save_pretrained(tmp_path / "saved")


def test_a_run_of_other_words_is_another_run():
    from types import SimpleNamespace

    from allaprima.cascade.policy import AlwaysPolicy, Decision
    from allaprima.cascade.request import GenerationRequest
    from allaprima.conditioning.vocabulary import ResolvedPrompt
    from allaprima.experiments.runner import RunPlan, identity

    pipe = SimpleNamespace(fingerprints=dict)

    def named(**words):
        request = GenerationRequest("fox", 1, **words)
        plan = RunPlan(pipe, AlwaysPolicy(Decision.ACCEPT), SETTINGS, [request], [ResolvedPrompt("fox", "fox", 1.0)])
        return identity(plan, SimpleNamespace(card="c", mode="student-only"))

    assert named() == named(prompt_2="") != named(prompt_2="hut")
    assert named(prompt_2="hut") != named(negative_prompt_2="hut")
