"""CLIP score, PickScore, HPSv2, the aesthetic predictor: parity with transformers' own forward and open_clip's by hand."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_published import (
    TINY_CLIP,
    Clip,
    clip_image,
    clip_shapes,
    clip_text,
    clip_tokenizer,
    head,
    head_shapes,
    random_weights,
)

from allaprima.core.errors import ModelError, PromptError, SettingError, UnsafeWeightsError
from allaprima.oracles.convert import convert_aesthetic, convert_open_clip, open_clip_config, open_clip_names
from allaprima.oracles.encoder import transformer_flops, vision_flops
from allaprima.oracles.load import load_oracle
from allaprima.oracles.published import renamed
from allaprima.oracles.settings import EncoderSettings

PROMPTS = ["red cat", "owl", "a b c d e", ""]
WEIGHTS = random_weights(clip_shapes(TINY_CLIP))
LONG = "abcdefghijk lmn"


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips")
    clip_tokenizer(path / "words")
    torch.save({"epoch": 1, "name": "x", "state_dict": WEIGHTS}, path / "HPS.pt")
    convert_open_clip(path / "HPS.pt", path / "words", path / "clip")
    return path / "clip"


def pictures(n=4, h=40, w=55, seed=1):
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))


def ids_of(o, prompts):
    """By hand: marks, pads, and open_clip's zero in place of pads, which must not matter."""
    words = [o.tokenizer(p)["input_ids"] for p in prompts]
    return torch.tensor([w + [0] * (TINY_CLIP.places - len(w)) for w in words])


def test_published_names_and_shapes_load_whole():
    weights = {k: torch.empty(s, device="meta") for k, s in clip_shapes(Clip()).items()}
    # open_clip's own count of ViT-H-14: 986.11 M.
    assert sum(w.numel() for w in weights.values()) == pytest.approx(986.11e6, rel=1e-5)
    from transformers import CLIPConfig, CLIPModel

    from allaprima.oracles.convert import _split

    config = open_clip_config(weights, "gelu")
    vision, text = config["vision_config"], config["text_config"]
    assert (vision["num_attention_heads"], text["num_attention_heads"]) == (16, 16)
    assert (vision["image_size"], vision["patch_size"], text["max_position_embeddings"]) == (224, 14, 77)
    with torch.device("meta"):
        net = CLIPModel(CLIPConfig(**config))
    fitted = renamed(_split(weights), open_clip_names(32, 24), (), "open_clip's CLIP")
    found = net.load_state_dict(fitted, assign=True)
    assert not found.missing_keys and not found.unexpected_keys
    # The same again without what may be left out: an older checkpoint's causal mask.
    assert renamed({**_split(weights), "attn_mask": weights["ln_final.bias"]}, open_clip_names(32, 24), ("attn_mask",), "x")


def test_hpsv2_is_open_clips_cosine(folder):
    o = load_oracle("hpsv2", folder)
    images = pictures()
    # The published transform: a float picture resized without a clamp, the middle of it, OpenAI's mean and deviation.
    big = F.interpolate(images, size=(32, 44), mode="bicubic", antialias=True)
    assert big.min() < 0
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (big[..., 6:38] - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    expected = (clip_image(WEIGHTS, pixels, TINY_CLIP) * clip_text(WEIGHTS, ids_of(o, PROMPTS), TINY_CLIP)).sum(1)
    found = o.score(images, PROMPTS)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.std() > 0.01


def test_quick_gelu_is_another_network(folder, tmp_path):
    convert_open_clip(folder.parent / "HPS.pt", folder.parent / "words", tmp_path / "quick", "quick_gelu")
    o = load_oracle("hpsv2", tmp_path / "quick")
    pixels = o.pixels(pictures())
    expected = clip_image(WEIGHTS, pixels, TINY_CLIP, quick_gelu) * clip_text(
        WEIGHTS, ids_of(o, PROMPTS), TINY_CLIP, quick_gelu
    )
    assert torch.allclose(o.score(pictures(), PROMPTS), expected.sum(1), atol=1e-5)
    assert (load_oracle("hpsv2", folder).score(pictures(), PROMPTS) - expected.sum(1)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["clip", "pickscore"])
def test_they_are_transformers_own_logits(folder, kind):
    from transformers import AutoTokenizer, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = (pictures() * 255).round() / 255
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    seen = [
        processor((x.permute(1, 2, 0) * 255).round().byte().numpy(), return_tensors="pt")["pixel_values"] for x in images
    ]
    tokens = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tokens, pixel_values=torch.cat(seen)).logits_per_image.diagonal()
    scale = 100 / math.exp(2.3) if kind == "clip" else 1.0
    found = load_oracle(kind, folder).score(images, PROMPTS)
    assert torch.allclose(found, scale * logits, atol=1e-4)
    # Below zero too: no floor.
    assert found.min() < 0


