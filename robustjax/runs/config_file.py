"""The config.json of a run: all keys that it was started with."""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path

from robustjax import config as config_lib
from robustjax.runtime import files
from robustjax.types import Config, InputError


def read(workdir: str | Path) -> Config:
    """The config that a run was started with, with the defaults of keys that its version did not have.

    Raises:
        InputError: workdir holds no run, or its config.json is damaged or holds what this version does not know.
    """
    if not isinstance(workdir, str | os.PathLike):
        raise InputError(f"workdir must be the folder of a run, got {workdir!r}; give its path")
    folder = files.place(workdir)
    path = folder / "config.json"
    if not path.exists():
        raise InputError(f"workdir must be the folder of a run, got {_instead(folder)}")
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({reason}); restore it, or give another --workdir") from error
    return config_lib.from_plain(stored, source=path)


def _instead(folder: Path) -> str:
    """What is there in place of a run, and where there are runs nearby."""
    kind = f"{folder}, which does not exist"
    if folder.exists():
        kind = f"{folder}, which has no config.json" if folder.is_dir() else f"{folder}, which is a file"
    near = folder if folder.is_dir() else folder.parent
    runs = [str(path.parent) for path in sorted(near.glob("*/config.json"))] if near.is_dir() else []
    if not runs:
        return f"{kind}; train one by python -m robustjax.train, or give its folder"
    closest = difflib.get_close_matches(str(folder), runs, n=1, cutoff=0.0)[0]
    return f"{kind}; give one such as {closest}"
