"""All that a GPU is to show, in one command: most valuable first, each part written before the next begins.

python benchmarks/gpu.py --minutes=25 --output=results/gpu [--parts=ceiling,train,...] [--tiny]

| part | what it writes |
|---|---|
| ceiling | FLOP/s of the quickest bfloat16 and float32 matrix products |
| train | ResNet-18, PGD-10, bfloat16: TFLOP/s, share of the ceiling, seconds per epoch |
| speedrun_1min, _3min, _10min | a robust network in so many minutes, with AutoAttack's `fast`; seeds as time allows |
| autoattack_fast, autoattack | AutoAttack of the newest of those networks on all test images, `fast` and `standard` |
| precision | PGD-20 through bfloat16 and through float32 on the same network |
| pytorch | the same training step in PyTorch, bfloat16 and compiled, where torch is installed |

Each part is a process of its own with the minutes that are left, and ``OUTPUT/PART.json`` when it is finished; such a
part is not run again. A part that cannot be finished in what is left is skipped and named, as are those that fail:
``OUTPUT/summary.json`` lists all. ``--tiny`` takes the same way on the digits in about a minute on a CPU.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import measure
from absl import flags

from robustjax import cli
from robustjax.types import InputError

MINUTES = flags.DEFINE_float("minutes", None, "How long all parts together may take.", lower_bound=0.0)
OUTPUT = cli.define_output("Folder for the figures.")
PARTS = flags.DEFINE_list("parts", None, "Only these, in this order; default: all.")
TINY = flags.DEFINE_bool("tiny", False, "On a small network and the digits, to see that every part runs.")
PART = flags.DEFINE_string("part", None, "Run this part in this process, as the parent asks.")

# Minutes without which a part is not begun, on one H100 or H200; --tiny begins every part.
LEAST_MINUTES = {
    "ceiling": 0.5,
    "train": 1.5,
    "speedrun_1min": 3.0,
    "autoattack_fast": 2.0,
    "speedrun_3min": 5.0,
    "autoattack": 7.0,
    "precision": 1.0,
    "pytorch": 2.0,
    "speedrun_10min": 13.0,
}


def main() -> int:
    """Runs the parts that fit."""
    if PART.value is not None:
        return _run_part(PART.value, Path(OUTPUT.value))
    parts = PARTS.value or list(LEAST_MINUTES)
    unknown = [part for part in parts if part not in LEAST_MINUTES]
    if unknown or not parts:
        raise InputError(f"--parts must be of {', '.join(LEAST_MINUTES)}, got {', '.join(unknown) or 'none'}")
    output = Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for record in (output / f"{part}.json" for part in LEAST_MINUTES):  # other files may lie there
        if _read(record).get("tiny", TINY.value) != TINY.value:
            without = "without" if TINY.value else "with"
            raise InputError(f"--output must be a folder of its own with --tiny, got {record}, written {without} it")
    end = time.monotonic() + 60 * MINUTES.value
    states = {}
    for part in parts:
        left = max(0.0, end - time.monotonic())
        if _finished(output / f"{part}.json"):
            states[part] = "finished before"
        elif left < (5 if TINY.value else 60 * LEAST_MINUTES[part]):
            states[part] = f"skipped: {left / 60:.1f} minutes were left, it takes {LEAST_MINUTES[part]:g}"
        else:
            states[part] = _start(part, output, left)
        print(f"{part}: {states[part]}", flush=True)
        _write(output / "summary.json", states)
    return 0


def _start(part: str, output: Path, seconds: float) -> str:
    """Runs a part in a process of its own, which is ended when the time is over; says how it went."""
    log = output / f"{part}.log"
    again = [sys.executable, *sys.argv, f"--part={part}"]
    with log.open("w") as file:
        try:
            status = subprocess.run(again, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return f"stopped: not finished in the {seconds / 60:.1f} minutes that were left, see {log.name}"
    if status.returncode or not _finished(output / f"{part}.json"):
        return f"failed with status {status.returncode}, see {log.name}"
    return "finished"


def _finished(record: Path) -> bool:
    """Whether a part was written to its end, and not only some seeds of it."""
    return _read(record).get("finished", False)  # which records of earlier versions do not say


def _read(record: Path) -> dict:
    return json.loads(record.read_text()) if record.exists() else {}


def _run_part(part: str, output: Path) -> int:
    works = {
        "ceiling": _ceiling,
        "train": _train,
        "autoattack": partial(_autoattack, version="standard"),
        "autoattack_fast": partial(_autoattack, version="fast"),
        "precision": _precision,
        "pytorch": _pytorch,
    }
    started = time.perf_counter()

    def record(figures: dict, *, finished: bool = True) -> None:
        from robustjax.evaluation.protocol import records

        about = {"part": part, "finished": finished, "seconds": time.perf_counter() - started, "tiny": TINY.value}
        _write(output / f"{part}.json", {**figures, **about, **records.conditions()})

    if part in works:
        record(works[part](output))
        return 0
    seeds = {}
    for seeds in _speedrun(output, part):
        record({"seeds": seeds}, finished=False)  # a seed is a result, should the time end in the next
    record({"seeds": seeds})
    return 0


def _ceiling(output: Path) -> dict:
    dtypes = ("float32",) if TINY.value else ("bfloat16", "float32")
    return {"flops_per_second": {dtype: measure.ceiling(dtype) for dtype in dtypes}}


def _settings(name: str | None = None):
    """The config of a part, or a small one that takes the same way."""
    import importlib.util

    from robustjax import config

    if TINY.value:
        made = config.base()
        made.model.name = "wide_resnet"
        made.model.depth, made.model.width = 10, 1
        made.train.num_epochs, made.train.batch_size = 2, 128
        made.attack.num_steps = 2
        made.attack.warmup_epochs = 0.0
        return made
    spec = importlib.util.spec_from_file_location(name, cli.find_config(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def _train(output: Path) -> dict:
    """Steps on data that lie on the device: median of five dispatches."""
    import statistics

    settings = _settings("cifar10_at")
    if not TINY.value:
        settings.model.dtype, settings.train.batch_size = "bfloat16", 512
    found = measure.training(settings, steps=2 if TINY.value else 20, repetitions=5)
    median = statistics.median(found.seconds)
    return {
        "model": settings.model.name,
        "dtype": settings.model.dtype,
        "batch_size": settings.train.batch_size,
        "first_step_seconds": found.first,
        "step_seconds": found.seconds,
        "flops_per_step": found.flops,
        "flops_per_second": found.flops / median,
        "share_of_ceiling": found.flops / median / measure.ceiling(settings.model.dtype),
        "epoch_seconds": median * found.steps_per_epoch,
    }


def _speedrun(output: Path, name: str) -> Iterator[dict]:
    """What is known after each seed of a speed-run; those that are there are kept."""
    found = _read(output / f"{name}.json").get("seeds", {})
    for seed in (0,) if TINY.value else (0, 1, 2):
        if str(seed) not in found:
            found[str(seed)] = _speedrun_seed(output, name, seed)
        yield found


def _speedrun_seed(output: Path, name: str, seed: int) -> dict:
    """Trains from the start, as what is left of a run that was stopped has no time; AutoAttack's ``fast`` evaluates."""
    from robustjax import config, evaluation, runs

    settings = _settings(name)
    settings.seed = seed
    workdir = output / "runs" / f"{name}_{seed}"
    shutil.rmtree(workdir, ignore_errors=True)
    compiling = measure.compilations()
    started = time.perf_counter()
    stopped = runs.train(config.from_plain(config.plain(settings), source=name), workdir)
    elapsed, compilation = time.perf_counter() - started, sum(compiling)  # before the evaluation compiles
    attack = "apgd:loss=ce,num_steps=2" if TINY.value else "autoattack:version=fast"
    options = evaluation.Options(
        workdir=str(workdir),
        attacks=["clean", attack],
        checkpoint="last",
        num_examples=32 if TINY.value else None,
    )
    result = evaluation.evaluate_run(options)
    return {
        "training_seconds": elapsed - compilation,
        "compilation_seconds": compilation,
        "complete": stopped.complete,
        "accuracy": {record["attack"]: record["accuracy"] for record in result.records},
        "num_examples": result.worst_case["num_examples"],
    }