def test_a_score_does_not_depend_on_its_batch(folder):
    images, prompts = pictures(5), [PROMPTS[i % 3] for i in range(5)]
    together = load_oracle("pickscore", folder, settings={"batch_size": 8}).score(images, prompts)
    assert torch.allclose(
        load_oracle("pickscore", folder, settings={"batch_size": 2}).score(images, prompts), together, atol=1e-5
    )
    one = load_oracle("pickscore", folder).score(images[3:4], prompts[3:4])
    assert torch.allclose(one, together[3:4], atol=1e-5)


def test_a_long_prompt_is_said_or_refused(folder):
    o = load_oracle("clip", folder)
    with pytest.warns(UserWarning, match=r"clip reads 12 tokens; the prompt 'abcdefghijk lmn'\.\.\. has 16.*2 prompts"):
        found = o.score(pictures(3), [LONG, "owl", LONG])
    assert torch.allclose(found[1:2], o.score(pictures(3)[1:2], ["owl"]), atol=1e-5)
    with pytest.raises(PromptError, match="has 16"):
        load_oracle("clip", folder, settings={"long_prompts": "refuse"}).score(pictures(1), [LONG])


def test_fingerprints_tell_kinds_weights_and_settings_apart(folder):
    prints = [load_oracle(k, folder).fingerprint for k in ("clip", "pickscore", "hpsv2")]
    prints.append(load_oracle("clip", folder, settings={"resize": "tensor"}).fingerprint)
    assert len(set(prints)) == 4
    assert load_oracle("clip", folder, settings={"batch_size": 1}).fingerprint == prints[0]


def test_costs_are_computed_from_the_configs(folder):
    from torch.utils.flop_counter import FlopCounterMode

    o = load_oracle("hpsv2", folder, step=lambda: 5e7)
    # torch's counter doesn't see into the CPU's fused attention.
    o.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        o.score(pictures(1), ["owl"])
    # torch's counter leaves biases out as we do, and sees the two projections of features, which we don't count.
    projections = 2 * 2 * TINY_CLIP.hidden * TINY_CLIP.dim
    assert o.flops == counter.get_total_flops() - projections
    assert o.cost == o.flops / 5e7
    assert math.isnan(load_oracle("hpsv2", folder).cost)
    assert load_oracle("hpsv2", folder, settings={"cost": 0.25}, step=lambda: 5e7).cost == 0.25


def test_flops_of_published_sizes_are_those_of_open_clips_table():
    from transformers import CLIPVisionConfig

    # ViT-B-32: 4.41 GMAC for the picture, 2.98 for the text.
    assert vision_flops(CLIPVisionConfig()) / 2e9 == pytest.approx(4.41, abs=0.005)
    assert transformer_flops(12, 512, 2048, 77) / 2e9 == pytest.approx(2.98, abs=0.005)


def test_lower_precision_and_other_devices(folder):
    full = load_oracle("hpsv2", folder).score(pictures(), PROMPTS)
    half = load_oracle("hpsv2", folder, settings={"dtype": "bfloat16"}).score(pictures(), PROMPTS)
    assert half.dtype == torch.float32 and 0 < (half - full).abs().max() < 0.05
    with pytest.raises(SettingError, match="device='nowhere'"):
        load_oracle("hpsv2", folder, settings={"device": "nowhere"})


