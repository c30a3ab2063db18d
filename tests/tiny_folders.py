"""Tiny random models of each family, saved as real folders in diffusers' format with real tokenizers, and cards for them."""

import json
import shutil
import string

import torch
import yaml
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

LENGTH = 12
"""Tokens CLIP reads here."""
SIZE = 16
"""Pixels a side; latents are half of it."""
VP = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "steps_offset": 1,
    "set_alpha_to_one": True, "timestep_spacing": "leading",
}  # fmt: skip
FAMILIES = ("sd", "sdxl", "sd3")


def clip_tokenizer(folder, pad="<|endoftext|>"):
    """Letters, each with and without the end of a word, and two merges."""
    letters = list(string.ascii_lowercase + "!,")
    words = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    config = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(words)


def t5_tokenizer(folder):
    """Letters as pieces of a unigram model."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *((f"▁{c}", -2.0) for c in string.ascii_lowercase)]
    pieces += [(c, -3.0) for c in string.ascii_lowercase]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return len(pieces)


def clip(folder, vocab, projected):
    config = CLIPTextConfig(
        vocab_size=vocab, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=LENGTH, projection_dim=8, bos_token_id=vocab - 2, eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )  # fmt: skip
    (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).save_pretrained(folder)


def autoencoder(folder, **changes):
    AutoencoderKL(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4, norm_num_groups=2, sample_size=SIZE, **changes,
    ).save_pretrained(folder)  # fmt: skip


def unet(folder, **changes):
    UNet2DConditionModel(
        sample_size=SIZE // 2, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2, attention_head_dim=2, **changes,
    ).save_pretrained(folder)  # fmt: skip


def transformer(folder):
    SD3Transformer2DModel(
        sample_size=SIZE // 2, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=8, pooled_projection_dim=16,
        pos_embed_max_size=SIZE // 4,
    ).save_pretrained(folder)  # fmt: skip


def flux(folder, tokens, dev):
    """A model as FLUX.1 dev is, or schnell: without guidance to read, and without a shift."""
    by_size = {"base_image_seq_len": 4, "max_image_seq_len": 64} if dev else {}
    FlowMatchEulerDiscreteScheduler(shift=3.0 if dev else 1.0, use_dynamic_shifting=dev, **by_size).save_pretrained(
        folder / "scheduler"
    )
    autoencoder(folder / "vae", scaling_factor=0.36, shift_factor=0.11)
    FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=dev, axes_dims_rope=(2, 2, 4),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    clip(folder / "text_encoder", tokens, projected=False)
    vocab = t5_tokenizer(folder / "tokenizer_2")
    T5EncoderModel(T5Config(vocab_size=vocab, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        folder / "text_encoder_2"
    )
    named = {
        "_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer_2": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "FluxTransformer2DModel"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "image_encoder": [None, None],
        "feature_extractor": [None, None],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(named))
    return folder


def model(family, folder, seed=0, t5=False, dev=True, **index):
    """Write a model; returns its folder. `index`: further entries of `model_index.json`."""
    torch.manual_seed(seed)
    tokens = clip_tokenizer(folder / "tokenizer")
    if family == "flux":
        return flux(folder, tokens, dev)
    clip(folder / "text_encoder", tokens, projected=family == "sd3")
    named = {"vae": ["diffusers", "AutoencoderKL"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    if family == "sd":
        DDIMScheduler(**VP).save_pretrained(folder / "scheduler")
        autoencoder(folder / "vae")
        unet(folder / "unet", cross_attention_dim=8)
    else:
        clip_tokenizer(folder / "tokenizer_2", pad="!")
        clip(folder / "text_encoder_2", tokens, projected=True)
        named["tokenizer_2"] = named["tokenizer"]
        named["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
    if family == "sdxl":
        DDIMScheduler(**VP).save_pretrained(folder / "scheduler")
        autoencoder(folder / "vae", scaling_factor=0.13, latents_mean=[0.1, 0, -0.1, 0.2], latents_std=[1.0, 2, 0.5, 1])
        unet(
            folder / "unet", cross_attention_dim=16, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=4 * 6 + 8,
        )  # fmt: skip
        named |= {
            "_class_name": "StableDiffusionXLPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
            "unet": ["diffusers", "UNet2DConditionModel"], "scheduler": ["diffusers", "DDIMScheduler"],
            "image_encoder": [None, None], "feature_extractor": [None, None],
        }  # fmt: skip
    if family == "sd3":
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
        autoencoder(folder / "vae", scaling_factor=1.5, shift_factor=0.06)
        transformer(folder / "transformer")
        named |= {
            "_class_name": "StableDiffusion3Pipeline", "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
            "transformer": ["diffusers", "SD3Transformer2DModel"], "text_encoder_3": [None, None],
            "tokenizer_3": [None, None], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "image_encoder": [None, None], "feature_extractor": [None, None],
        }  # fmt: skip
        if t5:
            vocab = t5_tokenizer(folder / "tokenizer_3")
            config = T5Config(vocab_size=vocab, d_model=16, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
            T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")
            named |= {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps({**named, **index}))
    return folder


def refiner(folder, base, seed=1):
    """SDXL's refiner to the base in a folder: a UNet that reads the second encoder alone, and an aesthetic score."""
    for part in ("tokenizer_2", "text_encoder_2", "vae", "scheduler"):
        shutil.copytree(base / part, folder / part)
    torch.manual_seed(seed)
    unet(
        folder / "unet", cross_attention_dim=8, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 5 + 8,
    )  # fmt: skip
    named = {
        **json.loads((base / "model_index.json").read_text()), "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "text_encoder": [None, None], "tokenizer": [None, None], "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True,
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(named))
    return folder


def card(family, folder, **model_changes):
    """A card whose student is its teacher again, with everything shared; returns its path."""
    from allaprima.models.families.registry import FAMILIES

    model(family, folder / "teacher", **model_changes)
    side = {"source": "teacher", "license": "Apache-2.0", "guidance_scale": 3.0}
    raw = {
        "name": f"tiny-{family}", "family": family, "description": "random", "height": SIZE, "width": SIZE,
        "student": {**side, "steps": 2, "solver": "consistency", "share": list(FAMILIES[family].shared)},
        "teacher": {**side, "steps": 3, "solver": "dpm_solver" if family in ("sd", "sdxl") else "euler"},
        "oracle": {"kind": "dual_encoder", "source": "none", "license": "Apache-2.0"},
        "text": {"max_length": LENGTH, "max_sequence_length": 8},
    }  # fmt: skip
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path
