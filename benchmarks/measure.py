"""What the programs here share: turns, sides in processes of their own, and work that is counted."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

PAUSE = 0.5  # seconds in which the idle threads of a side fall asleep


def timed(call: Callable[[], object], calls: int = 1) -> float:
    """Seconds of a call that waits for what it computes, or of one among several."""
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - started) / calls


def in_turns(
    programs: Mapping[str, Callable[[], object]], repetitions: int, *, at_least: float = 0.0
) -> dict[str, list[float]]:
    """Seconds of a call of each program, in turns, so that a busy machine slows all of them alike.

    Args:
        programs: name -> call that waits for what it computes; each runs twice before it is timed.
        repetitions: turns.
        at_least: seconds that a turn lasts, in several calls where one is shorter.
    """
    for program in programs.values():
        program()
    calls = {name: math.ceil(at_least / timed(program)) or 1 for name, program in programs.items()}
    seconds = {name: [] for name in programs}
    for _ in range(repetitions):
        for name, program in programs.items():
            seconds[name].append(timed(program, calls[name]))
    return seconds


def milliseconds(seconds: Sequence[float]) -> str:
    """Median and range.

    >>> milliseconds([0.002, 0.001, 0.0035])
    '2.0 ms (1.0 to 3.5)'
    """
    return f"{1e3 * statistics.median(seconds):.1f} ms ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"


def start(name: str, *options: str, interpreter: str | None = None) -> subprocess.Popen:
    """This program once more, with --part=name and further options, ready to be timed; by another Python if need be."""
    side = subprocess.Popen(
        [interpreter or sys.executable, *sys.argv, f"--part={name}", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    ready = side.stdout.readline().strip()
    if ready != "ready":
        raise RuntimeError(f"{name} did not start: {ready or 'see its own output with --part'}")
    time.sleep(PAUSE)
    return side


def ask(side: subprocess.Popen, question: str) -> float:
    """What a side answers."""
    side.stdin.write(f"{question}\n")
    side.stdin.flush()
    return float(side.stdout.readline())


def serve(answers: Mapping[str, Callable[[], float]]) -> None:
    """Answers every question with a number, until the parent has none left."""
    print("ready", flush=True)
    for question in sys.stdin:
        print(answers[question.strip()](), flush=True)


def serve_turn(turn: Callable[[], object]) -> None:
    """Answers "turn" with the seconds of a call that waits for what it computes."""
    for _ in range(3):  # until memory has its size
        turn()
    serve({"turn": partial(timed, turn)})


def stop(side: subprocess.Popen) -> None:
    """Ends a side."""
    side.stdin.close()
    side.wait()


def compilations() -> list[float]:
    """A list that receives the seconds of each compilation, or of reading what was compiled before."""
    import jax

    seconds = []

    def heard(event: str, elapsed: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(elapsed)

    jax.monitoring.register_event_duration_secs_listener(heard)
    return seconds


def ceiling(dtype: str = "float32") -> float:
    """FLOP/s of the quickest square matrix product, on all devices: what programs of matrix products reach at most."""
    import jax
    import jax.numpy as jnp

    on_cpu, rates = jax.default_backend() == "cpu", []  # whose devices share the cores that one product takes
    for size in (1024, 2048) if on_cpu else (4096, 8192, 16384):
        factor = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul).lower(factor, factor).compile()
        seconds = [timed(lambda: jax.block_until_ready(product(factor, factor))) for _ in range(8)]  # noqa: B023
        rates.append(2 * size**3 / min(seconds))
    return max(rates) * (1 if on_cpu else jax.device_count())


class Training(NamedTuple):
    """How fast a config trains.

    Attributes:
        first: seconds of the first step, compilation included.
        seconds: of a step, one of each timed dispatch, ascending.
        flops: of a step, counted in its program.
        steps_per_epoch: full batches of the training set.
    """

    first: float
    seconds: list[float]
    flops: float
    steps_per_epoch: int


def training(settings, *, steps: int, repetitions: int) -> Training:
    """Times dispatches of the compiled step on data that lie on the devices.

    Args:
        settings: config of the run, whose data are in memory.
        steps: of a dispatch, at most an epoch.
        repetitions: timed dispatches.
    """
    import jax

    from robustjax import build, data
    from robustjax.planning import facts, programs
    from robustjax.runtime import sharding
    from robustjax.training import step

    experiment, layout, size = build.experiment(settings), sharding.layout(), settings.train.batch_size
    layout.check_batch_size("train.batch_size", size)
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    dispatch = step.make_dispatch(experiment.step, layout)
    images, labels = layout.replicate((experiment.train.images, experiment.train.labels))
    order = data.epoch_order(0, 0, len(labels))[: len(labels) // size * size].reshape(-1, size)
    seconds, count = [], min(steps, len(order))
    for taken in (1, *[count] * repetitions):
        started = time.perf_counter()
        state = jax.block_until_ready(dispatch(state, images, labels, order, taken))
        seconds.append((time.perf_counter() - started) / taken)
    counted, _ = programs.counted(settings, facts.facts_of(settings), 1)
    return Training(seconds[0], sorted(seconds[1:]), counted.flops, experiment.steps_per_epoch)
