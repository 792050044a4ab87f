"""The folder of an evaluation: at any time it holds records of one set of conditions, and the worst case over them.

Records of other conditions, such as of fewer images or another threat, are moved to its subfolder ``earlier/``, and
come back when these conditions are evaluated again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.evaluation.protocol import records, specs, tables
from robustjax.evaluation.protocol.threats import NO_BALL, Threat
from robustjax.runtime import files

# The key of a record under which its conditions are named.
MARK = "evaluation"
EARLIER = "earlier"
# What the names of records begin with, up to an option or a threat.
NAMES = (*specs.ATTACKS, *specs.FIXED, *specs.GIVEN, specs.TRANSFER, "worst_case", "trust")
# What does not make a figure, or follows from the rest: an image that is misclassified is, whatever code found it.
NO_CONDITION = ("commit", "source", "versions", "hardware", "config")


def mark(conditions: Mapping[str, Any], threats: Sequence[Threat], num_examples: int) -> str:
    """A name of the conditions under which records may be combined: readable, and a digest.

    Example:
        >>> mark({"split": "test", "seed": 0}, [Threat("linf", 0.1)], 100)
        'test-100-linf-0.1-57d55bf9'
    """
    made = {name: value for name, value in conditions.items() if name not in NO_CONDITION}
    text = json.dumps([made, threats, num_examples], sort_keys=True, default=str)
    ball = "+".join(f"{threat.norm}-{threat.epsilon:.4g}" for threat in threats)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{file_name(str(conditions.get('split') or 'images'))}-{num_examples}-{ball}-{digest}"


def file_name(name: str) -> str:
    """A record's name as a file name: without folders, and not too long for any file system.

    Example:
        >>> file_name("pgd:step_size=2/255")
        'pgd:step_size=2_255'
    """
    name = name.replace("/", "_").replace("\0", "_").lstrip(".") or "_"
    content = name.encode(errors="surrogateescape")
    if len(content) <= 120:
        return name
    return f"{content[:100].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}"


def record_name(record: Mapping[str, Any], *, several: bool) -> str:
    """The name of a record's file; of several threats it ends in its own, where it has one."""
    of_all = record.get("threats") or record["norm"] == NO_BALL or record["attack"] == "clean"
    threat = f"-{record['norm']}-{record['epsilon']:.9g}" if several and not of_all else ""
    return file_name(record["attack"]) + threat


@contextlib.contextmanager
def held(folder: str | Path) -> Iterator[None]:
    """Keeps other evaluations waiting that would change the folder at the same time; held while records are written.

    Raises:
        WriteError: the folder cannot be written.
    """
    path = Path(folder) / "evaluation.lock"
    with contextlib.ExitStack() as stack:
        with files.writing(folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
                    raise  # else the file system has no locks, and evaluations at the same time are the user's care
        yield


def settle(folder: str | Path, own: str, *, anew: bool = False) -> None:
    """Makes room for records of these conditions: those of others go to ``earlier/``, their own come back.

    Files that no evaluation wrote stay where they are.

    Args:
        folder: of the records.
        own: the mark of the conditions.
        anew: put the records of these conditions aside as well, for good, but no sweeps: where nothing tells whether
            they are of the same network.
    """
    folder = files.place(folder)
    present = _mark_of(folder)
    if present != own:
        _move(folder, folder / EARLIER / (present or "unmarked"))
    kept = folder / EARLIER / own
    if kept.is_dir():
        _move(kept, folder)
    if anew:
        _move(folder, folder / EARLIER / f"{own}-before", keep_sweeps=True)


def read(folder: str | Path, own: str) -> list[dict[str, Any]]:
    """The records of attacks in a folder that are of these conditions."""
    found = [_read(path) for path in sorted(Path(folder).glob("*.json"))]
    return [
        record
        for record in found
        if record.get(MARK) == own
        and "robust" in record
        and record.get("attack", "worst_case") != "worst_case"
        and record["norm"] != NO_BALL
    ]


def write(folder: str | Path, entries: Sequence[Mapping[str, Any]], *, several: bool) -> None:
    """Records as a file each, and all of them as ``results.csv``."""
    for entry in entries:
        records.write(folder, record_name(entry, several=several), dict(entry))
    files.write(Path(folder) / "results.csv", tables.csv_text(entries))


def _files(folder: Path) -> list[Path]:
    """What an evaluation wrote into a folder, which may be one of the user's own with other files in it."""
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_ours(path)) if folder.is_dir() else []


def _is_ours(path: Path) -> bool:
    if path.name in ("results.csv", "examples.png", "trust.md"):
        return True
    if path.suffix == ".png":
        return path.name.startswith("sweep_")
    if path.suffix == ".json":
        content = _read(path)
        attack = path.stem.partition(":")[0].partition("-")[0]  # a damaged record still has its name
        return bool({MARK, "attack", "sweep"} & content.keys()) if content else attack in NAMES
    return path.suffix == ".npz" and _holds_images(path)


def _holds_images(path: Path) -> bool:
    """Whether a file is one of ``--save_images``, and of an evaluation with conditions."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            about = json.loads(str(saved["about"])) if "about" in saved.files else None
    except Exception:  # of a damaged file, whatever its bytes lead to
        return False
    return isinstance(about, dict) and MARK in about


def _mark_of(folder: Path) -> str | None:
    """The conditions of what lies in a folder; None where nothing says."""
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        found = _read(path).get(MARK)
        if isinstance(found, str):
            return found
    return None


def _read(path: Path) -> dict[str, Any]:
    """What a file holds if it is an object, and else nothing: damaged files are not of these conditions."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _move(source: Path, target: Path, *, keep_sweeps: bool = False) -> None:
    found = [path for path in _files(source) if not (keep_sweeps and path.name.startswith("sweep_"))]
    if not found:
        return
    with files.writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for path in found:
            os.replace(path, target / path.name)
