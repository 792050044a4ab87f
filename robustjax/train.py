"""Trains a network: `python -m robustjax.train --config=configs/quickstart.py --workdir=DIR [--config.KEY=VALUE ...]`.

The same command goes on where it was stopped. DIR receives config.json, checkpoints/, metrics.jsonl and TensorBoard
files.
"""

from __future__ import annotations

import sys

from absl import flags
from ml_collections import config_flags

from robustjax import build, cli
from robustjax import config as config_lib
from robustjax.training import loop
from robustjax.types import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/quickstart.py.")
STOPPED_STATUS = flags.DEFINE_integer(
    "stopped_status",
    0,
    "Exit status of a run that a signal stopped and that has saved: a scheduler starts again what does not end in 0.",
    lower_bound=0,
    upper_bound=255,
)


def main() -> int:
    """Runs the training that the flags describe."""
    try:
        config_lib.validate(CONFIG.value)
    except OSError as error:  # a config file that could not be read says so when it is first looked into
        raise InputError(f"--config: {error}") from error
    try:
        stopped = loop.run(build.experiment(CONFIG.value), cli.WORKDIR.value)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if stopped.complete:
        print(
            f"trained {stopped.num_steps:,} steps; judge it: python -m robustjax.evaluate --workdir={cli.WORKDIR.value}"
        )
        return 0
    print(f"stopped and saved at step {stopped.step:,} of {stopped.num_steps:,}; the same command goes on from there")
    return STOPPED_STATUS.value


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
