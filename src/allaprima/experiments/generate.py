"""Generating images from prompts into a run folder, and what editing and control share with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rich.console import Console

from allaprima.calibration.artifact import Calibration
from allaprima.cascade.policy import Policy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.settings import CascadeSettings, make_sigma
from allaprima.conditioning.edit import ImageInput
from allaprima.conditioning.vocabulary import ResolvedPrompt, Vocabulary
from allaprima.core.errors import PromptError, SettingError
from allaprima.data.edits import EditRow
from allaprima.data.prompts import PromptRow, read_prompts
from allaprima.diffusion.guidance import GuidanceInterval
from allaprima.diffusion.noising import Variance
from allaprima.experiments.options import PaintOptions
from allaprima.experiments.runner import RunPlan, paint
from allaprima.models.placement.device_config import DeviceConfig
from allaprima.pipeline import AdaptivePipeline
from allaprima.pipeline.requests import PROMPT_TEXTS, compose_requests, settings_changes

MAX_PICTURES = 1_000_000
Row = TypeVar("Row", PromptRow, EditRow)
Compose = Callable[[Row, str, int, int], list[GenerationRequest]]
"""A row, its prompt as it is encoded, the index of its first request, its number -> its requests."""
NONE = "no prompts: give some as arguments, --prompts-file FILE (or - for stdin), or --demo."


@dataclass(frozen=True)
class GenerateOptions(PaintOptions):
    """Options of the command, as given."""

    prompts_file: str | None
    demo: bool
    budget: float | None
    steer: bool
    calibration: Path | None
    guidance_interval: tuple[float, float] | None
    guidance_outside: float | None
    max_drafts: int | None
    max_teacher_tries: int | None
    noise: Literal["same", "fresh"] | None
    ray_address: str | None
    workers: int
    device_config: DeviceConfig


def cascade_settings(defaults: CascadeSettings, o: PaintOptions) -> CascadeSettings:
    """Return the card's settings with the caller's changes; out-of-range values raise `SettingError`."""
    changes: dict[str, Any] = {
        "strategy": o.strategy,
        "teacher_solver": o.solver,
        "teacher_steps": o.steps,
        "teacher_last_time": o.last_time,
        "student_steps": o.student_steps,
        "batch_size": o.batch_size,
        **settings_changes(guidance_scale=o.guidance, guidance_rescale=o.guidance_rescale, clip_skip=o.clip_skip),
    }
    if o.sigma is not None or o.sigma_is is not None:
        kind = o.sigma_is or ("variance" if isinstance(defaults.sigma, Variance) else "strength")
        changes["sigma"] = make_sigma(kind, defaults.sigma.value if o.sigma is None else o.sigma)
    return defaults.changed(**{k: v for k, v in changes.items() if v is not None})


def guidance_interval(default: GuidanceInterval | None, o: GenerateOptions) -> GuidanceInterval | None:
    """Return the card's guidance interval with the caller's changes."""
    if o.guidance_interval is not None:
        made = GuidanceInterval(*o.guidance_interval, 1.0 if default is None else default.outside)
    elif default is not None or o.guidance_outside is None:
        made = default
    else:
        raise SettingError(
            f"guidance_outside={o.guidance_outside!r} is outside of no interval: give --guidance-interval too."
        )
    return made if made is None or o.guidance_outside is None else dataclasses.replace(made, outside=o.guidance_outside)


def prompt_rows(o: GenerateOptions) -> Iterator[PromptRow]:
    """Prompts from arguments, the demonstration, a file or stdin, as they are read."""
    yield from (PromptRow(p) for p in o.prompts or [])
    if o.demo:
        yield from read_prompts(Path(__file__).parent.parent / "bundled" / "emoji" / "demo.txt")
    if o.prompts_file is not None:
        yield from read_prompts(o.prompts_file)


def collect_prompts(o: GenerateOptions, console: Console) -> list[PromptRow]:
    """All of them; raises `PromptError` when there are none."""
    rows = list(prompt_rows(o))
    if not rows:
        raise PromptError(NONE)
    if not 1 <= o.images_per_prompt <= MAX_PICTURES // len(rows):
        raise SettingError(
            f"images_per_prompt={o.images_per_prompt!r} is out of range: 1..{MAX_PICTURES // len(rows)} here."
        )
    for row in rows:
        if row.seed is not None and o.images_per_prompt > 1:
            console.print("[yellow]note:[/] rows with their own seed count it up for each further picture")
            break
    return rows


def words_for(pipe: AdaptivePipeline, prompts: Sequence[str], nearest: bool, console: Console) -> list[ResolvedPrompt]:
    """Prompts in words that the card knows; says where they are others."""
    vocabulary = vocabulary_of(pipe, nearest)
    words = [vocabulary.word(prompt) for prompt in prompts]
    for word in words:
        if word.similarity < 1:
            say_word(word, console)
    return words


def vocabulary_of(pipe: AdaptivePipeline, nearest: bool) -> Vocabulary:
    """Return the words that a card knows; without `nearest` every word passes."""
    assert pipe.card is not None
    card = pipe.card
    concepts = card.known_concepts() if nearest else []
    return Vocabulary(concepts, card.styles, pipe.student.encode, card.known_keywords())


def say_word(word: ResolvedPrompt, console: Console) -> None:
    """Say that a prompt is painted in other words."""
    console.print(
        f"[yellow]note:[/] {word.asked!r} is not a concept this card knows; painting {word.painted!r}"
        f" (similarity {word.similarity:.2f}; --no-nearest paints it as asked)"
    )


def loaded(o: GenerateOptions, console: Console) -> tuple[AdaptivePipeline, CascadeSettings, Policy]:
    """Return the models, and how they are to paint."""
    mode = o.mode
    with console.status("loading models"):
        pipe = AdaptivePipeline.from_card(o.card, device_config=o.device_config)
    if o.calibration is not None:
        pipe.use(Calibration.load(o.calibration))
    interval = guidance_interval(pipe.settings.teacher_guidance_interval, o)
    settings = cascade_settings(pipe.settings, o).changed(teacher_guidance_interval=interval)
    policy = pipe.policy(settings, o.threshold, o.budget, mode, o.steer, o.max_drafts, o.max_teacher_tries, o.noise)
    pipe.cascade(settings, policy)  # Settings that these models can't meet are refused before a folder is claimed.
    return pipe, settings, policy


def prepare(o: GenerateOptions, console: Console) -> RunPlan:
    """Load the models and turn prompts into requests."""
    rows = collect_prompts(o, console)
    pipe, settings, policy = loaded(o, console)
    said = o.device_config.to_dict()
    plan = RunPlan(pipe, policy, settings, extras={"placement": said} if said else {})
    return filled(plan, rows, o, console, lambda row, painted, first, _: requests_of(row, painted, first, o))


def filled(plan: RunPlan, rows: Sequence[Row], o: PaintOptions, console: Console, compose: Compose[Row]) -> RunPlan:
    """Return a plan with the requests of all rows, their prompts in words that the card knows."""
    words = words_for(plan.pipe, [row.prompt for row in rows], o.nearest, console)
    requests: list[GenerationRequest] = []
    wordings: list[ResolvedPrompt] = []
    for number, (row, word) in enumerate(zip(rows, words, strict=True)):
        requests += compose(row, word.painted, len(requests), number)
        wordings += [word] * (len(requests) - len(wordings))
    return dataclasses.replace(plan, requests=requests, wordings=wordings)


def requests_of(
    row: PromptRow | EditRow, painted: str, first: int, o: PaintOptions, controls: Sequence[tuple[ImageInput, ...]] = (),
    scales: tuple[float, ...] = (),
) -> list[GenerationRequest]:  # fmt: skip
    """Return a prompt's images, of which the first is image `first` of the run; `controls`: those of the prompt, if any."""
    begin = o.seed + first if row.seed is None else row.seed
    seeds = range(begin, begin + o.images_per_prompt)
    return compose_requests([painted], seeds, None, controls or None, scales, first, texts=texts_of(row, o))


