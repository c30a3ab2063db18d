"""One conversion of a published oracle to safetensors in the format that is loaded after; see docs/oracles.md.

Names are mapped one by one: nothing is dropped in silence, nothing is made up. The folder is written beside, then renamed.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from allaprima.core.errors import ModelError, RunFolderError
from allaprima.oracles.published import read_checkpoint, renamed

if TYPE_CHECKING:
    from collections.abc import Generator

Activation = Literal["gelu", "quick_gelu"]

REWARD_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""In ImageReward.pt, but no part of its score: BLIP's contrastive projections, and a buffer that counts from 0 to 511."""
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Width of an attention head by the vision transformer's width, as open_clip's ViT-H, g and bigG have it; else 64."""


def reward_names(vision_layers: int, text_layers: int) -> dict[str, str]:
    """ImageReward's published names (those of salesforce/BLIP) -> names in `ImageRewardModel`."""
    eye, ours = "blip.visual_encoder.", "vision."
    names = {
        eye + "cls_token": ours + "embeddings.class_embedding",
        eye + "pos_embed": ours + "embeddings.position_embedding",
    }
    both = {"patch_embed.proj": "embeddings.patch_embedding", "norm": "post_layernorm"}
    parts = {
        "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    both |= {f"blocks.{i}.{a}": f"encoder.layers.{i}.{b}" for i in range(vision_layers) for a, b in parts.items()}
    names |= {f"{eye}{a}.{end}": f"{ours}{b}.{end}" for a, b in both.items() for end in ("weight", "bias")}
    # The text encoder is BERT in both.
    words = ["embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"]
    words += [f"embeddings.LayerNorm.{end}" for end in ("weight", "bias")]
    inner = [f"{a}.{b}" for a in ("attention", "crossattention") for b in ("self.query", "self.key", "self.value")]
    inner += [f"{a}.output.{b}" for a in ("attention", "crossattention") for b in ("dense", "LayerNorm")]
    inner += ["intermediate.dense", "output.dense", "output.LayerNorm"]
    words += [f"encoder.layer.{i}.{a}.{e}" for i in range(text_layers) for a in inner for e in ("weight", "bias")]
    names |= {f"blip.text_encoder.{w}": f"text.{w}" for w in words}
    return names | {f"mlp.layers.{i}.{e}": f"head.layers.{i}.{e}" for i in (0, 2, 4, 6, 7) for e in ("weight", "bias")}


def reward_config(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """`ImageRewardModel`'s sizes from a checkpoint's shapes; heads are 64 wide, as in every BLIP."""
    conv, pos = weights["blip.visual_encoder.patch_embed.proj.weight"], weights["blip.visual_encoder.pos_embed"]
    words, places = (weights[f"blip.text_encoder.embeddings.{n}_embeddings.weight"] for n in ("word", "position"))
    width, hidden, patch = conv.shape[0], words.shape[1], conv.shape[2]
    return {
        "vision": {
            "hidden_size": width, "num_hidden_layers": _layers(weights, "blip.visual_encoder.blocks."),
            "intermediate_size": weights["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            "num_attention_heads": max(width // 64, 1), "patch_size": patch,
            "image_size": round((pos.shape[1] - 1) ** 0.5) * patch,
        },
        "text": {
            "vocab_size": words.shape[0], "hidden_size": hidden, "max_position_embeddings": places.shape[0],
            "num_hidden_layers": _layers(weights, "blip.text_encoder.encoder.layer."),
            "num_attention_heads": max(hidden // 64, 1), "encoder_hidden_size": width,
            "intermediate_size": weights["blip.text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
        },
    }  # fmt: skip


def convert_image_reward(checkpoint: Path, tokenizer: Path, out: Path) -> None:
    """`ImageReward.pt` and bert-base-uncased's tokenizer (a folder) -> a folder for `ImageRewardOracle`.

    Raises `ModelError` for another checkpoint or tokenizer, `UnsafeWeightsError`, `RunFolderError` if `out` exists.
    """
    from allaprima.oracles.image_reward import ImageRewardModel

    weights = read_checkpoint(checkpoint)
    with _known(checkpoint, "ImageReward"):
        config = reward_config(weights)
    names = reward_names(config["vision"]["num_hidden_layers"], config["text"]["num_hidden_layers"])
    made = renamed(weights, names, REWARD_UNUSED, "ImageReward")
    with torch.device("meta"):
        net = ImageRewardModel(config["vision"], config["text"])
    _fill(net, made, checkpoint)
    words = _blip_tokenizer(tokenizer, config["text"]["vocab_size"])
    with _beside(out) as folder:
        net.save_pretrained(folder)
        words.save_pretrained(folder / "tokenizer")


def _blip_tokenizer(folder: Path, vocabulary: int) -> Any:
    """BERT's tokenizer with BLIP's two marks behind its words, [DEC] and then [ENC], as the published code adds them."""
    from tokenizers import AddedToken
    from transformers import BertTokenizer

    try:
        words: Any = BertTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ModelError(f"{folder} cannot be loaded as BERT's tokenizer: {e}. Put bert-base-uncased's files there.") from e
    if "[ENC]" not in words.get_vocab():
        words.add_tokens(
            [AddedToken(mark, special=True, normalized=False) for mark in ("[DEC]", "[ENC]")], special_tokens=True
        )
    if len(words) != vocabulary or words.convert_tokens_to_ids("[ENC]") != vocabulary - 1:
        raise ModelError(
            f"{folder} has {len(words)} tokens with BLIP's marks, the checkpoint {vocabulary}: the tokenizer of"
            " bert-base-uncased is due (its vocab.txt in a folder does)."
        )
    return words


def open_clip_names(vision_layers: int, text_layers: int) -> dict[str, str]:
    """open_clip's (and OpenAI's) names -> transformers' CLIPModel's; fused projections aren't among them (`_split`)."""
    names = {
        "logit_scale": "logit_scale", "text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
    }  # fmt: skip
    # "pre_layrnorm" is transformers' own spelling.
    both = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    both["ln_final"] = "text_model.final_layer_norm"
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {f"attn.{a}": f"self_attn.{b}" for a, b in zip(("q", "k", "v", "out_proj"), (*_QKV, "out_proj"), strict=True)}
    for theirs, ours, layers in (("visual.", "vision_model", vision_layers), ("", "text_model", text_layers)):
        both |= {
            f"{theirs}transformer.resblocks.{i}.{a}": f"{ours}.encoder.layers.{i}.{b}"
            for i in range(layers)
            for a, b in parts.items()
        }
    return names | {f"{a}.{end}": f"{b}.{end}" for a, b in both.items() for end in ("weight", "bias")}


_QKV = ("q_proj", "k_proj", "v_proj")


def _split(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fused attention projections in three, projections of features turned: open_clip multiplies from the right."""
    made: dict[str, Tensor] = {}
    for name, w in weights.items():
        if fused := re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", name):
            made |= {f"{fused[1]}{part}.{fused[2]}": x for part, x in zip("qkv", w.chunk(3), strict=True)}
        else:
            made[name] = w.T if name in ("visual.proj", "text_projection") else w
    return made


def open_clip_config(weights: Mapping[str, Tensor], activation: Activation) -> dict[str, Any]:
    """A CLIPConfig's fields from a checkpoint's shapes; heads as open_clip's models have them (`HEAD_WIDTHS`, text 64)."""
    conv, pos, words = (
        weights["visual.conv1.weight"],
        weights["visual.positional_embedding"],
        weights["token_embedding.weight"],
    )
    width, hidden, patch, vocabulary = conv.shape[0], words.shape[1], conv.shape[2], words.shape[0]
    dim = weights["visual.proj"].shape[1]
    return {
        "projection_dim": dim,
        "vision_config": {
            "hidden_size": width, "num_hidden_layers": _layers(weights, "visual.transformer.resblocks."),
            "intermediate_size": weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_attention_heads": max(width // HEAD_WIDTHS.get(width, 64), 1), "patch_size": patch,
            "image_size": round((pos.shape[0] - 1) ** 0.5) * patch, "hidden_act": activation, "projection_dim": dim,
        },
        "text_config": {
            "vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": _layers(weights, "transformer.resblocks."),
            "intermediate_size": weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_attention_heads": max(hidden // 64, 1), "hidden_act": activation, "projection_dim": dim,
            "max_position_embeddings": weights["positional_embedding"].shape[0],
            # open_clip reads the text at its highest token, which is the last of the vocabulary.
            "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1,
        },
    }  # fmt: skip


def convert_open_clip(checkpoint: Path, tokenizer: Path, out: Path, activation: Activation = "gelu") -> None:
    """A CLIP of open_clip's, HPSv2's among them -> a CLIPModel folder in transformers' format, for `clip` and `hpsv2`.

    `tokenizer`: a folder with CLIP's. `activation`: `quick_gelu` for OpenAI's weights and what names say `-quickgelu`.
    Raises `ModelError` for other architectures (ResNets, timm towers, layer scale), `UnsafeWeightsError`, `RunFolderError`.
    """
    from transformers import CLIPConfig, CLIPModel

    from allaprima.oracles.encoder import loaded_tokenizer

    weights = {k.removeprefix("text."): v for k, v in read_checkpoint(checkpoint).items()}
    with _known(checkpoint, "an open_clip vision transformer"):
        config = open_clip_config(weights, activation)
    layers = (config[f"{side}_config"]["num_hidden_layers"] for side in ("vision", "text"))
    made = renamed(_split(weights), open_clip_names(*layers), ("attn_mask",), "open_clip's CLIP")
    words = loaded_tokenizer(tokenizer)
    if len(words) != config["text_config"]["vocab_size"] or words.eos_token_id != len(words) - 1:
        raise ModelError(
            f"{tokenizer} has {len(words)} tokens, end mark {words.eos_token_id}; the checkpoint"
            f" {config['text_config']['vocab_size']}, the last being the end mark: CLIP's own tokenizer is due."
        )
    with torch.device("meta"):
        net = CLIPModel(CLIPConfig(**config))
    _fill(net, made, checkpoint)
    with _beside(out) as folder:
        net.save_pretrained(folder, safe_serialization=True)
        words.save_pretrained(folder)
        settings = _preprocessor(config["vision_config"]["image_size"])
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _preprocessor(side: int) -> dict[str, Any]:
    from allaprima.oracles.pixels import CLIP_MEAN, CLIP_STD

    return {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True, "do_normalize": True,
        "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "do_convert_rgb": True,
    }  # fmt: skip


def convert_aesthetic(checkpoint: Path, clip: Path, out: Path) -> None:
    """`sac+logos+ava1-l14-linearMSE.pth` and a folder of openai/clip-vit-large-patch14 -> a folder for `AestheticOracle`."""
    from safetensors.torch import save_file
    from transformers import CLIPVisionModelWithProjection

    from allaprima.oracles.encoder import loaded
    from allaprima.oracles.reward_head import RewardHead

    weights = read_checkpoint(checkpoint)
    with _known(checkpoint, "the aesthetic predictor"):
        head = RewardHead.for_weights(weights)
    made = renamed(weights, {k: k for k in head.state_dict()}, (), "the aesthetic predictor")
    vision = loaded(CLIPVisionModelWithProjection, clip)
    if vision.config.projection_dim != head.layers[0].in_features:
        raise ModelError(
            f"{clip} gives {vision.config.projection_dim} features, the head reads {head.layers[0].in_features}: the"
            " published head belongs to OpenAI's ViT-L/14."
        )
    with _beside(out) as folder:
        vision.save_pretrained(folder / "vision", safe_serialization=True)
        save_file({k: v.float().contiguous() for k, v in made.items()}, folder / "head.safetensors")


def _layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    return 1 + max(int(k.removeprefix(prefix).split(".")[0]) for k in weights if k.startswith(prefix))


def _fill(net: Any, weights: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Every weight of a network without memory, and nothing else; float32."""
    try:
        net.load_state_dict({k: v.float().contiguous() for k, v in weights.items()}, assign=True)
    except RuntimeError as e:
        raise ModelError(f"{checkpoint} doesn't fit: {str(e).strip().splitlines()[-1].strip()[:200]}.") from e


@contextmanager
def _known(checkpoint: Path, what: str) -> Generator[None]:
    """Shapes that aren't there mean another model."""
    try:
        yield
    except (KeyError, IndexError, ValueError) as e:
        raise ModelError(f"{checkpoint} is no checkpoint of {what}: {e}. Check which file was downloaded.") from e


@contextmanager
def _beside(out: Path) -> Generator[Path]:
    """A folder that is renamed to `out` when everything is in it. Raises `RunFolderError` if `out` is there."""
    if out.exists():
        raise RunFolderError(f"{out} exists: choose another folder, nothing is written over.")
    out.parent.mkdir(parents=True, exist_ok=True)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield made
        made.chmod(0o755)
        made.rename(out)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise


CONVERSIONS: dict[str, Callable[..., None]] = {
    "imagereward": convert_image_reward, "hpsv2": convert_open_clip, "clip": convert_open_clip,
    "aesthetic": convert_aesthetic,
}  # fmt: skip
"""Oracle kind -> its conversion."""
