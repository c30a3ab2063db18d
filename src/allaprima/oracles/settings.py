"""Settings of the oracles that load public models, by the card's `kind`: frozen, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from allaprima.core.errors import SettingError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderSettings(_Strict):
    """What all oracles with a network of their own take."""

    batch_size: int = Field(default=16, ge=1)
    """Pictures a forward pass; more are scored in several."""
    device: str = "cpu"
    """As torch names it: `cpu`, `cuda`, `cuda:1`, `mps`."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the network; features are normalised and heads applied in float32."""
    resize: Literal["published", "tensor"] = "published"
    """As the published code resizes; or bicubic with antialiasing on the device, within 1.5/255 a pixel of Pillow's."""
    long_prompts: Literal["warn", "refuse"] = "warn"
    """What happens to a prompt longer than the text encoder reads: a warning that says how much is read, or an error."""
    cost: float | None = Field(default=None, ge=0)
    """Share of a teacher's guided step; None: computed from the networks' sizes where a teacher is at hand."""

    def scoring(self) -> dict[str, Any]:
        """JSON-ready: the settings that change a score, which a fingerprint covers."""
        return self.model_dump(exclude={"batch_size", "device", "long_prompts", "cost"})


class ImageRewardSettings(EncoderSettings):
    """Of kind `imagereward`."""

    max_tokens: int = Field(default=35, ge=3)
    """Tokens that are read of a prompt, both marks included. The published scores are made with 35; the position embeddings
    allow 512, which the reward was not trained with."""


class VQASettings(_Strict):
    """Of kind `vqa`: an OpenAI-compatible chat endpoint that looks at pictures."""

    url: str = Field(pattern=r"^https?://")
    """Base URL, as `http://127.0.0.1:8000/v1`; `/chat/completions` is added."""
    model: str
    """The endpoint's name of it; pin a version, for nothing else says which weights answer."""
    question: str = 'Does this figure show "{prompt}"? Please answer yes or no.'
    """`{prompt}` is filled in."""
    answer: Literal["yes", "yes_or_no"] = "yes"
    """The published P(yes); or P(yes) / (P(yes) + P(no)), for models that often begin with another word."""
    top_logprobs: int = Field(default=20, ge=2, le=100)
    """How many of the first token's likeliest values are asked for."""
    key_env: str | None = None
    """Name of the environment variable that holds the bearer key; None sends none."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds a try."""
    retries: int = Field(default=3, ge=0)
    """Further tries after a timeout, a broken connection, 408, 409, 429, 5xx or an answer that makes no sense."""
    backoff: float = Field(default=1.0, ge=0)
    """Seconds before the first of them, twice as long before each next; `Retry-After` is heeded up to 60 s."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Questions under way at once."""
    failure: Literal["nan", "raise"] = "nan"
    """A picture whose tries are used up: no number (it goes to the teacher), with a warning; or an error."""
    cost: float = Field(default=0.0, ge=0)
    """Share of a teacher's guided step. Nothing of it runs here, so it is 0 unless you say otherwise."""

    def scoring(self) -> dict[str, Any]:
        """JSON-ready: the settings that change a score."""
        return self.model_dump(include={"url", "model", "question", "answer", "top_logprobs"})


class CompositionSettings(_Strict):
    """Of kind `composition`."""

    prompts: str = Field(default="evaluation_metadata.jsonl", pattern=r"^[\w-][\w.-]*$")
    """File with the prompts' requirements, in the detector's folder."""
    device: str = "cpu"
    """As torch names it."""


class StandardScale(_Strict):
    """`(score - mean) / deviation`."""

    mean: float
    deviation: float = Field(gt=0)


class RankScale(_Strict):
    """Place among held-out scores."""

    references: tuple[float, ...] = Field(min_length=2)


class MemberSettings(_Strict):
    """One oracle of an ensemble."""

    kind: str
    source: str = "."
    """Folder, relative to the ensemble's own source."""
    settings: dict[str, Any] = {}
    """The member's own, by its kind."""
    weight: float = Field(default=1.0, gt=0)
    scale: Literal["raw"] | StandardScale | RankScale = "raw"


class EnsembleSettings(_Strict):
    """Of kind `ensemble`."""

    members: tuple[MemberSettings, ...] = Field(min_length=1)
    name: str = "ensemble"


S = TypeVar("S", bound=BaseModel)


def parse(cls: type[S], kind: str, settings: Mapping[str, Any]) -> S:
    """Return settings of a kind; raises `SettingError` naming the key, the value and what is known."""
    try:
        return cls.model_validate(dict(settings))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            raise SettingError(
                f"oracle.settings.{where} means nothing to the kind {kind!r}: {', '.join(cls.model_fields)} are known."
            ) from e
        if first["type"] == "missing":
            raise SettingError(f"oracle.settings.{where} is missing: the kind {kind!r} needs it.") from e
        raise SettingError(
            f"oracle.settings.{where} = {repr(first.get('input'))[:60]} of the kind {kind!r}: {first['msg']}."
        ) from e
