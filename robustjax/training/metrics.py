"""Where the figures of a run go: `metrics.jsonl`, one object a line, and TensorBoard event files."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsWriter(contextlib.AbstractContextManager):
    """Appends lines of a run to its workdir.

    `metrics.jsonl` holds what a run computed and nothing of when or how fast, so that two runs of one seed write the
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
        _replace(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(self.path, "a")  # noqa: SIM115 - closed by close()
        self._tensorboard = SummaryWriter(str(workdir), purge_step=after_step + 1)

    def write(self, split: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """One line, on the disk when this returns."""
        self._file.write(json.dumps({"step": step, "epoch": epoch, "split": split, **values}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.plot(split, step, values)

    def plot(self, split: str, step: int, values: dict[str, float]) -> None:
        """To TensorBoard only."""
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._tensorboard.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


def read(workdir: str | Path) -> list[dict]:
    """The lines of `metrics.jsonl`, none where there is no file. A last line cut short by a crash is left out."""
    path = Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _replace(path: Path, text: str) -> None:
    """Writes a file so that a crash leaves either the old or the new content."""
    part = path.with_name(path.name + ".part")
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
