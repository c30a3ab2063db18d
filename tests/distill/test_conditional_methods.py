"""ControlNets and CoDi, trained by their command on tiny models: frozen bases, a start equal to the base, useful cards."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_folders import SIZE, card

from allaprima.cascade.settings import CascadeSettings
from allaprima.core.errors import ModelError, SettingError, TrainingError
from allaprima.data.control_maps import GIVEN, HOLE, MAPS, random_mask, training_map, with_hole
from allaprima.distill.losses.conditional import conditional_loss
from allaprima.distill.methods.adapters import Adapted, draw_with_map, fresh_net
from allaprima.distill.methods.common import TrainingSetup
from allaprima.distill.recipe import Recipe
from allaprima.distill.training_data import TrainingData, read_latents
from allaprima.experiments.distill import distill_command
from allaprima.models.adapters.conditional_unet import MU_RATE
from allaprima.models.cards.card import load_card
from allaprima.models.loading.pair import load_pair
from allaprima.pipeline import AdaptivePipeline, card_settings

LOOP = ("loop.max_train_steps=3", "loop.train_batch_size=2", "loop.warmup_steps=0", "loop.learning_rate=0.01",
        "options.fit_steps=2")  # fmt: skip


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def world(request, tmp_path_factory):
    """A tiny model's card, and data made of noise that it has encoded."""
    folder = tmp_path_factory.mktemp(request.param)
    path = card(request.param, folder)
    teacher = load_pair(load_card(path)).teacher
    g = torch.Generator().manual_seed(0)
    pictures = (torch.rand(6, 3, SIZE, SIZE, generator=g) * 255).byte()
    captions = ["red fox", "blue owl", "fox", "owl", "red owl", "blue fox"]
    tensors = {k: v.contiguous().clone() for k, v in teacher.condition(captions).tensors.items()}
    tensors |= {"latents": teacher.encode_images(pictures.float() / 255).contiguous().clone(), "pictures": pictures}
    save_file(tensors, folder / "data.safetensors", metadata={"captions": json.dumps(captions)})
    return request.param, path, folder / "data.safetensors"


def bench_of(world, folder, method="conditional", **recipe):
    _, path, data = world
    teacher = load_pair(load_card(path)).teacher
    made = Recipe.model_validate({"method": method, "loop": {"train_batch_size": 2}, **recipe})
    return TrainingSetup(teacher, read_latents(data), teacher.condition([""]).clone(), made, folder)


def distil(world, method, out, *changes):
    _, path, data = world
    distill_command(method, None, [f"teacher={path}", f"data={data}", *LOOP, *changes], out)
    return out


def pipe_of(made):
    pair = load_pair(made)
    return AdaptivePipeline(pair.student, pair.teacher, None, card_settings(made), None, made)


@pytest.mark.parametrize("name", [*MAPS, HOLE])
def test_the_start_is_the_base_to_the_bit_and_zero_convolutions_learn_first(world, tmp_path, name):
    setup = bench_of(world, tmp_path)
    net = fresh_net(setup, name)
    x0, cond = draw_with_map(setup, name, 0.0, torch.Generator().manual_seed(1))
    t = torch.tensor([700.0, 200.0], dtype=torch.float64)
    with torch.no_grad():
        mine = Adapted(setup, net).predict(x0, t, cond)
        base = setup.denoiser(setup.teacher.network)(x0, t, cond)
    assert torch.equal(mine, base)
    eps, s = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)), t - 50

    def student(x, times):
        return Adapted(setup, net).predict(x, times, cond)

    conditional_loss(student, student, setup.schedule, x0, eps, t, s).backward()
    moved = {n for n, p in net.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    zero = {n for n, _ in net.named_parameters() if n.startswith(("controlnet_down_blocks", "controlnet_mid_block"))}
    assert moved == zero, "what is behind a zero convolution hears nothing yet"
    assert all(p.grad is None for p in setup.teacher.network.parameters())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("controlnet", ["options.map=colours"]),
        ("controlnet", ["options.map=hole", "options.snr_limit=null"]),
        ("conditional", ["options.map=low-resolution"]),
        ("conditional", ["options.map=hole", "options.predictor=own_ddim", "options.shared_t=false"]),
        ("conditional", ["options.map=colours", "options.predictor=teacher_ddim", "options.guidance_scale=2"]),
    ],
)
def test_three_steps_leave_a_card_that_paints_and_a_net_that_diffusers_loads(world, tmp_path, method, options):
    from diffusers import ControlNetModel

    _, path, _ = world
    base = path.parent / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    before = base.read_bytes()
    out = distil(world, method, tmp_path / "out", *options)
    assert base.read_bytes() == before
    net = ControlNetModel.from_pretrained(out / "controlnet")
    assert max(float(p.detach().abs().max()) for p in net.controlnet_mid_block.parameters()) > 0, "it has learnt something"
    made = load_card(out)
    name = options[0].partition("=")[2]
    assert made.controls[name].map == name
    assert (made.controls[name].student is not None) == (method == "conditional")
    pipe = pipe_of(made).with_controlnets([name])
    assert pipe.settings.student_steps == (4 if method == "conditional" else 2)
    picture = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    shown = training_map(name, picture, torch.Generator().manual_seed(0))
    given = {"control_image": shown, "seed": 1, "mode": "student-only"}
    one, other = pipe("red fox", **given), pipe("red fox", **{**given, "control_image": 1 - shown})
    assert not torch.equal(one.results[0].image, other.results[0].image), "it is heeded"
    assert (out / "samples.png").exists()
    page = (out / "README.md").read_text()
    assert "allaprima control" in page
    assert name in page
    weights = out / "controlnet" / "diffusion_pytorch_model.safetensors"
    assert str(weights.relative_to(out)) in json.loads((out / "provenance.json").read_text())["sha256"]


