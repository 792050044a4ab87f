"""The table of defenses: each trained alike, evaluated by the papers' protocol, by AutoAttack and by adaptive attacks.

python benchmarks/reproduce.py --scale=digits|mnist [--only=CELL,...] [--seeds=0,...]
                               [--parts=training,...] [--runs=runs/table] [--list]
python benchmarks/reproduce.py --table

A cell is a network and a seed: an objective alone, with a defense in training, or with one that is switched on for a
network trained without it. Its record, results/table/SCALE/CELL_SEED.json, is written after each of its parts
(training, protocol, judge, judge with hints), and holds one bit for each image and attack, so that defenses are
compared with the network that they are added to on the same images. Cells come in order of value; what has a record is
not run again, and what was stopped goes on. results/TABLE.md is made from the records alone, missing cells named.
"""

from __future__ import annotations

import base64
import json
import runpy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from robustjax import cli, data, evaluation, runs
from robustjax.evaluation.protocol import records
from robustjax.runtime import files
from robustjax.statistics import paired_difference, wilson_interval
from robustjax.types import InputError

ROOT = Path(__file__).resolve().parents[1]
SCALE = flags.DEFINE_string("scale", None, "Which table: digits or mnist.")
ONLY = flags.DEFINE_list("only", [], "Cells, by name, as at_cifs; all seeds of each.")
SEEDS = flags.DEFINE_list("seeds", [], "Only these seeds.")
ONLY_PARTS = flags.DEFINE_list("parts", [], "Only these of training, protocol, judge and judge_with_hints.")
RUNS = flags.DEFINE_string("runs", "runs/table", "Folder of the runs.")
RESULTS = flags.DEFINE_string("results", str(ROOT / "results"), "Folder of the records and of TABLE.md.")
LIST = flags.DEFINE_bool("list", False, "Print the cells, and which parts they have, and run nothing.")
TABLE = flags.DEFINE_bool("table", False, "Make TABLE.md of the records, and run nothing.")

OBJECTIVES = ("at", "trades", "mart")
IN_TRAINING = ("cas", "cifs", "fsr", "sns")
# Switched on for a network that was trained without it.
AT_EVALUATION = {"sap": "sap:sampler=bernoulli", "meansparse": "meansparse:alpha=0.2"}
PARTS = ("training", "protocol", "judge", "judge_with_hints")


class Scale(NamedTuple):
    """How large a table is.

    Attributes:
        config: of a cell, by the name of its variant.
        about: what all cells share, in words.
        test_examples: images of the protocol; None: the whole test split.
        verdict_examples: images of the verdicts.
        seeds: of adversarial training alone and with each defense; every other cell has the first.
    """

    config: str
    about: str
    test_examples: int | None
    verdict_examples: int
    seeds: tuple[int, ...] = (0, 1, 2)


SCALES = {
    "digits": Scale("digits", "handwritten digits, linf 0.2, WideResNet-10-1, 50 epochs of PGD-10", None, 360),
    "mnist": Scale("mnist", "MNIST, linf 0.3, small_cnn with BatchNorm, 12 epochs of PGD-10", None, 1000),
}


class Cell(NamedTuple):
    """A network of the table.

    Attributes:
        trained: the variant of the config that it is trained by.
        switched_on: the defense that is switched on when it is evaluated, or none.
        seed: of training and of everything after it.
    """

    trained: str
    switched_on: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.trained}_{self.switched_on}" if self.switched_on else self.trained

    @property
    def base(self) -> Cell | None:
        """The network without the defense; None for one that has none."""
        objective, _, defense = self.name.partition("_")
        return Cell(objective, "", self.seed) if defense else None


