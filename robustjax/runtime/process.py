"""Process-wide settings: the persistent compilation cache, malloc tuning, and which messages are silenced."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def cache_folder() -> Path:
    """XDG_CACHE_HOME/robustjax, or ~/.cache/robustjax: files that cost time to make again, and nothing else.

    Of a user without a home, a folder for temporary files.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "robustjax"
    try:
        return Path.home() / ".cache" / "robustjax"
    except RuntimeError:  # a user without a name, as containers have them
        return Path(tempfile.gettempdir()) / f"robustjax-{os.getuid()}"


@functools.cache
def processor() -> str:
    """Twelve digits for this kind of processor: its architecture, model and instructions."""
    about = Path("/proc/cpuinfo")
    features = (
        [line for line in about.read_text().splitlines() if line.startswith(("model name", "flags"))][:2]
        if about.exists()
        else [platform.processor()]
    )
    return hashlib.sha256("".join([platform.machine(), *features]).encode()).hexdigest()[:12]


def keep_compiled() -> None:
    """Keeps compiled programs in the user's cache folder, so that a second start does not compile again.

    Compiled programs hold machine code: each kind of processor has a folder of its own. JAX_COMPILATION_CACHE_DIR names
    another folder; empty, it switches this off. Where the folder cannot be written, nothing is kept.

    Of every program that it reads, jaxlib says on some CPUs that it may not run there, which is not so: it takes
    preferences of the compiler for features of the processor (jax issue 38445). JAX_LOGGING_LEVEL=ERROR shows it.
    """
    if not jax.config.values["jax_logging_level"] or jax.config.values["jax_logging_level"] == "NOTSET":
        jax.config.update("jax_logging_level", "CRITICAL")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder() / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            return  # jax would warn of each program
    except OSError:
        return
    # Of a disk that is full, it would say so of each program.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def keep_memory() -> None:
    """Has the C library keep freed memory for reuse; call it before jax computes anything.

    XLA's CPU backend asks for all the memory of a compiled program whenever it runs and gives it back afterwards. glibc
    maps so large a piece anew each time, and the first touch of each of its pages costs a fault: a tenth of the time of
    an attack on ResNet-18. One heap that never shrinks gives the same pages again. Without glibc, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):  # no such library, as on macOS, or no such function, as in musl
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        for setting, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
            mallopt(setting, value)


def silence_orbax() -> None:
    """Silences messages about the unfinished reads and writes that Orbax leaves behind when one fails.

    Python would tell of each on stderr, with a traceback, at whatever later time it comes upon it. This concerns the
    whole process: commands call it, the library does not.
    """
    warnings.filterwarnings("ignore", r"coroutine .* was never awaited", RuntimeWarning)
    if not isinstance(sys.unraisablehook, _Silence):
        sys.unraisablehook = _Silence(sys.unraisablehook)


class _Silence:
    """Passes on what is not of these: neither a coroutine of Orbax, nor a call into a loop that ended.

    A Ctrl-C that came while jax's callback of the garbage collector ran, which Python would drop, comes once more.
    """

    def __init__(self, hook: Callable[[Any], None]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            # From here it would be dropped again. A signal, unlike `interrupt_main`, ends a wait as well.
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            return
        code = getattr(unraisable.object, "cr_code", None)
        of_orbax = code is not None and "orbax" in Path(code.co_filename).parts
        ended = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)
        if not (of_orbax or ended):
            self._hook(unraisable)
