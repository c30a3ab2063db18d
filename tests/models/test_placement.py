"""Where networks run: the default changes nothing, the rest changes no more than it says, and says what it changes."""

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_folders
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from tiny_placed import painted, placed_pair, says
from torch import nn

from allaprima.core.errors import CalibrationError, ModelError, SettingError
from allaprima.models.cards.card import load_card
from allaprima.models.components.loading import load_component
from allaprima.models.loading.pair import load_pair
from allaprima.models.placement import offloaded
from allaprima.models.placement.device_config import DEFAULT, DeviceConfig
from allaprima.models.placement.offloaded import OffloadedModule, OneAtATime, sequential
from allaprima.models.placement.placer import ModelPlacer
from allaprima.pipeline import AdaptivePipeline, card_settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_folders.card("sd", tmp_path_factory.mktemp("sd"))


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
        ({"backend": "openvino", "dtype": "float16"}, "leave out dtype='float16'"),
        ({"backend": "onnxruntime", "dtype": "bfloat16"}, "leave out dtype='bfloat16'"),
        ({"backend": "onnxruntime", "vae_tiling": True}, "leave out vae_tiling=True"),
        ({"compile": "default", "offload": "model"}, "give one of them"),
        ({"colour": "red"}, "'colour' says nothing"),
    ],
)
def test_what_contradicts_itself_is_refused(options, said):
    with pytest.raises(SettingError, match=said):
        DeviceConfig.of(**options)


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
        ModelPlacer(DeviceConfig.of(**options))