def main() -> None:
    """Runs what has no record yet, cell by cell, and makes the table."""
    if TABLE.value:
        write_table()
        return
    if SCALE.value not in SCALES:
        raise InputError(f"--scale must be one of {', '.join(SCALES)}, got {SCALE.value!r}")
    scale = SCALES[SCALE.value]
    every = list(cells(scale))
    unknown = sorted(set(ONLY.value) - {cell.name for cell in every})
    if unknown:
        names = ", ".join(dict.fromkeys(cell.name for cell in every))
        raise InputError(f"--only must name cells, got {', '.join(unknown)}; there are {names}")
    wrong = sorted(set(ONLY_PARTS.value) - set(PARTS))
    if wrong:
        raise InputError(f"--parts must be of {', '.join(PARTS)}, got {', '.join(wrong)}")
    chosen = [cell for cell in every if not ONLY.value or cell.name in ONLY.value]
    chosen = [cell for cell in chosen if not SEEDS.value or str(cell.seed) in SEEDS.value]
    for i, cell in enumerate(chosen):
        record = read(SCALE.value, cell)
        missing = [part for part in PARTS if part not in record]
        if LIST.value or not missing:
            print(f"{cell.name} seed {cell.seed}: {'missing ' + ', '.join(missing) if missing else 'done'}")
            continue
        for part in missing:
            if ONLY_PARTS.value and part not in ONLY_PARTS.value:
                continue
            print(f"cell {i + 1} of {len(chosen)}: {cell.name}, seed {cell.seed}: {part}", flush=True)
            started = time.perf_counter()
            record[part] = WORK[part](SCALE.value, scale, cell)
            record[part]["seconds"] = round(time.perf_counter() - started, 1)
            record["conditions"] = {name: value for name, value in records.conditions().items() if name != "source"}
            write(SCALE.value, cell, record)
            jax.clear_caches()
        write_table()


def cells(scale: Scale) -> Iterator[Cell]:
    """The cells of a table, in order of value."""
    first, *others = scale.seeds
    by_defense = [("at", ""), *((f"at_{defense}", "") for defense in IN_TRAINING)]
    yield from (Cell(*pair, first) for pair in by_defense)
    for objective in ("at", "standard"):
        if objective == "standard":
            yield Cell("standard", "", first)
        yield from (Cell(objective, defense, first) for defense in AT_EVALUATION)
        yield Cell(f"{objective}_kwta", "", first)
    for seed in others:
        yield from (Cell(*pair, seed) for pair in by_defense)
    for objective in OBJECTIVES[1:]:
        yield Cell(objective, "", first)
        yield from (Cell(f"{objective}_{defense}", "", first) for defense in IN_TRAINING)


def workdir(scale: str, cell: Cell) -> str:
    """The folder of the run that a cell evaluates."""
    return str(Path(RUNS.value) / scale / f"{cell.trained}_{cell.seed}")


def train(name: str, scale: Scale, cell: Cell) -> dict[str, Any]:
    """Trains a cell's network, unless another cell has."""
    config = runpy.run_path(str(cli.find_config(scale.config)))["get_config"](cell.trained)
    config.seed = cell.seed
    started = time.perf_counter()
    runs.train(config, workdir(name, cell))
    lines = (Path(workdir(name, cell)) / "metrics.jsonl").read_text().splitlines()
    validated = [line for line in map(json.loads, lines) if line["split"] == "validation"]
    return {
        "epochs": config.train.num_epochs,
        "best_validation_pgd": max(line["pgd_accuracy"] for line in validated),
        "trained_here": time.perf_counter() - started,
    }


def protocol(name: str, scale: Scale, cell: Cell) -> dict[str, Any]:
    """The attacks of the papers, and AutoAttack."""
    names = ["clean", "fgsm", "pgd20", "cw", "pgd100", "autoattack:version=fast"]
    if cell.switched_on == "sap":
        names[-1] = "autoattack:version=rand"
    options = evaluation.Options(workdir(name, cell), names, num_examples=scale.test_examples, seed=cell.seed)
    result = evaluation.evaluate_run(options._replace(defense=AT_EVALUATION.get(cell.switched_on)))
    assert isinstance(result, evaluation.Evaluation)
    bits = {record["attack"].partition(":")[0]: packed(record["robust"]) for record in result.rows}
    return {"n": len(result.worst_case["robust"]), "robust": bits}


