"""What a person sees while a run goes on: a bar with ETA on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Display(contextlib.AbstractContextManager):
    """A progress bar over `total` units of work, counted or in per cent, and lines above it; nothing unless `shown`."""

    def __init__(self, title: str, *, total: float, done: float = 0, counted: bool = True, shown: bool = True):
        self._shown = shown
        console = Console()
        self._terminal = console.is_terminal and shown
        self._progress = Progress(
            TextColumn(title),
            BarColumn(bar_width=None),
            MofNCompleteColumn() if counted else TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[status]}"),
            console=console,
            disable=not self._terminal,
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task(title, total=total, completed=done, status="")

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, done: float, status: str) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=done, status=status)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self._terminal:
            self._progress.console.print(line, highlight=False, markup=False)
        elif self._shown:
            print(line, flush=True)
