"""Tiny random models of the families that read prompts by a language model, as real folders with real tokenizers."""

import json
import string

import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaTransformer2DModel,
    SCMScheduler,
)
from transformers import Gemma2Config, Gemma2Model

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
