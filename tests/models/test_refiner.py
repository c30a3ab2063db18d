"""SDXL's refiner as a teacher, alone and after its base, against diffusers' own two pipelines."""

import math

import pytest
import torch
import yaml
from tiny_folders import SIZE, card, refiner

from allaprima.cascade.policy import Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.sequential import SequentialPolicy
from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, PaintingError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.diffusion.noising import Variance, add_noise
from allaprima.models.cards.card import load_card
from allaprima.models.families.sdxl_refiner import AESTHETIC, BaseRefinerEnsemble, RefinerModel
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline

PROMPTS, SEEDS = ["red fox", "a blue owl"], [11, 12]
IMG2IMG = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img.randn_tensor"
SETTINGS = CascadeSettings(
    student_steps=2, teacher_steps=7, student_guidance=2, teacher_guidance=3, batch_size=2, height=SIZE, width=SIZE,
    teacher_solver="ddim", sigma=Variance(0.5),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    card("sdxl", folder)
    refiner(folder / "refiner", folder / "teacher")
    return folder


def written(folder, name, teacher, student=None, **more):
    raw = yaml.safe_load((folder / "card.yaml").read_text())
    path = folder / name
    path.write_text(
        yaml.safe_dump(
            {**raw, **more, "teacher": {**raw["teacher"], **teacher}, "student": {**raw["student"], **(student or {})}}
        )
    )
    return load_card(path)


ALONE = {"source": "refiner"}
OWN = {"share": ["text_encoder_2", "tokenizer_2", "vae"]}


@pytest.fixture(scope="module")
def alone(folder):
    return load_pair(written(folder, "alone.yaml", ALONE, OWN))


@pytest.fixture(scope="module")
def both(folder):
    return load_pair(written(folder, "both.yaml", {"refiner": "refiner", "refiner_from": 0.7}))


def theirs(folder, kind):
    import diffusers

    absent = {"text_encoder": None, "tokenizer": None} if "Img2Img" in kind else {}
    made = getattr(diffusers, kind).from_pretrained(folder, torch_dtype=torch.float32, **absent)
    made.set_progress_bar_config(disable=True)
    return made


def paint(pair, **changes):
    out = AdaptivePipeline(pair.student, pair.teacher, None, SETTINGS)(PROMPTS, seed=SEEDS, **changes)
    return torch.stack([r.image for r in out.results])


def tensor(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def test_parts_are_in_memory_once(alone, both):
    assert isinstance(alone.teacher, RefinerModel)
    assert isinstance(both.teacher, BaseRefinerEnsemble)
    assert alone.student.text_encoder_2 is alone.teacher.text_encoder_2
    assert both.teacher.refiner.text_encoder_2 is both.teacher.base.text_encoder_2 is both.student.text_encoder_2
    assert both.teacher.refiner.vae is both.teacher.vae
    assert alone.student.fingerprint == both.student.fingerprint, "a draft is the same whoever refines it"


@pytest.mark.parametrize("negative", [None, "grey"])
@pytest.mark.parametrize("strength", [0.3, 0.7])
def test_refining_a_picture_is_diffusers(alone, folder, strength, negative, monkeypatch):
    pipeline = theirs(folder / "refiner", "StableDiffusionXLImg2ImgPipeline")
    assert pipeline.config.requires_aesthetics_score
    pictures = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    noise = noise_batch(SEEDS, "initial", [0, 0], alone.teacher.latent_shape(SIZE, SIZE))
    monkeypatch.setattr(IMG2IMG, lambda shape, **_: noise)
    due = tensor(
        pipeline(
            PROMPTS, image=alone.teacher.encode_images(pictures), strength=strength, num_inference_steps=7,
            guidance_scale=3.0,            negative_prompt=negative and [negative] * 2, output_type="np",
        ).images
    )  # fmt: skip
    mine = paint(alone, image=list(pictures), strength=strength, mode="teacher-only", negative_prompt=negative)
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)


def test_drafts_are_refined_by_the_papers_sigma(alone, folder):
    """The teacher's part by diffusers' refiner UNet alone, step by step from the draft with noise of variance .5 on it."""
    mine = paint(alone, mode="refine-all")
    draft = AdaptivePipeline(alone.student, alone.teacher, None, SETTINGS)(PROMPTS, seed=SEEDS, mode="student-only")
    assert float((torch.stack([r.image for r in draft.results]) - mine).abs().max()) > 1e-3
    pipeline = theirs(folder / "refiner", "StableDiffusionXLImg2ImgPipeline")
    schedule = alone.teacher.schedule
    start = schedule.time_of_variance(0.5)
    # The draft's latents, by the student alone.
    from sampling import sample

    from allaprima.core.types import Condition
    from allaprima.diffusion.solvers import make_solver

    own, null = alone.student.condition(PROMPTS).tensors, alone.student.condition(["", ""]).tensors
    cond = Condition({**own, **{f"negative_{k}": v for k, v in null.items()}, "guidance_scale": torch.full((2,), 2.0)})
    noise = noise_batch(SEEDS, "initial", [0, 0], alone.teacher.latent_shape(SIZE, SIZE))
    with torch.inference_mode():
        x = sample(alone.student.denoiser, make_solver("consistency", schedule), noise, cond, 2, None, SEEDS, "student")
        eps = noise_batch(SEEDS, "rollback", [0, 0], tuple(x.shape[1:]))
        x = add_noise(x, eps, torch.full((2,), start, dtype=torch.float64), schedule)
        embeds, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS)
        words, said = torch.cat([negative, embeds]), torch.cat([negative_pooled, pooled])
        size = [float(SIZE)] * 2 + [0.0, 0.0]
        ids = torch.tensor([[*size, 2.5]] * 2 + [[*size, AESTHETIC]] * 2)
        times = [start * (7 - i) / 7 for i in range(7)] + [-1.0]
        for t, s in zip(times, times[1:], strict=False):
            (a, a_s), (k, k_s) = (
                f(torch.tensor([t, s], dtype=torch.float64)).float() for f in (schedule.alpha, schedule.sigma)
            )
            out = pipeline.unet(torch.cat([x, x]), t, words, added_cond_kwargs={"text_embeds": said, "time_ids": ids}).sample
            away, toward = out.chunk(2)
            eps = away + 3.0 * (toward - away)
            x = a_s * (x - k * eps) / a + k_s * eps
        due = alone.teacher.decode(x)
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver", ["ddim", "euler"])
def test_base_then_refiner_is_diffusers_two_pipelines(both, folder, solver):
    import diffusers

    base, second = (
        theirs(folder / "teacher", "StableDiffusionXLPipeline"),
        theirs(folder / "refiner", "StableDiffusionXLImg2ImgPipeline"),
    )
    for pipeline in (base, second) if solver == "euler" else ():
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    noise = noise_batch(SEEDS, "initial", [0, 0], both.teacher.latent_shape(SIZE, SIZE))
    ask = {"num_inference_steps": 7, "guidance_scale": 3.0}
    latents = base(PROMPTS, height=SIZE, width=SIZE, latents=noise, denoising_end=0.7, output_type="latent", **ask).images
    due = tensor(second(PROMPTS, image=latents, denoising_start=0.7, output_type="np", **ask).images)
    mine = paint(both, mode="teacher-only", teacher_solver=solver)
    assert due.std() > 0.02, "pictures that show something are due"
    torch.testing.assert_close(mine, due, atol=1e-4, rtol=0)
    assert [p for p in range(7) if 1 + 142 * p < both.teacher.cutoff] == [0, 1, 2], "both had steps"


