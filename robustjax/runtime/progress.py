"""Progress: a bar with the remaining time on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import time

# Where there is no terminal to draw on, a line this often says how far it is.
SECONDS_PER_LINE = 30.0


def duration(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> duration(0.4), duration(75), duration(7500)
        ('1 s', '1 min 15 s', '2 h 5 min')
    """
    seconds = max(1, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Progress(contextlib.AbstractContextManager):
    """Progress of some work, its remaining time, and lines that stay on the screen.

    Args:
        title: what is going on.
        total: units of work, or None while that is not known.
        done: units that were done before.
        counted: whether units are shown as numbers, as "12/40", rather than in per cent.
        shown: whether anything is shown at all; with several processes only the first one speaks.
    """

    def __init__(
        self, title: str, *, total: float | None = None, done: float = 0, counted: bool = True, shown: bool = True
    ):
        self._title, self._counted, self._shown = title, counted, shown
        self._total, self._done, self._status = total, done, ""
        self._started, self._first_done = time.monotonic(), done
        self._spoke = self._started
        self._bar = None

    def __enter__(self) -> Progress:
        self._started = self._spoke = time.monotonic()
        if not self._shown:
            return self
        from rich import console, progress  # not at the top: whoever attacks without a bar need not load it

        screen = console.Console()
        if not (screen.is_terminal or screen.is_jupyter):
            return self
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn() if self._counted else progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("ETA"),
            progress.TimeRemainingColumn(compact=True),
            progress.TextColumn("{task.fields[status]}"),
            console=screen,
            speed_estimate_period=120,
        )
        self._task = self._bar.add_task(self._title, total=self._total, status="")
        self._bar.update(self._task, completed=self._done)
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: float, status: str = "", *, total: float | None = None, title: str | None = None) -> None:
        """Sets the number of units ``done`` and, where given, another ``total`` and another title."""
        self._done, self._status = done, status
        self._total = self._total if total is None else total
        self._title = self._title if title is None else title
        if self._bar:
            self._bar.update(self._task, completed=done, total=self._total, status=status, description=self._title)
        elif self._shown and time.monotonic() - self._spoke > SECONDS_PER_LINE:
            self._spoke = time.monotonic()
            print(self._line(), flush=True)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False)
        elif self._shown:
            print(line, flush=True)

    def _line(self) -> str:
        """How far it is, in words."""
        parts = []
        if self._total:
            share = min(self._done / self._total, 1.0)
            parts.append(f"{self._done:,.0f} of {self._total:,.0f}" if self._counted else f"{share:.0%}")
            pace = (self._done - self._first_done) / (time.monotonic() - self._started)
            if pace > 0 and self._done < self._total:
                parts.append(f"about {duration((self._total - self._done) / pace)} to go")
        return f"{self._title}: " + "; ".join([*parts, *([self._status] if self._status else [])])
