"""The report of a frontier: quality against cost of methods and budgets. Resumable; every image is generated once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from allaprima.cascade.policy import Decision
from allaprima.core.errors import PromptError, SettingError
from allaprima.data.prompts import read_prompts
from allaprima.evaluation.frontier import markdown, write
from allaprima.evaluation.study import PairedScores
from allaprima.experiments.frontier import OVER, FrontierRun, Seen
from allaprima.experiments.frontier_methods import actions, baseline, singles
from allaprima.experiments.image_store import ImageStore
from allaprima.experiments.reproduction import CARD_STEPS, write_study
from allaprima.experiments.scorers import scorers_for
from allaprima.pipeline import AdaptivePipeline


@dataclass(frozen=True)
class FrontierOptions:
    """Options of the command, as given."""

    card: str
    prompts_file: str | None
    prompts: int
    seeds: int
    budgets: tuple[float, ...]
    quick: bool
    reference: Path | None
    usual_guidance: float | None
    out: Path

    def command(self) -> str:
        """Return what to type for the same run."""
        parts = [f"--card {self.card}", f"--prompts {self.prompts}", f"--seeds {self.seeds}"]
        parts += [f"--prompts-file {self.prompts_file}"] if self.prompts_file is not None else []
        parts += ["--budgets " + ",".join(f"{b:g}" for b in self.budgets)]
        parts += [f"--usual-guidance {self.usual_guidance:g}"] if self.usual_guidance is not None else []
        parts += [f"--reference {self.reference}"] if self.reference is not None else []
        return " ".join(["allaprima frontier", *(["--quick"] if self.quick else []), *parts])

    def check(self) -> None:
        """Raise `SettingError` before anything is loaded."""
        if self.seeds < 1 or self.prompts < 20:
            raise SettingError(f"seeds={self.seeds!r}, prompts={self.prompts!r}: at least 1 and 20 are due.")
        if not self.budgets or min(self.budgets) < 1:
            raise SettingError(f"budgets={self.budgets!r}: mean steps of 1 or more, for example 8,10,15,20.")
        if self.reference is not None and not self.reference.is_file():
            raise SettingError(f"reference={str(self.reference)!r} is not a file: give a safetensors with `features`.")


def prepared(o: FrontierOptions, note: Callable[[str], None]) -> tuple[FrontierRun, dict[str, Any]]:
    """Load models, prompts and measures."""
    pipe = AdaptivePipeline.from_card(o.card)
    if pipe.oracle is None or pipe.card is None:
        raise SettingError(f"card {o.card!r} has no oracle: a cascade has nothing to decide by.")
    if o.prompts_file is None:
        known = pipe.card.usual_prompts()
        prompts = [known[(i * 7919) % len(known)] for i in range(min(o.prompts, len(known)))]
    else:
        prompts = list(dict.fromkeys(r.prompt for r in read_prompts(o.prompts_file)))[: o.prompts]
    if len(prompts) < 20:
        raise PromptError(f"{len(prompts)} different prompts: a frontier needs 20 or more. Give --prompts-file.")
    scorers = scorers_for(pipe, prompts, o.reference)
    store = ImageStore(o.out / "pictures", pipe, prompts, scorers.score_images, scorers.signature, note)
    embeds = torch.cat([pipe.student.encode(prompts[i : i + 64]) for i in range(0, len(prompts), 64)])
    about = {
        "card": o.card, "prompts": len(prompts), "seeds": o.seeds, "fingerprints": pipe.fingerprints(),
        "measures": scorers.identity, "settings": pipe.settings.to_dict(), "cross_fitted": "two halves of the prompts",
    }  # fmt: skip
    return FrontierRun(store, pipe.settings, o.seeds, scorers.reference, scorers.measures, embeds, note), about


def paired_looks(frontier: FrontierRun, steps: int) -> PairedScores:
    """Every draft beside the teacher's picture of the same prompt and seed, as the first measure and the oracle see them."""
    measure, action = frontier.measures[0].name, actions(frontier.base, True)[f"regenerate {steps}"]
    drafts, made = [], []
    for seed in frontier.seeds:
        _, pictures = frontier.table(seed, action, 1)
        drafts.append(pictures[Decision.ACCEPT][0])
        made.append(pictures[action[0]][0])

    def column(rows: Sequence[Seen], name: str) -> np.ndarray:
        return torch.cat([r[name] for r in rows]).double().numpy()

    prompt = np.tile(np.arange(len(frontier.store.prompts)), len(frontier.seeds))
    return PairedScores(
        prompt, column(drafts, measure), column(made, measure), column(drafts, "oracle"), column(made, "oracle")
    )


def frontier_command(o: FrontierOptions) -> None:
    """Paint, calibrate, measure, draw."""
    o.check()
    console, begun = Console(stderr=True, highlight=False), time.perf_counter()

    def note(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - begun:6.0f} s[/] {text}")

    frontier, about = prepared(o, note)
    frontier.compare_with(baseline(frontier.base, o.usual_guidance))
    points = frontier.single_points(singles(frontier.base, o.quick, o.usual_guidance))
    points += frontier.adaptive_points(o.budgets, o.quick)
    points += frontier.bound_points(o.budgets, frontier.measures[0].name, CARD_STEPS)
    about["command"] = o.command()
    title = f"{o.card}: {len(frontier.store.prompts)} prompts, {o.seeds} seeds"
    measures = frontier.shown()
    drawn = [m for m in measures if m.name in (f"judge{OVER}", f"oracle{OVER}", f"frechet{OVER}")][:3]
    write(o.out, points, measures, title, about, drawn)
    write_study(paired_looks(frontier, CARD_STEPS), points, frontier.measures, o.out, title)
    print(markdown(points, measures))
    console.print(
        f"look at {o.out / 'frontier.html'} and {o.out / 'reproduction.md'}; pictures are kept in {o.out / 'pictures'}"
    )
