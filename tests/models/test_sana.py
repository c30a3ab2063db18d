"""Family `sana`: published folders paint what diffusers' pipelines paint, SANA and SANA-Sprint, in a cascade."""

import inspect
import json

import pytest
import torch
from tiny_language import SIDE, card, sana

from allaprima.cascade.job import Job, Stage
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, PromptError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import ClassifierFreeGuidance, EmbeddedGuidance
from allaprima.diffusion.noising import Strength, Variance
from allaprima.diffusion.schedules import Flow, TrigFlow
from allaprima.models.cards.card import TextSettings, load_card
from allaprima.models.families.sana import load_sana
from allaprima.models.loading.pair import load_pair
from allaprima.models.multi_student.model import MultiStudent
from allaprima.models.multi_student.partition import fit_pca_median
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["Red fox", "a blue owl"], [11, 12]
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=4, student_guidance=2, teacher_guidance=3, batch_size=2, height=SIDE, width=SIDE,
    sigma=Variance(0.5),
)  # fmt: skip
TEXT = TextSettings(max_sequence_length=16)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sana")
    sana(folder / "teacher")
    sana(folder / "student", seed=1, sprint=True)
    return card(folder, "sana", {}, {})


@pytest.fixture(scope="module")
def pair(path):
    return load_pair(load_card(path))


def theirs(name, folder, components):
    """Diffusers' pipeline of a folder; text encoder and autoencoder are the card's, the teacher's."""
    import diffusers

    made = getattr(diffusers, name).from_pretrained(
        folder, torch_dtype=torch.float32, **{k: getattr(components, k) for k in ("vae", "text_encoder", "tokenizer")}
    )
    made.set_progress_bar_config(disable=True)
    return made


def ask(size=(SIDE, SIDE), **more):
    return {
        "prompt": PROMPTS, "height": size[0], "width": size[1], "max_sequence_length": 16, "use_resolution_binning": False,
        "output_type": "np", **more,
    }  # fmt: skip


def due_of(pipeline, **asked):
    return torch.from_numpy(pipeline(**asked).images).permute(0, 3, 1, 2)


def noise_of(model, size=(SIDE, SIDE)):
    return noise_batch(SEEDS, "initial", [0, 0], model.latent_shape(*size))


def paint(pair, prompts=PROMPTS, seeds=SEEDS, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(prompts, seed=seeds, **changes)
    return torch.stack([r.image for r in out.results])


def drawn(monkeypatch, places, shape):
    """Diffusers' SCMScheduler draws the noise that ours draws: the student's, place by place."""
    left = list(places)

    def fresh(wanted, **kwargs):
        assert tuple(wanted) == (2, *shape)
        return noise_batch(SEEDS, "student", [left.pop(0)] * 2, shape)

    monkeypatch.setattr("diffusers.schedulers.scheduling_scm.randn_tensor", fresh)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE, 2 * SIDE)])
def test_sana_is_diffusers(pair, path, size):
    pipeline = theirs("SanaPipeline", path.parent / "teacher", pair.teacher)
    asked = ask(
        size, latents=noise_of(pair.teacher, size), num_inference_steps=4, guidance_scale=3.0, negative_prompt="grey"
    )
    due = due_of(pipeline, **asked)
    changes = {"mode": "teacher-only", "height": size[0], "width": size[1], "negative_prompt": "grey"}
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(paint(pair, **changes), due, atol=1e-4, rtol=0)
    for other in ({"teacher_guidance": 2.0}, {"negative_prompt": "sea"}):
        assert float((paint(pair, **{**changes, **other}) - due).abs().max()) > 1e-3, "scale and negative prompt are read"


def test_the_empty_negative_prompt_is_diffusers(pair, path):
    pipeline = theirs("SanaPipeline", path.parent / "teacher", pair.teacher)
    due = due_of(pipeline, **ask(latents=noise_of(pair.teacher), num_inference_steps=4, guidance_scale=3.0))
    torch.testing.assert_close(paint(pair, mode="teacher-only"), due, atol=1e-4, rtol=0)


@pytest.mark.parametrize("made", [{"dpm": False}, {"patch": 2, "learned": True, "factor": 2}], ids=["euler", "patches"])
def test_other_folders_paint_what_diffusers_paints(tmp_path, made):
    """Flow matching's scheduler of SANA's trainings; patches, a learned variance, another autoencoder."""
    folder = sana(tmp_path / "teacher", **made)
    teacher = load_sana(folder, TEXT)
    pipeline = theirs("SanaPipeline", folder, teacher)
    euler = not made.get("dpm", True)
    more = {"sigmas": [1.0, 0.75, 0.5, 0.25]} if euler else {"num_inference_steps": 4}
    due = due_of(pipeline, **ask(latents=noise_of(teacher), guidance_scale=3.0, **more))
    out = AdaptivePipeline(teacher, teacher, None, SETTINGS)(
        PROMPTS, seed=SEEDS, mode="teacher-only", teacher_solver="euler" if euler else "dpm_solver"
    )
    torch.testing.assert_close(torch.stack([r.image for r in out.results]), due, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_sprint_is_diffusers(pair, path, steps, monkeypatch):
    pipeline = theirs("SanaSprintPipeline", path.parent / "student", pair.teacher)
    drawn(monkeypatch, range(steps), pair.student.latent_shape(SIDE, SIDE))
    between = {} if steps == 2 else {"intermediate_timesteps": None}
    asked = ask(latents=noise_of(pair.student), num_inference_steps=steps, guidance_scale=2.0, **between)
    due = due_of(pipeline, **asked)
    mine = paint(pair, mode="student-only", student_steps=steps)
    assert due.std() > 0.02
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)
    other = paint(pair, mode="student-only", student_steps=steps, student_guidance=4.5)
    assert float((other - due).abs().max()) > 1e-4, "the scale is read"


