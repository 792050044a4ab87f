"""A robust speed-run: trains a config with several seeds, judges each by AutoAttack, and says how long and how good.

python benchmarks/speedrun.py --config=configs/speedrun_1min.py --workdir=runs/speedrun_1min [--seeds=0,1,2]
                              [--num_examples=N] [--attacks=clean,autoattack] [--config.KEY=VALUE ...]

The time of a run is from the first look at the data to the last checkpoint, validation included, less what the backend
took to compile; tracing counts. It is measured in a process of its own, which trains from the start or not at all: a
run that was stopped has no time, and its folder has to go. Runs that have one are not trained again, and judging goes
on where it was stopped. The last weights are evaluated, on the whole test split unless --num_examples says
otherwise.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import measure
from absl import flags
from ml_collections import config_flags

from robustjax import cli, config, runs
from robustjax.analysis import summary
from robustjax.evaluation.protocol import records
from robustjax.types import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/speedrun_1min.py.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "One run for each.")
ATTACKS = flags.DEFINE_list("attacks", ["clean", "autoattack"], "By which runs are evaluated.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", None, "Judge only the first so many test images.", lower_bound=1)
PART = flags.DEFINE_bool("part", False, "Train in this process, with the config's seed, as the parent asks.")

# Written when a run is complete: "seconds" without compilation, "compilation" and "steps".
TIMES = "speedrun.json"


def main() -> int:
    """Trains and judges what is not there yet, and prints a table."""
    config.validate(CONFIG.value)
    if PART.value:
        return _train(Path(cli.WORKDIR.value))
    if not SEEDS.value or not all(seed.isdecimal() for seed in SEEDS.value):
        raise InputError(f"--seeds must be whole numbers, separated by commas, got {SEEDS.value}")
    workdirs = {seed: Path(cli.WORKDIR.value) / f"seed_{seed}" for seed in SEEDS.value}
    for workdir in workdirs.values():
        if workdir.exists() and not (workdir / TIMES).exists():
            raise InputError(f"{workdir} holds a run that was stopped, which has no time; delete it")
    for seed, workdir in workdirs.items():
        if not workdir.exists():
            again = [sys.executable, *sys.argv, "--part", f"--config.seed={seed}", f"--workdir={workdir}"]
            subprocess.run(again, check=True)
    for workdir in workdirs.values():
        judge = [sys.executable, "-m", "robustjax.evaluate", f"--workdir={workdir}", "--checkpoint=last"]
        judge.append(f"--attacks={','.join(ATTACKS.value)}")
        if NUM_EXAMPLES.value:
            judge.append(f"--num_examples={NUM_EXAMPLES.value}")
        subprocess.run(judge, check=True)
    _report(list(workdirs.values()))
    return 0


def _train(workdir: Path) -> int:
    """One run, and how long it took."""
    compiling = measure.compilations()
    jax.block_until_ready(jax.numpy.zeros(()))  # the device starts before the clock does
    compiling.clear()
    started = time.perf_counter()
    stopped = runs.train(CONFIG.value, workdir)
    elapsed = time.perf_counter() - started
    if not stopped.complete:
        return cli.fail(f"stopped at step {stopped.step} of {stopped.num_steps}: no time was taken")
    compilation = sum(compiling)
    times = {"seconds": elapsed - compilation, "compilation": compilation, "steps": stopped.num_steps}
    part = workdir / f"{TIMES}.part"
    part.write_text(json.dumps(times) + "\n")
    os.replace(part, workdir / TIMES)
    return 0


def _report(workdirs: list[Path]) -> None:
    (row,) = summary.summarise(workdirs)
    times = [json.loads((workdir / TIMES).read_text()) for workdir in workdirs]
    about = row.record
    print(f"\n{about['config']['model']['name']} on {about['dataset']}, {about['norm']} epsilon {about['epsilon']:.4g}")
    print(f"hardware {records.conditions()['hardware']}, versions {about['versions']}")
    for name in ("seconds", "compilation"):
        values = [entry[name] for entry in times]
        each = ", ".join(f"{value:.1f}" for value in values)
        kind = "training" if name == "seconds" else name
        print(f"{kind:12} {statistics.fmean(values):7.1f} s  ({each})")
    for attack in (*ATTACKS.value, "worst_case"):
        cell = row.cells[attack]
        low, high = cell.interval
        each = ", ".join(f"{accuracy:.2%}" for accuracy in cell.accuracies)
        interval = f"95 % interval {low:.2%} to {high:.2%} for {cell.num_examples:,} images"
        print(f"{attack:12} {cell.mean:7.2%} ± {cell.spread:.2%}  ({each}; {interval})")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
