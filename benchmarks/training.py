"""How fast a config trains: images/s, TFLOP/s and seconds per epoch of the compiled step, data on the device.

python benchmarks/training.py --config=configs/cifar10_at.py [--steps=20] [--repetitions=5] [--config.KEY=VALUE ...]

The work is counted, not measured: K attack steps and the update cost 2 K + 3 forward passes an image, and 3 more for
each further view of the objective; a forward pass costs what XLA counts for it. Beside it stands what the quickest
matrix product of the same dtype reaches in the same process. Compilation is timed apart.
"""

import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import measure
from absl import flags
from ml_collections import config_flags

from robustjax import build, cli, config, data
from robustjax.evaluation.protocol import records
from robustjax.runtime import sharding
from robustjax.training import step

CONFIG = config_flags.DEFINE_config_file("config", str(Path("configs") / "quickstart.py"), "What to train.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of a dispatch.", lower_bound=1)
REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Timed dispatches.", lower_bound=1)


def main() -> int:
    """Times dispatches and prints one line for each figure."""
    config.validate(CONFIG.value)
    settings = CONFIG.value
    experiment = build.experiment(settings)
    layout = sharding.layout()
    layout.check_batch_size("train.batch_size", settings.train.batch_size)
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    dispatch = step.make_dispatch(experiment.step, layout)
    images, labels = layout.replicate((experiment.train.images, experiment.train.labels))
    size = settings.train.batch_size
    order = data.epoch_order(0, 0, len(labels))[: len(labels) // size * size].reshape(-1, size)
    count = min(STEPS.value, len(order))

    def timed(state, count):
        started = time.perf_counter()
        state = jax.block_until_ready(dispatch(state, images, labels, order, count))
        return state, time.perf_counter() - started

    state, first = timed(state, 1)
    seconds = []
    for _ in range(REPETITIONS.value):
        state, elapsed = timed(state, count)
        seconds.append(elapsed / count)
    median = statistics.median(seconds)

    passes = measure.passes(settings)
    flops = _forward_flops(experiment, settings) * passes
    print(f"{settings.model.name}, batch {size}, {settings.model.dtype}, {passes} forward passes of work an image")
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    print(f"first step with compilation: {first:.1f} s")
    print(f"a step: {measure.milliseconds(seconds)}, median of {REPETITIONS.value} dispatches of {count}")
    print(f"images/s: {size / median:,.0f}")
    rate, ceiling = flops * size / median, measure.ceiling(settings.model.dtype)
    print(f"TFLOP/s: {rate / 1e12:.3f}, {rate / ceiling:.0%} of the {ceiling / 1e12:.3f} of a matrix product")
    print(f"an epoch: {median * experiment.steps_per_epoch:.1f} s ({experiment.steps_per_epoch} steps)")
    return 0


def _forward_flops(experiment, settings) -> float:
    """Of one image, by XLA's count."""
    batch = jax.ShapeDtypeStruct((8, *experiment.train.images.shape[1:]), jnp.float32)
    variables = jax.eval_shape(experiment.create_state).variables
    forward = jax.jit(lambda variables, images: experiment.module.apply(variables, images).logits)
    return forward.lower(variables, batch).compile().cost_analysis()["flops"] / 8


if __name__ == "__main__":
    cli.run(main)
