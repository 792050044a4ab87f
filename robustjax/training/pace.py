"""The speed of a run, from which the number of steps per dispatch and the remaining time follow."""

from __future__ import annotations

import time

# How long the host leaves the device alone: long enough that dispatching costs nothing, short enough that a signal is
# answered and the bar moves.
SECONDS_PER_DISPATCH = 1.0


class Pace:
    """How many steps make a dispatch of about ``SECONDS_PER_DISPATCH``. The first, which compiles, is a single one."""

    def __init__(self, *, most: int):
        self._most = most
        self._seconds_per_step: float | None = None
        self._compiled_at: float | None = None
        self._steps = 0  # since then

    @property
    def steps_per_second(self) -> float:
        return 1.0 / self._seconds_per_step if self._seconds_per_step else 0.0

    def steps(self) -> int:
        if self._seconds_per_step is None:
            return 1
        return max(1, min(self._most, round(SECONDS_PER_DISPATCH / self._seconds_per_step)))

    def record(self, count: int, seconds: float) -> None:
        if self._compiled_at is None:
            self._compiled_at = time.monotonic()
        else:
            self._seconds_per_step = seconds / count
            self._steps += count

    def seconds(self, steps: int) -> float:
        """The estimated time of more steps, with validation and checkpoints, from those so far; 0 if there were none.

        The first validation compiles, so early in a run this is too long rather than too short.
        """
        if self._compiled_at is None or not self._steps:
            return 0.0
        return steps * (time.monotonic() - self._compiled_at) / self._steps