def _newest_run(output: Path) -> Path:
    """The run of the newest speed-run that has figures: one that was stopped may have no checkpoint."""
    found = sorted(output.glob("speedrun_*.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise SystemExit("there is no network yet; a speedrun comes first")
    return output / "runs" / f"{found[-1].stem}_0"


def _attacked(output: Path):
    import jax.numpy as jnp

    from robustjax import data, runs

    loaded = runs.load(_newest_run(output), checkpoint="last")
    test = loaded.test_data(64 if TINY.value else None)
    return loaded, data.to_float(test.images), jnp.asarray(test.labels)


def _autoattack(output: Path, *, version: str) -> dict:
    """On all images; what compiling takes stands apart."""
    import jax

    from robustjax import attacks

    loaded, images, labels = _attacked(output)
    epsilon = loaded.config.attack.epsilon
    compiling = measure.compilations()
    started = time.perf_counter()
    result = attacks.autoattack(loaded.logits_fn, jax.random.key(0), images, labels, epsilon=epsilon, version=version)
    elapsed = time.perf_counter() - started
    return {
        "version": version,
        "network": _newest_run(output).name,
        "num_examples": len(labels),
        "accuracy": float(result.robust.mean()),
        "elapsed_seconds": elapsed,
        "compilation_seconds": sum(compiling),
    }


def _precision(output: Path) -> dict:
    """The same weights and starts through both precisions; success is decided in float32."""
    import jax
    import jax.numpy as jnp

    from robustjax import attacks

    loaded, images, labels = _attacked(output)
    half = loaded.module.clone(dtype="bfloat16")
    networks = {
        "float32": loaded.logits_fn,
        "bfloat16": lambda points: half.apply(loaded.variables, points).logits.astype(jnp.float32),
    }
    epsilon, found = loaded.config.attack.epsilon, {}
    for name, network in networks.items():
        attack = jax.jit(partial(attacks.pgd, network, epsilon=epsilon, step_size=epsilon / 4, num_steps=20))
        right = jax.jit(lambda points, labels: loaded.logits_fn(points).argmax(-1) == labels)
        flags_ = [
            right(attack(jax.random.key(0), images[i : i + 500], labels[i : i + 500]), labels[i : i + 500])
            for i in range(0, len(labels), 500)
        ]
        found[name] = jnp.concatenate(flags_)
    differ = float((found["float32"] != found["bfloat16"]).mean())
    return {
        "accuracy": {name: float(flags_.mean()) for name, flags_ in found.items()},
        "differing": differ,
        "num_examples": len(labels),
    }


def _pytorch(output: Path) -> dict:
    """ResNet-18 PGD-10 in PyTorch, channels last, bfloat16 autocast, compiled: seconds of a step."""
    import statistics

    try:
        import torch
    except ImportError:
        return {"skipped": "torch is not installed"}
    if not torch.cuda.is_available():
        return {"skipped": "torch sees no GPU"}
    import pytorch_training

    seconds = sorted(pytorch_training.pgd_steps(batch_size=512, num_steps=10, repetitions=20))
    return {"step_seconds": seconds, "median": statistics.median(seconds), "torch": torch.__version__}


def _write(path: Path, figures: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=2, default=str) + "\n")
    os.replace(part, path)


if __name__ == "__main__":
    flags.mark_flags_as_required(["minutes", "output"])
    cli.run(main)
