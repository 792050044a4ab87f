"""An evaluation from start to end: what is stored is read, what is missing is run and stored, a bar says how far it is.

Killed at any moment and started again, it goes on with the next batch and ends with the same figures.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from robustjax.evaluation.runner import CLEAN, Outcome, Protocol, Runner, Unit
from robustjax.evaluation.store import DamagedBatch, Store, fingerprints
from robustjax.training.progress import Display
from robustjax.types import Key


class Task(NamedTuple):
    """One protocol of an evaluation, under a name and with the store of its results."""

    name: str
    protocol: Protocol
    store: Store


def attack_key(seed: int, name: str) -> Key:
    """The key of an attack: it depends on seed and name, not on which others run."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def outcomes(runner: Runner, tasks: Sequence[Task], *, seed: int) -> Iterator[Outcome]:
    """The outcome of each task as soon as it is there; what is stored is read, the rest is run and stored.

    Prints an estimate of the time, from a batch that is timed and kept.
    """
    dataset = runner.dataset
    marks = fingerprints(dataset.images, dataset.labels)
    work = [[_size(rows) * runner.passes(task.protocol) for rows in runner.examples(task.protocol)] for task in tasks]
    finished, total = 0.0, sum(map(sum, work))

    with Display("judging", total=total, counted=False) as display:
        stored: dict[tuple[int, int], Unit] = {}
        missing: list[tuple[int, int]] = []
        for t, task in enumerate(tasks):
            for i, rows in enumerate(runner.examples(task.protocol)):
                unit = _read(task.store, i, marks[rows], display)
                if unit is None:
                    missing.append((t, i))
                else:
                    stored[t, i], finished = unit, finished + work[t][i]

        def run(t: int, i: int) -> None:
            nonlocal finished
            task, units = tasks[t], runner.examples(tasks[t].protocol)

            def progress(share: float, status: str) -> None:
                display.update(finished + share * work[t][i], f"{task.name} {i + 1} of {len(units)} {status}")

            progress(0.0, "")
            unit = runner.run_unit(task.protocol, attack_key(seed, task.name), i, progress)
            task.store.write(i, marks[units[i]], unit.arrays | {"seconds": np.float64(unit.seconds)})
            stored[t, i], finished = unit, finished + work[t][i]

        if missing:
            first = _quickest(tasks, missing)
            if first is None:  # nothing but drivers: a clean batch says how long a forward pass takes
                pace = runner.run_unit(CLEAN, attack_key(seed, "clean"), 0, lambda share, status: None).seconds
                pace /= _size(runner.examples(CLEAN)[0]) * runner.passes(CLEAN)
            else:
                run(*first)
                pace = stored[first].seconds / work[first[0]][first[1]]
                missing.remove(first)
            atmost = "at most " if any(tasks[t].protocol.whole for t, _ in missing) else ""
            seconds = pace * sum(work[t][i] for t, i in missing)
            there = f" ({len(stored)} of {len(stored) + len(missing)} batches are there)" if len(stored) > 1 else ""
            display.say(f"estimated time for what is left: {atmost}{duration(seconds)}, compilation apart{there}")
        else:
            display.say("every batch is there already, and nothing is run again")
        for t, task in enumerate(tasks):
            units = range(len(work[t]))
            for i in units:
                if (t, i) not in stored:
                    run(t, i)
            yield runner.outcome(task.protocol, [stored[t, i] for i in units])


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> duration(0.4), duration(75), duration(7500)
        ('1 s', '1 min 15 s', '2 h 5 min')
    """
    seconds = max(1, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _read(store: Store, index: int, examples: np.ndarray, display: Display) -> Unit | None:
    try:
        arrays = store.read(index, examples)
    except DamagedBatch as damage:
        display.say(f"warning: {damage}; it is run again")
        return None
    return None if arrays is None else Unit(arrays, float(arrays.pop("seconds")))


def _quickest(tasks: Sequence[Task], missing: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """A missing batch of the cheapest attack: to be timed, and kept. Of clean accuracy only where there is no other."""
    timed = [(t, i) for t, i in missing if not tasks[t].protocol.whole]
    return min(timed, key=lambda at: (tasks[at[0]].protocol.attack is None, tasks[at[0]].protocol.passes), default=None)


def _size(rows: slice) -> int:
    return rows.stop - rows.start
