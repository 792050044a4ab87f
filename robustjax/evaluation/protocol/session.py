"""An evaluation from start to end: stored batches are read, missing ones are run and stored, with a progress bar.

Killed at any moment and started again, it continues with the next batch and ends with the same figures.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from robustjax.evaluation.protocol.outcome import Outcome, Unit
from robustjax.evaluation.protocol.protocols import CLEAN, Protocol
from robustjax.evaluation.protocol.runner import Runner
from robustjax.evaluation.protocol.store import DamagedBatch, Store, fingerprints
from robustjax.runtime import hosts
from robustjax.runtime.progress import Progress, duration
from robustjax.types import Key

# The estimate rests on a batch that takes no more than about so many seconds.
PATIENCE = 5.0


class Task(NamedTuple):
    """One protocol of an evaluation, under a name and with the store of its results, None to store nothing."""

    name: str
    protocol: Protocol
    store: Store | None


def attack_key(key: Key, name: str) -> Key:
    """The key of an attack: it depends on the evaluation's key and on its name, not on which others run."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def outcomes(
    runner: Runner, tasks: Sequence[Task], *, key: Key, progress: bool = True, beside: str = ""
) -> Iterator[Outcome]:
    """The outcome of each task as soon as it is complete; what is stored is read, the rest is run and stored.

    With ``progress``, prints an estimate of the time before most of it is spent; what is run ``beside`` the tasks, and
    is never stored, stands apart from it.
    """
    work = [[_size(rows) * runner.passes(task.protocol) for rows in runner.examples(task.protocol)] for task in tasks]
    shown = progress and hosts.is_first()
    with Progress("evaluating", total=sum(map(sum, work)), counted=False, shown=shown) as display:
        session = _Session(runner, tasks, key, work, display)
        known = len(session.stored)
        missing = session.missing()
        if missing and progress:
            pace = session.pace()
            left = session.missing()
            drivers = sorted({tasks[t].name for t, _ in left if tasks[t].protocol.whole})
            most = f" (less as {' and '.join(drivers)} succeeds)" if drivers else ""
            seconds = pace * sum(work[t][i] for t, i in left)
            there = f"; {known} of {known + len(missing)} batches are stored" if known else ""
            apart = f"compilation and {beside}" if beside else "compilation"
            display.say(f"estimated time for what is left: {duration(seconds)}{most}, {apart} apart{there}")
        elif tasks and not missing:
            display.say(f"every batch is stored already, and nothing{beside and f' but {beside}'} is run again")
        for t, task in enumerate(tasks):
            yield runner.outcome(task.protocol, [session.unit(t, i) for i in range(len(work[t]))])


class _Session:
    """The units of all tasks by (task, index): those that are stored, and how to come by the others."""

    def __init__(self, runner: Runner, tasks: Sequence[Task], key: Key, work: list[list[float]], display: Progress):
        self._runner, self._tasks, self._key, self._work, self._display = runner, tasks, key, work, display
        self._examples = [runner.examples(task.protocol) for task in tasks]
        self._marks = fingerprints(runner.images, runner.labels)
        self._finished = 0.0
        self.stored: dict[tuple[int, int], Unit] = {}
        for t, i in self.missing():
            unit = self._read(t, i)
            if unit is not None:
                self._keep(t, i, unit)

    def missing(self) -> list[tuple[int, int]]:
        """What has to be run, in order."""
        units = ((t, i) for t, slices in enumerate(self._examples) for i in range(len(slices)))
        return [at for at in units if at not in self.stored]

    def unit(self, t: int, i: int) -> Unit:
        """A unit, run and stored unless it was before."""
        if (t, i) not in self.stored:
            task = self._tasks[t]

            def progress(share: float, status: str) -> None:
                place = f"{task.name} {i + 1} of {len(self._examples[t])}"
                self._display.update(self._finished + share * self._work[t][i], f"{place} {status}")

            progress(0.0, "")
            unit = self._runner.run_unit(task.protocol, attack_key(self._key, task.name), i, progress)
            arrays = unit.arrays | {"seconds": np.array(unit.seconds, np.float64)}
            if task.store and hosts.is_first():
                task.store.write(i, self._marks[self._examples[t][i]], arrays)
            self._keep(t, i, unit)
        return self.stored[t, i]

    def pace(self) -> float:
        """Seconds of a forward pass, from batches that have to be run anyway.

        First one of the cheapest attack, which is soon there; then one of the dearest that promises to take no more
        than seconds, where what is not the attack's steps weighs less. Where nothing but drivers is missing, a clean
        batch is timed.
        """
        first: dict[int, int] = {}
        for t, i in self.missing():
            if not self._tasks[t].protocol.whole:
                first.setdefault(t, i)
        if not first:
            key, idle = attack_key(self._key, "clean"), lambda share, status: None
            seconds = min(self._runner.run_unit(CLEAN, key, 0, idle).seconds for _ in range(3))
            return _agreed(seconds) / (_size(self._runner.examples(CLEAN)[0]) * self._runner.passes(CLEAN))
        # Clean accuracy says little of what a gradient costs.
        attacking = {t: i for t, i in first.items() if self._tasks[t].protocol.attack is not None} or first
        rising = sorted(attacking.items(), key=lambda at: self._tasks[at[0]].protocol.passes)
        pace = self._timed(*rising[0])
        short = [(t, i) for t, i in rising[1:] if pace * self._work[t][i] < PATIENCE]
        return self._timed(*short[-1]) if short else pace

    def _timed(self, t: int, i: int) -> float:
        return _agreed(self.unit(t, i).seconds) / self._work[t][i]

    def _keep(self, t: int, i: int, unit: Unit) -> None:
        self.stored[t, i] = unit
        self._finished += self._work[t][i]

    def _read(self, t: int, i: int) -> Unit | None:
        store = self._tasks[t].store
        if store is None:
            return None
        try:
            arrays = store.read(i, self._marks[self._examples[t][i]])
        except DamagedBatch as damage:
            self._display.say(f"warning: {damage}; it is run again")
            return None
        return None if arrays is None else Unit(arrays, float(arrays.pop("seconds")))


def _agreed(seconds: float) -> float:
    """What the first process has measured: what runs next follows from it, and has to be the same in all of them."""
    return int(hosts.gather(round(1e6 * min(seconds, 2000.0)))[0, 0]) / 1e6 if hosts.several() else seconds


def _size(rows: slice) -> int:
    return rows.stop - rows.start
