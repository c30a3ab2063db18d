"""Students with guidance embedded: they start as their start says, cost one evaluation, and are diffusers' own LCM."""

import copy
import dataclasses

import diffusers
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from diffusers.schedulers import scheduling_lcm
from sampling import sample
from tiny import SCHEDULER, setup, tiny_model, tiny_unet

from allaprima.core.errors import ModelError, SettingError
from allaprima.core.seeds import noise_batch
from allaprima.core.types import Condition
from allaprima.diffusion.guidance import EmbeddedGuidance, guidance_embedding
from allaprima.diffusion.schedules import Flow
from allaprima.diffusion.solvers import make_solver
from allaprima.diffusion.solvers.consistency import lcm_grid
from allaprima.distill.embedded_guidance import NEW, with_embedded_guidance
from allaprima.distill.losses.consistency import consistency_loss, lcm_scalings, with_lcm_boundary
from allaprima.distill.methods import consistency
from allaprima.distill.recipe import checked
from allaprima.models.cards.card import load_card
from allaprima.models.families.sd import load_unet, run_unet
from allaprima.models.multi_student.model import MultiStudent
from allaprima.models.multi_student.partition import fit_pca_median

LCM = {"embedded_guidance": True, "boundary": "lcm"}
SHAPE = (4, 8, 8)


def told(seed=0):
    """A tiny student that listens to the scale."""
    unet = with_embedded_guidance(tiny_unet(seed))
    with torch.no_grad():
        unet.time_embedding.cond_proj.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return unet


def inputs(n=3):
    g = torch.Generator().manual_seed(1)
    x, embeds = torch.randn(n, *SHAPE, generator=g), torch.randn(n, 3, 6, generator=g)
    return x, torch.tensor([999.0, 500.0, 19.0])[:n].double(), embeds


def cond(embeds, *scales):
    w = torch.tensor(scales)
    return Condition({"prompt_embeds": embeds, "negative_prompt_embeds": embeds + 1, "guidance_scale": w})


def run(folder, options, **more):
    b = setup(folder, "consistency", options=options, **more)
    return consistency.run(b, checked(consistency.ConsistencyOptions, options, "consistency"))


def theirs(unet, scheduler):
    return LatentConsistencyModelPipeline(None, None, None, unet, scheduler, None, None, None, requires_safety_checker=False)


@pytest.mark.parametrize("dim", [256, 7])
def test_the_embedding_is_diffusers(dim):
    w = torch.tensor([0.0, 1.0, 4.5, 8.25])
    found = guidance_embedding(w, dim)
    scheduler = diffusers.LCMScheduler()
    assert torch.equal(found, theirs(None, scheduler).get_guidance_scale_embedding(w - 1, dim))
    assert found.shape == (4, dim)


def test_it_starts_as_its_start_whatever_the_scale():
    start = tiny_unet(3)
    made = with_embedded_guidance(start)
    x, t, embeds = inputs()
    before = run_unet(start, x, t, embeds)
    for scales in (torch.tensor([1.0, 4.5, 8.0]), None):
        assert torch.equal(run_unet(made, x, t, embeds, scales), before)
    assert not torch.equal(run_unet(told(), x, t, embeds, scales), run_unet(told(), x, t, embeds, torch.full((3,), 4.0)))
    again = with_embedded_guidance(told(3))
    assert torch.equal(again.state_dict()[NEW], told(3).state_dict()[NEW]), "a student that has it keeps it"
    broken = copy.deepcopy(start)
    broken.conv_in = torch.nn.Conv2d(4, 9, 3)
    with pytest.raises(ModelError, match="don't fit"):
        with_embedded_guidance(broken)