@pytest.mark.parametrize(("steps", "strength"), [(4, 0.5), (5, 0.6)])
def test_sprints_edits_are_diffusers(pair, path, steps, strength, monkeypatch):
    pipeline = theirs("SanaSprintImg2ImgPipeline", path.parent / "student", pair.teacher)
    taken, shape = round(steps * strength), pair.student.latent_shape(SIDE, SIDE)
    drawn(monkeypatch, range(taken), shape)
    # What is noised is the initial noise, as in every edit here.
    monkeypatch.setattr(
        "diffusers.pipelines.sana.pipeline_sana_sprint_img2img.randn_tensor", lambda *a, **k: noise_of(pair.student)
    )
    pictures = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    asked = ask(num_inference_steps=steps, guidance_scale=2.0, intermediate_timesteps=None, strength=strength)
    due = due_of(pipeline, image=pictures, **asked)
    mine = paint(pair, mode="student-only", image=list(pictures), strength=strength, student_steps=taken)
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)
    assert float((mine - pair.student.decode(pair.student.encode_images(pictures))).abs().max()) > 1e-3


def test_prompts_are_what_diffusers_makes_of_them(pair, path):
    pipeline = theirs("SanaPipeline", path.parent / "teacher", pair.teacher)
    told = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
    with torch.no_grad():
        embeds, mask, none, none_mask = pipeline.encode_prompt(
            PROMPTS, negative_prompt=["grey", ""], max_sequence_length=16, complex_human_instruction=told
        )
    cond, null = pair.teacher.condition(PROMPTS), pair.teacher.negative(["grey", ""])
    for mine, due in (
        (cond.tensors["prompt_embeds"], embeds),
        (cond.tensors["prompt_attention_mask"], mask),
        (null.tensors["prompt_embeds"], none),
        (null.tensors["prompt_attention_mask"], none_mask),
    ):
        torch.testing.assert_close(mine, due, atol=1e-5, rtol=0)
    assert torch.equal(pair.teacher.encode(PROMPTS), cond.tensors["prompt_embeds"])
    # An empty prompt is what guidance leads away from: without instruction, whoever asks for it.
    mixed = pair.teacher.condition(["red fox", ""])
    assert torch.equal(mixed.tensors["prompt_embeds"][1], null.tensors["prompt_embeds"][1])
    plain = load_sana(
        path.parent / "teacher", TextSettings(max_sequence_length=16, instruction=False), pair.teacher, ("vae",)
    )
    assert torch.equal(plain.condition(["grey", ""]).tensors["prompt_embeds"], null.tensors["prompt_embeds"])


def test_a_drafts_picture_is_refined_by_the_other_models_times(pair):
    """What the teacher meets is the draft's latents with noise of its own time, of the paper's signal-to-noise ratio."""
    assert isinstance(pair.student.schedule, TrigFlow) and isinstance(pair.teacher.schedule, Flow)
    seen = []

    class Listens:
        def __init__(self, model):
            self.model = model

        def __getattr__(self, name):
            return getattr(self.model, name)

        @property
        def denoiser(self):
            inner = self.model.denoiser

            class Told:
                evaluations_per_call = inner.evaluations_per_call
                unguided = inner.unguided

                def __call__(self, x_t, t, cond):
                    seen.append((x_t, float(t[0])))
                    return inner(x_t, t, cond)

            return Told()

    out = AdaptivePipeline(pair.student, Listens(pair.teacher), None, SETTINGS)(PROMPTS, seed=SEEDS, mode="refine-all")
    assert len(out.results) == 2
    x, t = seen[0]
    assert t == pytest.approx(0.5), "variance .5: as much noise as signal"
    student = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)
    cascade = student.cascade(SETTINGS, student.policy(SETTINGS, mode="student-only"))
    jobs = [Job(GenerationRequest(p, s)) for p, s in zip(PROMPTS, SEEDS, strict=True)]
    cascade.start(jobs)
    while jobs[0].stage is Stage.STUDENT:
        cascade.step(jobs)
    drafts = torch.stack([j.x for j in jobs])
    eps = noise_batch(SEEDS, "rollback", [0, 0], drafts.shape[1:])
    torch.testing.assert_close(x, 0.5 * drafts + 0.5 * eps, atol=1e-6, rtol=0)


