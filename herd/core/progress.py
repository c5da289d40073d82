"""The progress bar of every command: what is done, of how much, at which rate, and the time left, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text


class RateColumn(ProgressColumn):
    """The rate that was given last, else what is counted a second."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["rate"] or f"{task.finished_speed or task.speed or 0:,.1f}/s")


class ProgressBar:
    """The line of one piece of work."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: float = 1, *, rate: str = "", note: str = "") -> None:
        """Count on; `rate` is shown instead of the counted one, `note` behind it."""
        self._progress.update(self._task, advance=count, rate=rate, note=note)

    def describe(self, what: str) -> None:
        """Change the description."""
        self._progress.update(self._task, description=what)

    def print(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(line)


@contextmanager
def progress_bar(what: str, total: float, *, done: int = 0, quiet: bool = False) -> Iterator[ProgressBar]:
    """Within, a bar of one line for `total` pieces of work, `done` of which were there before; `quiet`: not shown, of
    ranks other than the first."""
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        RateColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(elapsed_when_finished=True, table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True, quiet=quiet)) as progress:
        yield ProgressBar(progress, progress.add_task(what, total=total, completed=done, rate="", note=""))
