"""Each training option against plain adversarial training on the digits, under AutoAttack `standard`; and the papers'
ablations, under adaptive attacks.

python benchmarks/training_options.py --option=awp --seed=0     trains and judges one run, unless its record is there
python benchmarks/training_options.py --table                   prints the records side by side
python benchmarks/training_options.py --names=options           lists what --option takes; or --names=ablations

``launch/training_options.sh`` runs all of them. A record of ``results/training_options.json``, or of
``results/ablations.json``, holds what makes the run, clean and robust accuracy and a flag for each of the 360 test
images. Options that take one attack step are compared with adversarial training as well as with RS-FGSM; what further
data are worth, with the same 400 images alone. The ablations are in ``benchmarks/ablations.py``: what counts of them is
the worst case of all adaptive attacks with the quick budget, as the defenses' own gradients may be of no use.
"""

import json
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np
from ablations import ABLATIONS
from absl import flags

from robustjax import cli
from robustjax.statistics import paired_difference, wilson_interval
from robustjax.types import InputError

OPTION = flags.DEFINE_string("option", None, "One of the options or ablations.")
SEED = flags.DEFINE_integer("seed", 0, "Of the run.", lower_bound=0)
TABLE = flags.DEFINE_bool("table", False, "Print what there is.")
NAMES = flags.DEFINE_enum("names", None, ["options", "ablations"], "List the names.")
RECORDS = flags.DEFINE_string("records", None, "File of the records.")

FILES = {"options": "results/training_options.json", "ablations": "results/ablations.json"}
RS_FGSM = {"attack.name": "rs_fgsm", "attack.step_size": 0.25}
FEW = {"data.train_examples": 400}
# name -> (what is changed of ``config.digits()``, what it is compared with)
OPTIONS = {
    "at": ({}, None),
    "awp": ({"objective.awp_gamma": 0.005, "objective.awp_from_epoch": 20.0}, "at"),
    "cutmix": ({"data.cutmix": 0.5}, "at"),
    "cutmix_ema": ({"data.cutmix": 0.5, "train.ema_decay": 0.99}, "at"),
    "ema": ({"train.ema_decay": 0.99}, "at"),
    "at_400": (FEW, "at"),
    "extra": ({**FEW, "data.extra": "the other training images", "data.extra_ratio": 0.6}, "at_400"),
    "rs_fgsm": (RS_FGSM, "at"),
    "gradalign": ({**RS_FGSM, "objective.gradalign": 0.2}, "rs_fgsm"),
    "n_fgsm": ({"attack.name": "n_fgsm"}, "rs_fgsm"),
    "nuat": ({"attack.name": "bernoulli_fgsm", "objective.name": "nuat", "objective.beta": 4.0}, "rs_fgsm"),
    "fgsm_pgi": ({"attack.name": "fgsm_pgi", "attack.step_size": 0.25, "objective.name": "pgi",
                  "objective.beta": 10.0}, "rs_fgsm"),
    "friendly": ({"attack.name": "friendly", "attack.tau": 1}, "at"),
    "natural_share": ({"objective.natural_share": 0.2}, "at"),
    "adamw": ({"optimizer.name": "adamw", "optimizer.learning_rate": 0.003, "optimizer.weight_decay": 0.05}, "at"),
}  # fmt: skip


def main() -> int:
    """One run, or the table."""
    if NAMES.value:
        print("\n".join(OPTIONS if NAMES.value == "options" else ABLATIONS))
        return 0
    if TABLE.value:
        for path in map(Path, [RECORDS.value] if RECORDS.value else FILES.values()):
            if path.exists():
                print(table(_read(path)), end="\n\n")
        return 0
    kind = "ablations" if OPTION.value in ABLATIONS else "options"
    if OPTION.value not in {*OPTIONS, *ABLATIONS}:
        raise InputError(f"--option must be one of {', '.join([*OPTIONS, *ABLATIONS])}, got {OPTION.value!r}")
    path, name = Path(RECORDS.value or FILES[kind]), f"{OPTION.value}_{SEED.value}"
    if name in _read(path):
        print(f"{name} is there")
        return 0
    record = (evaluated if kind == "ablations" else run)(OPTION.value, SEED.value)
    records = {**_read(path), name: record}  # as another process may have left it meanwhile
    part = path.with_suffix(".part")
    part.write_text(json.dumps(records, indent=1) + "\n")
    os.replace(part, path)
    print(f"{name}: clean {record['clean']:.2%}, robust {record['accuracy']:.2%}, {record['seconds']:.0f} s")
    return 0


