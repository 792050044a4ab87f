"""Writes the metrics of a run: ``metrics.jsonl``, one object a line, and TensorBoard event files."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from robustjax.runtime import files
from robustjax.types import InputError

MEND = "restore it, or move it away: the run goes on without what it holds"


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends lines of a run to its workdir.

    ``metrics.jsonl`` holds what a run computed and nothing of when or how fast, so that two runs of one seed write the
    same bytes; speed goes to TensorBoard only.
    """

    def __init__(self, workdir: str | Path, *, after_step: int):
        """Opens for appending, dropping what an earlier process wrote past the step that is gone back to.

        Args:
            workdir: of the run.
            after_step: lines of later steps are dropped.
        """
        from robustjax.training.event_file import EventFile  # only where a run is written, since it takes long

        self.path = Path(workdir) / "metrics.jsonl"
        kept = [line for line in read(workdir) if line["step"] <= after_step]
        with contextlib.ExitStack() as opened:
            with files.writing(self.path):
                files.write(self.path, "".join(json.dumps(line) + "\n" for line in kept))
                self._file = opened.enter_context(open(self.path, "a"))
            self._events = EventFile(workdir, after_step=after_step)
            opened.pop_all()  # both are open: close() closes them

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Writes one line, which is on the disk when this returns."""
        with files.writing(self.path):
            self._file.write(json.dumps({"step": step, "epoch": epoch, "split": split, **values}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.plot(split, step, values)

    def plot(self, split: str, step: int, values: dict[str, float]) -> None:
        """Writes to TensorBoard only."""
        for name, value in values.items():
            self._events.scalar(f"{split}/{name}", step, value)

    def close(self) -> None:
        """Closes both files, also after a failed write."""
        with contextlib.suppress(OSError):  # what could not be written was told when it was
            self._file.close()
        self._events.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(workdir: str | Path) -> list[dict]:
    """The lines of ``metrics.jsonl``, none where there is no file. A last line cut short by a crash is left out.

    Raises:
        InputError: the file cannot be read, or a line of it is not of a run.
    """
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); {MEND}") from error
    if not all(isinstance(line, dict) and {"step", "epoch", "split"} <= line.keys() for line in lines):
        raise InputError(f"{path} is damaged (a line without step, epoch and split); {MEND}")
    return lines
