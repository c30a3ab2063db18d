"""Tiny random models of each family as diffusers' own pipelines."""

import torch
from tiny_folders import VP


def diffusers_pipe(family, folder):
    """What a user has in hand."""
    import diffusers
    from diffusers import DDIMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    if family == "sd":
        return diffusers.StableDiffusionPipeline(
            diffusers.AutoencoderKL.from_pretrained(folder / "vae"), CLIPTextModel.from_pretrained(folder / "text_encoder"),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            diffusers.UNet2DConditionModel.from_pretrained(folder / "unet"), DDIMScheduler(**VP), None, None,
            requires_safety_checker=False,
        )  # fmt: skip
    names = {"sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}
    more = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    return getattr(diffusers, names[family]).from_pretrained(folder, torch_dtype=torch.float32, **more)
