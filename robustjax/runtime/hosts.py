"""Several processes as one run: how they join, agree, and end together.

Without ``join`` there is one process, every function here is trivial, and ``jax.distributed`` is not used.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from robustjax.types import InputError

T = TypeVar("T")

# A process that has not been heard of for so long is dead, and jax ends the others; mostly a broken connection tells
# them at once.
HEARTBEAT_SECONDS = 60
# How long the processes wait for each other to begin, and for each other to end.
START_SECONDS = 300
SHUTDOWN_SECONDS = 30
_MESSAGE_BYTES = 1024
_KEPT: list[object] = []  # handlers that the C library holds, which Python must not free


class NotTogetherError(RuntimeError):
    """The processes of a run did not find each other; another attempt may succeed."""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, *, detect: bool = False) -> None:
    """Makes this process one of several; before any other use of jax.

    Args:
        coordinator: "host:port" of process 0, a port that is free there.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        detect: find out all three from a TPU pod, Slurm, Open MPI or Kubernetes instead.

    Raises:
        InputError: some of the three are missing, or there is no cluster to detect.
        NotTogetherError: the processes did not find each other.
    """
    given = {"--coordinator": coordinator, "--num_processes": num_processes, "--process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if detect and len(missing) < 3:
        raise InputError(f"--distributed=auto finds out {', '.join(given)} by itself; give it alone or give all three")
    if not detect:
        if coordinator is None or num_processes is None or process_id is None:
            if len(missing) < 3:
                raise InputError(f"{', '.join(given)} go together; missing: {', '.join(missing)}")
            return
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"--coordinator must be HOST:PORT, such as 10.0.0.1:1234, got {coordinator!r}")
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process_id must be in 0..{num_processes - 1} for {num_processes} processes, got {process_id}"
            )
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
        faulthandler.disable()  # absl's; when a process is lost jax may abort, and says why in fewer lines
        _end_aborts_in_a_line(jax.process_index() if process_id is None else process_id)
    except (ValueError, RuntimeError) as error:
        cause = " ".join(str(error).split())[:200]
        if isinstance(error, ValueError) and detect:
            raise InputError(f"--distributed=auto found no cluster ({cause})") from error
        raise NotTogetherError(
            f"the {num_processes or ''} processes did not find each other within {START_SECONDS} s ({cause}); "
            f"the same command tries again"
        ) from error


def _end_aborts_in_a_line(process_id: int) -> None:
    """Ends this process with our line and status 1 where jax aborts it, as it does when process 0 is killed.

    Process 0 holds the service by which jax's processes know of each other; a thread of jax's own notices that it is
    gone and calls abort(), mostly before a collective operation fails in Python. A handler of Python's would never run:
    the C library's calls this one in that very thread.
    """

    line = f"error: process {process_id} stops, another one is gone, as jax says above; the same command goes on\n"

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_: int) -> None:
        os.write(2, line.encode())
        os._exit(1)

    with contextlib.suppress(OSError, AttributeError):  # a system whose C library is loaded otherwise
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(aborted, ctypes.c_void_p))
        _KEPT.append(aborted)


def several() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def abandon(status: int) -> int:
    """Ends one of several processes at once, so that the others notice; a single process returns normally.

    At an ordinary end it would wait for the others, and they, in the middle of a step, for it.
    """
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def is_first() -> bool:
    """Whether this is the process that prints, and writes whatever only one may write."""
    return jax.process_index() == 0


def gather(*values: int) -> np.ndarray:
    """The values of every process, int [processes, values], the same on each of them.

    Example:
        >>> gather(3, 1)
        array([[3, 1]], dtype=int32)
    """
    row = np.array(values, np.int32)
    return row[None] if jax.process_count() == 1 else np.asarray(multihost_utils.process_allgather(row))


def agree(given: Mapping[str, Any]) -> None:
    """Refuses values in which the processes of one run differ, as each would compute something else, or wait.

    Args:
        given: name -> value, as JSON can hold it, or a mapping of the same kind; the same names in all processes.

    Raises:
        InputError: in all of them, with the names.
    """
    if jax.process_count() == 1:
        return
    named = dict(_leaves(given))
    names = gather(_digest(sorted(named)))
    if np.any(names != names[0]):
        raise InputError("processes must be of one version, got options of several; install the same everywhere")
    digests = gather(*(_digest(named[name]) for name in sorted(named)))
    differing = [name for name, column in zip(sorted(named), digests.T, strict=True) if np.any(column != column[0])]
    if differing:
        mend = "start all with the same flags, config and data"
        raise InputError(f"{', '.join(differing)} must be the same in all processes, got several values; {mend}")


def _leaves(given: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _digest(value: Any) -> int:
    return zlib.crc32(json.dumps(value, default=str).encode()) >> 1  # which fits int32


def together(work: Callable[[], T], *, error: type[Exception] = InputError) -> T:
    """Does work that may fail in some processes only; if it fails in one, it fails in all.

    Args:
        work: raises ``error`` where it fails.
        error: what the others then raise, with the message of the first process that failed.
    """
    if jax.process_count() == 1:
        return work()
    results, refusal = [], None
    try:
        results.append(work())
    except error as own:
        refusal = own
    text = str(refusal or "").encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
    rows = multihost_utils.process_allgather(np.frombuffer(text, np.uint8))
    if refusal is not None:
        raise refusal
    for process, row in enumerate(rows):
        if message := row.tobytes().rstrip(b"\0").decode(errors="ignore"):
            raise error(f"process {process}: {message}")
    return results[0]


def first_only(work: Callable[[], object], *, error: type[Exception] = InputError) -> None:
    """Does work in the first process while the others wait; if it fails, it fails in all with ``error``."""
    together(work if is_first() else lambda: None, error=error)