def texts_of(row: object, o: PaintOptions) -> dict[str, str | None]:
    """Return the texts beside a row's prompt: the row's own, else the command's."""
    return {name: getattr(row, name, None) or getattr(o, name) for name in PROMPT_TEXTS}


def policy_beside(
    pipe: AdaptivePipeline, settings: CascadeSettings, usual: float | None, o: PaintOptions, console: Console
) -> Policy:
    """Return the policy of a task without calibration: the threshold given, or the card's own as a mark to reach.

    `usual`: the card's own. Raises `SettingError` where there is neither.
    """
    threshold = o.threshold
    if o.mode == "adaptive" and threshold is None:
        if usual is None:
            raise SettingError("no calibration for this card: give --threshold, --student-only or --teacher-only.")
        threshold = usual
        console.print(
            f"[yellow]note:[/] drafts must score {threshold:.4f}, what this card asks of pictures from a prompt alone;"
            " --threshold asks for more or less"
        )
    return pipe.policy(settings, threshold, None, o.mode)


def generate_command(o: GenerateOptions) -> None:
    """Paint, resume, and write tables and the contact sheet at the end."""
    console = Console(stderr=True, highlight=False)
    if o.ray_address is not None:
        raise SettingError(f"--ray-address {o.ray_address} is for --engine ray: give both, or neither.")
    return paint(prepare(o, console), o, console)
