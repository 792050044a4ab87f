"""Trains a network:
``python -m robustjax.train --config=configs/quickstart.py --workdir=DIR [--config.KEY=VALUE ...]``.

--config takes the path of a config file or the bare name of a shipped one, such as quickstart or digits:at_cas.
The same command resumes a run that was stopped. DIR receives config.json, checkpoints/, metrics.jsonl and TensorBoard
files. Several processes make one run with --coordinator, --num_processes and --process_id, or --distributed=auto; DIR
must then be the same folder for all of them.

--plan=v5e-16 does not train and needs no --workdir. It compiles the step for 16 chips of TPU v5e without using a TPU,
prints the memory per chip and the least time of a step, and exits with 0 if the step fits, else with 1.
"""

from __future__ import annotations

import os
import shlex
import sys

import jax
from absl import flags

from robustjax import cli, runs
from robustjax import config as config_lib
from robustjax.runtime import hosts
from robustjax.runtime.files import WriteError
from robustjax.types import InputError

CONFIG = cli.define_config()
cli.declare_shared()
STOPPED_STATUS = flags.DEFINE_integer(
    "stopped_status",
    0,
    "Exit status of a run that a signal stopped and that has saved: a scheduler starts again what does not end in 0.",
    lower_bound=0,
    upper_bound=255,
)
PLAN = flags.DEFINE_string(
    "plan", None, "Compile for these TPUs, such as v5e-16 (kind and number of chips), and print what they need."
)
PLAN_MINUTES = flags.DEFINE_float(
    "plan_minutes", 30.0, "How long compiling for --plan may take; 0 only counts.", lower_bound=0.0
)


def main() -> int:
    """Runs the training that the flags describe."""
    try:
        config_lib.validate(CONFIG.value)
    except OSError as error:  # a config file that could not be read says so when it is first looked into
        raise InputError(f"--config: {error}") from error
    if PLAN.value is not None:
        return _plan()
    if cli.WORKDIR.value is None:
        raise InputError("--workdir must be given; see --help")
    cli.join_hosts()
    try:
        stopped = runs.train(CONFIG.value, cli.WORKDIR.value)
    except FloatingPointError as error:
        return cli.fail(str(error))
    except WriteError as error:
        return hosts.abandon(
            cli.fail(f"{error}; what was saved before is intact: mend that and run the same command again to resume")
        )
    if stopped.complete:
        command = f"python -m robustjax.evaluate --workdir={shlex.quote(cli.WORKDIR.value)}"
        ending = f"trained {stopped.num_steps:,} steps; evaluate it: {command}"
        if stopped.warning:
            ending = f"trained {stopped.num_steps:,} steps, but {stopped.warning}"
    else:
        at = f"step {stopped.step:,} of {stopped.num_steps:,}"
        ending = f"stopped and saved at {at}; the same command goes on from there"
    if hosts.is_first():
        print(ending)
    return 0 if stopped.complete else STOPPED_STATUS.value


def _plan() -> int:
    """Prints a plan; its exit status says whether it fits."""
    from robustjax import planning  # which training does without

    jax.config.update("jax_platforms", "cpu")  # libtpu compiles without a device; looking for one may take minutes
    found = planning.plan(CONFIG.value, planning.parse(PLAN.value or ""), minutes=PLAN_MINUTES.value)
    print(found)
    status = 0 if found.fits else 1
    if found.not_compiled:  # the compiler may still be at work, and would be waited for
        sys.stdout.flush()
        os._exit(status)
    return status


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
