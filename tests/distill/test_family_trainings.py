"""Every method on every family, through the real loaders and the command: folders in, a folder that diffusers loads out."""

import json

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from tiny_folders import FAMILIES, card, model

from allaprima.core.errors import TrainingError
from allaprima.diffusion.schedules import Flow
from allaprima.distill.methods import consistency
from allaprima.distill.methods.common import TrainingSetup
from allaprima.distill.methods.matching import _features
from allaprima.distill.recipe import Recipe
from allaprima.distill.training_data import read_latents
from allaprima.experiments import distill
from allaprima.models.cards.card import load_card
from allaprima.models.components.latents import encoded
from allaprima.models.loading.pair import load_pair

CLASSES = {"sd": UNet2DConditionModel, "sdxl": UNet2DConditionModel, "sd3": SD3Transformer2DModel}
CAPTIONS = ["red fox", "a blue owl", "sea"]
LOOP = [
    "loop.max_train_steps=3", "loop.train_batch_size=2", "loop.learning_rate=1e-3", "loop.warmup_steps=0",
    "loop.use_ema=0.5",
]  # fmt: skip
CASES = [
    ("consistency", ()),
    ("consistency", ("options.target=end", "options.end_steps=2")),
    ("tsm", ()),
    ("distribution_matching", ("options.generator_every=1", "options.pairs=3", "options.pairs_steps=2")),
    ("adversarial", ("options.generator_every=1", "options.steps=2", "options.head_channels=8")),
]


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """A card a family, with latents of three captions beside it."""
    made = {}
    for family in FAMILIES:
        made[family] = path = card(family, tmp_path_factory.mktemp(family))
        model(family, path.parent / "other", seed=1)
        cond = load_pair(load_card(path)).teacher.condition(CAPTIONS).tensors
        tensors = {"latents": torch.randn(3, 4, 8, 8), **{k: v.clone().contiguous() for k, v in cond.items()}}
        save_file(tensors, path.parent / "latents.safetensors", metadata={"captions": json.dumps(CAPTIONS)})
    return made


@pytest.fixture(autouse=True)
def no_grids(monkeypatch):
    """Random networks' pictures are not worth their time here; that grids are painted is tested with the bundled pair."""
    monkeypatch.setattr(distill, "sample_grid", lambda *_: Image.new("RGB", (8, 8)))


@pytest.mark.parametrize(("method", "options"), CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_trains_and_diffusers_loads_what_is_published(cards, tmp_path, family, method, options):
    data = f"data={cards[family].parent / 'latents.safetensors'}"
    # Of a teacher's copy nothing is left to teach by score matching.
    start = cards[family].parent / ("other" if method == "tsm" else "teacher")
    given = [f"teacher={cards[family]}", data, f"start={start}", *options, *LOOP]
    distill.distill_command(method, None, given, tmp_path)
    pair = load_pair(load_card(tmp_path))
    mine, teacher = pair.student, pair.teacher
    theirs = CLASSES[family].from_pretrained(tmp_path / "student" / teacher.component, use_safetensors=True).eval()
    begun = CLASSES[family].from_pretrained(start / teacher.component, use_safetensors=True).eval()
    cond = teacher.condition(CAPTIONS)
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 4, 8, 8, generator=g), torch.tensor([0.1, 0.5, 0.9]).double() * teacher.schedule.t_max
    with torch.no_grad():
        said, due, before = (teacher.output(n, x, t, cond) for n in (mine.network, theirs, begun))
    torch.testing.assert_close(said, due, atol=1e-5, rtol=0)
    assert float((said - before).abs().max()) > 1e-4, "it has learned something"
    assert torch.isfinite(said).all()
    assert mine.vae is teacher.vae
    assert teacher.component in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_data_the_teacher_paints_what_is_trained_on(cards, tmp_path, family):
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS))
    more = [f"prompts={tmp_path / 'prompts.txt'}", "painted=4", f"start={cards[family].parent / 'teacher'}"]
    distill.distill_command("consistency", None, [f"teacher={cards[family]}", *more, *LOOP], tmp_path / "out")
    painted = tmp_path / "out" / "data" / "painted.safetensors"
    assert painted.exists()
    made, given = (load_pair(load_card(c)).student for c in (tmp_path / "out", cards[family]))
    assert made.fingerprint != given.fingerprint


