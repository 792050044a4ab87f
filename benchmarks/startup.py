"""Seconds from the start of a process to its first training step, the first time and the second.

python benchmarks/startup.py --config=configs/cifar10_at.py [--repetitions=3] [--config.KEY=VALUE ...]

A turn is a process with an empty cache folder and then one that finds what the first has compiled and decoded. The time
is the command's: interpreter, its imports, data, tracing and compilation, and the step itself. It is given to the end
of the first step and to its beginning, which is as much earlier as a second step takes; what of it was compiling, or
reading what was compiled, stands beside it. Python keeps its bytecode, whatever PYTHONDONTWRITEBYTECODE says.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

import measure
from absl import flags

from robustjax import build, cli, config, train

CONFIG = train.CONFIG
REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Turns.", lower_bound=1)
PART = flags.DEFINE_bool("part", False, "Take one step in this process, as the parent asks.")


def main() -> int:
    """Prints the seconds of both kinds of start and their ratio."""
    if PART.value:
        return _first_step()
    from robustjax.evaluation.protocol import records  # which training does without

    with_bytecode = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    turns = {"first": [], "second": []}
    for _ in range(REPETITIONS.value):
        with tempfile.TemporaryDirectory() as cache:
            for start in turns.values():
                started = time.monotonic()
                command = [sys.executable, *sys.argv, "--part"]
                environment = with_bytecode | {"XDG_CACHE_HOME": cache}
                done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
                ended, step, compiling = map(float, done.stdout.split())
                start.append((ended - started - step, ended - started, compiling))
    print(f"{CONFIG.value.model.name}, batch {CONFIG.value.train.batch_size}")
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    for i, what in enumerate(("to the first step", "to its end", "of it compiling")):
        first, second = ([turn[i] for turn in start] for start in turns.values())
        ratio = statistics.median(a / b for a, b in zip(first, second, strict=True))
        print(f"  {what:18} {_seconds(first)}, second start {_seconds(second)}, ratio {ratio:.2f}")
    return 0


def _seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"


def _first_step() -> int:
    import jax

    from robustjax import data
    from robustjax.runtime import sharding
    from robustjax.training import step

    compiling = measure.compilations()
    config.validate(CONFIG.value)
    experiment = build.experiment(CONFIG.value)
    layout = sharding.layout()
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    images, labels = layout.replicate((experiment.train.images, experiment.train.labels))
    size = CONFIG.value.train.batch_size
    order = data.epoch_order(0, 0, len(labels))[: len(labels) // size * size].reshape(-1, size)
    dispatch = step.make_dispatch(experiment.step, layout)
    state = jax.block_until_ready(dispatch(state, images, labels, order, 1))
    ended = time.monotonic()  # of the machine, so that the parent can compare it
    second = measure.timed(lambda: jax.block_until_ready(dispatch(state, images, labels, order, 1)))
    print(ended, second, sum(compiling))
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
