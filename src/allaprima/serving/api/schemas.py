"""What is asked and answered, as pydantic models: the OpenAPI document is made of them.

Asked are OpenAI's fields, vLLM-Omni's names beside them (`seed`, `negative_prompt`, `num_inference_steps`,
`guidance_scale`), and ours under `adaptive`. A field that would be ignored is refused: nothing is dropped in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from allaprima.cascade.sequential import MAX_ATTEMPTS
from allaprima.serving.api.limits import LEAST_LATENCY, MAX_SEED

Strict = ConfigDict(extra="forbid", allow_inf_nan=False)
Format = Literal["png", "jpeg", "webp"]
Short = Annotated[str, StringConstraints(max_length=512)]
SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class Adaptive(BaseModel):
    """How the cascade decides for this request."""

    model_config = Strict
    budget: float | None = Field(default=None, gt=0, le=100_000, description="Mean steps a picture, the calibration's unit")
    threshold: float | None = Field(default=None, description="Drafts that score at least this are accepted.")
    strategy: Literal["refine", "regenerate"] | None = Field(default=None, description="What becomes of other drafts.")
    mode: Literal["adaptive", "student-only", "teacher-only", "refine-all"] | None = None
    max_drafts: int | None = Field(
        default=None, ge=0, le=MAX_ATTEMPTS, description="Below the threshold another draft is generated, the best is kept."
    )
    max_teacher_tries: int | None = Field(
        default=None, ge=0, le=MAX_ATTEMPTS, description="Below the threshold the teacher tries again; 0: it is never asked."
    )
    noise: Literal["same", "fresh"] | None = Field(
        default=None,
        description="Where the teacher begins when it regenerates: with the first draft's noise or another.",
    )
    max_latency: float | None = Field(
        default=None, ge=LEAST_LATENCY, le=3600, description="Seconds; later than that it is a 504."
    )
    nearest: bool = Field(default=True, description="Move unknown words to the nearest concept the card knows.")


class ImageRequestBody(BaseModel):
    """What generations and edits have in common."""

    model_config = Strict
    prompt: str = Field(min_length=1)
    model: Short | None = Field(default=None, description="The card's name; may be left out.")
    n: int | None = Field(default=None, ge=1)
    size: str | None = Field(default=None, pattern=SIZE, description="WIDTHxHEIGHT in multiples of 8, or auto (the card's).")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Of the first picture; the next ones count up.")
    negative_prompt: str | None = None
    prompt_2: str | None = Field(default=None, description="For the second text encoder; left out: the prompt.")
    negative_prompt_2: str | None = Field(default=None, description="For the second text encoder.")
    prompt_3: str | None = Field(default=None, description="For the third text encoder; left out: the prompt.")
    negative_prompt_3: str | None = Field(default=None, description="For the third text encoder.")
    clip_skip: int | None = Field(default=None, ge=0, le=100, description="CLIP's last layers that are left out.")
    guidance_rescale: float | None = Field(default=None, ge=0, le=1, description="Of both models (arXiv 2305.08891).")
    num_inference_steps: int | None = Field(default=None, ge=1, description="The teacher's.")
    guidance_scale: float | None = Field(default=None, ge=0, le=100, description="Of both models.")
    output_format: Format | None = None
    output_compression: int | None = Field(default=None, ge=0, le=100, description="Quality of jpeg and webp.")
    response_format: Literal["b64_json", "url"] | None = Field(default=None, description="Only b64_json can be had.")
    stream: bool | None = None
    partial_images: int | None = Field(default=None, ge=0, le=3, description="1 or more: the draft comes first (stream).")
    quality: Literal["auto", "standard"] | None = Field(default=None, description="adaptive.budget says it better.")
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(default=None, description="There is none here.")
    user: Short | None = None
    safety_identifier: Short | None = None
    adaptive: Adaptive | None = None


class GenerationBody(ImageRequestBody):
    """`POST /v1/images/generations`."""


class EditBody(ImageRequestBody):
    """`POST /v1/images/edits`: the fields beside `image` and `mask`."""

    strength: float | None = Field(default=None, gt=0, le=1, description="How much may change: 0.8, with a mask 1.")


class Account(BaseModel):
    """What a picture took, and why."""

    index: int = Field(description="Place in the request.")
    seed: int
    score: float | None = Field(description="The oracle's, of the draft; null without a draft or if it failed.")
    threshold: float | None = Field(description="What the score was compared with.")
    usual_threshold: float | None = Field(
        default=None, description="What it would have been compared with, where load lowered the threshold."
    )
    decision: str | None = Field(description="accept, refine or regenerate.")
    steps: int | None = Field(description="Network steps of student and teacher.")
    seconds: float | None = Field(description="From admission to the finished picture.")
    evaluations: dict[str, float] = Field(description="Network evaluations by model; a guided step is two.")
    compute_seconds: dict[str, float] = Field(description="By model: its share of the batches that it was in.")
    attempts: int = Field(description="Drafts painted.")
    tries: int = Field(description="Tries of the teacher.")
    calibrated: bool = Field(description="Whether the threshold was calibrated for just these settings.")
    warning: str | None = None
    error: str | None = Field(default=None, description="Why there is no picture, where others of the request have one.")


class ImageItem(BaseModel):
    """One picture; `b64_json` is null where only this one failed."""

    b64_json: str | None
    revised_prompt: str | None = Field(default=None, description="What was painted, where the card doesn't know the words.")
    adaptive: Account


class ImagesReply(BaseModel):
    """Pictures in the order of their seeds."""

    created: int
    data: list[ImageItem]
    output_format: Format
    size: str
    background: Literal["opaque"] = "opaque"
    model: str


class ErrorDetail(BaseModel):
    """OpenAI's."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """A refusal."""

    error: ErrorDetail


class ModelInfo(BaseModel):
    """A card that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    adaptive: dict[str, Any] = Field(description="Its settings, limits and calibration.")


class ModelList(BaseModel):
    """All of them: one."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class State(BaseModel):
    """Of the server."""

    status: Literal["ok", "ready", "draining", "stopped"]
