"""ImageReward: published names and shapes, parity with the published equations, safe conversion, batches, long prompts."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_published import TINY_BLIP, Blip, bert_tokenizer, image_reward, random_weights, reward_shapes

from allaprima.core.errors import ModelError, PromptError, RunFolderError, SettingError, UnsafeWeightsError
from allaprima.oracles.convert import REWARD_UNUSED, convert_image_reward, reward_config, reward_names
from allaprima.oracles.image_reward import TEXT, VISION, ImageRewardModel, ImageRewardOracle
from allaprima.oracles.load import load_oracle
from allaprima.oracles.published import renamed
from allaprima.oracles.settings import ImageRewardSettings

PROMPTS = ["red cat", "the owl!", "a b c d e f g", "cats"]
WEIGHTS = random_weights(reward_shapes(TINY_BLIP))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward")
    bert_tokenizer(path / "bert")
    torch.save(WEIGHTS, path / "ImageReward.pt")
    convert_image_reward(path / "ImageReward.pt", path / "bert", path / "oracle")
    return path


def pictures(n=4, h=40, w=56, seed=1):
    return torch.rand(n, 3, h, w, generator=torch.Generator().manual_seed(seed))


def oracle(made, **settings):
    return load_oracle("imagereward", made / "oracle", settings={"max_tokens": 12, **settings})


def by_hand(images, prompts, o, length):
    rows = [o.tokenizer(p)["input_ids"] for p in prompts]
    ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
    return image_reward(
        WEIGHTS, o.pixels(images), ids, (torch.arange(length) < torch.tensor([[len(r)] for r in rows])), TINY_BLIP
    )


def test_published_names_and_shapes_load_whole():
    shapes = reward_shapes(Blip())
    weights = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
    # 12 a block of the 24, 26 a layer of the 12; four bytes each are the 1.79 GB of the published file.
    assert len(weights) == 6 + 24 * 12 + 5 + 12 * 26 + 4 + 10
    assert sum(w.numel() for w in weights.values()) * 4 == pytest.approx(1.79e9, rel=2e-3)
    config = reward_config(weights)
    assert config["vision"].items() <= VISION.items() and config["text"].items() <= TEXT.items()
    with torch.device("meta"):
        net = ImageRewardModel()
    fitted = renamed(weights, reward_names(24, 12), REWARD_UNUSED, "ImageReward")
    found = net.load_state_dict(fitted, assign=True)
    assert not found.missing_keys and not found.unexpected_keys
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == {k: tuple(v.shape) for k, v in fitted.items()}


def test_scores_are_the_published_equations(made):
    o = oracle(made)
    found = o.score(pictures(), PROMPTS)
    assert found == pytest.approx(by_hand(pictures(), PROMPTS, o, 12), abs=1e-4)
    # Pictures and prompts both matter, by far more than the tolerance.
    assert found.std() > 0.05
    assert (o.score(pictures(seed=2), PROMPTS) - found).abs().min() > 1e-3
    assert (o.score(pictures(), PROMPTS[::-1]) - found).abs().max() > 1e-2


def test_the_first_token_stays_as_the_published_code_has_it(made):
    o = oracle(made)
    words = o.tokenizer.get_vocab()
    assert (words["[DEC]"], words["[ENC]"], len(o.tokenizer)) == (38, 39, 40)
    assert o.tokenizer("red cats")["input_ids"] == [words[w] for w in ("[CLS]", "red", "cat", "##s", "[SEP]")]


def test_a_score_does_not_depend_on_its_batch(made):
    images, prompts = pictures(7), [PROMPTS[i % 4] for i in range(7)]
    together = oracle(made, batch_size=16).score(images, prompts)
    assert torch.allclose(oracle(made, batch_size=2).score(images, prompts), together, atol=1e-5)
    alone = torch.cat([oracle(made).score(images[i : i + 1], prompts[i : i + 1]) for i in range(7)])
    assert torch.allclose(alone, together, atol=1e-5)
    broken = images.clone()
    broken[3, 0, 5, 5] = torch.nan
    found = oracle(made).score(broken, prompts)
    assert found.isnan().tolist() == [i == 3 for i in range(7)]
    assert torch.allclose(found[[0, 1, 2, 4, 5, 6]], together[[0, 1, 2, 4, 5, 6]], atol=1e-5)
    with pytest.raises(SettingError, match="7 pictures with 4 prompts"):
        oracle(made).score(images, PROMPTS)


def test_a_long_prompt_is_never_cut_in_silence(made):
    images, words = pictures(1), "a b c d e f g h i j k"
    with pytest.warns(UserWarning, match=r"reads 8 tokens; the prompt 'a b c d e f g h i j k'\.\.\. has 13"):
        cut = oracle(made, max_tokens=8).score(images, [words])
    # Marks included: six words are read.
    assert torch.allclose(cut, oracle(made, max_tokens=8).score(images, ["a b c d e f"]), atol=1e-5)
    whole = oracle(made, max_tokens=24).score(images, [words])
    assert (whole - cut).abs() > 1e-3
    assert whole == pytest.approx(by_hand(images, [words], oracle(made), 24), abs=1e-4)
    with pytest.raises(PromptError, match=r"has 13\. Shorten it"):
        oracle(made, max_tokens=8, long_prompts="refuse").score(images, [words])
    with pytest.raises(SettingError, match="max_tokens = 25: this text encoder reads 24"):
        oracle(made, max_tokens=25)
    assert ImageRewardSettings().max_tokens == 35


def test_the_fingerprint_covers_what_changes_a_score(made, tmp_path):
    base = oracle(made).fingerprint
    assert oracle(made, batch_size=3, long_prompts="refuse", cost=0.5).fingerprint == base
    others = [oracle(made, **s).fingerprint for s in ({"max_tokens": 13}, {"resize": "tensor"}, {"dtype": "bfloat16"})]
    assert len({base, *others}) == 4
    torch.save(random_weights(reward_shapes(TINY_BLIP), seed=1), tmp_path / "other.pt")
    convert_image_reward(tmp_path / "other.pt", made / "bert", tmp_path / "other")
    other = ImageRewardOracle.from_folder(tmp_path / "other", ImageRewardSettings(max_tokens=12))
    assert other.fingerprint not in {base, *others}


def test_lower_precision_stays_near(made):
    full = oracle(made).score(pictures(), PROMPTS)
    half = oracle(made, dtype="bfloat16").score(pictures(), PROMPTS)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1


def test_another_checkpoint_or_tokenizer_is_named(made, tmp_path):
    def converted(weights, tokenizer=made / "bert"):
        torch.save(weights, tmp_path / "w.pt")
        convert_image_reward(tmp_path / "w.pt", tokenizer, tmp_path / "out")

    lacking = {k: v for k, v in WEIGHTS.items() if k != "blip.visual_encoder.blocks.1.attn.qkv.bias"}
    with pytest.raises(ModelError, match=r"blocks.1.attn.qkv.bias \(1 in all\) is missing"):
        converted(lacking)
    with pytest.raises(ModelError, match=r"blip.itm_head.weight \(1 in all\) has no place"):
        converted({**WEIGHTS, "blip.itm_head.weight": torch.zeros(2)})
    with pytest.raises(ModelError, match="size mismatch"):
        converted({**WEIGHTS, "mlp.layers.2.weight": torch.zeros(128, 1023)})
    with pytest.raises(ModelError, match="no checkpoint of ImageReward"):
        converted({"a": torch.zeros(1)})
    bert_tokenizer(tmp_path / "short")
    lines = (tmp_path / "short" / "vocab.txt").read_text().splitlines()
    (tmp_path / "short" / "vocab.txt").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ModelError, match="39 tokens with BLIP's marks, the checkpoint 40"):
        converted(WEIGHTS, tmp_path / "short")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    (tmp_path / "out").mkdir()
    with pytest.raises(RunFolderError, match="exists"):
        converted(WEIGHTS)


def test_a_folder_that_is_none_is_named(made, tmp_path):
    with pytest.raises(ModelError, match=r"config.json is missing"):
        load_oracle("imagereward", tmp_path)
    config = json.loads((made / "oracle" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "_class_name": "DualEncoder"}))
    with pytest.raises(ModelError, match="names 'DualEncoder'"):
        load_oracle("imagereward", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(UnsafeWeightsError, match="a pickle"):
        load_oracle("imagereward", tmp_path)
    weights = load_file(made / "oracle" / "model.safetensors")
    weights.pop("head.layers.7.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"head.layers.7.bias"):
        load_oracle("imagereward", tmp_path)
    save_file({**weights, "head.layers.7.bias": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="tokenizer is missing"):
        load_oracle("imagereward", tmp_path)
