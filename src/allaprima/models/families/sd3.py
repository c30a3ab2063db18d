"""Family `sd3`: SD3Transformer2DModel, two CLIP text encoders, T5 if there is one, rectified flow (arXiv 2403.03206)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from allaprima.conditioning.prompt_inputs import PromptInputs
from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.diffusion.schedules import Flow
from allaprima.models.cards.card import TextSettings
from allaprima.models.families.family import Family
from allaprima.models.families.loading import load_fields
from allaprima.models.families.prompts import clip_layers, read_length, refuse_text_settings, text_side, told_to
from allaprima.models.families.transformer import TransformerFamily

T5 = ("text_encoder_3", "tokenizer_3")
SHARED = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3", "vae")
"""What a student and a teacher may have in common."""
T5_LENGTH = 256
"""Tokens that T5 reads unless the card says otherwise."""


@dataclass(frozen=True, kw_only=True)
class SD3Model(TransformerFamily):
    """A `Family` whose networks read `prompt_embeds (B, L, D)`, CLIP's tokens before T5's, and `pooled (B, P)`."""

    text_encoder: Any
    text_encoder_2: Any
    text_encoder_3: Any
    """T5; None: zeros in its place, as diffusers has it."""
    tokenizer: Any
    tokenizer_2: Any
    tokenizer_3: Any
    schedule: Flow
    num_train_timesteps: int
    """What the network calls the time 1."""

    text_pipeline = ("stable_diffusion_3.pipeline_stable_diffusion_3", "StableDiffusion3Pipeline")

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)`, a velocity, of a network of this family: this model's, or one made from it."""
        return network(
            hidden_states=x_t, timestep=(t * self.num_train_timesteps).float().to(x_t.device),
            encoder_hidden_states=cond.tensors["prompt_embeds"], pooled_projections=cond.tensors["pooled"],
        ).sample  # fmt: skip

    def _tokens(self, prompt: str) -> list[tuple[int, int]]:
        """For each tokenizer, the prompt's tokens and how many are read. CLIP's all matter, also where T5 reads more."""
        # The pipeline takes the first tokenizer's limit for the second too.
        most = int(self.tokenizer.model_max_length)
        found = [(len(tok(prompt).input_ids), most) for tok in (self.tokenizer, self.tokenizer_2)]
        if self.tokenizer_3 is not None and self.text_encoder_3 is not None:
            found.append((len(self.tokenizer_3(prompt).input_ids), read_length(self.text, T5_LENGTH)))
        return found

    @cached_property
    def _pipeline(self) -> Any:
        pipeline = text_side(self.text_pipeline, self)
        # It asks the transformer for the width of T5's zeros, and for nothing else.
        width = self.transformer.config.joint_attention_dim
        pipeline.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))
        return pipeline

    @property
    def prompts_read(self) -> int:
        """Each encoder its own; without T5 nobody reads a third."""
        return 2 if self.text_encoder_3 is None else 3

    @property
    def most_clip_skip(self) -> int:
        """How many layers before the last but one, which is read, there are."""
        return max(0, clip_layers(self.text_encoder, self.text_encoder_2) - 1)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `pooled`, a row each."""
        return self.encode_prompts([PromptInputs(prompt) for prompt in prompts])

    @torch.inference_mode()
    def encode_prompts(self, inputs: Sequence[PromptInputs], clip_skip: int = 0) -> Condition:
        """As `condition`; CLIPs read `prompt` and `prompt_2`, T5 `prompt_3`."""
        embeds, _, pooled, _ = self._pipeline.encode_prompt(
            *told_to(inputs, 3), device=next(self.text_encoder.parameters()).device,
            do_classifier_free_guidance=False, max_sequence_length=read_length(self.text, T5_LENGTH),
            clip_skip=clip_skip or None,
        )  # fmt: skip
        return Condition({"prompt_embeds": embeds, "pooled": pooled})


def load_sd3(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> SD3Model:
    """Read an `sd3` folder (`family.Load`); `text_encoder_3` and `tokenizer_3` may be missing, both."""
    refuse_text_settings(text, "sd3")
    config, fields = load_fields(folder, "transformer", SHARED, share, shared, network, optional=T5)
    if (fields["text_encoder_3"] is None) != (fields["tokenizer_3"] is None):
        raise ModelError(f"{folder} has one of {' and '.join(T5)}: give both, or neither for zeros in T5's place.")
    return SD3Model(**fields, **read_schedule(folder, config), text=text)


def read_schedule(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler's config says of an `SD3Model`, as its fields. Raises `ModelError` as `read_flow` does."""
    times = int(config.get("num_train_timesteps", 1000))
    return {"schedule": read_flow(folder, config), "prediction": "flow_prediction", "num_train_timesteps": times}


def read_flow(folder: Path, config: Mapping[str, Any]) -> Flow:
    """The schedule of a FlowMatchEulerDiscreteScheduler. Raises `ModelError` for a grid that `Flow` doesn't have."""
    odd = [k for k in ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling") if config.get(k)]
    if odd:
        raise ModelError(
            f"{folder / 'scheduler'} has {odd[0]}={config[odd[0]]!r}: a constant shift is what is known. Leave it out if the"
            " model was trained without."
        )
    return Flow(float(config.get("shift", 1.0)))
