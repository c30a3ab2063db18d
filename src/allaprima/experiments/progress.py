"""Progress bars of what verbs do."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor


class Bars:
    """Progress bars on stderr, one a pass over images."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    @classmethod
    @contextmanager
    def show(cls, console: Console, transient: bool = True) -> Generator[Bars]:
        """Show bars while something runs; `transient` ones vanish at the end."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=transient) as progress:
            yield cls(progress)

    def task(self, what: str, total: int) -> Callable[[int], None]:
        """Return what is called with how many more are done."""
        task = self.progress.add_task(what, total=total)
        return lambda n: self.progress.advance(task, n)

    def over(self, batches: Iterable[Tensor], total: int, what: str) -> Iterator[Tensor]:
        """Yield the same batches, counted by pictures."""
        task = self.progress.add_task(what, total=total)
        for batch in batches:
            yield batch
            self.progress.advance(task, len(batch))
        self.progress.remove_task(task)


class Bar:
    """The progress of painting. Use with `with`."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task = self._progress.add_task("painting", total=total)
        self._seen = self._accepted = 0

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def painted(self, account: Mapping[str, Any]) -> None:
        """One more picture."""
        self._seen, self._accepted = self._seen + 1, self._accepted + (account["decision"] == "accept")
        words = f"painting, {self._accepted / self._seen:.0%} accepted at once"
        self._progress.update(self._task, advance=1, description=words)

    def passed(self) -> None:
        """One that was there already."""
        self._progress.update(self._task, advance=1)
