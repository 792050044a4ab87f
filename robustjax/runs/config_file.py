"""The config.json of a run: every key it was started with."""

from __future__ import annotations

import json
from pathlib import Path

from robustjax import config as config_lib
from robustjax.types import Config, InputError


def read(workdir: str | Path) -> Config:
    """The config that a run was started with, with the defaults of keys that its version did not have.

    Raises:
        InputError: workdir holds no run, or its config.json is damaged or holds what this version does not know.
    """
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(
            f"{workdir} is not the folder of a run: it has no config.json; give --workdir of a training run"
        )
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({reason}); restore it, or give another --workdir") from error
    return config_lib.from_plain(stored, source=path)