def judge(name: str, scale: Scale, cell: Cell) -> dict[str, Any]:
    """The verdict on the network's program alone."""
    run = runs.load(workdir(name, cell), defense=AT_EVALUATION.get(cell.switched_on))
    test = run.test_data(scale.verdict_examples)
    verdict = evaluation.judge(
        run.logits_fn,
        jax.random.key(cell.seed),
        data.to_float(test.images),
        test.labels,
        epsilon=run.config.attack.epsilon,
        norm=run.config.attack.norm,
        hints=evaluation.Hints(stochastic=run.stochastic),
        progress=True,
    )
    return of_verdict(verdict)


def judge_with_hints(name: str, scale: Scale, cell: Cell) -> dict[str, Any]:
    """The verdict with what the defense declares, and by transfer from the network without it."""
    base = cell.base
    there = base is not None and (Path(workdir(name, base)) / "checkpoints").is_dir()
    options = evaluation.Options(
        workdir(name, cell),
        ["adaptive"],
        num_examples=scale.verdict_examples,
        seed=cell.seed,
        defense=AT_EVALUATION.get(cell.switched_on),
        transfer_from=workdir(name, base) if base is not None and there and not cell.switched_on else None,
    )
    result = evaluation.evaluate_run(options)
    assert isinstance(result, evaluation.Evaluation) and result.verdict is not None
    return of_verdict(result.verdict)


WORK: dict[str, Callable[[str, Scale, Cell], dict[str, Any]]] = {
    "training": train,
    "protocol": protocol,
    "judge": judge,
    "judge_with_hints": judge_with_hints,
}


def of_verdict(verdict: evaluation.Verdict) -> dict[str, Any]:
    """What the table needs of a verdict."""
    return {
        "n": len(verdict.robust),
        "clean": verdict.clean,
        "autoattack": verdict.autoattack,
        "worst_case": verdict.worst_case,
        "robust": packed(verdict.robust),
        "failed": [name for name, flag in verdict.flags.items() if flag.status == "fail"],
        "warned": [name for name, flag in verdict.flags.items() if flag.status == "warn"],
        "findings": [f"{finding.kind} at {finding.where}" for finding in getattr(verdict, "findings", ())],
    }


def packed(robust: Sequence[bool] | np.ndarray) -> str:
    """One bit for each image, as text.

    >>> unpacked(packed([True, False, True]), 3)
    array([ True, False,  True])
    """
    return base64.b64encode(np.packbits(np.asarray(robust, bool)).tobytes()).decode()


def unpacked(text: str, n: int) -> np.ndarray:
    """The bits that :func:`packed` packed."""
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=n).astype(bool)


def place(scale: str, cell: Cell) -> Path:
    """The file of a cell's record."""
    return Path(RESULTS.value) / "table" / scale / f"{cell.name}_{cell.seed}.json"


def read(scale: str, cell: Cell) -> dict[str, Any]:
    """The record of a cell as far as it goes."""
    path = place(scale, cell)
    return json.loads(path.read_text()) if path.exists() else {"cell": cell.name, "seed": cell.seed}


def write(scale: str, cell: Cell, record: dict[str, Any]) -> None:
    path = place(scale, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, json.dumps(record, indent=1) + "\n")


def write_table() -> None:
    """TABLE.md of the records that there are."""
    text = ["# The table\n", __doc__.splitlines()[0] + "\n", EXPLAINED]
    for name, scale in SCALES.items():
        text += [f"## {name}: {scale.about}\n", *rows(name, scale)]
    path = Path(RESULTS.value) / "TABLE.md"
    files.write(path, "\n".join(text) + "\n")
    print(f"table: {path}")


