"""Writes the metrics of a run: ``metrics.jsonl``, one object a line, and TensorBoard event files."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

# protobuf makes these classes at import, where a type checker does not see them.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

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
        self.path = Path(workdir) / "metrics.jsonl"
        kept = [line for line in read(workdir) if line["step"] <= after_step]
        with files.writing(self.path):
            files.write(self.path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = open(self.path, "a")  # noqa: SIM115 - closed by close()
        # tensorboardX's SummaryWriter writes from a thread, which a full disk kills; then the run would hang.
        with files.writing(f"TensorBoard's file in {workdir}"):
            self._events = EventsWriter(str(Path(workdir) / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        session = SessionLog(status=SessionLog.START)
        self._event(step=after_step + 1, session_log=session)  # hides what an earlier process wrote past this step

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
            self._event(step=step, summary=summary.scalar(f"{split}/{name}", value))

    def close(self) -> None:
        """Closes both files, also after a failed write."""
        for file in (self._file, self._events):
            with contextlib.suppress(OSError):  # what could not be written was told when it was
                file.close()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _event(self, **content: Any) -> None:
        with files.writing("TensorBoard's file"):
            self._events.write_event(Event(wall_time=time.time(), **content))
            self._events.flush()


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