def test_a_many_step_net_stays_the_teachers(world, tmp_path):
    """CoDi on top of a ControlNet of the same map: student and teacher each have their own."""
    first = distil(world, "controlnet", tmp_path / "first", "options.map=colours")
    _, _, data = world
    changes = [f"teacher={first / 'card.yaml'}", f"data={data}", *LOOP, "options.map=colours"]
    distill_command("conditional", None, changes, tmp_path / "second")
    made = load_card(tmp_path / "second")
    control = made.controls["colours"]
    assert made.path(control.source) == first / "controlnet"
    assert made.path(control.student or "") == tmp_path / "second" / "controlnet"
    pipe = pipe_of(made).with_controlnets(["colours"])
    prints = [m.fingerprints["controlnet.0"] for m in (pipe.student, pipe.teacher)]
    assert prints[0] != prints[1]
    assert pipe.student.network is pipe.teacher.network or torch.equal(
        pipe.student.network.conv_in.weight, pipe.teacher.network.conv_in.weight
    )
    picture = torch.rand(3, SIZE, SIZE)
    settings = CascadeSettings(
        height=SIZE, width=SIZE, batch_size=1, teacher_steps=3, student_steps=2, student_solver="ddim"
    )
    out = AdaptivePipeline(pipe.student, pipe.teacher, None, settings)(
        "fox", seed=1, control_image=picture, mode="refine-all"
    )
    assert out.decisions == ["refine"]


@pytest.mark.parametrize("full", [False, True])
def test_the_way_from_pixels_learns_what_the_base_says_of_latents(world, tmp_path, full):
    setup = bench_of(world, tmp_path)
    net = fresh_net(setup, "low-resolution", full=full, fit_steps=150)
    embedding = (net.encoder if full else net).controlnet_cond_embedding
    _, cond = draw_with_map(setup, "low-resolution", 0.0, torch.Generator().manual_seed(3))
    maps, conv = cond.tensors["control_0"], setup.teacher.network.conv_in
    with torch.no_grad():
        zeros = torch.zeros_like(setup.teacher.encode_images(maps))
        target = conv(setup.teacher.encode_images(maps)) - conv(zeros)
        error = (embedding(maps) - target).square().mean() / target.square().mean()
    assert float(error) < 0.5
    x0, cond = draw_with_map(setup, "low-resolution", 0.0, torch.Generator().manual_seed(1))
    t = torch.tensor([700.0, 200.0], dtype=torch.float64)
    with torch.no_grad():
        base = setup.denoiser(setup.teacher.network)(x0, t, cond)
        assert torch.equal(Adapted(setup, net).predict(x0, t, cond), base), "still the base to the bit"


def test_a_training_that_goes_on_is_not_fitted_again(world, tmp_path):
    setup = bench_of(world, tmp_path)
    (tmp_path / "checkpoint.safetensors").touch()
    net, plain = (fresh_net(setup, "colours", fit_steps=n) for n in (5, 0))
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in net.state_dict().items())


