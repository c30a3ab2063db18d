"""Family `sana`: SanaTransformer2DModel, AutoencoderDC, Gemma's hidden states; SANA's flow and SANA-Sprint's angles.

The scheduler's folder says which of both a model is. SANA (arXiv 2410.10629) is a rectified flow with classifier-free
guidance; SANA-Sprint (arXiv 2503.09641), its few-step student, is a consistency model on angles that reads its guidance
scale, one evaluation a step. Both know the same latents, so that a draft of one is refined by the other: the noise put on it
is the teacher's (`diffusion.noising`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError
from allaprima.core.types import Condition
from allaprima.diffusion.predictions import v_by_flow
from allaprima.diffusion.schedules import Flow, TrigFlow
from allaprima.models.cards.card import TextSettings
from allaprima.models.families.family import Family
from allaprima.models.families.loading import load_fields
from allaprima.models.families.prompts import read_length, refuse_text_settings, refuse_unreadable
from allaprima.models.families.transformer import TransformerFamily

SHARED = ("text_encoder", "tokenizer", "vae")
"""What a student and a teacher may have in common."""
LENGTH = 300
"""Tokens that Gemma reads of a prompt unless the card says otherwise."""


@dataclass(frozen=True, kw_only=True)
class SanaModel(TransformerFamily):
    """A `Family` whose networks read `prompt_embeds (B, L, D)` and `prompt_attention_mask (B, L)`, Gemma's."""

    text_encoder: Any
    tokenizer: Any
    schedule: Flow | TrigFlow
    num_train_timesteps: int
    """What SANA's network calls the time 1, before its `timestep_scale`; SANA-Sprint's is told flow times as they are."""
    whole_times: bool
    """Whether times are whole numbers of them: diffusers' DPMSolverMultistepScheduler cuts what it tells the network."""

    text_pipeline = ("sana.pipeline_sana", "SanaPipeline")
    picture_entry = 0

    def output(self, network: Any, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw output `(B, C, H, W)` of a network of this family: SANA's velocity, or SANA-Sprint's v made of it."""

        def velocity(x: Tensor, told: Tensor) -> Tensor:
            config, scale = getattr(network, "module", network).config, cond.get("guidance_scale")
            more: dict[str, Any] = {}
            if config.guidance_embeds:
                scale = torch.ones(len(x)) if scale is None else scale
                more["guidance"] = scale.float().to(x.device) * config.guidance_embeds_scale
            out = network(
                x, encoder_hidden_states=cond.tensors["prompt_embeds"], timestep=told.float().to(x.device),
                encoder_attention_mask=cond.tensors["prompt_attention_mask"], **more,
            ).sample  # fmt: skip
            # Where a network learned a variance too, it comes second.
            return out.chunk(2, dim=1)[0] if out.shape[1] == 2 * x.shape[1] else out

        if isinstance(self.schedule, TrigFlow):
            return v_by_flow(velocity, x_t, self.schedule.alpha(t), self.schedule.sigma(t))
        told = t.double() * self.num_train_timesteps
        told = told.floor() if self.whole_times else told
        return velocity(x_t, told * getattr(network, "module", network).config.timestep_scale)

    @property
    def _length(self) -> int:
        return read_length(self.text, LENGTH)

    @cached_property
    def _instruction(self) -> list[str] | None:
        """What prompts are read behind: the default of diffusers' pipelines, line by line."""
        from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

        if self.text.instruction is False:
            return None
        return list(inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text).input_ids)

    def token_count(self, prompt: str) -> int:
        """Tokens of a prompt, begin included; Gemma is told it in small letters, as diffusers does."""
        return self._count(prompt.lower().strip())

    def check_prompt(self, prompt: str) -> None:
        """Raise `PromptError` for an empty or an over-long prompt: nothing is cut in silence.

        Behind the instruction a prompt has the room of `max_sequence_length` tokens less two, its begin among them.
        """
        count, most = self.token_count(prompt), self._length
        if self._instruction is not None:
            told = "\n".join(self._instruction)
            count, most = self._count(told + prompt.lower().strip()) - self._count(told) + 1, self._length - 1
        refuse_unreadable(prompt, [(count, most)])

    @torch.inference_mode()
    def _read(self, prompts: Sequence[str], instruction: list[str] | None) -> Condition:
        embeds, mask, _, _ = self._pipeline.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, device=next(self.text_encoder.parameters()).device,
            max_sequence_length=self._length, complex_human_instruction=instruction,
        )  # fmt: skip
        return Condition({"prompt_embeds": embeds, "prompt_attention_mask": mask})

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> `prompt_embeds` and `prompt_attention_mask`, a row each. Empty ones are read without instruction."""
        cond = self._read(prompts, self._instruction)
        empty = torch.tensor([not p.strip() for p in prompts])
        return cond.replaced(empty, self.negative(prompts)) if bool(empty.any()) else cond

    def negative(self, prompts: Sequence[str]) -> Condition:
        """What guidance leads away from, read without instruction, as diffusers reads it."""
        return self._read(prompts, None)


def load_sana(
    folder: Path, text: TextSettings, share: Family | None = None, shared: Sequence[str] = (), network: Any = None
) -> SanaModel:
    """Read a `sana` folder (`family.Load`), SANA's or SANA-Sprint's by its scheduler."""
    refuse_text_settings(text, "sana", known=("instruction",))
    config, fields = load_fields(folder, "transformer", SHARED, share, shared, network)
    schedule = _schedule(folder, config)
    return SanaModel(
        **fields, text=text, schedule=schedule,
        prediction="v_prediction" if isinstance(schedule, TrigFlow) else "flow_prediction",
        num_train_timesteps=int(config.get("num_train_timesteps", 1000)),
        whole_times=config.get("_class_name") == "DPMSolverMultistepScheduler",
    )  # fmt: skip


def _schedule(folder: Path, config: Mapping[str, Any]) -> Flow | TrigFlow:
    """Of an SCMScheduler, a DPMSolverMultistepScheduler with flow sigmas, or a FlowMatchEulerDiscreteScheduler.

    Raises `ModelError` for another one, or a grid that isn't known.
    """
    name = config.get("_class_name")
    due: dict[str, Any] = {}
    # What a config that doesn't say means.
    usual = {"final_sigmas_type": "zero", "prediction_type": "trigflow" if name == "SCMScheduler" else "epsilon"}
    if name == "SCMScheduler":
        due = {"prediction_type": "trigflow"}
        made: Flow | TrigFlow = TrigFlow()
    elif name == "DPMSolverMultistepScheduler":
        due = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "final_sigmas_type": "zero"}
        made = Flow(float(config.get("flow_shift", 1.0)), top=1 - 1 / int(config.get("num_train_timesteps", 1000)))
    elif name == "FlowMatchEulerDiscreteScheduler":
        made = Flow(float(config.get("shift", 1.0)))
    else:
        raise ModelError(
            f"{folder / 'scheduler'} is a {name}: SANA's are DPMSolverMultistepScheduler and FlowMatchEulerDiscreteScheduler"
            ", SANA-Sprint's is SCMScheduler. Give the scheduler that the model was published with."
        )
    off = ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling", "use_karras_sigmas",
           "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "thresholding")  # fmt: skip
    odd = [key for key, value in due.items() if config.get(key, usual.get(key)) != value] + [
        key for key in off if config.get(key)
    ]
    if odd:
        raise ModelError(
            f"{folder / 'scheduler'} has {odd[0]}={config.get(odd[0])!r}: {due or 'a constant shift'} is what is known."
            " Leave it out if the model was trained without."
        )
    return made
