"""`allaprima finetune-oracle`: labelled pairs to an oracle that agrees with them better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def finetune_oracle(
    pairs: Annotated[
        Path, typer.Argument(help="CSV of labelled pairs: prompt, a, b (pictures), preference (a, b, tie or 0..1 for a).")
    ],
    card: Annotated[str, typer.Option(help="Whose oracle: a bundled card by name, or path of a card.yaml.")] = "emoji",
    steps: Annotated[int, typer.Option(help="At most; it stops when agreement on held-out prompts no longer rises.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Pairs a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 1e-4,
    held_out: Annotated[float, typer.Option(help="Share of the prompts to stop by, and again to report on.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of split and training.")] = 0,
    out: Annotated[Path, typer.Option(help="Training, oracle and card; a stopped run goes on.")] = Path("out/oracle"),
) -> None:
    """Teach the oracle what people prefer, from labelled pairs; says how often it agrees before and after."""
    from allaprima.experiments.finetune_oracle import finetune_command

    finetune_command(pairs, card, steps, batch_size, learning_rate, held_out, seed, out)
