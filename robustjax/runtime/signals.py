"""Being asked to stop: schedulers send SIGTERM before they take a machine away, people press Ctrl-C.

That is also how jax and Orbax hear of a preemption. Of several processes it is enough that one is told: the loop has
them agree after every dispatch.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


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
