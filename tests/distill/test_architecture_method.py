"""Method `architecture`, and networks cut by a recipe: nothing removed costs nothing, it trains, resumes and learns."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import setup, tiny_model, tiny_unet

from allaprima.core.errors import SettingError, TrainingError
from allaprima.distill import architecture as cuts
from allaprima.distill.losses.score_matching import draw_times
from allaprima.distill.methods import METHODS, architecture
from allaprima.distill.recipe import checked


def cut_bench(folder, network="full", width=1.0, method="architecture", **more):
    b = setup(folder, method, **more)
    b.teacher.unet.to(memory_format=torch.channels_last)  # As `load_unet` lays it out; another layout has other bits.
    return replace(b, recipe=type(b.recipe).model_validate({**b.recipe.model_dump(), "network": network, "width": width}))


def run(b):
    module, options_class = METHODS[b.recipe.method].load()
    return module.run(b, checked(options_class, b.recipe.options, b.recipe.method))


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def terms(b, model, seed=0, **options):
    with torch.no_grad():
        return architecture.terms(b, architecture.ArchitectureOptions(**options), model, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_removing_nothing_costs_nothing_but_the_task(tmp_path, prediction):
    b = cut_bench(tmp_path, teacher=tiny_model(prediction=prediction))
    found = terms(b, b.student())
    assert (float(found.output), float(found.features)) == (0, 0)
    assert float(found.task) == float(found.total) > 0
    moved = b.student()
    with torch.no_grad():
        moved.conv_in.weight.mul_(1.1)
    found = terms(b, moved)
    assert float(found.output) > 0
    assert float(found.features) > 0
    assert float(found.total) == pytest.approx(float(found.task + found.output + found.features))
    without = terms(b, moved, feature_weight=0, output_weight=0)
    assert float(without.features) == 0
    assert float(without.total) == float(without.task)


def test_the_task_is_the_noise_that_was_added(tmp_path, monkeypatch):
    """What the loss is given, against draws from the same seed."""
    given = []
    monkeypatch.setattr(architecture, "architecture_loss", lambda *args: given.append(args))
    b = cut_bench(tmp_path)
    terms(b, b.student(), seed=7)
    g = torch.Generator().manual_seed(7)
    x0, _ = b.data.draw(2, g)
    torch.rand(2, generator=g)
    t = draw_times(b.schedule, 2, g, low=1e-3, whole=True)
    assert bool((t >= 1).all())
    torch.testing.assert_close(given[0][2], torch.randn(x0.shape, generator=g), atol=1e-4, rtol=0)
    assert set(given[0][3]) == {"down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"}


@pytest.mark.parametrize("kind", cuts.KINDS)
def test_blocks_are_matched_as_the_cut_says(kind):
    teacher = tiny_unet()
    student = cuts.make_student(teacher, kind)
    cut = student.cut
    blocks = [f"down_blocks.{i}" for i in range(len(cut.down))] + ["mid_block"] * cut.mid
    blocks += [f"up_blocks.{i}" for i in range(len(cut.up) - cut.dropped)]
    assert architecture.matching_blocks(student.unet, teacher) == {block: cut.origin(block) for block in blocks}
    assert architecture.projections(student.unet, teacher) == {}


@pytest.mark.parametrize(("network", "width"), [("small", 1.0), ("tiny", 0.5)])
def test_it_trains_and_a_resumed_run_is_the_uninterrupted_one(tmp_path, network, width):
    whole = run(cut_bench(tmp_path / "a", network, width))
    start = cuts.make_student(tiny_unet(), network, width).unet
    assert whole.config.block_out_channels == start.config.block_out_channels
    assert [n for n, _ in whole.named_parameters()] == [n for n, _ in start.named_parameters()], "projections stay behind"
    assert not torch.equal(weights(whole), weights(start))
    with pytest.raises(KeyboardInterrupt):
        run(cut_bench(tmp_path / "b", network, width, stop=2))
    again = run(cut_bench(tmp_path / "b", network, width))
    assert torch.equal(weights(whole), weights(again))
    tensors = load_file(tmp_path / "a" / "checkpoint.safetensors")
    kept = sorted(k for k in tensors if k.startswith("model.") and "projections" in k)
    narrow = ["model.projections.down_blocks-0.weight", "model.projections.up_blocks-0.weight"]
    assert kept == (narrow if width < 1 else [])
    with pytest.raises(TrainingError, match=r"recipe\.network was \['\w+', [\d.]+\], now None"):
        run(cut_bench(tmp_path / "b"))


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_loss_falls(tmp_path, width):
    """The teacher is random and knows nothing of the task, so its outputs must weigh more to be what is learned."""
    loop = {"max_train_steps": 50, "learning_rate": 1e-2, "train_batch_size": 4, "use_ema": 0.5}
    b = cut_bench(tmp_path, "base", width, options={"output_weight": 30}, **loop)
    start = b.student()
    made = run(b)
    options = {} if width == 1 else {"feature_weight": 0}  # What is exported has no projections.
    before, after = ([terms(b, n, seed, **options) for seed in range(4)] for n in (start, made))
    for term in ("output", "features")[: 2 if width == 1 else 1]:
        a, z = (sum(float(getattr(x, term)) for x in found) for found in (before, after))
        print(width, term, a, z)
        assert z < 0.7 * a


def test_a_projection_begins_as_the_teachers_first_channels():
    model = architecture.Projected(tiny_unet(width=4), {"mid_block": (8, 16)})
    state = torch.randn(2, 8, 4, 4)
    made = model.projected("mid_block", state)
    assert torch.equal(made[:, :8], state)
    assert not bool(made[:, 8:].any())
    assert model.projected("down_blocks.0", state) is state


def test_a_cut_network_for_other_methods_and_what_is_said_of_it(tmp_path):
    notes = []
    made = run(replace(cut_bench(tmp_path, "base", 0.5, "tsm", max_train_steps=1), note=notes.append))
    assert len(notes) == 1
    assert str(cuts.make_student(tiny_unet(), "base", 0.5)) in notes[0]
    assert "removed" in notes[0]
    assert made.config.layers_per_block == [1, 1]
    assert "network" not in cut_bench(tmp_path).identity(), "trainings from before networks could be cut go on"


def test_refused(tmp_path):
    with pytest.raises(SettingError, match="can't imitate the hidden states of a teacher of 1"):
        architecture.matching_blocks(tiny_unet(), cuts.make_student(tiny_unet(), "tiny").unet)
    b = cut_bench(tmp_path, "base", teacher=replace(tiny_model(), unet=torch.nn.Linear(2, 2)))
    b.teacher.unet.config = {}
    with pytest.raises(SettingError, match="only UNets can be cut"):
        b.student()
