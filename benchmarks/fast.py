"""AutoAttack `fast` beside `standard` and the published AutoAttack: seconds, and what each leaves of the accuracy.

python benchmarks/fast.py --data_dir=DIR [--cases=mnist:linf,cifar10:l2,...] [--model=resnet18] [--workdirs=DIR,...]
                          [--num_images=256] [--turns=3] [--peer_python=PATH] [--report]

A case is the network (--model) that benchmarks/autoattack.py trains for that data set and norm, kept in --folder; a
workdir is a run of a deterministic network, attacked with the epsilon and norm that it was trained for, without a
published side. In every turn each side runs once in a process of its own, one after the other, so that a busy machine
slows them alike. Of ours there are the seconds of a first call, whose programs an earlier turn may have left in the
user's cache, and of a second call in the same process, which compiles nothing. CPU seconds, of all cores, say more than
those of the clock where other work takes turns with this.

"Missed" counts images that `standard` misclassifies and `fast` does not, "won" the opposite. results/fast.json has a
record for each network and turn, written as it comes: the same command goes on where it was stopped, and --report only
prints.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import autoattack as published_side  # the benchmark beside this one: its cases, and its flags
import numpy as np
from absl import app, flags

from robustjax.runtime import files, process

RECORDS = Path(__file__).resolve().parents[1] / "results" / "fast.json"
CASES = flags.DEFINE_list("cases", [], "DATASET:NORM of networks to train.")
WORKDIRS = flags.DEFINE_list("workdirs", [], "Runs.")
FOLDER = flags.DEFINE_string("folder", None, "Where trained cases are kept; by default in the user's cache folder.")
TURNS = flags.DEFINE_integer("turns", 3, "Runs of each side.", lower_bound=1)
REPORT = flags.DEFINE_bool("report", False, "Only print what the records hold.")
OURS = flags.DEFINE_string("ours", None, "Do only our side, for this network, as the parent asks.")
VERSIONS = ("fast", "standard")


def main(_) -> None:
    """Runs what has no record yet, and prints all."""
    if OURS.value:
        ours(OURS.value, flags.FLAGS.case)
        return
    records = json.loads(RECORDS.read_text()) if RECORDS.exists() else []
    for turn in range(0 if REPORT.value else TURNS.value):
        for network in (*CASES.value, *WORKDIRS.value):
            if not any((record["network"], record["turn"]) == (name_of(network), turn) for record in records):
                records.append(measured(network, turn))
                files.write(RECORDS, "[\n" + ",\n".join(map(json.dumps, records)) + "\n]\n")
    report(records)


def name_of(network: str) -> str:
    if network not in CASES.value:
        return Path(network).name
    return network if flags.FLAGS.model == "small_cnn" else f"{network} {flags.FLAGS.model}"


def measured(network: str, turn: int) -> dict:
    """One turn of all sides of a network."""
    with tempfile.TemporaryDirectory() as folder:
        mine = f"{folder}/ours.npz"
        subprocess.run([sys.executable, *sys.argv, f"--ours={network}", f"--case={mine}"], check=True)
        sides = {name: dict(np.load(f"{mine}.{name}.npz")) for name in VERSIONS}
        if network in CASES.value:
            part = "published_again" if turn % 2 else "published"  # by two seeds
            side(network, part, interpreter=flags.FLAGS.peer_python)
            found = np.load(f"{case(network)}.{part}.npz")
            sides["published"] = {
                "robust": found["flags"][-1], "seconds": found["seconds"].sum(), "cpu": found["cpu"],
            }  # fmt: skip
        about = json.loads(Path(f"{mine}.json").read_text())
    robust = {name: values.pop("robust") for name, values in sides.items()}
    numbers = {
        name: {"robust": int(robust[name].sum())} | {key: round(float(value), 2) for key, value in values.items()}
        for name, values in sides.items()
    }
    return {
        "network": name_of(network), "turn": turn, **about, **numbers,
        "missed": int(np.sum(robust["fast"] & ~robust["standard"])),
        "won": int(np.sum(~robust["fast"] & robust["standard"])),
    }  # fmt: skip


def case(network: str) -> Path:
    """The file of a case's weights and images, trained if it is not there yet."""
    folder = Path(FOLDER.value) if FOLDER.value else process.cache_folder() / "benchmarks"
    path = folder / f"{flags.FLAGS.model}_{network.replace(':', '_')}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        side(network, "train", path=path)
    return path


