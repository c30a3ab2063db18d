"""Recipes: what a training is, as a small YAML with `key=value` overrides, checked before anything is loaded.

```yaml
method: consistency
teacher: emoji          # a card: its teacher is distilled, its text encoder and autoencoder are used
data: pictures/         # see `data.captioned`; a safetensors of latents; or nothing: the teacher paints what is trained on
options: {w: [1, 8]}    # the method's own
loop: {max_train_steps: 2000, train_batch_size: 32, learning_rate: 1e-5}
```
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from allaprima.core.errors import SettingError
from allaprima.models.components.lora import TARGETS

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """Fields that are not known are refused, values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoopSettings(Strict):
    """How long and how fast; names follow diffusers' training scripts."""

    max_train_steps: int = Field(default=1000, ge=1)
    train_batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta2: float = Field(default=0.99, gt=0, lt=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    use_ema: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the copy that is exported."""
    gradient_checkpointing: bool = False
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Batches a step and process, each of `train_batch_size`."""
    mixed_precision: Literal["no", "bf16"] = "no"
    fsdp: bool = False
    """Shard networks and optimizer over the processes of `accelerate launch` instead of copying them."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    seed: int = 0
    checkpoint_seconds: float = Field(default=300.0, gt=0)
    sample_seconds: float = Field(default=1200.0, ge=0)
    """How often, at most, sample grids are painted while training, at checkpoints; 0 is never."""
    log_every: int = Field(default=20, ge=1)

    @field_validator("report_to", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class PartitionSettings(Strict):
    """Several students, each of its own part of the prompts (`distill.many`)."""

    kind: Literal["pca_median", "balanced_kmeans", "random"] = "pca_median"
    students: int = Field(default=4, ge=2)
    seed: int = 0
    only: tuple[int, ...] = ()
    """Train these students now, the others elsewhere or later; none named is all, one after the other."""

    @field_validator("only", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _known(self) -> Self:
        odd = [k for k in self.only if not 0 <= k < self.students]
        if odd:
            raise ValueError(f"student {odd[0]} is not among 0..{self.students - 1}")
        return self

    @property
    def numbers(self) -> tuple[int, ...]:
        """Students to train now."""
        return self.only or tuple(range(self.students))


class LoraSettings(Strict):
    """Adapters in place of whole weights: `W x + (alpha / rank) B A x`; of the student, never of a fake score."""

    rank: int = Field(default=64, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    """None: the rank."""
    targets: tuple[str, ...] = Field(default=TARGETS, min_length=1)
    """Ends of the names of the modules that are adapted."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def scale(self) -> float:
        """Alpha."""
        return float(self.rank if self.alpha is None else self.alpha)


class Recipe(Strict):
    """One training, or with `partition` one for each student."""

    method: str
    teacher: str = "emoji"
    data: str | None = None
    painted: int = Field(default=512, ge=1)
    """Without data: how many pictures the teacher paints to train on."""
    prompts: str | None = None
    """Without data: a file of prompts; default: what the card knows."""
    start: str | None = None
    """Folder of the network the student starts from; default: the teacher's."""
    network: Literal["full", "base", "small", "tiny"] = "full"
    """How much of that is left of the student's blocks (`distill.architecture`)."""
    width: float = Field(default=1.0, gt=0, le=1)
    """And of its channels, about."""
    lora: LoraSettings | None = None
    """Train adapters only; `{}` takes the defaults."""
    partition: PartitionSettings | None = None
    options: dict[str, Any] = {}
    loop: LoopSettings = LoopSettings()

    @property
    def smaller(self) -> bool:
        """Whether the student's network is cut from what it starts from."""
        return self.network != "full" or self.width != 1.0

    @field_validator("lora")
    @classmethod
    def _whole(cls, lora: LoraSettings | None, info: ValidationInfo) -> LoraSettings | None:
        """What is cut off is missed by every weight that is left, so all of them must train first."""
        if lora is not None and (info.data.get("network", "full") != "full" or info.data.get("width", 1.0) != 1.0):
            raise ValueError("adapters don't mend a cut network: train network=... without lora, then start=... with it")
        return lora

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.lora is not None and self.partition is not None:
            raise ValueError("several students of adapters are not known: leave lora or partition out")
        if self.lora is not None and self.loop.fsdp:
            raise ValueError("adapters share their base, which fsdp would shard twice: leave lora or loop.fsdp out")
        return self


def override(raw: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """A copy with `key=value` changes; dots reach inside (`loop.learning_rate=1e-4`), values are read as YAML.

    Raises `SettingError` for a change without `=`.
    """
    made: dict[str, Any] = yaml.safe_load(yaml.safe_dump(raw))
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"{change!r} is no change: key=value is due, for example loop.max_train_steps=500.")
        *path, last = key.strip().split(".")
        where = made
        for part in path:
            where = where.setdefault(part, {})
            if not isinstance(where, dict):
                raise SettingError(f"{change!r}: {part!r} is a value, not a group: nothing can be set inside it.")
        where[last] = number_or(yaml.safe_load(value))
    return made


def number_or(value: Any) -> Any:
    """YAML reads `1e-5` as text (it wants `1.0e-5`); people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return [number_or(v) for v in value]
    return value


def read_recipe(path: Path | None, method: str | None, changes: Sequence[str]) -> Recipe:
    """A recipe file (or none) with a method and changes on top. Raises `SettingError` that names the field."""
    raw: dict[str, Any] = {}
    if path is not None:
        try:
            loaded: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
            raise SettingError(f"recipe {path} cannot be read as YAML: {e}. Mend it or choose another.") from e
        if not isinstance(loaded, dict):
            raise SettingError(f"recipe {path} is not a mapping: method, teacher, data, options and loop are due.")
        raw = {k: _numbers(v) for k, v in loaded.items()}
    if method is not None:
        if raw.get("method", method) != method:
            raise SettingError(f"method={method!r}, but recipe {path} says {raw['method']!r}: leave one of them out.")
        raw["method"] = method
    return checked(Recipe, override(raw, changes), "recipe")


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return number_or(value)


def checked(model: type[M], raw: Mapping[str, Any], what: str) -> M:
    """`raw` as a model; `SettingError` with the first field that breaks a rule, and the nearest known name."""
    try:
        return model.model_validate(dict(raw))
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        known = _fields_at(model, [str(p) for p in first["loc"][:-1]])
        hint = ""
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else f" Known are {', '.join(known)}."
        raise SettingError(f"{what}: {where}={first.get('input')!r}: {first['msg']}.{hint}") from e


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        inner = None if field is None else field.annotation
        inner = next((a for a in get_args(inner) if isinstance(a, type) and issubclass(a, BaseModel)), inner)
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)
