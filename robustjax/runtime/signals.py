"""Requests to stop: schedulers send SIGTERM before they preempt a machine, and people press Ctrl-C.

jax and Orbax learn of a preemption in the same way. It is enough that one of several processes receives the signal: the
training loop has them agree after every dispatch.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

# Exit status of what Ctrl-C ends, as shells have it.
INTERRUPTED = 128 + signal.SIGINT


def interrupted(*_: Any) -> NoReturn:
    """Ends the process at once with one line; a regular exit would wait for threads of libraries."""
    if sys.stderr is not None:  # it may be closed
        print("interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


def interrupts_end_commands() -> None:
    """Until :func:`interrupts_raise`, Ctrl-C ends ``python -m robustjax.train`` and the other commands in one line.

    Importing jax takes them seconds, in which no code of theirs runs that could catch it. In any other process, and
    where SIGINT is ignored, nothing changes.
    """
    locating = sys.argv[:1] == ["-m"]  # what Python has there until it has found the module of -m
    ours = any(flag == "-m" and name.startswith("robustjax.") for flag, name in itertools.pairwise(sys.orig_argv))
    if locating and ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupted)


def interrupts_raise() -> None:
    """Has Ctrl-C raise ``KeyboardInterrupt`` again, once a command can catch it."""
    if signal.getsignal(signal.SIGINT) is interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM or SIGINT has come. The second one has its usual effect."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        for number, handler in previous.items():
            signal.signal(number, handler)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers; a notebook's thread goes without
        previous.update({number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)})
    try:
        yield lambda: bool(received)
    finally:
        if not received:
            for number, handler in previous.items():
                signal.signal(number, handler)
