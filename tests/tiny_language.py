"""Tiny random models of the families that read prompts by a language model, as real folders with real tokenizers."""

import json
import string

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SCMScheduler,
    ZImageTransformer2DModel,
)
from tiny_folders import autoencoder
from transformers import (
    Gemma2Config,
    Gemma2Model,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3Model,
)

SIDE = 32
"""Pixels a side: SANA's pipelines paint multiples of 32 only."""


def gemma_tokenizer(folder):
    """Letters as pieces, bytes for all else, and a merge; returns the size of the vocabulary."""
    from tokenizers.processors import TemplateProcessing
    from transformers import GemmaTokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    words = special + [f"<0x{i:02X}>" for i in range(256)] + ["▁", *string.ascii_letters, ".,:-'>", "re", "red"]
    made = GemmaTokenizer({w: i for i, w in enumerate(words)}, [("r", "e"), ("re", "d")])
    # As the published file has it: every text begins with <bos>.
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    made.save_pretrained(folder)
    return len(words)


def sana(folder, seed=0, sprint=False, dpm=True, patch=1, learned=False, factor=4):
    """A model as SANA is (flow, DPM-Solver's flow sigmas or Euler), or SANA-Sprint; returns its folder."""
    torch.manual_seed(seed)
    if sprint:
        SCMScheduler().save_pretrained(folder / "scheduler")
    elif dpm:
        DPMSolverMultistepScheduler(
            beta_start=0.0001, beta_end=0.02, beta_schedule="linear", prediction_type="flow_prediction", flow_shift=3.0,
            use_flow_sigmas=True,
        ).save_pretrained(folder / "scheduler")  # fmt: skip
    else:
        FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    channels, stages = (8,) * (3 if factor == 4 else 2), 3 if factor == 4 else 2
    scales = ((),) * (stages - 1) + ((5,),)
    AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock",) * (stages - 1) + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * (stages - 1) + ("EfficientViTBlock",), encoder_block_out_channels=channels,
        decoder_block_out_channels=channels, encoder_qkv_multiscales=scales, decoder_qkv_multiscales=scales,
        encoder_layers_per_block=(1,) * stages, decoder_layers_per_block=(1,) * stages, downsample_block_type="Conv",
        upsample_block_type="interpolate", scaling_factor=0.41407,
    ).save_pretrained(folder / "vae")  # fmt: skip
    network = SanaTransformer2DModel(
        in_channels=4, out_channels=8 if learned else 4, num_layers=3, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=8,
        patch_size=patch, guidance_embeds=sprint, qk_norm="rms_norm_across_heads" if sprint else None,
    )  # fmt: skip
    # A published network heeds time, scale and words; one of a fresh initialisation hardly does.
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "embed" in name or "attn2" in name or "caption" in name:
                weight.mul_(2)
    network.save_pretrained(folder / "transformer")
    vocab = gemma_tokenizer(folder / "tokenizer")
    Gemma2Model(
        Gemma2Config(
            vocab_size=vocab, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, sliding_window=64,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    kind = "SCMScheduler" if sprint else "DPMSolverMultistepScheduler" if dpm else "FlowMatchEulerDiscreteScheduler"
    named = {
        "_class_name": "SanaSprintPipeline" if sprint else "SanaPipeline", "scheduler": ["diffusers", kind],
        "text_encoder": ["transformers", "Gemma2Model"], "tokenizer": ["transformers", "GemmaTokenizer"],
        "transformer": ["diffusers", "SanaTransformer2DModel"], "vae": ["diffusers", "AutoencoderDC"],
    }  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(named))
    return folder


QWEN_TEMPLATE_WORDS = (
    "system user assistant Describe Ġthe Ġimage Ġby Ġdetailing Ġcolor Ġshape Ġsize Ġtexture Ġquantity Ġtext Ġspatial"
    " Ġrelationships Ġof Ġobjects Ġand Ġbackground"
)
"""One token each, as in the published vocabulary: the template before a prompt is 34 tokens, of which none is read."""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer(folder):
    """Bytes, the words of the template by merges, and the chat's marks; returns the size of the vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    words, merges = sorted(ByteLevel.alphabet()), []
    for word in QWEN_TEMPLATE_WORDS.split():
        for i in range(1, len(word)):
            if word[: i + 1] not in words:
                words.append(word[: i + 1])
                merges.append((word[:i], word[i]))
    made = Qwen2Tokenizer({w: i for i, w in enumerate([*words, "<|endoftext|>"])}, merges)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHAT
    made.save_pretrained(folder)
    return len(made)


def index(folder, pipeline, kinds):
    named = {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "tokenizer": ["transformers", "Qwen2Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline, **named, **kinds}))
    return folder


def qwen_scheduler(folder, lightning=False):
    """Qwen-Image's, as published, or Qwen-Image-Lightning's: a shift of 3 at every size, and no last time."""
    span = {"base_shift": 1.0986122886681098, "max_shift": 1.0986122886681098} if lightning else {
        "base_shift": 0.5, "max_shift": 0.9, "shift_terminal": 0.02
    }  # fmt: skip
    FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=128, **span
    ).save_pretrained(folder / "scheduler")


def qwen_image(folder, seed=0, **changes):
    """A model as Qwen-Image is; returns its folder."""
    torch.manual_seed(seed)
    qwen_scheduler(folder)
    AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
        latents_mean=[0.1, 0.0, -0.1, 0.2], latents_std=[1.0, 2.0, 0.5, 1.0],
    ).save_pretrained(folder / "vae")  # fmt: skip
    QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6), **changes,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    vocab = qwen_tokenizer(folder / "tokenizer")
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rope_parameters": {
                "mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1000000.0
            },
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16},
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "text_encoder")
    kinds = {
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"], "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    }  # fmt: skip
    return index(folder, "QwenImagePipeline", kinds)


def z_image(folder, seed=0, shift=3.0, **changes):
    """A model as Z-Image is, or Z-Image-Turbo; returns its folder."""
    torch.manual_seed(seed)
    FlowMatchEulerDiscreteScheduler(shift=shift).save_pretrained(folder / "scheduler")
    autoencoder(folder / "vae", scaling_factor=0.3611, shift_factor=0.1159)
    network = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[128, 64, 64], **changes,
    )  # fmt: skip
    with torch.no_grad():
        network.x_pad_token.normal_()
        network.cap_pad_token.normal_()
    network.save_pretrained(folder / "transformer")
    vocab = qwen_tokenizer(folder / "tokenizer")
    Qwen3Model(
        Qwen3Config(
            vocab_size=vocab, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    ).save_pretrained(folder / "text_encoder")  # fmt: skip
    kinds = {
        "text_encoder": ["transformers", "Qwen3Model"], "vae": ["diffusers", "AutoencoderKL"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
    }  # fmt: skip
    return index(folder, "ZImagePipeline", kinds)


def card(folder, family, student, teacher, **more):
    """A card with its two models beside it, everything shared; returns its path."""
    import yaml

    from allaprima.models.families.registry import FAMILIES

    side = {"license": "Apache-2.0", "guidance_scale": 3.0}
    raw = {
        "name": f"tiny-{family}", "family": family, "description": "random", "height": SIDE, "width": SIDE,
        "student": {"source": "student", **side, "steps": 2, "solver": "consistency", "share": list(FAMILIES[family].shared),
                    **student},
        "teacher": {"source": "teacher", **side, "steps": 4, "solver": "dpm_solver", **teacher},
        "oracle": {"kind": "dual_encoder", "source": "none", "license": "Apache-2.0"},
        "text": {"max_sequence_length": 16}, **more,
    }  # fmt: skip
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path
