"""Seconds from the start of a process to the end of its first training step, without and with the compilation cache.

python benchmarks/startup.py --config=configs/cifar10_at.py [--repetitions=3] [--config.KEY=VALUE ...]

A turn is a process with an empty cache and then one that finds what the first has compiled. The time is the command's:
interpreter, imports, data, tracing, compilation and one step; what of it was compiling, or reading what was compiled,
stands beside it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
from absl import flags
from ml_collections import config_flags

from robustjax import build, cli, config
from robustjax.evaluation import records

CONFIG = config_flags.DEFINE_config_file("config", str(Path("configs") / "quickstart.py"), "What to train.")
REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Turns.", lower_bound=1)
PART = flags.DEFINE_bool("part", False, "Take one step in this process, as the parent asks.")


def main() -> int:
    """Prints the seconds of both kinds of start and their ratio."""
    if PART.value:
        return _first_step()
    starts = {"cold": [], "cached": []}
    compiling = {"cold": [], "cached": []}
    for _ in range(REPETITIONS.value):
        with tempfile.TemporaryDirectory() as cache:
            for name in starts:
                started = time.perf_counter()
                command = [sys.executable, *sys.argv, "--part"]
                environment = os.environ | {"XDG_CACHE_HOME": cache}
                done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
                starts[name].append(time.perf_counter() - started)
                compiling[name].append(float(done.stdout))
    print(f"{CONFIG.value.model.name}, batch {CONFIG.value.train.batch_size}, start to first step")
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    for name, seconds in starts.items():
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        part = f"of which compilation {statistics.median(compiling[name]):.1f} s"
        print(f"  {name:7} {statistics.median(seconds):6.1f} s ({spread}), {part}")
    for what, seconds in (("whole", starts), ("compilation", compiling)):
        ratio = statistics.median(a / b for a, b in zip(seconds["cold"], seconds["cached"], strict=True))
        print(f"  cold over cached, {what}: {ratio:.2f}")
    return 0


def _first_step() -> int:
    import jax

    from robustjax import data
    from robustjax.training import sharding, step

    compiling = measure.compilations()
    config.validate(CONFIG.value)
    experiment = build.experiment(CONFIG.value)
    layout = sharding.layout()
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    images, labels = layout.replicate((experiment.train.images, experiment.train.labels))
    size = CONFIG.value.train.batch_size
    order = data.epoch_order(0, 0, len(labels))[: len(labels) // size * size].reshape(-1, size)
    jax.block_until_ready(step.make_dispatch(experiment.step, layout)(state, images, labels, order, 1))
    print(sum(compiling))
    return 0


if __name__ == "__main__":
    cli.run(main)
