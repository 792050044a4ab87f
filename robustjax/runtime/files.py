"""Durable writes: after a crash or on a full disk the old file is still whole."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import jax

from robustjax.types import InputError


class WriteError(OSError):
    """Something could not be written; what was written before is intact. The message is one line."""


def place(path: str | os.PathLike[str]) -> Path:
    """A path as users write it, a leading ``~`` being their home: shells leave it in ``--workdir=~/run``.

    Whatever takes a path from a user passes it through here. As in a shell, the ``~`` of an unknown user stays.

    Example:
        >>> place("~/run") == Path.home() / "run", place("run~").as_posix()
        (True, 'run~')
    """
    return Path(os.path.expanduser(path))


def write(path: str | Path, content: str | bytes) -> None:
    """Writes a file durably: it is there whole or not at all, whatever happens; missing folders are made.

    When this returns, neither a kill nor a power failure takes the file away.

    Raises:
        WriteError: the disk takes no more, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "deep" / "record.json"
        >>> write(path, "{}")
        >>> path.read_text()
        '{}'
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file open for writing, which takes the place of ``path`` at the end, durably; after an error nothing changes.

    For what is too large to hold twice; otherwise see :func:`write`, which has the same promises and errors.
    """
    path = place(path)
    with writing(path):
        # A name of this process's own: another one may be writing the same file.
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        # The name reaches the disk only with its folder.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def check_target(what: str, path: str | Path) -> None:
    """Refuses a place where nothing can be written, before work that takes long; writes nothing itself.

    Args:
        what: name of the option that holds the path.
        path: of a file or folder, which need not be there, nor the folders above it.

    Raises:
        InputError: something on the way to it is a file or a link to what is not there, or the last folder that is
            there cannot be written.

    Example:
        >>> check_target("--output", "/dev/null/results")
        Traceback (most recent call last):
        robustjax.types.InputError: --output must be where files can be written, got /dev/null/results, and /dev/null is
        no folder; give another
    """
    path = place(path)
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    wanted = f"{what} must be where files can be written, got {path}, and"
    if not os.path.exists(there):
        raise InputError(f"{wanted} {there} is a link to what is not there; give another")
    if there != path and not there.is_dir():
        raise InputError(f"{wanted} {there} is no folder; give another")
    if not os.access(there, os.W_OK):
        raise InputError(f"{wanted} {there} is read-only; give another")


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns whatever a failing write raises into a ``WriteError`` that names what was to be written.

    Example:
        >>> with writing("metrics.jsonl"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        robustjax.runtime.files.WriteError: metrics.jsonl cannot be written: No space left on device
    """
    try:
        yield
    except (WriteError, InputError, jax.errors.JaxRuntimeError):
        raise
    except (OSError, ValueError, RuntimeError) as error:  # as which storage libraries pass on what the system says
        raise WriteError(f"{what} cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What the operating system said, without a library's wrapping where that can be told."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:
            return os.strerror(number)
    return text[:200] or type(error).__name__
