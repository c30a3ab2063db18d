"""Options that several verbs have, each declared once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, TypeVar, cast

import typer

T = TypeVar("T")
V = TypeVar("V", bound=Callable[..., None])
Card = Annotated[str, typer.Option(help="Bundled card by name, or path of a card.yaml.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Of a Ray cluster that runs, or auto; default: one is started here, for this run.")
]
StudentSteps = Annotated[int | None, typer.Option(help="Student steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Pictures a network call; constant, padded.")]
Threshold = Annotated[
    float | None, typer.Option(help="Accept drafts that score at least this; default: the card's calibrated one.")
]
Sigma = Annotated[float | None, typer.Option(help="Refining: how much of a draft is repainted.")]
LastTime = Annotated[float | None, typer.Option(help="Where the teacher's last step is evaluated.")]
Backend = Annotated[
    str | None, typer.Option(help="What runs the networks: eager (torch; default), openvino or onnxruntime, for CPUs.")
]
Device = Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:1, or auto.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default), bfloat16, float16, or auto.")]
Steps = Annotated[int | None, typer.Option(help="Teacher steps.")]


def like(base: Callable[..., None], without: Collection[str]) -> Callable[[V], V]:
    """Give a verb the options of another: its own parameters, then those of `base`, which arrive in its `**` mapping.

    Args:
        base: The other verb.
        without: Options of `base` that the verb doesn't have.

    Returns:
        A decorator. A keyword-only parameter of the verb stands in the place of the one of that name in `base`.
    """

    def decorated(verb: V) -> V:
        own = [p for p in inspect.signature(verb, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        first = [p for p in own if p.kind is not p.KEYWORD_ONLY]
        instead = {p.name: p for p in own}
        shared = inspect.signature(base, eval_str=True).parameters.values()
        taken = {*without, *(p.name for p in first)}
        both = [*first, *(instead.get(p.name, p) for p in shared if p.name not in taken)]
        made = [p.replace(kind=p.POSITIONAL_OR_KEYWORD) for p in both]
        cast(Any, verb).__signature__ = inspect.Signature(made)
        return verb

    return decorated


def options_of(kind: type[T], values: Mapping[str, Any], **others: Any) -> T:
    """Return the options that the work of a verb takes.

    Args:
        kind: A dataclass whose fields bear the names of the verb's parameters.
        values: The verb's `locals()`.
        others: Fields that are made of parameters, in place of these.
    """
    given = {**values, **others}
    return kind(**{f.name: given[f.name] for f in dataclasses.fields(cast(Any, kind))})


def numbers(name: str, text: str, example: str) -> tuple[float, ...]:
    """Return the numbers of a comma list. Raises `SettingError` for anything else."""
    from allaprima.core.errors import SettingError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as e:
        raise SettingError(f"{name}={text!r} are not numbers with commas between: {example} for example.") from e


def names(text: str) -> tuple[str, ...]:
    """Return the names of a comma list, without blanks."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
