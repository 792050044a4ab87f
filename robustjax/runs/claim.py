"""Workdir ownership: one config per workdir, at most one live run (file lock)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from robustjax import config as config_lib
from robustjax.data import Dataset, Stream
from robustjax.runs import config_file
from robustjax.runtime import files, hosts
from robustjax.types import InputError


@contextlib.contextmanager
def claim(workdir: str | Path, config: dict[str, Any], data: dict[str, Any] | None = None) -> Iterator[None]:
    """Claims workdir for this run, unless it already is this run's, and holds its lock until the end.

    The lock is the operating system's, on ``run.lock``: the death of a process frees it, however it dies.

    Args:
        workdir: the folder.
        config: of the run, every key.
        data: what tells its examples from others (:func:`identity`), kept in ``data.json``; None: nothing is checked.

    Raises:
        InputError: workdir belongs to a run of another config or on other data, its config.json is damaged or holds a
            key that this version does not know, another live run has it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        hosts.first_only(lambda: _claim(Path(workdir), config, data, held))
        yield


def identity(**parts: Dataset | Stream | None) -> dict[str, Any]:
    """What tells the examples of a run from others, as JSON holds it: how many, and a checksum of their labels.

    Which are for validation, and which make a batch, follows from how many there are. Pixels do not count: another
    version of a decoder may change their last bits.

    Example:
        >>> import numpy as np
        >>> identity(train=Dataset("greys", np.zeros((2, 1, 1, 1), np.uint8), np.arange(2), 2, ("dark", "light")))
        {'train': {'examples': 2, 'labels': '...'}}
    """
    found: dict[str, Any] = {}
    for name, part in parts.items():
        if part is not None:
            found[name] = {"examples": part.num_examples}
            if isinstance(part, Dataset):
                found[name]["labels"] = f"{zlib.crc32(part.labels.astype(np.int64).tobytes()):08x}"
    return found


def _claim(workdir: Path, config: dict[str, Any], data: dict[str, Any] | None, held: contextlib.ExitStack) -> None:
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:  # Orbax would find out at the first checkpoint
        raise InputError(f"workdir must have a name in UTF-8, got {str(workdir)!a}; give another") from error
    path, about = workdir / "config.json", workdir / "data.json"
    if workdir.is_file():
        raise InputError(f"workdir must be a folder, got the file {workdir}; give another")
    if path.exists():
        # Read with defaults for what it lacks: a run of an earlier version goes on.
        differing = sorted(_differing_keys(config_lib.plain(config_file.read(workdir)), config))
        if differing:
            raise InputError(
                f"{workdir} holds a run of another config, differing in {', '.join(differing)}; "
                "give another --workdir, or the config it was started with"
            )
    elif (workdir / "checkpoints").exists():
        raise InputError(f"{workdir} holds checkpoints but no config.json to tell of what; give another --workdir")
    if data is not None and about.exists():
        before = _read(about)
        changed = [name for name in sorted({*before, *data}) if before.get(name) != data.get(name)]
        if changed:
            was, now = ({name: found.get(name) for name in changed} for found in (before, data))
            raise InputError(
                f"{workdir} holds a run on other data, {json.dumps(was)}, got {json.dumps(now)}; restore these, or "
                "give another --workdir"
            )
    try:
        with files.writing(f"--workdir {workdir}"):
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(_lock(workdir / "run.lock"))
            if not path.exists():
                files.write(path, json.dumps(config, indent=2) + "\n")
            if data is not None and not about.exists():  # also of a run that an earlier version began
                files.write(about, json.dumps(data, indent=2) + "\n")
    except files.WriteError as error:
        raise InputError(str(error)) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    except (OSError, ValueError, RecursionError):
        pass
    raise InputError(f"{path} cannot be read; restore it, or remove it if the data are those that the run began with")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InputError(
                f"{path.parent} is in use by a run that is still going on ({owner}); stop it, or give another --workdir"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _differing_keys(a: Any, b: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            yield from _differing_keys(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    elif a != b:
        yield prefix
