"""Workdir ownership: one config per workdir, at most one live run (file lock)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustjax import config as config_lib
from robustjax.runs import config_file
from robustjax.runtime import files, hosts
from robustjax.types import InputError


@contextlib.contextmanager
def claim(workdir: str | Path, config: dict[str, Any]) -> Iterator[None]:
    """Makes workdir this run's, or finds that it is already, and holds it until the end.

    The lock is the operating system's, on ``run.lock``: the death of a process frees it, however it dies.

    Raises:
        InputError: workdir belongs to a run of another config, its config.json is damaged or holds a key that this
            version does not know, another live run has it, or it cannot be written.
    """
    with contextlib.ExitStack() as held:
        hosts.first_only(lambda: _claim(Path(workdir), config, held))
        yield


def _claim(workdir: Path, config: dict[str, Any], held: contextlib.ExitStack) -> None:
    path = workdir / "config.json"
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
    try:
        with files.writing(f"--workdir {workdir}"):
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(_lock(workdir / "run.lock"))
            if not path.exists():
                files.write(path, json.dumps(config, indent=2) + "\n")
    except files.WriteError as error:
        raise InputError(str(error)) from error


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
