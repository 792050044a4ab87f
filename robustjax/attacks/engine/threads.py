"""Threads that drive several batches at the same time, for CPUs only.

Most operations of a small network use one core of a CPU, so threads with a batch each keep the others busy and compile
later attacks meanwhile. An accelerator works on one large batch at a time and gains nothing: there :func:`most_lanes`,
which alone decides on the number of lanes, returns 1. With one lane no thread is started.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any

import jax

MOST_LANES = 4


def most_lanes(batch_size: int, sharding: jax.sharding.NamedSharding | None, *, least: int) -> int:
    """Batches at the same time, of ``least`` images at least: on a CPU one for each core, elsewhere one."""
    devices = jax.devices()[:1] if sharding is None else sharding.device_set
    if [device.platform for device in devices] != ["cpu"] or _is_set_in_this_thread_alone():
        return 1
    return max(min(cores(), MOST_LANES, batch_size // least), 1)


def _is_set_in_this_thread_alone() -> bool:
    """Whether jax is set by ``with``, as to a precision or a mesh: other threads would compute something else."""
    settings = any(getattr(jax.config, name, value) != value for name, value in jax.config.values.items())
    return settings or not jax.sharding.get_abstract_mesh().empty


def set_mesh(mesh: jax.sharding.Mesh | None) -> contextlib.AbstractContextManager:
    """The batches' mesh, inside a ``jax.set_mesh`` of the caller: JAX refuses arrays on another than is set.

    It holds in this thread alone, which suffices: where a mesh is set there is but one lane. Elsewhere none is set.
    """
    if mesh is None or jax.sharding.get_abstract_mesh().empty:
        return contextlib.nullcontext()
    return jax.set_mesh(mesh)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def merged(iterators: Sequence[Iterator]) -> Generator[Any, None, None]:
    """What the iterators yield, as it comes; each runs in a thread until all end, one raises, or this is closed."""
    if len(iterators) < 2:
        yield from itertools.chain(*iterators)
        return
    with ThreadPoolExecutor(len(iterators)) as pool:
        pending = {pool.submit(next, iterator, None): iterator for iterator in iterators}
        while pending:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                iterator, report = pending.pop(future), future.result()
                if report is not None:
                    pending[pool.submit(next, iterator, None)] = iterator
                    yield report


def each(function: Callable[[Any], Any], arguments: Sequence[Any], num_lanes: int) -> list[Any]:
    """The function's results, in order; the first alone, as it may compile what the others need too."""
    if num_lanes < 2 or len(arguments) < 3:
        return [function(one) for one in arguments]
    first = function(arguments[0])
    with ThreadPoolExecutor(num_lanes) as pool:
        return [first, *pool.map(function, arguments[1:])]


class Background:
    """Calls made one after the other in a thread, inside a ``with``; those not begun at its end are dropped.

    A call that raised is reported by the next :meth:`check`, or at the end.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(1)
        self._calls: list[Future] = []

    def begin(self, function: Callable, *arguments: Any) -> None:
        """Adds a call."""
        self._calls.append(self._pool.submit(function, *arguments))

    def check(self) -> None:
        """Raises what a call has raised."""
        for call in self._calls:
            if call.done() and not call.cancelled():
                call.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._pool.shutdown(cancel_futures=True)
        if kind is None:
            self.check()
