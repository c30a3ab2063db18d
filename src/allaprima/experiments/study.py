"""Preference studies: create, serve, invite, report, export."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from allaprima.core.errors import RunFolderError, SettingError
from allaprima.data.pictures import PictureSet, open_pictures
from allaprima.study.create import StudyPlan, create, missing_files, open_study


def _console() -> Console:
    return Console(stderr=True, highlight=False)


def sets_of(folders: Sequence[str], which: str) -> dict[str, PictureSet]:
    """Methods by name: `NAME=FOLDER`, or the folder's own name. Raises `SettingError`."""
    if which not in ("final", "draft"):
        raise SettingError(f"which={which!r}: final or draft is due.")
    made: dict[str, PictureSet] = {}
    for text in folders:
        name, found, path = text.partition("=")
        if not found:
            name, path = Path(text).name or text, text
        if not name or name in made:
            raise SettingError(f"method {name!r} is named twice, or not at all: give NAME=FOLDER for each.")
        made[name] = open_pictures(Path(path), which)
    return made


def read_distances(path: Path) -> dict[tuple[str, int], float]:
    """Of a CSV with prompt, seed and distance. Raises `SettingError` that names the row."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as e:
        raise SettingError(f"{path} cannot be read: {e}. A CSV with prompt, seed and distance is due.") from e
    made: dict[tuple[str, int], float] = {}
    for number, row in enumerate(rows, 1):
        try:
            made[(row["prompt"], int(row["seed"]))] = float(row["distance"])
        except (KeyError, TypeError, ValueError) as e:
            raise SettingError(f"{path}, row {number}: prompt, a whole seed and a distance are due.") from e
    return made


def create_command(
    folders: Sequence[str], which: str, plan: StudyPlan, distances: Path | None, out: Path, annotators: int,
    database: str | None,
) -> None:  # fmt: skip
    """Make the study and print its invitations, one a line, to standard output."""
    bands = None if distances is None else read_distances(distances)
    made = create(out, sets_of(folders, which), plan, database, bands)
    said = ", ".join(f"{n} {kind}" for kind, n in made.items() if n)
    _console().print(f"{out}: pairs: {said}; {plan.rules.votes} votes each. Next: allaprima study serve {out}")
    invite_command(out, annotators, None, database)


def invite_command(folder: Path, annotators: int, revoke: int | None, database: str | None) -> None:
    """Print tokens as the end of a link."""
    with closing(open_study(folder, database)) as store:
        if revoke is not None:
            store.revoke(revoke)
            _console().print(f"annotator {revoke} votes no more; their votes stay (report --drop-flagged, or by export)")
            return
        _console().print("invitations, one an annotator; they can't be shown again. Put the server's address before each:")
        for token in store.invite(annotators):
            print(f"/#token={token}", flush=True)


def serve_command(folder: Path, host: str, port: int, database: str | None) -> None:
    """Serve until a signal."""
    from allaprima.study.app.app import create_app
    from allaprima.study.app.server import serve
    from allaprima.study.app.service import StudyService

    console = _console()
    with closing(open_study(folder, database)) as store:
        gone = missing_files(folder, store.files())
        if gone:
            first = ", ".join(gone[:3])
            console.print(f"[yellow]note:[/] {len(gone)} pictures are gone, their pairs aren't shown: {first} ...")
        serve(create_app(StudyService(folder, store)), host, port, lambda where: print(f"{where}/", flush=True))
        counts = store.counts()
        console.print(f"stopped: {counts['votes']} of {counts['slots']} votes")


def made_folder(out: Path) -> Path:
    """Return a folder to write into. Raises `RunFolderError`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunFolderError(f"{out} cannot be made: {e.strerror}. Choose another --out.") from e
    return out


def export_command(folder: Path, out: Path, question: str, database: str | None) -> None:
    """Write the tables."""
    from allaprima.study.export import write_votes

    with closing(open_study(folder, database)) as store:
        written: dict[str, Any] = write_votes(store, folder, made_folder(out), question)
    _console().print(", ".join(f"{out / name}: {rows} rows" for name, rows in written.items()))


def report_command(
    folder: Path, out: Path, level: float, drop_flagged: bool, card: str | None, database: str | None
) -> None:
    """Write the report and print where it is."""
    from allaprima.study.report import write_report

    with closing(open_study(folder, database)) as store:
        scores = None
        if card is not None:
            # Torch and the models, which only scores need.
            from allaprima.experiments.study_scores import scores_of

            scores = scores_of(card, store, folder)
        for line in write_report(store, folder, made_folder(out), level, drop_flagged, scores):
            _console().print(line)
    print(out / "report.html")
