"""How fast images reach a training step: from the devices' memory and from disk, against what the step consumes.

python benchmarks/pipeline.py [--config=configs/speedrun_check.py] [--steps=40] [--repetitions=5]

Measured in turns: the step of the config on data in memory; the same program with nothing left of the step but the
augmentation and a sum of pixels, which is what gathering and augmenting costs; and batches as Grain reads, decodes and
puts them on the devices for `data.pipeline = "stream"`. A stream that is faster than the step costs nothing, since it
reads ahead while the devices work; what it had read ahead when its turn began, two batches, counts as read in it. The
embedded digits have no files, and data that do not fit in memory (`--config.data.pipeline=stream`) are only streamed.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from robustjax import build, cli, config, data
from robustjax.evaluation.protocol import records
from robustjax.runtime import sharding
from robustjax.training import feeding
from robustjax.types import Array

CONFIG = config_flags.DEFINE_config_file("config", str(Path("configs") / "speedrun_check.py"), "Data and training.")
STEPS = flags.DEFINE_integer("steps", 40, "Batches of a turn.", lower_bound=1)
REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Turns.", lower_bound=1)


def main() -> int:
    """Prints images/s of each, and how they compare with the step."""
    settings = CONFIG.value
    config.validate(settings)
    layout = sharding.layout()
    layout.check_batch_size("train.batch_size", settings.train.batch_size)
    experiment = build.experiment(settings)
    count = min(STEPS.value, experiment.steps_per_epoch)
    create_state = jax.jit(experiment.create_state, out_shardings=layout.replicated)
    programs = {"step": _steps(experiment.step, create_state(), experiment.train, count, layout)}
    if settings.data.pipeline == "memory":
        programs["memory"] = _steps(
            _augment_only(settings), layout.replicate((np.int32(0), np.float32(0))), experiment.train, count, layout
        )
    if settings.data.name != "digits":
        programs["stream"] = _batches(settings, count, layout)
    seconds = measure.in_turns(programs, REPETITIONS.value)

    size = settings.train.batch_size
    print(
        f"{settings.model.name} on {settings.data.name}, batch {size}, {settings.model.dtype}, {count} batches a turn"
    )
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    for name, times in seconds.items():
        rates = sorted(count * size / elapsed for elapsed in times)
        ratios = [of_step / elapsed for of_step, elapsed in zip(seconds["step"], times, strict=True)]
        print(
            f"  {name:7} {statistics.median(rates):12,.0f} images/s ({rates[0]:,.0f} to {rates[-1]:,.0f})"
            + ("" if name == "step" else f", {statistics.median(ratios):.2f} x what the step consumes")
        )
    return 0


def _augment_only(settings: ConfigDict) -> Callable[[Any, Array, Array], Any]:
    """What is left of a step without the network: it carries the number of batches and a sum over every pixel."""
    augment = build.augmentation(settings)

    def update(state: tuple[Array, Array], images: Array, labels: Array) -> tuple[Array, Array]:
        count, total = state
        pixels = augment(jax.random.fold_in(jax.random.key(settings.seed), count), images)
        return count + 1, total + jnp.mean(pixels) + jnp.mean(labels.astype(jnp.float32))

    return update


def _steps(
    update: Callable[[Any, Array, Array], Any],
    state: Any,
    train: data.Dataset | data.Stream,
    count: int,
    layout: sharding.Layout,
) -> Callable[[], None]:
    """A call that takes steps as a run does: of data in memory the first of an epoch, of a stream the next."""
    settings, at = CONFIG.value, 0
    size = settings.train.batch_size
    advance = feeding.make_advance(train, update, seed=settings.seed, batch_size=size, most=count, layout=layout)

    def run() -> None:
        nonlocal state, at
        state = jax.block_until_ready(advance(state, at, count))
        at += count if isinstance(train, data.Stream) else 0

    return run


def _batches(settings: ConfigDict, count: int, layout: sharding.Layout) -> Callable[[], None]:
    """A call that reads batches from disk and puts them on the devices."""
    streamed = settings.copy_and_resolve_references()
    streamed.data.pipeline = "stream"
    size = settings.train.batch_size
    stream, rows = build.datasets(streamed)[0], layout.own_rows(size)
    batches = data.stream_batches(stream, seed=settings.seed, batch_size=size, rows=rows, first_step=0)

    def run() -> None:
        for _ in range(count):
            jax.block_until_ready(layout.join_batch(next(batches)))

    return run


if __name__ == "__main__":
    cli.run(main)