@pytest.mark.parametrize(
    "options", [LCM, {**LCM, "huber": 0.001, "huber_over": "element"}, {**LCM, "target": "end", "end_steps": 1}]
)
def test_it_trains_and_a_resumed_run_is_the_uninterrupted_one(tmp_path, options):
    def weights(net):
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    whole = run(tmp_path / "a", options)
    assert whole.time_embedding.cond_proj.weight.abs().max() > 0, "the scale is listened to"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", options, stop=2)
    assert torch.equal(weights(run(tmp_path / "b", options)), weights(whole))


def test_a_call_is_one_evaluation_of_the_rows_it_is_asked(monkeypatch):
    model = dataclasses.replace(tiny_model(), unet=told())
    rows = []
    model.unet.register_forward_pre_hook(lambda net, args: rows.append(len(args[0])))
    x, t, embeds = inputs()
    guided = model.denoiser
    assert guided.evaluations_per_call == 1
    assert tiny_model().denoiser.evaluations_per_call == 2
    some = guided(x, t, cond(embeds, 1.0, 4.0, 8.0))
    plain = guided.unguided(x, t, cond(embeds, 3.0, 3.0, 3.0))
    assert torch.equal(guided(x, t, cond(embeds, 1.0, 1.0, 1.0)), plain)
    assert rows == [3, 3, 3]
    assert not torch.equal(some[1:], plain[1:])
    with pytest.raises(SettingError, match="needs guidance_scale"):
        guided(x, t, Condition({"prompt_embeds": embeds}))


def test_student_and_target_are_asked_once_and_the_teacher_twice(tmp_path):
    b = setup(tmp_path, "consistency", options=LCM)
    options = checked(consistency.ConsistencyOptions, LCM, "consistency")
    counted, networks = {}, {"student": told(), "target": told(1), "teacher": b.teacher.unet}
    for name, net in networks.items():
        net.register_forward_pre_hook(lambda n, args, name=name: counted.update({name: len(args[0])}))
    consistency.objective(b, options)(networks["student"], networks, torch.Generator().manual_seed(0))
    assert counted == {"student": 2, "target": 2, "teacher": 4}


def test_an_exported_student_is_diffusers_lcm(tmp_path, monkeypatch):
    """Their pipeline, their scheduler, four steps; c_skip, which we leave out when painting, is 2e-8 at t = 249."""
    told().save_pretrained(tmp_path / "unet")
    model = dataclasses.replace(tiny_model(), unet=load_unet(tmp_path / "unet"))
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet", use_safetensors=True).eval()
    scheduler = diffusers.LCMScheduler(**SCHEDULER, prediction_type="epsilon", clip_sample=False)
    pipe = theirs(unet, scheduler)
    x, t, embeds = inputs(2)
    scale = 4.5
    w = pipe.get_guidance_scale_embedding(torch.tensor([scale - 1] * 2), unet.config.time_cond_proj_dim)
    with torch.no_grad():
        eps = unet(x, t.float(), timestep_cond=w, encoder_hidden_states=embeds).sample
        ours = model.denoiser(x, t, cond(embeds, scale, scale))
    a, s = (v(t).float().reshape(-1, 1, 1, 1) for v in (model.schedule.alpha, model.schedule.sigma))
    due = (x - s * eps) / a
    assert float((ours - due).abs().max() / due.abs().max()) < 1e-5

    drawn = []

    def fresh(shape, **kwargs):
        drawn.append(len(drawn))
        return noise_batch([0, 1], "student", [drawn[-1]] * 2, shape[1:])

    monkeypatch.setattr(scheduling_lcm, "randn_tensor", fresh)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(
        prompt_embeds=embeds, latents=x, height=64, width=64, num_inference_steps=4, guidance_scale=scale,
        output_type="latent",
    ).images  # fmt: skip
    with torch.no_grad():
        mine = sample(
            model.denoiser, make_solver("lcm", model.schedule), x, cond(embeds, scale, scale), 4, purpose="student"
        )
    assert len(drawn) == 3
    assert float((mine - out).abs().max() / out.abs().max()) < 1e-5