def test_auto_takes_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = DeviceConfig(device="auto", dtype="auto").resolved()
    assert (found.device, found.dtype, found.plain) == ("cpu", "float32", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    found = DeviceConfig(device="auto", dtype="auto").resolved()
    assert (found.device, found.dtype) == ("cuda", "bfloat16")
    assert DeviceConfig(device="auto", dtype="auto", teacher_device="cpu").resolved().dtype == "float32"


def test_a_signature_names_all_that_changes_bits_and_nothing_else():
    assert DeviceConfig().signature == DEFAULT
    assert DeviceConfig(lazy_teacher=True, cache=Path("x")).signature == DEFAULT
    assert DeviceConfig(device="cuda:1", dtype="bfloat16", offload="model").signature == "eager-bfloat16-cuda"
    assert DeviceConfig(teacher_device="cuda", vae_tiling=True).signature == "eager-float32-cpu+cuda-tiling"
    changed = [
        {"vae_slicing": True}, {"vae_tiling": True}, {"channels_last": True}, {"attention": "native"},
        {"compile": "default"}, {"dtype": "bfloat16"}, {"device": "cuda"},
    ]  # fmt: skip
    assert len({DeviceConfig.of(**c).signature for c in [{}, *changed]}) == len(changed) + 1


def test_the_default_is_what_it_was(pipe):
    bundled = load_card("emoji")
    made = json.loads(bundled.path(bundled.calibration or "").read_text())
    assert pipe.fingerprints() == made["fingerprints"]
    assert pipe.device_config.plain
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

    away = OffloadedModule(lambda: network, None, torch.device("meta"), torch.bfloat16)
    said = away(torch.zeros(2, 3), torch.tensor([998.0, 999.0]), torch.ones(2, 3, dtype=torch.long), [torch.zeros(2, 2)])
    assert {k: (v.device.type, v.dtype) for k, v in seen.items()} == {
        "x": ("meta", torch.bfloat16), "t": ("meta", torch.float32), "ids": ("meta", torch.int64),
        "more": ("meta", torch.bfloat16),
    }  # fmt: skip
    assert (said.sample.device.type, said.sample.dtype) == ("cpu", torch.float32)
    # What asks a network where it is hears where it takes its arguments.
    assert (next(away.parameters()).device.type, away.device.type, away.dtype) == ("cpu", "cpu", torch.float32)


def test_an_autoencoder_that_overflows_stays_in_float32():
    p = DeviceConfig(device="cuda", dtype="float16")
    heavy = nn.Module()
    heavy.config = type("Config", (), {"force_upcast": True})
    assert offloaded.dtype_of(heavy, p) == torch.float32
    heavy.config = type("Config", (), {"force_upcast": False})
    assert offloaded.dtype_of(heavy, p) == torch.float16


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
    calls = {n: OffloadedModule(lambda net=net: net, None, CPU, torch.float32, None, room) for n, net in nets.items()}
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
    moved = usual.with_network(OffloadedModule(lambda: away, away.config, CPU, torch.float32), usual.fingerprints)
    torch.testing.assert_close(says(moved), due, atol=1e-6, rtol=0)
    assert {p.device.type for p in away.parameters()} == {"meta"}, "weights wait elsewhere between calls"
    vae = load_component(path.parent / "teacher" / "vae")
    sequential(vae, CPU)
    z = torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(
        offloaded.OffloadedAutoencoder(vae, CPU, torch.float32, None).decode(z).sample, usual.vae.decode(z).sample
    )


def test_autoencoders_decode_in_slices_and_tiles_where_they_can(path):
    pair = placed_pair(path, vae_slicing=True, vae_tiling=True)
    assert pair.student.vae.use_slicing
    assert pair.student.vae.use_tiling
    assert pair.student.fingerprints["backend"] == "eager-float32-cpu-slicing-tiling"
    torch.testing.assert_close(says(pair.student), says(load_pair(load_card(path)).student))
    with pytest.raises(SettingError, match="PixelShuffleAutoencoder can't be decoded so"):
        load_pair(load_card("emoji"), ModelPlacer(DeviceConfig(vae_tiling=True)))


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
        torch.testing.assert_close(
            rough.student.decode_preview(latents), (small.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        )


def test_a_draft_that_beats_the_teacher_is_handed_out_by_the_full_autoencoder(path, tmp_path):
    from allaprima.cascade.latent_cascade import LatentCascade
    from allaprima.cascade.request import GenerationRequest
    from allaprima.cascade.runner import run
    from allaprima.cascade.sequential import SequentialPolicy

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
    cascade = LatentCascade(rough.student, rough.teacher, Falling(), SequentialPolicy(0.0), settings)
    found = sorted(
        run(cascade, [GenerationRequest("red", 0, "", 0), GenerationRequest("a red", 1, "", 1)]),
        key=lambda r: r.request.index,
    )
    assert [r.selected for r in found] == ["draft", "draft"]
    for a, b in zip(due, found, strict=True):
        torch.testing.assert_close(b.image, a.image, atol=1e-6, rtol=0)


def test_a_draft_vae_of_other_latents_is_refused(path, tmp_path):
    tiny_vae(tmp_path / "tiny", channels=3)
    with pytest.raises(ModelError, match="latents of 3 channels"):
        load_pair(load_card(with_draft_vae(path, tmp_path)))


def test_a_calibration_of_another_backend_is_refused_by_name():
    low = AdaptivePipeline.from_card("emoji", dtype="bfloat16")
    assert low.fingerprints()["backend"] == "eager-bfloat16-cpu"
    with pytest.raises(CalibrationError, match=r"fingerprints.backend was 'eager-float32-cpu', is now 'eager-bfloat16-cpu'"):
        low.policy(low.settings)
    out = low(["red apple, noto"], seed=0, threshold=-1.0, batch_size=1)
    assert out.decisions == ["accept"]
    assert out.scores[0] is not None
    with pytest.raises(SettingError, match="contradict"):
        AdaptivePipeline.from_card("emoji", device_config=DeviceConfig(), dtype="bfloat16")


def test_what_was_said_of_a_placement_can_be_said_again():
    p = DeviceConfig(dtype="bfloat16", lazy_teacher=True, cache=Path("x"))
    assert p.to_dict() == {"dtype": "bfloat16", "lazy_teacher": True}
    assert DeviceConfig.of(**p.to_dict()) == dataclasses.replace(p, cache=None)