def test_latents_without_what_the_family_reads_are_refused(cards, tmp_path):
    path = tmp_path / "old.safetensors"
    save_file({"latents": torch.randn(3, 4, 8, 8), "prompt_embeds": torch.randn(3, 12, 16)}, path)
    with pytest.raises(TrainingError, match="no pooled"):
        distill.distill_command("tsm", None, [f"teacher={cards['sdxl']}", f"data={path}", *LOOP], tmp_path / "out")


def setup(path, folder):
    teacher, recipe = load_pair(load_card(path)).teacher, Recipe(method="consistency")
    return TrainingSetup(
        teacher, read_latents(path.parent / "latents.safetensors"), teacher.condition([""]).clone(), recipe, folder
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_discriminator_reads_maps_of_the_middle(cards, tmp_path, family):
    b = setup(cards[family], tmp_path)
    network = b.student()
    x, t = torch.randn(2, 4, 8, 16, requires_grad=True), torch.full((2,), 0.5 * b.schedule.t_max, dtype=torch.float64)
    if family == "sd3":
        x = torch.randn(2, 4, 4, 8, requires_grad=True)
    found = _features(b, network, x, t, b.data.conditions.rows([0, 1]))
    assert found.shape[:2] == (2, b.teacher.bottleneck(network).channels)
    assert found.shape[2] < found.shape[3], "rows and columns of the picture's own"
    (grad,) = torch.autograd.grad(found.square().sum(), x)
    assert float(grad.abs().max()) > 0


def test_a_tokens_place_in_the_map_is_its_place_in_the_picture(cards, tmp_path):
    teacher = setup(cards["sd3"], tmp_path).teacher
    middle = teacher.bottleneck(teacher.network)
    x = torch.randn(1, 4, 4, 8)
    tokens = teacher.network.pos_embed.proj(x)
    assert torch.equal(middle.maps(tokens.flatten(2).transpose(1, 2), x), tokens)


def test_times_of_a_flow_are_not_rounded(cards, tmp_path):
    assert [setup(cards[f], tmp_path).whole_times for f in FAMILIES] == [True, True, False]


def test_the_end_of_a_flows_trajectory_is_the_euler_solvers(cards, tmp_path):
    b = setup(cards["sd3"], tmp_path)
    assert isinstance(b.schedule, Flow)
    cond, w = b.data.conditions.rows([0, 1]), torch.tensor([1.5, 3.0])
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 0.4], dtype=torch.float64)
    guided = b.guided(b.teacher.network, cond)
    with torch.no_grad():
        found, y = consistency.trajectory_end(b, guided, x, t, w, 3), x
        for k in range(3):
            now = t * (3 - k) / 3
            told = b.with_guidance(cond, w)
            halves = [
                b.teacher.output(b.teacher.network, y, now, type(cond)({k: told.tensors[p + k] for k in cond.tensors}))
                for p in ("negative_", "")
            ]
            v = halves[0] + w[:, None, None, None] * (halves[1] - halves[0])
            y = y - (t / 3).float()[:, None, None, None] * v
    torch.testing.assert_close(found, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoding_is_the_inverse_of_what_decoding_does_to_numbers(cards, family):
    vae = load_pair(load_card(cards[family])).teacher.vae
    pictures = torch.rand(1, 3, 16, 16) * 2 - 1
    latent, config = encoded(vae, pictures), vae.config
    raw = vae.encode(pictures).latent_dist.mode()
    due = {
        "sd": lambda z: z * 0.18215,
        "sdxl": lambda z: (z - torch.tensor(config.latents_mean)[:, None, None]) * 0.13
        / torch.tensor(config.latents_std)[:, None, None],
        "sd3": lambda z: (z - 0.06) * 1.5,
    }[family](raw)  # fmt: skip
    torch.testing.assert_close(latent, due, atol=1e-6, rtol=1e-5)