@pytest.mark.parametrize("n", [1, 2, 4, 8, 50])
def test_the_times_are_lcms(n, sd):
    scheduler = diffusers.LCMScheduler(**SCHEDULER)
    scheduler.set_timesteps(n)
    assert [p.t for p in make_solver("lcm", sd).timesteps(n)] == scheduler.timesteps.tolist()
    assert lcm_grid(sd, 50)[:2] + lcm_grid(sd, 50)[-1:] == [999, 979, 19]


def test_the_boundary_is_lcms_and_the_identity_at_its_end():
    t = torch.tensor([0.0, 1.0, 19.0, 999.0], dtype=torch.float64)
    scheduler = diffusers.LCMScheduler()
    for mine, due in zip(lcm_scalings(t), scheduler.get_scalings_for_boundary_condition_discrete(t), strict=True):
        assert torch.allclose(mine, due, rtol=1e-12)
    x = torch.randn(4, 2)
    f = with_lcm_boundary(lambda x, t, w: 7 + x)(x, t, t)
    assert torch.equal(f[0], x[0])
    assert torch.allclose(f[3], x[3] + 7)


def test_nothing_is_asked_at_the_end_of_lcms_grid(sd):
    grid, g = lcm_grid(sd, 50), torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 50, 2, generator=g, dtype=torch.float64)

    def predict(x, t, w):
        assert float(t.min()) >= 19
        return 0.9 * x

    def loss(**more):
        return float(consistency_loss(*[predict] * 3, sd, grid, x0, eps, torch.arange(50), torch.ones(50), end=0.0, **more))

    assert loss(huber=1e-3) > loss(huber=1e-3, elementwise=True) > 0
    # Far below c the distance of a number is its square over 2c.
    assert loss() == pytest.approx(loss(huber=100.0, elementwise=True) * 200, rel=1e-4)


def test_several_students_are_told_each_row_s_scale():
    models = [dataclasses.replace(tiny_model(), unet=told(k), fingerprints={"unet": str(k)}) for k in (0, 1)]
    x, t, embeds = inputs(2)
    several = MultiStudent.of(models, fit_pca_median(embeds, 2))
    guided = several.denoiser
    assert guided.evaluations_per_call == 1
    found = guided(x, t, cond(embeds, 2.0, 6.0))
    for i, k in enumerate(several.route(embeds).tolist()):
        alone, other = (models[k].denoiser(x, t, cond(embeds, *w)) for w in ((2.0, 6.0), (6.0, 2.0)))
        # The row may be another of its batch there, which moves last bits.
        assert torch.allclose(found[i], alone[i], atol=1e-5)
        assert not torch.allclose(found[i], other[i], atol=1e-3)


def test_what_it_is_used_with():
    options = checked(consistency.ConsistencyOptions, {**LCM, "w": [5, 8]}, "consistency")
    found = consistency.use(options, load_card("emoji"))
    assert (found.solver, found.guidance) == ("lcm", 5)
    assert "one network evaluation" in found.note


def test_refused(tmp_path):
    with pytest.raises(SettingError, match="no range of guidance"):
        run(tmp_path, {**LCM, "w": [5, 2]})
    with pytest.raises(SettingError, match="no range of guidance"):
        run(tmp_path, {**LCM, "w": [-1, 2]})
    with pytest.raises(SettingError, match="huber_over='element' belongs to huber"):
        run(tmp_path, {**LCM, "huber_over": "element"})
    with pytest.raises(SettingError, match="Flow schedule"):
        lcm_grid(Flow(), 50)
    told().save_pretrained(tmp_path / "start" / "unet")
    b = setup(tmp_path / "run", "consistency")
    b = dataclasses.replace(b, recipe=b.recipe.model_copy(update={"start": str(tmp_path / "start")}))
    with pytest.raises(SettingError, match="embedded_guidance=false"):
        consistency.run(b, consistency.ConsistencyOptions())
    assert isinstance(dataclasses.replace(tiny_model(), unet=told()).denoiser, EmbeddedGuidance)
