"""`allaprima study`: ask people which images they prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

study_app = typer.Typer(no_args_is_help=True, help="Ask people which pictures they prefer (docs/study.md).")

Folder = Annotated[Path, typer.Argument(help="The study's folder.")]
Database = Annotated[
    str | None, typer.Option(help="sqlite:///FILE or postgresql://USER@HOST/NAME in place of SQLite in the folder.")
]


@study_app.command(epilog="Example: allaprima study create student=out/a teacher=out/b --pairs 60 --out out/study")
def create(
    folders: Annotated[list[str], typer.Argument(help="Two or more folders of generate: FOLDER or NAME=FOLDER.")],
    out: Annotated[Path, typer.Option(help="The study's folder.")] = Path("out/study"),
    name: Annotated[
        str, typer.Option(help="What annotators read above the pictures; don't name methods.")
    ] = "Which picture?",
    questions: Annotated[str, typer.Option(help="preference, or diversity (two seeds of a prompt).")] = "preference",
    which: Annotated[str, typer.Option(help="final or draft pictures of the folders.")] = "final",
    pairs: Annotated[int | None, typer.Option(help="At most so many pairs, spread over the methods.")] = None,
    votes: Annotated[int, typer.Option(help="Votes a pair.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws pairs, order and sides.")] = 0,
    training: Annotated[int, typer.Option(help="Pairs to practise on.")] = 3,
    qualification: Annotated[int, typer.Option(help="Pairs of the test.")] = 4,
    gold: Annotated[int, typer.Option(help="Attention checks.")] = 6,
    gold_every: Annotated[int, typer.Option(help="One after so many votes; 0 is never.")] = 10,
    pass_share: Annotated[float, typer.Option(help="Of the test's answers that must be right.")] = 0.75,
    lease_minutes: Annotated[float, typer.Option(help="After so long without a vote a pair goes to somebody else.")] = 30.0,
    stop_alpha: Annotated[
        float | None, typer.Option(help="End as soon as the overall preference is known at this error rate.")
    ] = None,
    distances: Annotated[Path | None, typer.Option(help="CSV prompt,seed,distance for results by band.")] = None,
    annotators: Annotated[int, typer.Option(help="Invitations to make at once.")] = 3,
    database: Database = None,
) -> None:
    """Pair pictures of two or more methods, blind, and print an invitation for each annotator."""
    from allaprima.experiments.study import create_command
    from allaprima.study.create import StudyPlan
    from allaprima.study.design import Rules
    from allaprima.study.known_pairs import Counts

    rules = Rules(votes, gold_every, pass_share, lease_minutes, stop_alpha)
    plan = StudyPlan(name, questions, pairs, seed, rules, Counts(training, qualification, gold))
    create_command(folders, which, plan, distances, out, annotators, database)


@study_app.command(epilog="Example: allaprima study serve out/study --port 8010")
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen at; put a TLS proxy in front of a public one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 is any that is free; the address is printed.")] = 8010,
    database: Database = None,
) -> None:
    """Serve the page on which people vote."""
    from allaprima.experiments.study import serve_command

    serve_command(folder, host, port, database)


@study_app.command(epilog="Example: allaprima study invite out/study --annotators 5")
def invite(
    folder: Folder,
    annotators: Annotated[int, typer.Option(help="How many.")] = 1,
    revoke: Annotated[int | None, typer.Option(help="Instead: take this annotator's invitation back.")] = None,
    database: Database = None,
) -> None:
    """Print more invitations, or take one back."""
    from allaprima.experiments.study import invite_command

    invite_command(folder, annotators, revoke, database)


@study_app.command(epilog="Example: allaprima study report out/study --out out/study-report")
def report(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="report.html, results.csv, annotators.csv, and both as Parquet.")] = Path(
        "out/study-report"
    ),
    level: Annotated[float, typer.Option(help="Of intervals.")] = 0.95,
    drop_flagged: Annotated[bool, typer.Option("--drop-flagged", help="Leave out votes of careless annotators.")] = False,
    card: Annotated[
        str | None, typer.Option(help="Also score the pictures by this card's oracle and compare with the votes.")
    ] = None,
    database: Database = None,
) -> None:
    """Win rates, agreement, annotators, bands: HTML, CSV, Parquet."""
    from allaprima.experiments.study import report_command

    report_command(folder, out, level, drop_flagged, card, database)


@study_app.command(epilog="Example: allaprima study export out/study --out out/votes")
def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="votes.csv, pairs.csv (for finetune-oracle), votes.parquet.")] = Path(
        "out/votes"
    ),
    question: Annotated[str, typer.Option(help="Whose majority becomes pairs.csv's preference.")] = "overall",
    database: Database = None,
) -> None:
    """Write the votes as tables, and pairs as finetune-oracle reads them."""
    from allaprima.experiments.study import export_command

    export_command(folder, out, question, database)