def test_start_goes_on_from_an_earlier_net(world, tmp_path):
    first = distil(world, "controlnet", tmp_path / "first", "options.map=colours")
    setup = bench_of(world, tmp_path, start=str(first))
    net = fresh_net(setup, "colours")
    saved = load_file(first / "controlnet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(v, saved[k]) for k, v in net.state_dict().items())
    with pytest.raises(SettingError, match="4"):
        fresh_net(setup, HOLE)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (["options.map=depth"], SettingError, "'depth' is not known"),
        (["options.x_weight=0"], SettingError, "x_weight"),
        (["lora={}"], SettingError, "leave them out"),
        (["partition.students=2"], SettingError, "partition"),
        (["options.predictor=mine"], SettingError, "predictor"),
    ],
)
def test_what_makes_no_sense_is_named(world, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        distil(world, "conditional", tmp_path / "out", *changes)
    assert not (tmp_path / "out" / "card.yaml").exists()


def test_latents_alone_are_not_enough(world, tmp_path):
    _, path, data = world
    tensors = load_file(data)
    del tensors["pictures"]
    save_file(tensors, tmp_path / "latents.safetensors")
    with pytest.raises(TrainingError, match="looks at pictures"):
        distill_command(
            "conditional", None, [f"teacher={path}", f"data={tmp_path / 'latents.safetensors'}", *LOOP], tmp_path / "o"
        )


def test_a_flow_takes_none(tmp_path):
    path = card("sd3", tmp_path)
    (tmp_path / "prompts.txt").write_text("red fox\nowl\n")
    changes = [f"teacher={path}", "painted=2", f"prompts={tmp_path / 'prompts.txt'}", *LOOP]
    with pytest.raises(SettingError, match="sd and sdxl"):
        distill_command("controlnet", None, changes, tmp_path / "o")


def test_holes_are_what_they_say():
    g = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(200):
        mask = random_mask(32, 24, g)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        shares.append(float(mask.mean()))
    assert min(shares) > 0.05
    assert max(shares) < 0.95
    picture = torch.rand(3, 32, 24, generator=g)
    shown = with_hole(picture, mask)
    assert shown.shape == (4, 32, 24)
    assert torch.equal(shown[:3, mask[0] == 0], picture[:, mask[0] == 0])
    assert bool((shown[:3, mask[0] == 1] == 0.5).all())
    small = training_map("low-resolution", picture, g)
    assert small.shape == picture.shape
    assert float(small.std()) < float(picture.std())


def test_a_whole_conditional_unet_begins_as_the_base_and_mu_learns_first(world, tmp_path):
    setup = bench_of(world, tmp_path)
    net = fresh_net(setup, "colours", full=True)
    x0, cond = draw_with_map(setup, "colours", 0.0, torch.Generator().manual_seed(1))
    t = torch.tensor([700.0, 200.0], dtype=torch.float64)
    with torch.no_grad():
        base = setup.denoiser(setup.teacher.network)(x0, t, cond)
        assert torch.equal(Adapted(setup, net).predict(x0, t, cond), base)
    eps, s = torch.randn(x0.shape, generator=torch.Generator().manual_seed(2)), t - 50

    def student(x, times):
        return Adapted(setup, net).predict(x, times, cond)

    conditional_loss(student, student, setup.schedule, x0, eps, t, s).backward()
    grads = {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in net.named_parameters()}
    assert grads["slow_mu"] > 0
    assert max(v for n, v in grads.items() if n.startswith("unet.")) > 0, "all of the network learns"
    assert max(v for n, v in grads.items() if n.startswith("encoder.")) == 0, "the encoder is behind mu"
    assert all(p.grad is None for p in setup.teacher.network.parameters())
    assert not net.unet.mid_block._forward_hooks
    with torch.no_grad():
        net.slow_mu.fill_(0.3 / MU_RATE)
        moved = Adapted(setup, net).predict(x0, t, cond)
        off = cond.tensors | {"control_scale": torch.zeros(2, 1)}
        other = cond.tensors | {"control_0": 1 - cond.tensors["control_0"]}
        assert not torch.allclose(moved, base, atol=1e-4)
        assert torch.equal(Adapted(setup, net).predict(x0, t, type(cond)(off)), base), "scale 0 is the base"
        assert not torch.equal(Adapted(setup, net).predict(x0, t, type(cond)(other)), moved), "the picture is read"


def test_at_mu_one_the_decoder_hears_the_condition_alone(world, tmp_path):
    """h' = (1 - mu) h + mu h_c: at 1 what the encoder says of x_t is gone, and the output no longer depends on x_t."""
    setup = bench_of(world, tmp_path)
    net = fresh_net(setup, "colours", full=True)
    x0, cond = draw_with_map(setup, "colours", 0.0, torch.Generator().manual_seed(1))
    t = torch.tensor([700.0, 200.0], dtype=torch.float64)
    model = Adapted(setup, net).model
    with torch.no_grad():
        for mu, same in ((1.0, True), (0.5, False)):
            net.slow_mu.fill_(mu / MU_RATE)
            a, b = (model.output(net, x, t, cond) for x in (x0, x0 + 1))
            assert torch.equal(a, b) == same


@pytest.mark.parametrize("predictor", ["prev", "own_ddim"])
def test_a_full_training_leaves_a_card_that_paints_and_goes_on(world, tmp_path, predictor):
    from diffusers import UNet2DConditionModel

    options = ["options.map=hole", "options.kind=full", f"options.predictor={predictor}"]
    out = distil(world, "conditional", tmp_path / "out", *options)
    unet = UNet2DConditionModel.from_pretrained(out / "controlnet" / "unet")
    made = load_card(out)
    pipe = pipe_of(made).with_controlnets(["hole"])
    assert torch.equal(pipe.student.network.unet.conv_in.weight, unet.conv_in.weight)
    assert float(pipe.student.network.mu) != 0
    assert pipe.settings.student_steps == 4
    g = torch.Generator().manual_seed(0)
    shown = training_map("hole", torch.rand(3, SIZE, SIZE, generator=g), g)
    given = {"control_image": shown, "seed": 1, "mode": "student-only"}
    one, again = pipe("red fox", **given), pipe_of(made).with_controlnets(["hole"])("red fox", **given)
    assert torch.equal(one.results[0].image, again.results[0].image)
    listed = json.loads((out / "provenance.json").read_text())["sha256"]
    assert {p.rsplit("/", 2)[-2] for p in listed} == {"unet", "encoder"}
    page = (out / "README.md").read_text()
    assert "UNet2DConditionModel" in page
    setup = bench_of(world, tmp_path, start=str(out))
    assert torch.equal(fresh_net(setup, HOLE, full=True).mu.detach(), pipe.student.network.mu)
    with pytest.raises(SettingError, match="start from a net of the same kind"):
        fresh_net(setup, HOLE)
    with pytest.raises(ModelError, match="goes with no other net"):
        pipe_of(made).with_controlnets([out / "controlnet", out / "controlnet"])


def test_what_comes_with_the_data_is_read(world, tmp_path):
    """The map `given`: instructions ("make it blue") with the picture they change, or depths."""
    _, path, data = world
    own = tmp_path / "paired.safetensors"
    tensors = load_file(data)
    tensors["controls"] = 255 - tensors["pictures"]
    save_file(tensors, own, metadata={"captions": json.dumps([f"make it {k}" for k in range(6)])})
    paired = (world[0], path, own)
    setup = bench_of(paired, tmp_path)
    _, cond = draw_with_map(setup, GIVEN, 0.0, torch.Generator().manual_seed(1))
    index = torch.randint(6, (2,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(cond.tensors["control_0"], tensors["controls"][index].float() / 255)
    kept = setup.data.keep(torch.arange(6) > 3)
    assert torch.equal(kept.controls, tensors["controls"][4:])
    assert setup.data.identity != read_latents(data).identity
    out = distil(paired, "conditional", tmp_path / "out", "options.map=given")
    pipe = pipe_of(load_card(out)).with_controlnets([GIVEN])
    given = {"seed": 1, "mode": "student-only"}
    one, other = (pipe("make it 1", **given, control_image=torch.rand(3, SIZE, SIZE)) for _ in range(2))
    assert not torch.equal(one.results[0].image, other.results[0].image)
    with pytest.raises(TrainingError, match="nothing does"):
        distil(world, "conditional", tmp_path / "none", "options.map=given")
    with pytest.raises(TrainingError, match="5 controls for 6 latents"):
        TrainingData(**{**vars(setup.data), "controls": tensors["controls"][:5]})