def test_what_does_not_fit_is_named(folder, tmp_path):
    def converted(weights, words=folder.parent / "words"):
        torch.save(weights, tmp_path / "w.pt")
        convert_open_clip(tmp_path / "w.pt", words, tmp_path / "out")

    with pytest.raises(ModelError, match=r"visual.attn_pool.query \(1 in all\) has no place"):
        converted({**WEIGHTS, "visual.attn_pool.query": torch.zeros(2)})
    with pytest.raises(ModelError, match=r"resblocks.1.attn.k.weight \(3 in all\) is missing"):
        converted({k: v for k, v in WEIGHTS.items() if k != "visual.transformer.resblocks.1.attn.in_proj_weight"})
    with pytest.raises(ModelError, match="no checkpoint of an open_clip vision transformer"):
        converted({"visual.layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(ModelError, match="60 tokens, end mark 59; the checkpoint 61"):
        converted({**WEIGHTS, "token_embedding.weight": torch.zeros(61, 128)})
    for name, broken in (
        ("config.json", "is missing"),
        ("model.safetensors", r"no .safetensors"),
        ("tokenizer.json", "tokenizer"),
    ):
        part = tmp_path / name.split(".")[0]
        part.mkdir()
        for f in folder.iterdir():
            if f.name != name and not (name == "tokenizer.json" and f.name.startswith("tokenizer")):
                (part / f.name).write_bytes(f.read_bytes())
        with pytest.raises(ModelError, match=broken):
            load_oracle("clip", part)
    # What transformers would make up at random is refused.
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for f in folder.iterdir():
        (lacking / f.name).write_bytes(f.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights.pop("text_projection.weight")
    save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"text_projection.weight \(1 weights are missing\)"):
        load_oracle("clip", lacking)
    (lacking / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ModelError, match="holds a 'siglip' model"):
        load_oracle("pickscore", lacking)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeWeightsError, match="a pickle"):
        load_oracle("clip", pickled)


HEAD = random_weights(head_shapes(TINY_CLIP.dim), seed=4)


@pytest.fixture(scope="module")
def aesthetic(folder):
    torch.save(HEAD, folder.parent / "head.pth")
    convert_aesthetic(folder.parent / "head.pth", folder, folder.parent / "aesthetic")
    return folder.parent / "aesthetic"


def test_the_aesthetic_predictor_is_its_head_on_unit_features(aesthetic):
    o = load_oracle("aesthetic", aesthetic)
    images = pictures()
    expected = head(HEAD, clip_image(WEIGHTS, o.pixels(images), TINY_CLIP))
    found = o.score(images, PROMPTS)
    assert torch.allclose(found, expected, atol=1e-5)
    # Prompts aren't looked at, and there is no text encoder to look with.
    assert torch.equal(o.score(images, PROMPTS[::-1]), found)
    assert not any("text" in k for k in load_file(aesthetic / "vision" / "model.safetensors"))
    assert o.flops == vision_flops(o.vision.config)
    assert found.std() > 1e-3


def test_the_aesthetic_head_must_fit(folder, tmp_path):
    def converted(weights):
        torch.save(weights, tmp_path / "w.pth")
        convert_aesthetic(tmp_path / "w.pth", folder, tmp_path / "out")

    with pytest.raises(ModelError, match="gives 24 features, the head reads 25"):
        converted(random_weights(head_shapes(25)))
    with pytest.raises(ModelError, match=r"there are \[0, 2, 4, 6\]"):
        converted({k: v for k, v in HEAD.items() if not k.startswith("layers.7")})
    with pytest.raises(ModelError, match=r"extra\.bias"):
        converted({**HEAD, "extra.bias": torch.zeros(1)})


def test_it_is_the_head_of_the_published_size():
    from allaprima.oracles.reward_head import RewardHead

    assert {k: tuple(v.shape) for k, v in RewardHead().state_dict().items()} == head_shapes(768)


def test_settings_of_encoders_are_checked():
    assert EncoderSettings().scoring() == {"dtype": "float32", "resize": "published"}