EXPLAINED = """\
Accuracy in per cent; of several seeds the mean, with the standard deviation over the seeds. AutoAttack is `fast`
(`rand` for SAP). "Judge" is `judge` on the network's program alone, "with hints" the same with what the defense
declares, both on the first images only; "worst case" is over the two. The last column compares the worst case with that
of the same network without the defense, image by image, with a 95 % interval (Agresti and Min 2005).
"""
COLUMNS = ("clean", "fgsm", "pgd20", "cw", "pgd100", "autoattack")


def rows(name: str, scale: Scale) -> Iterator[str]:
    """The lines of a table, missing cells among them."""
    titles = ("network", "seeds", "clean", "FGSM", "PGD-20", "C&W", "PGD-100", "AutoAttack", "judge", "with hints",
              "worst case (95 % interval)", "flags that failed", "beyond its baseline")  # fmt: skip
    yield f"| {' | '.join(titles)} |"
    yield "|" + "---|" * len(titles)
    by_name: dict[str, list[Cell]] = {}
    for cell in cells(scale):
        by_name.setdefault(cell.name, []).append(cell)
    sizes = set()
    for cell_name, of_seeds in by_name.items():
        found = [record for cell in of_seeds if all(part in (record := read(name, cell)) for part in PARTS)]
        if not found:
            yield f"| `{cell_name}` |" + " missing |" + " |" * (len(titles) - 2)
            continue
        sizes.add((found[0]["protocol"]["n"], found[0]["judge"]["n"]))
        fields = [f"`{cell_name}`", f"{len(found)} of {len(of_seeds)}"]
        for attack in COLUMNS:
            fields.append(spread([robust(record, "protocol", attack).mean() for record in found]))
        for part in PARTS[2:]:
            fields.append(spread([record[part]["worst_case"] for record in found]))
        worst = [worst_case(record) for record in found]
        n = len(worst[0])
        low, high = wilson_interval(float(np.mean(worst)) * n, n)
        fields.append(f"{spread([bits.mean() for bits in worst])} ({100 * low:.1f} to {100 * high:.1f})")
        failed = {flag for record in found for part in PARTS[2:] for flag in record[part]["failed"]}
        fields.append(", ".join(sorted(failed)) or "none")
        fields.append(beyond(name, of_seeds))
        yield f"| {' | '.join(fields)} |"
    for protocol_images, of_verdicts in sorted(sizes):
        yield f"\nProtocol and AutoAttack on {protocol_images:,} images, verdicts on the first {of_verdicts:,}."


def robust(record: dict[str, Any], part: str, attack: str | None = None) -> np.ndarray:
    """One bool for each image."""
    bits = record[part]["robust"]
    return unpacked(bits if attack is None else bits[attack], record[part]["n"])


def worst_case(record: dict[str, Any]) -> np.ndarray:
    """Which of the images of the verdicts withstand everything."""
    return robust(record, "judge") & robust(record, "judge_with_hints")


def beyond(name: str, of_seeds: Sequence[Cell]) -> str:
    """What a defense adds to its baseline's worst case."""
    pairs = []
    for cell in of_seeds:
        if cell.base is None:
            return ""
        both = read(name, cell), read(name, cell.base)
        if all(part in record for record in both for part in PARTS[2:]):
            pairs.append(tuple(map(worst_case, both)))
    if not pairs:
        return "baseline missing"
    difference, (low, high) = paired_difference(*map(np.stack, zip(*pairs, strict=True)))
    meaning = "gains" if low > 0 else "loses" if high < 0 else "undecided"
    return f"{meaning}: {100 * difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation, in per cent.

    >>> spread([0.5]), spread([0.5, 0.6])
    ('50.0', '55.0 ± 7.1')
    """
    middle = f"{100 * np.mean(shares):.1f}"
    return middle if len(shares) == 1 else f"{middle} ± {100 * np.std(shares, ddof=1):.1f}"


if __name__ == "__main__":
    cli.run(main)