def side(network: str, part: str, *, path: Path | None = None, interpreter: str = sys.executable) -> None:
    """A part of benchmarks/autoattack.py in a process of its own."""
    dataset, norm = network.split(":")
    options = [f"--part={part}", f"--dataset={dataset}", f"--norms={norm}", f"--case={path or case(network)}"]
    options += [
        f"--model={flags.FLAGS.model}",
        f"--num_images={flags.FLAGS.num_images}",
        f"--train_steps={flags.FLAGS.train_steps}",
    ]
    if flags.FLAGS.data_dir:
        options.append(f"--data_dir={flags.FLAGS.data_dir}")
    subprocess.run([interpreter, published_side.__file__, *options], check=True)


def ours(network: str, out: str) -> None:
    """Each version twice, in turns."""
    import jax

    from robustjax import data, models, runs
    from robustjax.attacks import autoattack
    from robustjax.evaluation.protocol import records

    process.keep_memory()  # both as the commands do
    process.keep_compiled()
    if network in CASES.value:
        variables, images, labels = published_side.read(case(network))
        module, (dataset, norm) = models.create(flags.FLAGS.model), network.split(":")
        logits_fn = jax.tree_util.Partial(lambda variables, images: module.apply(variables, images).logits, variables)
        epsilon = published_side.EPSILON[dataset, norm]
    else:
        run = runs.load(network)
        dataset = run.test_data(flags.FLAGS.num_images)
        images, labels, logits_fn = np.asarray(data.to_float(dataset.images)), dataset.labels, run.logits_fn
        norm, epsilon = run.config.attack.norm, run.config.attack.epsilon
    seconds, cpu = {name: [] for name in VERSIONS}, {}
    results = {}
    for _ in range(2):
        for name in VERSIONS:
            started, used = time.perf_counter(), time.process_time()
            results[name] = autoattack(
                logits_fn, jax.random.key(0), images, labels, epsilon=epsilon, norm=norm, version=name
            )
            seconds[name].append(time.perf_counter() - started)
            cpu[name] = time.process_time() - used
    for name, (first, second) in seconds.items():
        np.savez(f"{out}.{name}.npz", robust=results[name].robust, first=first, seconds=second, cpu=cpu[name])
    about = {"norm": norm, "epsilon": round(float(epsilon), 5), "n": len(labels), "jax": jax.__version__}
    about["commit"] = records.conditions()["commit"]
    Path(f"{out}.json").write_text(json.dumps(about))


def report(records: list[dict]) -> None:
    """A line for each network: accuracies, what differs, and medians over the turns of seconds and their ratios."""
    headings = ("n", "fast", "standard", "published", "missed", "won", "s fast", "first", "standard", "published")
    print(f"{'network':18} " + " ".join(f"{name:>9}" for name in (*headings, "ratio", "first", "CPU")))
    for network in dict.fromkeys(record["network"] for record in records):
        turns = [record for record in records if record["network"] == network]
        last, count = turns[-1], turns[-1]["n"]

        def median(read, turns=turns) -> str:
            try:
                return f"{statistics.median(read(record) for record in turns):.2f}"
            except KeyError:  # no published side
                return "-"

        row = [f"{count}"]
        row += [f"{last[side]['robust'] / count:.2%}" if side in last else "-" for side in (*VERSIONS, "published")]
        row += ["/".join(sorted({f"{record[name]}" for record in turns})) for name in ("missed", "won")]
        row += [median(lambda r: r["fast"]["seconds"]), median(lambda r: r["fast"]["first"])]
        row += [median(lambda r, name=name: r[name]["seconds"]) for name in ("standard", "published")]
        row += [median(lambda r: r["published"]["seconds"] / r["fast"]["seconds"])]
        row += [median(lambda r: r["published"]["seconds"] / r["fast"]["first"])]
        row += [median(lambda r: r["published"]["cpu"] / r["fast"]["cpu"])]
        print(f"{network:18} " + " ".join(f"{value:>9}" for value in row))


if __name__ == "__main__":
    app.run(main)
