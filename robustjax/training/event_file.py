"""TensorBoard's event files. A module of its own, since tensorboardX imports PyTorch wherever it is installed: 2 s."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

# protobuf makes these classes at import, where a type checker does not see them.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

from robustjax.runtime import files


class EventFile:
    """Scalars of a run, each on the disk when its call returns."""

    def __init__(self, workdir: str | Path, *, after_step: int):
        """Opens a new file, which hides what an earlier process wrote of later steps."""
        # tensorboardX's SummaryWriter writes from a thread, which a full disk kills; then the run would hang.
        with files.writing(f"TensorBoard's file in {workdir}"):
            self._events = EventsWriter(str(Path(workdir) / "events"), f".{os.getpid()}.{time.monotonic_ns()}")
        self._write(step=after_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, step: int, value: float) -> None:
        self._write(step=step, summary=summary.scalar(name, value))

    def close(self) -> None:
        """Closes it; of a failed write, which was told, tensorboardX leaves the file to the garbage collector."""
        with contextlib.suppress(OSError):
            self._events.close()

    def _write(self, **content: Any) -> None:
        with files.writing("TensorBoard's file"):
            self._events.write_event(Event(wall_time=time.time(), **content))
            self._events.flush()