def test_a_step_on_either_side_in_one_batch_is_each_ones_own(both):
    teacher = both.teacher
    words, null = teacher.condition(PROMPTS).tensors, teacher.condition(["", ""]).tensors
    cond = type(teacher.condition(PROMPTS))(
        {**words, **{f"negative_{k}": v for k, v in null.items()}, "guidance_scale": torch.full((2,), 3.0)}
    )
    x, times = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([800.0, 200.0])
    with torch.inference_mode():
        mixed = teacher.denoiser(x, times, cond)
        for row in range(2):
            same = teacher.denoiser(x, times[[row, row]], cond)
            assert torch.equal(mixed[row], same[row])


def test_a_refiner_alone_cannot_paint_from_noise(alone, folder):
    for asked in ({"mode": "teacher-only"}, {"threshold": 0.5, "strategy": "regenerate"}):
        pipe = AdaptivePipeline(alone.student, alone.teacher, _Never(), SETTINGS)
        with pytest.raises(SettingError, match="can't paint from pure noise"):
            pipe("fox", seed=1, **asked)
    for policy in (
        SequentialPolicy(0.6, regenerate_below=0.2, margin=math.inf),
        SequentialPolicy(0.6, action=Decision.REGENERATE),
        SequentialPolicy(0.6, 2, action=Decision.REGENERATE, margin=math.inf),
        SequentialPolicy(0.6, 2, regenerate_below=0.2),
    ):
        with pytest.raises(SettingError, match="can't paint from pure noise"):
            pipe.cascade(pipe.settings, policy).check(GenerationRequest("fox", 1))
    assert paint(alone, mode="student-only", strategy="regenerate").shape[0] == 2
    with pytest.raises(ModelError, match="can't paint from noise"):
        load_pair(written(folder, "again.yaml", ALONE, OWN, cascade={"strategy": "regenerate"}))


class _Never:
    name, fingerprint, evaluations = "never", "never", 0

    def score(self, images, prompts):
        return torch.zeros(len(prompts))


def test_bad_cards_are_named(folder, alone, both):
    with pytest.raises(ModelError, match="share text_encoder"):
        load_pair(written(folder, "share.yaml", ALONE))
    with pytest.raises(ModelError, match="gives its student a refiner"):
        load_pair(written(folder, "student.yaml", {}, {"refiner": "refiner"}))
    with pytest.raises(ModelError, match="a refiner of the family sdxl on a base"):
        load_pair(written(folder, "twice.yaml", {"refiner": "teacher"}))
    # A student that tells no words of a refiner's.
    pipe = AdaptivePipeline(both.teacher.base, alone.teacher, None, SETTINGS)
    with pytest.raises(PaintingError, match="telling"):
        pipe("fox", seed=1, mode="refine-all")
