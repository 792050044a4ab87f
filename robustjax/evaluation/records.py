"""What an evaluation writes down: the figure, per-example flags, and everything needed to doubt or repeat it."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def wilson_interval(successes: int, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    r"""The 95 % interval of a proportion (Wilson 1927), which unlike the usual one holds at 0 and 1.

    .. math:: \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    Args:
        successes: in 0..total.
        total: at least 1.
        z: standard normal quantile of the wanted level.

    Example:
        >>> low, high = wilson_interval(50, 100)
        >>> print(f"{low:.3f} {high:.3f}")
        0.404 0.596
    """
    share = successes / total
    scale = 1 + z**2 / total
    middle = (share + z**2 / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / scale
    # At 0 and 1 the formula's ends are exact; rounding must not move them out of [0, 1].
    return max(0.0, middle - half), min(1.0, middle + half)


def record(
    attack: str,
    robust: np.ndarray,
    *,
    norm: str,
    epsilon: float,
    num_steps: int,
    num_restarts: int,
    seconds: float,
    conditions: dict[str, Any],
) -> dict[str, Any]:
    """One attack's outcome as plain data.

    Args:
        attack: its name.
        robust: bool [N], in data-set order: still classified correctly.
        norm, epsilon: the threat.
        num_steps, num_restarts: of the attack.
        seconds: wall time, compilation included.
        conditions: what all records of an evaluation share (`conditions`, and what the caller adds).
    """
    correct, total = int(robust.sum()), len(robust)
    return {
        "attack": attack,
        "norm": norm,
        "epsilon": epsilon,
        "num_steps": num_steps,
        "num_restarts": num_restarts,
        "num_examples": total,
        "accuracy": correct / total,
        "interval_95": wilson_interval(correct, total),
        "seconds": round(seconds, 3),
        **conditions,
        "robust": [bool(flag) for flag in robust],
    }


def worst_case(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of an adversary who picks the best attack for each example: robust where it is against every one."""
    robust = np.logical_and.reduce([record["robust"] for record in records])
    correct, total = int(robust.sum()), len(robust)
    return {
        **records[0],
        "attack": "worst_case",
        "attacks": [record["attack"] for record in records],
        "num_steps": max(record["num_steps"] for record in records),
        "num_restarts": max(record["num_restarts"] for record in records),
        "accuracy": correct / total,
        "interval_95": wilson_interval(correct, total),
        "seconds": round(sum(record["seconds"] for record in records), 3),
        "robust": [bool(flag) for flag in robust],
    }


def conditions() -> dict[str, Any]:
    """Source, versions and hardware of this process."""
    return {
        "commit": _commit(),
        "versions": {
            "robustjax": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
        "hardware": {
            "platform": jax.default_backend(),
            "device": jax.devices()[0].device_kind,
            "num_devices": jax.device_count(),
            "host": platform.machine(),
            "host_cpus": os.cpu_count(),
        },
    }


def write(workdir: str | Path, records: Sequence[dict[str, Any]]) -> None:
    """Each record to `workdir/evaluation/<attack>.json`, whole or not at all."""
    folder = Path(workdir) / "evaluation"
    folder.mkdir(exist_ok=True)
    for entry in records:
        part = folder / f"{entry['attack']}.json.part"
        part.write_text(json.dumps(entry) + "\n")
        part.replace(folder / f"{entry['attack']}.json")


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, marked where files differ from it; None if installed."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None  # installed into somebody else's repository
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