def test_costs(pair):
    assert isinstance(pair.student.denoiser, EmbeddedGuidance)
    assert isinstance(pair.teacher.denoiser, ClassifierFreeGuidance)
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)("fox", seed=1, mode="refine-all")
    assert (out.costs[0].evaluations["student"], out.costs[0].evaluations["teacher"]) == (2, 8)


@pytest.mark.parametrize("sigma", [Variance(0.5), Strength(0.6)])
def test_a_picture_is_its_own_whoever_is_in_the_batch(pair, sigma):
    both = paint(pair, mode="refine-all", sigma=sigma)
    alone = torch.stack(
        [paint(pair, [p], [s], mode="refine-all", sigma=sigma)[0] for p, s in zip(PROMPTS, SEEDS, strict=True)]
    )
    assert torch.equal(both, alone)
    assert torch.isfinite(both).all()


class Likes:
    """An oracle that likes the first picture of a batch's prompts."""

    name, fingerprint = "likes", "0"

    def score(self, images, prompts):
        return torch.tensor([1.0 if "fox" in p else 0.0 for p in prompts])


def test_the_adaptive_run_keeps_what_is_liked(pair):
    pipe = AdaptivePipeline(pair.student, pair.teacher, Likes(), SETTINGS)
    out = pipe(PROMPTS, seed=SEEDS, threshold=0.5)
    assert out.decisions == ["accept", "refine"]
    images = torch.stack([r.image for r in out.results])
    assert torch.equal(images[0], paint(pair, mode="student-only")[0])
    assert torch.equal(images[1], paint(pair, mode="refine-all")[1])


def test_rows_at_mixed_times_are_what_they_are_alone(pair):
    for model, times in ((pair.student, [1.5708, 1.3]), (pair.teacher, [0.9, 0.2])):
        cond = model.condition(PROMPTS)
        null = model.negative(["", ""])
        told = Condition(
            {
                **cond.tensors,
                **{f"negative_{k}": v for k, v in null.tensors.items()},
                "guidance_scale": torch.tensor([2.0, 3.0]),
            }
        )
        x, t = noise_of(model), torch.tensor(times, dtype=torch.float64)
        with torch.no_grad():
            both = model.denoiser(x, t, told)
            for i in range(2):
                alone = model.denoiser(x[i : i + 1], t[i : i + 1], told.rows([i]))
                torch.testing.assert_close(both[i : i + 1], alone, atol=1e-5, rtol=0)


def test_several_students_route_by_the_captions_width(pair):
    partition = fit_pca_median(pair.student.encode(["red fox", "a blue owl", "sea", "hut"]), 2)
    several = MultiStudent.of([pair.student, pair.student], partition)
    mine = paint(type(pair)(several, pair.teacher), mode="refine-all", negative_prompt="grey")
    assert torch.equal(mine, paint(pair, mode="refine-all", negative_prompt="grey"))


def test_bad_input_is_named(pair, path, tmp_path):
    with pytest.raises(SettingError, match="multiples of 4"):
        pair.teacher.latent_shape(SIDE + 2, SIDE)
    with pytest.raises(PromptError, match="empty"):
        pair.teacher.check_prompt("  ")
    # 15 tokens with <bos>: 14 letters. One more is cut by diffusers.
    pair.teacher.check_prompt("a" * 14)
    with pytest.raises(PromptError, match="16 tokens; this text encoder reads 15"):
        pair.teacher.check_prompt("a" * 15)
    assert pair.teacher.token_count("RED fox") == 6
    folder = path.parent / "teacher"
    with pytest.raises(ModelError, match="zero_padding"):
        load_sana(folder, TextSettings(zero_padding=True))
    with pytest.raises(ModelError, match=r"513.*512"):
        load_sana(folder, TextSettings(max_sequence_length=513))
    for change, says in (
        ({"use_flow_sigmas": False}, "use_flow_sigmas"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ({"_class_name": "SCMScheduler", "prediction_type": "epsilon"}, "trigflow"),
    ):
        config = folder / "scheduler" / "scheduler_config.json"
        kept = config.read_text()
        config.write_text(json.dumps({**json.loads(kept), **change}))
        try:
            with pytest.raises(ModelError, match=says):
                load_sana(folder, TEXT, pair.teacher, ("vae", "text_encoder", "tokenizer"))
        finally:
            config.write_text(kept)


def test_a_prompt_that_fits_is_read_to_its_last_letter(pair):
    """The bound of `check_prompt` is where diffusers begins to cut: the last letter of the longest prompt still matters."""
    first, second, third = (pair.teacher.condition(["a" * 13 + c]).tensors["prompt_embeds"] for c in ("b", "c", "bc"))
    assert float((first - second).abs().max()) > 1e-4
    assert torch.equal(first, third), "one letter more is lost"
