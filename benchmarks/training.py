"""How fast a config trains: images/s, TFLOP/s and seconds per epoch of the compiled step, data on the device.

python benchmarks/training.py --config=configs/cifar10_at.py [--steps=20] [--repetitions=5] [--config.KEY=VALUE ...]

The work is counted in the step's program, as ``train --plan`` counts it. Beside it stands what the quickest matrix
product of the same dtype reaches in the same process. Compilation is timed apart.
"""

import statistics
from pathlib import Path

import measure
from absl import flags
from ml_collections import config_flags

from robustjax import cli, config
from robustjax.evaluation.protocol import records

CONFIG = config_flags.DEFINE_config_file("config", str(Path("configs") / "quickstart.py"), "What to train.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps of a dispatch.", lower_bound=1)
REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Timed dispatches.", lower_bound=1)


def main() -> int:
    """Times dispatches and prints one line for each figure."""
    settings = CONFIG.value
    config.validate(settings)
    size = settings.train.batch_size
    found = measure.training(settings, steps=STEPS.value, repetitions=REPETITIONS.value)
    median = statistics.median(found.seconds)
    work = f"{found.flops / size / 1e9:.3g} GFLOP an image"
    print(f"{settings.model.name}, batch {size}, {settings.model.dtype}, {work}")
    print(f"hardware {records.conditions()['hardware']}, versions {records.conditions()['versions']}")
    print(f"first step with compilation: {found.first:.1f} s")
    print(f"a step: {measure.milliseconds(found.seconds)}, median of {REPETITIONS.value} dispatches")
    print(f"images/s: {size / median:,.0f}")
    rate, ceiling = found.flops / median, measure.ceiling(settings.model.dtype)
    print(f"TFLOP/s: {rate / 1e12:.3f}, {rate / ceiling:.0%} of the {ceiling / 1e12:.3f} of a matrix product")
    print(f"an epoch: {median * found.steps_per_epoch:.1f} s ({found.steps_per_epoch} steps)")
    return 0


if __name__ == "__main__":
    cli.run(main)
