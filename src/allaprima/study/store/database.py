"""Engines and their transactions.

SQLite: WAL with `synchronous=FULL`, so a vote that was acknowledged is on the disk even after a power cut; writers of one
process take turns before they begin (SQLite's own waiting is by sleeping, which makes some wait long). Postgres: its default
`synchronous_commit` says the same, and row locks order the writers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session

from allaprima.core.errors import SettingError
from allaprima.study.votes import StudyError

MIGRATIONS = Path(__file__).parent / "migrations"
AWAY = "the database of this study can't be reached at the moment: try again."
FULL = ("database or disk is full", "disk i/o error", "no space left", "53100")
"""How SQLite and Postgres say that there is no room."""


def engine_of(url: str) -> Engine:
    """Of `sqlite:///file` or `postgresql://user@host/name` (pg8000 unless the URL names a driver). Raises `SettingError`."""
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+pg8000")
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise SettingError(f"database={parsed.get_backend_name()!r}: sqlite:///FILE or postgresql://... is due.")
        made = create_engine(parsed, **_options(parsed.get_backend_name()))
    except (ArgumentError, NoSuchModuleError) as e:
        raise SettingError("database: this is no URL; sqlite:///FILE or postgresql://USER@HOST/NAME is due.") from e
    except ImportError as e:
        raise SettingError(f"database: {e.name} is not installed: pip install 'allaprima[study]'.") from e
    if made.dialect.name == "sqlite":
        event.listen(made, "connect", _prepare_sqlite)
        event.listen(made, "begin", _begin_immediate)
    else:
        event.listen(made, "handle_error", _lost)
    return made


def _lost(context: Any) -> None:
    # pg8000 lets some of a socket's own errors through, of which SQLAlchemy doesn't know that the connections are gone.
    if isinstance(context.original_exception, OSError):
        context.is_disconnect = True


def _options(backend: str) -> dict[str, Any]:
    if backend == "sqlite":
        return {"connect_args": {"timeout": 30, "check_same_thread": False}}
    # A connection that a restarted server closed is noticed when it is used: the page asks again by itself. Asking the
    # server before each use would be one more question for each of a vote's few.
    return {"pool_size": 40, "max_overflow": 0}


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: Any) -> None:
    # A reader that turns writer half-way may meet "database is locked" without any waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


class Database:
    """Sessions for reading and for writing; database trouble becomes `StudyError`."""

    def __init__(self, url: str) -> None:
        self.engine = engine_of(url)
        self._turn = threading.Lock() if self.engine.dialect.name == "sqlite" else contextlib.nullcontext()
        self._writing = self.engine.execution_options(writes=True)

    @property
    def locks_rows(self) -> bool:
        """Whether `SELECT ... FOR UPDATE` means anything: SQLite has one writer at a time anyway."""
        return self.engine.dialect.name != "sqlite"

    @contextlib.contextmanager
    def reading(self) -> Generator[Session]:
        """One consistent view."""
        with _named_trouble(), Session(self.engine) as session:
            yield session

    @contextlib.contextmanager
    def writing(self) -> Generator[Session]:
        """Open a session that is committed, to the disk, when the block ends; nothing is written if it raises."""
        with _named_trouble(), self._turn, Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    def migrate(self) -> None:
        """Bring the tables to this version's; a database of a newer version is refused."""
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with _named_trouble(), self._turn, self._writing.connect() as connection:
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as e:
                raise StudyError("newer", f"this database is of a newer allaprima ({e}): update allaprima.") from e
            connection.commit()

    def close(self) -> None:
        """Let go of all connections."""
        self.engine.dispose()


@contextlib.contextmanager
def _named_trouble() -> Generator[None]:
    try:
        yield
    except DBAPIError as e:
        said = f"{e.orig}"
        if any(word in said.lower() for word in FULL):
            raise StudyError(
                "disk_full", "the disk of this study is full, so nothing was written: make room, then go on."
            ) from e
        if e.connection_invalidated or "connect" in said.lower() or "InterfaceError" in type(e).__name__:
            raise StudyError("database_away", AWAY) from e
        raise StudyError("database", f"the database refused: {said[:200]}. See that the study's file is whole.") from e
    except OSError as e:
        raise StudyError("database_away", AWAY) from e
