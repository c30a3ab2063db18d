"""Where networks run: the default changes nothing, the rest changes no more than it says, and says what it changes."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import tiny_folders
import tiny_language
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch import nn

from allaprima import pipeline
from allaprima.core.errors import CalibrationError, ModelError, SettingError
from allaprima.models import placed
from allaprima.models.card import load_card
from allaprima.models.flops import step_flops
from allaprima.models.load import load_component
from allaprima.models.lora import add_adapters, save_lora
from allaprima.models.pair import load_pair
from allaprima.models.place import Placer
from allaprima.models.placed import OneAtATime, Placed, sequential
from allaprima.models.placement import DEFAULT, Placement
from allaprima.oracles.load import Ask
from allaprima.oracles.settings import EncoderSettings
from allaprima.pipeline import AdaptivePipeline, card_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_folders.card("sd", tmp_path_factory.mktemp("sd"))


def placed_pair(path, **options):
    return load_pair(load_card(path), Placer(Placement.of(**options)))


def painted(pair, path, **settings):
    pipe = AdaptivePipeline(pair.student, pair.teacher, None, card_settings(load_card(path)))
    return pipe(["red", "a red"], seed=0, batch_size=2, **settings).results


def says(model, prompt="red"):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, *model.latent_shape(16, 16), generator=g)
    with torch.inference_mode():
        return model.output(model.network, x, torch.tensor([500.0]), model.condition([prompt]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backend": "tensorrt"}, "'tensorrt' is not known"),
        ({"dtype": "int8"}, "'int8' is not known"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"teacher_device": "auto"}, "teacher_device='auto' is no device"),
        ({"compile": "fast"}, "'fast' is not known"),
        ({"offload": "disk"}, "'disk' is not known"),
        ({"backend": "openvino", "device": "cuda"}, "leave out device='cuda'"),
        ({"backend": "openvino", "dtype": "bfloat16"}, "leave out dtype='bfloat16'"),
        ({"backend": "onnxruntime", "vae_tiling": True}, "leave out vae_tiling=True"),
        ({"compile": "default", "offload": "model"}, "give one of them"),
        ({"colour": "red"}, "'colour' says nothing"),
    ],
)
def test_what_contradicts_itself_is_refused(options, said):
    with pytest.raises(SettingError, match=said):
        Placement.of(**options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda"}, "sees no GPU"),
        ({"teacher_device": "cuda:1"}, "teacher_device='cuda:1'"),
        ({"dtype": "float16"}, "for GPUs"),
        ({"offload": "model"}, "device is 'cpu'"),
    ],
)
def test_what_this_machine_has_not_got_is_refused(monkeypatch, options, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match=said):
        Placer(Placement.of(**options))


def test_auto_takes_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = Placement(device="auto", dtype="auto").resolved()
    assert (found.device, found.dtype, found.plain) == ("cpu", "float32", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = Placement(device="auto", dtype="auto").resolved()
    assert (found.device, found.dtype) == ("cuda", "bfloat16")
    assert Placement(device="auto", dtype="auto", teacher_device="cpu").resolved().dtype == "float32"


def test_a_signature_names_all_that_changes_bits_and_nothing_else():
    assert Placement().signature == DEFAULT
    assert Placement(lazy_teacher=True, cache=Path("x")).signature == DEFAULT
    assert Placement(device="cuda:1", dtype="bfloat16", offload="model").signature == "eager-bfloat16-cuda"
    assert Placement(teacher_device="cuda", vae_tiling=True).signature == "eager-float32-cpu+cuda-tiling"
    changed = [
        {"vae_slicing": True}, {"vae_tiling": True}, {"channels_last": True}, {"attention": "native"},
        {"compile": "default"}, {"dtype": "bfloat16"}, {"device": "cuda"},
    ]  # fmt: skip
    assert len({Placement.of(**c).signature for c in [{}, *changed]}) == len(changed) + 1


def test_the_default_is_what_it_was(pipe):
    bundled = load_card("emoji")
    made = json.loads(bundled.path(bundled.calibration or "").read_text())
    assert pipe.fingerprints() == made["fingerprints"]
    assert pipe.placement.plain
    # Nothing stands between the cascade and the networks.
    assert type(pipe.student.unet) is type(pipe.teacher.unet) is UNet2DConditionModel
    assert type(pipe.student.vae).__name__ == "PixelShuffleAutoencoder"
    assert isinstance(pipe.oracle.encoder, nn.Module)


def test_a_lazy_teacher_is_read_when_a_draft_falls_short(path):
    usual, lazy = load_pair(load_card(path)), placed_pair(path, lazy_teacher=True)
    assert lazy.teacher.fingerprint == usual.teacher.fingerprint
    assert lazy.student.fingerprint == usual.student.fingerprint
    painted(lazy, path, mode="student-only")
    assert not lazy.teacher.unet.loaded
    mine, due = (painted(p, path, mode="refine-all") for p in (lazy, usual))
    assert lazy.teacher.unet.loaded
    assert all(torch.equal(a.image, b.image) for a, b in zip(mine, due, strict=True))


def test_another_dtype_is_another_model_that_answers_alike(path):
    usual, low = load_pair(load_card(path)), placed_pair(path, dtype="bfloat16")
    assert low.student.fingerprints["backend"] == "eager-bfloat16-cpu"
    assert low.student.fingerprint != usual.student.fingerprint
    assert next(low.student.unet.held.parameters()).dtype == torch.bfloat16
    assert low.student.vae is low.teacher.vae, "what both share stays one"
    mine, due = says(low.student), says(usual.student)
    assert mine.dtype == torch.float32
    assert not torch.equal(mine, due)
    torch.testing.assert_close(mine, due, atol=0.05 * float(due.abs().max()), rtol=0)
    pictures = [torch.stack([r.image for r in painted(p, path, mode="refine-all")]) for p in (low, usual)]
    torch.testing.assert_close(*pictures, atol=0.1, rtol=0)
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(low.student.encode_images(images), usual.student.encode_images(images), atol=0.1, rtol=0)


def test_arguments_go_to_the_device_and_times_keep_their_digits():
    seen = {}

    def network(x, t, ids, more):
        seen.update(x=x, t=t, ids=ids, more=more[0])
        return {"sample": torch.ones(2, 1, dtype=torch.bfloat16)}

    away = Placed(lambda: network, None, torch.device("meta"), torch.bfloat16)
    said = away(torch.zeros(2, 3), torch.tensor([998.0, 999.0]), torch.ones(2, 3, dtype=torch.long), [torch.zeros(2, 2)])
    assert {k: (v.device.type, v.dtype) for k, v in seen.items()} == {
        "x": ("meta", torch.bfloat16), "t": ("meta", torch.float32), "ids": ("meta", torch.int64),
        "more": ("meta", torch.bfloat16),
    }  # fmt: skip
    assert (said.sample.device.type, said.sample.dtype) == ("cpu", torch.float32)
    # What asks a network where it is hears where it takes its arguments.
    assert (next(away.parameters()).device.type, away.device.type, away.dtype) == ("cpu", "cpu", torch.float32)


def test_an_autoencoder_that_overflows_stays_in_float32():
    p = Placement(device="cuda", dtype="float16")
    heavy = nn.Module()
    heavy.config = type("Config", (), {"force_upcast": True})
    assert placed.dtype_of(heavy, p) == torch.float32
    heavy.config = type("Config", (), {"force_upcast": False})
    assert placed.dtype_of(heavy, p) == torch.float16


def test_one_network_at_a_time_is_on_the_device():
    moved = []

    class Net(nn.Linear):
        def to(self, *a, **k):
            moved.append((self.name, str(a[0])))
            # There is no such device here: what is asked for is what is looked at.
            return self

        def forward(self, x):
            return torch.zeros(1, 2)

    room = OneAtATime()
    nets = {name: Net(2, 2) for name in "abc"}
    for name, net in nets.items():
        net.name = name
        room.add(net, torch.device("meta"))
    moved.clear()
    calls = {n: Placed(lambda net=net: net, None, CPU, torch.float32, None, room) for n, net in nets.items()}
    for name in "aabca":
        calls[name](torch.zeros(1, 2))
    there, steps = set(), []
    for name, device in moved:
        if device == "meta":
            there.add(name)
            steps.append((name, len(there)))
        else:
            there.discard(name)
    assert [n for n, _ in steps][-1] == "a"
    assert all(n == 1 for _, n in steps), "the one before has made room"
    assert {"a", "b", "c"} == {n for n, _ in steps}


def test_layer_by_layer_says_the_same(path):
    usual = load_pair(load_card(path)).teacher
    folder = path.parent / "teacher" / "unet"
    away = load_component(folder)
    sequential(away, CPU)
    due = says(usual)
    moved = usual.with_network(Placed(lambda: away, away.config, CPU, torch.float32), usual.fingerprints)
    torch.testing.assert_close(says(moved), due, atol=1e-6, rtol=0)
    assert {p.device.type for p in away.parameters()} == {"meta"}, "weights wait elsewhere between calls"
    vae = load_component(path.parent / "teacher" / "vae")
    sequential(vae, CPU)
    z = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(
        placed.PlacedAutoencoder(vae, CPU, torch.float32, None).decode(z).sample, usual.vae.decode(z).sample
    )


def test_autoencoders_decode_in_slices_and_tiles_where_they_can(path):
    pair = placed_pair(path, vae_slicing=True, vae_tiling=True)
    assert pair.student.vae.use_slicing
    assert pair.student.vae.use_tiling
    assert pair.student.fingerprints["backend"] == "eager-float32-cpu-slicing-tiling"
    torch.testing.assert_close(says(pair.student), says(load_pair(load_card(path)).student))
    with pytest.raises(SettingError, match="PixelShuffleAutoencoder can't be decoded so"):
        load_pair(load_card("emoji"), Placer(Placement(vae_tiling=True)))


def test_attention_backends_go_to_networks_that_take_them(path, tmp_path):
    with pytest.raises(SettingError, match="takes no backend"):
        placed_pair(path, attention="native")
    flux = tiny_folders.card("flux", tmp_path)
    with pytest.raises(SettingError, match="can't be used by FluxTransformer2DModel"):
        placed_pair(flux, attention="telepathy")
    native, usual = placed_pair(flux, attention="native").student, load_pair(load_card(flux)).student
    torch.testing.assert_close(says(native), says(usual), atol=1e-6, rtol=0)
    assert native.fingerprint != usual.fingerprint
    before = _AttentionBackendRegistry.get_active_backend()
    placed_pair(flux, attention="_native_math")
    assert _AttentionBackendRegistry.get_active_backend() == before, "other models keep theirs"


def test_compiling_is_of_the_diffusion_networks_by_mode(path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda net, **how: asked.append((type(net).__name__, how)) or net)
    pair = placed_pair(path, compile="reduce-overhead")
    assert asked == [("UNet2DConditionModel", {"mode": "reduce-overhead", "dynamic": False})] * 2
    assert torch.equal(says(pair.student), says(load_pair(load_card(path)).student))


def tiny_vae(folder, channels=4):
    torch.manual_seed(5)
    blocks = {"encoder_block_out_channels": (4, 4), "decoder_block_out_channels": (4, 4)}
    AutoencoderTiny(
        latent_channels=channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **blocks
    ).save_pretrained(folder)  # fmt: skip


def with_draft_vae(path, folder, **extra):
    raw = {"extends": str(path), "name": "rough", "draft_vae": "tiny", **extra}
    (folder / "card.yaml").write_text(json.dumps(raw))
    return folder / "card.yaml"


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}])
def test_drafts_are_looked_at_by_the_small_autoencoder_and_handed_out_by_the_full_one(path, tmp_path, options):
    tiny_vae(tmp_path / "tiny")
    mine = with_draft_vae(path, tmp_path)
    usual, rough = placed_pair(path, **options), placed_pair(mine, **options)
    assert rough.student.fingerprint != usual.student.fingerprint
    assert rough.teacher.fingerprint == usual.teacher.fingerprint
    for mode in ("student-only", "refine-all"):
        due, found = (painted(p, path, mode=mode) for p in (usual, rough))
        for a, b in zip(due, found, strict=True):
            assert torch.equal(a.image, b.image), "what is handed out is decoded by the full one"
            assert not torch.equal(b.draft, a.draft)
    if not options:
        small = load_component(tmp_path / "tiny")
        latents = torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(rough.student.decode_draft(latents), (small.decode(latents).sample / 2 + 0.5).clamp(0, 1))


def test_a_draft_that_beats_the_teacher_is_handed_out_by_the_full_autoencoder(path, tmp_path):
    from allaprima.cascade.job import Request
    from allaprima.cascade.machine import Machine
    from allaprima.cascade.policy import Decision, Recheck, ThresholdPolicy
    from allaprima.cascade.run import run

    class Falling:
        """Every later look is worse."""

        def __init__(self):
            self.next = 0.0

        def score(self, images, prompts):
            self.next -= 1
            return torch.full((len(images),), self.next)

    tiny_vae(tmp_path / "tiny")
    due = painted(load_pair(load_card(path)), path, mode="student-only")
    rough = load_pair(load_card(with_draft_vae(path, tmp_path)))
    settings = card_settings(load_card(path)).changed(batch_size=2)
    machine = Machine(rough.student, rough.teacher, Falling(), Recheck(ThresholdPolicy(0.0, Decision.REFINE)), settings)
    found = sorted(run(machine, [Request("red", 0, "", 0), Request("a red", 1, "", 1)]), key=lambda r: r.request.index)
    assert [r.kept for r in found] == ["draft", "draft"]
    for a, b in zip(due, found, strict=True):
        torch.testing.assert_close(b.image, a.image, atol=1e-6, rtol=0)


def test_a_draft_vae_of_other_latents_is_refused(path, tmp_path):
    tiny_vae(tmp_path / "tiny", channels=3)
    with pytest.raises(ModelError, match="latents of 3 channels"):
        load_pair(load_card(with_draft_vae(path, tmp_path)))


def lora_card(path, folder):
    net = load_component(path.parent / "teacher" / "unet")
    add_adapters(net, 2, 2.0)
    torch.manual_seed(3)
    for name, p in net.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(p, std=0.3)
    save_lora(net, folder)
    raw = {"extends": str(path), "name": "lora"}
    side = {"lora": "pytorch_lora_weights.safetensors", "steps": 2, "guidance_scale": 1.0}
    (folder / "card.yaml").write_text(json.dumps({**raw, "student": side}))
    return folder / "card.yaml"


@pytest.mark.parametrize("options", [{"lazy_teacher": True}, {"dtype": "bfloat16"}, {"compile": "default"}])
def test_a_placed_lora_student_is_beside_the_teachers_own_weights(path, tmp_path, monkeypatch, options):
    pytest.importorskip("peft", reason="pip install 'allaprima[train]'")
    monkeypatch.setattr(torch, "compile", lambda net, **how: net)
    mine = lora_card(path, tmp_path)
    usual, pair = load_pair(load_card(mine)), placed_pair(mine, **options)
    assert not torch.allclose(says(usual.student), says(usual.teacher), atol=1e-3), "or nothing is shown"
    loose = {"atol": 0.05, "rtol": 0.0} if "dtype" in options else {"atol": 0.0, "rtol": 0.0}
    for _ in range(2):
        for mine_, due in ((pair.teacher, usual.teacher), (pair.student, usual.student)):
            torch.testing.assert_close(says(mine_), says(due), **loose)
    own = {p.data_ptr() for p in pair.teacher.unet.held.parameters()}
    extra = [n for n, p in pair.student.unet.held.named_parameters() if p.data_ptr() not in own]
    assert extra
    assert all(".lora_" in n for n in extra)
    assert pair.student.fingerprints["unet"] == usual.student.fingerprints["unet"]


@pytest.mark.parametrize("options", [{"backend": "openvino"}, {"teacher_device": "cuda"}])
def test_a_lora_is_fused_where_weights_cannot_be_the_same(path, tmp_path, monkeypatch, options):
    pytest.importorskip("peft", reason="pip install 'allaprima[train]'")
    card = load_card(lora_card(path, tmp_path))
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.cuda, "is_available", lambda: True)
        placer = Placer(Placement.of(**options))
    assert Placer(Placement(lazy_teacher=True)).shares
    assert not placer.shares
    monkeypatch.setattr(Placer, "pair", lambda self, *both: both)
    pair, due = load_pair(card, placer), load_pair(card)
    network = pair.student.unet.read()
    assert not any(".lora_" in n for n, _ in network.named_parameters())
    model = pair.student.with_network(network, pair.student.fingerprints)
    torch.testing.assert_close(says(model), says(due.student), atol=1e-5, rtol=1e-4)
    assert pair.student.fingerprints["unet"] == due.student.fingerprints["unet"]


def test_networks_of_a_students_own_and_adapters_on_them_are_placed(path, tmp_path):
    pytest.importorskip("peft", reason="pip install 'allaprima[train]'")
    lora_card(path, tmp_path)
    unet = path.parent / "teacher" / "unet"
    shutil.copy(unet / "diffusion_pytorch_model.safetensors", tmp_path / "own.safetensors")
    for side in ({"network": str(unet)}, {"network": "own.safetensors", "lora": "pytorch_lora_weights.safetensors"}):
        raw = {"extends": str(path), "name": "own", "student": {**side, "steps": 2, "guidance_scale": 1.0}}
        raw["student"] |= {"prediction": "sample", "lora_scale": 0.5}
        (tmp_path / "card.yaml").write_text(json.dumps(raw))
        usual, lazy = load_pair(load_card(tmp_path)), placed_pair(tmp_path, lazy_teacher=True)
        assert lazy.student.fingerprints == usual.student.fingerprints
        assert torch.equal(says(lazy.student), says(usual.student))
        assert lazy.student.prediction == "sample"
        assert not lazy.teacher.unet.loaded
    (tmp_path / "own.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \.safetensors file"):
        placed_pair(tmp_path, lazy_teacher=True)


def test_a_refiner_is_placed_with_its_base_and_read_when_needed(tmp_path):
    path = tiny_folders.card("sdxl", tmp_path)
    tiny_folders.refiner(tmp_path / "refiner", tmp_path / "teacher")
    raw = {"extends": str(path), "name": "both", "teacher": {"refiner": "refiner", "refiner_from": 0.5}}
    (tmp_path / "both.yaml").write_text(json.dumps(raw))
    mine = tmp_path / "both.yaml"
    usual, lazy = load_pair(load_card(mine)), placed_pair(mine, lazy_teacher=True)
    assert lazy.teacher.fingerprint == usual.teacher.fingerprint
    assert lazy.student.fingerprint == usual.student.fingerprint
    assert not lazy.teacher.base.unet.loaded
    assert not lazy.teacher.refiner.unet.loaded
    told = {"mode": "refine-all", "teacher_steps": 4}
    due, found = (painted(p, mine, **told) for p in (usual, lazy))
    assert all(torch.equal(a.image, b.image) for a, b in zip(due, found, strict=True))
    assert lazy.teacher.refiner.unet.loaded
    low = placed_pair(mine, dtype="bfloat16")
    assert low.student.also is low.teacher.refiner, "one model, one text encoder"
    pictures = [torch.stack([r.image for r in painted(p, mine, **told)]) for p in (low, usual)]
    torch.testing.assert_close(*pictures, atol=0.1, rtol=0)


@pytest.mark.parametrize("family", ["sana", "qwen-image", "z-image"])
def test_language_models_are_placed_too(tmp_path, family):
    make = {"sana": tiny_language.sana, "qwen-image": tiny_language.qwen_image, "z-image": tiny_language.z_image}[family]
    make(tmp_path / "model")
    path = tiny_language.card(tmp_path, family, {"source": "model"}, {"source": "model"})
    usual, low = load_pair(load_card(path)), placed_pair(path, dtype="bfloat16")
    due, found = (p.student.condition(["red", "a red"]).tensors for p in (usual, low))
    assert due.keys() == found.keys()
    for k, v in due.items():
        torch.testing.assert_close(found[k].float(), v.float(), atol=0.1 * float(v.float().abs().max()), rtol=0)
    images = [p.student.decode(p.student.encode_images(torch.full((1, 3, 32, 32), 0.5))) for p in (usual, low)]
    torch.testing.assert_close(*images, atol=0.1, rtol=0)
    pictures = [torch.stack([r.image for r in painted(p, path, mode="refine-all")]) for p in (usual, low)]
    torch.testing.assert_close(*pictures, atol=0.2, rtol=0)
    with pytest.raises(SettingError, match=f"isn't known to run the family '{family}'"):
        placed_pair(path, backend="openvino")


def test_published_oracles_are_where_the_placement_is_unless_they_say(path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pipeline, "load_pair", lambda card, placer: load_pair(card))
    monkeypatch.setattr(pipeline, "load_oracle", lambda *a: asked.append(a))
    AdaptivePipeline.from_card(path, device="cuda:1")
    (kind, folder, encode, settings, step, device) = asked[0]
    assert (kind, device) == ("dual_encoder", "cuda:1")
    for own, due in ((settings, "cuda:1"), ({"device": "cpu", "dtype": "bfloat16"}, "cpu")):
        assert Ask("clip", folder, own, encode, step, device).encoder_settings(EncoderSettings).device == due


def test_a_stand_in_says_what_a_step_takes(path):
    usual, placed = load_pair(load_card(path)), placed_pair(path, lazy_teacher=True)
    assert step_flops(placed.teacher, 16, 16, 3.0) == step_flops(usual.teacher, 16, 16, 3.0) > 0
    assert not placed.teacher.unet.loaded


def test_a_calibration_of_another_backend_is_refused_by_name():
    low = AdaptivePipeline.from_card("emoji", dtype="bfloat16")
    assert low.fingerprints()["backend"] == "eager-bfloat16-cpu"
    with pytest.raises(CalibrationError, match=r"fingerprints.backend was 'eager-float32-cpu', is now 'eager-bfloat16-cpu'"):
        low.policy(low.settings)
    out = low(["red apple, noto"], seed=0, threshold=-1.0, batch_size=1)
    assert out.decisions == ["accept"]
    assert out.scores[0] is not None
    with pytest.raises(SettingError, match="contradict"):
        AdaptivePipeline.from_card("emoji", placement=Placement(), dtype="bfloat16")


def test_what_was_said_of_a_placement_can_be_said_again():
    p = Placement(dtype="bfloat16", lazy_teacher=True, cache=Path("x"))
    assert p.to_dict() == {"dtype": "bfloat16", "lazy_teacher": True}
    assert Placement.of(**p.to_dict()) == dataclasses.replace(p, cache=None)
