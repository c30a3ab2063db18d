"""Family `sdxl`: UNet2DConditionModel, two CLIP text encoders, added conditions, a VP schedule (arXiv 2307.01952)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.models.cards.card import TextSettings
from allaprima.models.components.latents import downsampling
from allaprima.models.components.loading import read_json
from allaprima.models.families.family import Family
from allaprima.models.families.loading import load_own, load_parts
from allaprima.models.families.prompts import clip_layers, refuse_text_settings, text_side, told_to
from allaprima.models.families.sd import UNetFamily, load_unet, read_vp, run_unet

SHARED = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae")
"""What a student and a teacher may have in common."""
TIME_IDS = 6
"""Height and width of the original, top and left of the crop, height and width of the target."""
REFINER_IDS = 5
"""Of a refiner: an aesthetic score in the target's place."""


@dataclass(frozen=True, kw_only=True)
class SDXLModel(UNetFamily):
    """A `Family` whose networks read `prompt_embeds (B, L, D)`, `pooled (B, P)` and `time_ids (B, 6)`.

    `time_ids` are those of the condition where it holds any (latents of a data set may have been cropped), else those of an
    uncropped picture of the latents' own size: a condition serves any size.
    """

    text_encoder: Any
    text_encoder_2: Any
    tokenizer: Any
    tokenizer_2: Any
    zeros_for_empty: bool
    """An empty prompt is zeros, not what the encoders say of it (diffusers' `force_zeros_for_empty_prompt`)."""
    also: Any = None
    """A refiner (`sdxl_refiner.telling`) for which conditions hold `refiner_embeds` and `refiner_pooled`, too."""

    text_pipeline = ("stable_diffusion_xl.pipeline_stable_diffusion_xl", "StableDiffusionXLPipeline")

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)` of a network of this family: this model's, or one that is made from it."""
        return run_unet(network, x_t, t, cond.tensors["prompt_embeds"], cond.get("guidance_scale"), self.added(x_t, cond))

    def added(self, x_t: Tensor, cond: Condition) -> dict[str, Tensor]:
        """Return what the network reads beside the prompt's hidden states."""
        given = cond.tensors.get("time_ids")
        return {"text_embeds": cond.tensors["pooled"], "time_ids": self._time_ids(x_t) if given is None else given}

    def _time_ids(self, x_t: Tensor) -> Tensor:
        factor = downsampling(self.vae.config)
        height, width = float(x_t.shape[-2] * factor), float(x_t.shape[-1] * factor)
        return torch.tensor([[height, width, 0.0, 0.0, height, width]], device=x_t.device).expand(len(x_t), -1)

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """For each tokenizer, the prompt's tokens and how many are read."""
        return [(len(tok(prompt).input_ids), int(tok.model_max_length)) for tok in (self.tokenizer, self.tokenizer_2)]

    @cached_property
    def _pipeline(self) -> Any:
        return text_side(self.text_pipeline, self, add_watermarker=False)

    @property
    def prompts_read(self) -> int:
        """Each encoder its own."""
        return 2

    @property
    def most_clip_skip(self) -> int:
        """How many layers before the last but one, which is read, there are."""
        return max(0, clip_layers(self.text_encoder, self.text_encoder_2) - 1)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `pooled`, a row each."""
        return self.encode_prompts([PromptInputs(prompt) for prompt in prompts])

    @torch.inference_mode()
    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """As `condition`; the first encoder reads `prompt`, the second `prompt_2`, whose pooled text is read, too."""
        device = next(self.text_encoder_2.parameters()).device
        own = words_of(self._pipeline, inputs, self.zeros_for_empty, device, clip_skip)
        if self.also is None:
            return own
        more = self.also.encode_prompts(inputs, clip_skip).tensors
        return Condition({**own.tensors, "refiner_embeds": more["prompt_embeds"], "refiner_pooled": more["pooled"]})


def words_of(
    pipeline: Any, inputs: Sequence[PromptInputs], zeros_for_empty: bool, device: Any, clip_skip: int = 0
) -> Condition:
    """`prompt_embeds` and `pooled` by a pipeline's own `encode_prompt`, zeros for empty prompts where that is due.

    A row that says something to the second encoder alone is not empty.
    """
    first, second = told_to(inputs, 2)
    embeds, _, pooled, _ = pipeline.encode_prompt(
        first, second, device=device, do_classifier_free_guidance=False, clip_skip=clip_skip or None
    )
    if zeros_for_empty:
        empty = torch.tensor([w.empty for w in inputs], device=device)
        embeds, pooled = embeds.masked_fill(empty[:, None, None], 0), pooled.masked_fill(empty[:, None], 0)
    return Condition({"prompt_embeds": embeds, "pooled": pooled})


def read_folder(
    folder: Path, text: TextSettings, share: Family | None, shared: Sequence[str], network: Any
) -> tuple[bool, dict[str, Any]]:
    """Whether a folder is a refiner's, and its model's fields."""
    refuse_text_settings(text, "sdxl")
    config, network, prints = load_own(folder, "unet", network, load_unet)
    refiner = is_refiner(network.config)
    names = [n for n in SHARED if not refiner or n.endswith("_2") or n == "vae"]
    parts, more = load_parts(folder, names, share, shared)
    _check_added(folder, network.config, parts["text_encoder_2"].config, REFINER_IDS if refiner else TIME_IDS)
    zeros = not refiner and bool(getattr(share, "zeros_for_empty", True))
    if (folder / "model_index.json").exists():
        zeros = bool(read_json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True))
    prints["empty_prompt"] = "zeros" if zeros else "encoded"
    told = {**read_vp(folder, config), "text": text, "zeros_for_empty": zeros}
    return refiner, {"unet": network, **parts, **told, "fingerprints": {**prints, **more}}


def is_refiner(unet: Any) -> bool:
    """Whether a UNet reads hidden states and pooled text of one size, those of the second encoder alone, and five ids."""
    due, each = (getattr(unet, n, None) or 0 for n in ("projection_class_embeddings_input_dim", "addition_time_embed_dim"))
    return bool(each) and due - each * REFINER_IDS == getattr(unet, "cross_attention_dim", None)


def _check_added(folder: Path, unet: Any, encoder: Any, ids: int) -> None:
    """Raise `ModelError` for a UNet that reads other added conditions."""
    due = getattr(unet, "projection_class_embeddings_input_dim", None)
    have = int(getattr(unet, "addition_time_embed_dim", None) or 0) * ids + int(encoder.projection_dim)
    if getattr(unet, "addition_embed_type", None) != "text_time" or due != have:
        raise ModelError(
            f"{folder / 'unet'} reads added conditions of {due} numbers; pooled text and {ids} time ids are {have}."
            " Give a base model of the family sdxl, or its refiner."
        )