def run(option: str, seed: int) -> dict:
    """Trains and judges one network; the last checkpoint, on all test images."""
    import time

    import jax
    import jax.numpy as jnp

    from robustjax import attacks, config, data, runs
    from robustjax.evaluation.protocol import records

    made = config.digits()
    made.seed = seed
    with tempfile.TemporaryDirectory() as folder:
        for path, value in OPTIONS[option][0].items():
            section, key = path.split(".")
            if path == "data.extra":
                kept = data.load("digits", "train", validation_examples=made.data.validation_examples)
                value = f"{folder}/others.npz"
                np.savez(value, images=kept.images[400:], labels=kept.labels[400:])
            made[section][key] = value
        made.validation.every_epochs = 25
        started = time.perf_counter()
        runs.train(made, f"{folder}/run")
        seconds = time.perf_counter() - started
        loaded = runs.load(f"{folder}/run", checkpoint="last")
    test = loaded.test_data()
    images, labels = data.to_float(test.images), jnp.asarray(test.labels)
    clean = np.asarray(loaded.logits_fn(images).argmax(-1) == labels)
    result = attacks.autoattack(loaded.logits_fn, jax.random.key(0), images, labels, epsilon=made.attack.epsilon)
    robust = np.asarray(result.robust)
    return {
        "option": option,
        "seed": seed,
        "changes": OPTIONS[option][0],
        "clean": float(clean.mean()),
        "attacks": "AutoAttack",
        "accuracy": float(robust.mean()),
        "robust": "".join("01"[int(flag)] for flag in robust),
        "epsilon": made.attack.epsilon,
        "num_examples": len(robust),
        "seconds": seconds,
        "versions": records.conditions()["versions"],
        "hardware": records.conditions()["hardware"],
    }


def evaluated(name: str, seed: int) -> dict:
    """Trains one setting of ``ablations.py``, and attacks its last checkpoint by all that is known of the defense."""
    import runpy
    import time

    from robustjax import evaluation, runs

    ablation = ABLATIONS[name]
    made = runpy.run_path(str(cli.find_config("digits")))["get_config"](ablation.recipe)
    made.seed = seed
    for path, value in ablation.changes.items():
        section, key = path.split(".")
        made[section][key] = value
    made.validation.every_epochs = 25
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        runs.train(made, f"{folder}/run")
        seconds = time.perf_counter() - started
        options = evaluation.Options(f"{folder}/run", checkpoint="last", attacks=["clean", "adaptive"], batch_size=360)
        result = evaluation.evaluate_run(options._replace(defense=ablation.defense))
    by_attack = {record["attack"]: record["accuracy"] for record in result.records}
    robust = result.worst_case["robust"]
    return {
        "option": name,
        "seed": seed,
        "command": ablation.command(),
        "clean": by_attack["clean"],
        "attacks": "adaptive, quick budget",
        "accuracy": sum(robust) / len(robust),
        "by_attack": by_attack,
        "robust": "".join("01"[int(flag)] for flag in robust),
        "epsilon": made.attack.epsilon,
        "num_examples": len(robust),
        "seconds": seconds,
        "versions": result.conditions["versions"],
        "hardware": result.conditions["hardware"],
    }


def table(records: dict) -> str:
    """Means over seeds with the 95 % interval for 360 images, and differences image by image."""
    attacks = next(iter(records.values()), {"attacks": "AutoAttack"})["attacks"]
    lines = [
        f"| option | seeds | clean | {attacks} (each seed) | 95 % interval | against | difference, 95 % interval |",
        "|---|--:|--:|--:|--:|---|--:|",
    ]
    against = {name: other for name, (_, other) in OPTIONS.items()} | {
        name: ablation.against for name, ablation in ABLATIONS.items()
    }
    for option, other in against.items():
        own = [record for record in records.values() if record["option"] == option]
        if not own:
            continue
        clean, robust = (statistics.fmean(record[key] for record in own) for key in ("clean", "accuracy"))
        count = own[0]["num_examples"]
        low, high = wilson_interval(robust * count, count)
        each = ", ".join(f"{record['accuracy']:.1%}" for record in sorted(own, key=lambda record: record["seed"]))
        found = f"{robust:.1%} ({each})" if len(own) > 1 else each
        cells = [option, str(len(own)), f"{clean:.1%}", found, f"{low:.1%} to {high:.1%}"]
        base = [record for record in records.values() if record["option"] == other]
        cells += [other, _difference(own, base)] if base else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(own: list[dict], base: list[dict]) -> str:
    """Of the accuracies over the seeds that both have, paired image by image: mean and 95 % interval."""
    by_seed = [{record["seed"]: [int(flag) for flag in record["robust"]] for record in each} for each in (own, base)]
    seeds = sorted(by_seed[0].keys() & by_seed[1].keys())
    if not seeds:
        return ""
    mean, (low, high) = paired_difference(*(np.array([each[seed] for seed in seeds]) for each in by_seed))
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


if __name__ == "__main__":
    cli.run(main)
