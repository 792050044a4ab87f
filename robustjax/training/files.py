"""Writing so that a crash, a full disk or another run cannot spoil what was there before."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import jax


class WriteError(OSError):
    """Something of a run could not be written; what was written before is intact. The message is one line."""


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns whatever a failing write raises into a WriteError that names what was to be written.

    Example:
        >>> with writing("metrics.jsonl"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        robustjax.training.files.WriteError: metrics.jsonl cannot be written: No space left on device
    """
    try:
        yield
    except (WriteError, jax.errors.JaxRuntimeError):
        raise
    except (OSError, ValueError, RuntimeError) as error:  # as which storage libraries pass on what the system says
        raise WriteError(f"{what} cannot be written: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What the operating system said, without a library's wrapping where that can be told."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return text[:200] or type(error).__name__


def replace(path: Path, text: str) -> None:
    """Writes a file so that a crash leaves either the old or the new content."""
    part = path.with_name(path.name + ".part")
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
