"""The table of defenses: each trained alike, evaluated by the papers' protocol, by AutoAttack and by adaptive attacks.

python benchmarks/reproduce.py --scale=digits|mnist|cifar10|full [--only=CELL,...] [--seeds=0,...]
                               [--parts=training,...] [--runs=runs/table] [--list]
python benchmarks/reproduce.py --table

A cell is a network and a seed: an objective alone, with a defense in training, or with one that is switched on for a
network trained without it; of the scale full there is one of the best checkpoint and one, at@last, of the last. Its
record, results/table/SCALE/CELL_SEED.json, is written after each of its parts (training, protocol, judge, judge with
hints), and beside it a card of the network. Cells come in order of value; what has a record is not run again, and what
was stopped goes on. A network that has a record but no folder is trained once more, and its record stays, where another
part is missing and for --parts=training. A training that diverges leaves its cell missing: the others go on, and the
exit status is 1. results/TABLE.md is made of the records, and of results/published.json for what papers report.
"""

from __future__ import annotations

import json
import runpy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cells  # the modules beside this one
import jax
import table
import table_cards
from absl import flags
from cells import AT_EVALUATION, PARTS, SCALES, Cell, Scale, packed

from robustjax import build, cli, data, evaluation, runs
from robustjax.evaluation.protocol import records
from robustjax.types import InputError

ROOT = Path(__file__).resolve().parents[1]
SCALE = flags.DEFINE_string("scale", None, f"Which table: {', '.join(SCALES)}.")
ONLY = flags.DEFINE_list("only", [], "Cells, by name, as at_cifs; all seeds and checkpoints of each.")
SEEDS = flags.DEFINE_list("seeds", [], "Only these seeds.")
ONLY_PARTS = flags.DEFINE_list("parts", [], "Only these of training, protocol, judge and judge_with_hints.")
RUNS = flags.DEFINE_string("runs", "runs/table", "Folder of the runs.")
RESULTS = flags.DEFINE_string("results", str(ROOT / "results"), "Folder of the records and of TABLE.md.")
LIST = flags.DEFINE_bool("list", False, "Print the cells, and which parts they have, and run nothing.")
TABLE = flags.DEFINE_bool("table", False, "Make TABLE.md, its pictures and the cards of the records, and run nothing.")


def main() -> int:
    """Runs what has no record yet, cell by cell, and makes the table; exit status 1 where a training diverged."""
    if TABLE.value:
        for name, scale in SCALES.items():
            for cell in cells.cells(scale):
                if cells.place(RESULTS.value, name, cell).exists():
                    table_cards.write(RESULTS.value, name, cell)
        write_table()
        return 0
    if SCALE.value not in SCALES:
        raise InputError(f"--scale must be one of {', '.join(SCALES)}, got {SCALE.value!r}")
    scale = SCALES[SCALE.value]
    every = list(cells.cells(scale))
    unknown = sorted(set(ONLY.value) - {name for cell in every for name in names_of(cell)})
    if unknown:
        names = ", ".join(dict.fromkeys(cell.name for cell in every))
        raise InputError(f"--only must name cells, got {', '.join(unknown)}; there are {names}")
    wrong = sorted(set(ONLY_PARTS.value) - set(PARTS))
    if wrong:
        raise InputError(f"--parts must be of {', '.join(PARTS)}, got {', '.join(wrong)}")
    chosen = [cell for cell in every if not ONLY.value or names_of(cell) & set(ONLY.value)]
    seeds = sorted({str(cell.seed) for cell in chosen})
    strange = sorted(set(SEEDS.value) - set(seeds))
    if strange:
        raise InputError(f"--seeds must be of {', '.join(seeds)}, which these cells have, got {', '.join(strange)}")
    chosen = [cell for cell in chosen if not SEEDS.value or str(cell.seed) in SEEDS.value]
    asked = ONLY_PARTS.value or PARTS
    status = 0
    for i, cell in enumerate(chosen):
        record = cells.read(RESULTS.value, SCALE.value, cell)
        missing = [part for part in PARTS if part not in record]
        due = [part for part in missing if part in asked]
        if LIST.value or not (due or "training" in ONLY_PARTS.value):
            print(f"{cell.name} seed {cell.seed}: {'missing ' + ', '.join(missing) if missing else 'done'}")
            continue
        about = f"cell {i + 1} of {len(chosen)}: {cell.name}, seed {cell.seed}"
        try:
            # In a fresh clone a record is at hand and its network is not; where it is, nothing is trained.
            if "training" in record and "training" not in due:
                train(SCALE.value, scale, cell)
            for part in due:
                print(f"{about}: {part}", flush=True)
                measure(SCALE.value, scale, cell, part)
                jax.clear_caches()
        except FloatingPointError as error:  # the cell stays missing, and the others do not wait for it
            status = cli.fail(f"{about}: training diverged: {error}")
        write_table()
    return status


def measure(name: str, scale: Scale, cell: Cell, part: str) -> None:
    """Adds a part to a cell's record, and makes its card."""
    started = time.perf_counter()
    done = WORK[part](name, scale, cell)
    conditions = {key: value for key, value in records.conditions().items() if key != "source"}
    record = cells.read(RESULTS.value, name, cell)  # another process may have added a part meanwhile
    record[part] = {**done, "seconds": round(time.perf_counter() - started, 1), "commit": conditions["commit"]}
    record |= {"network": described(scale, cell), "conditions": conditions}
    cells.write(RESULTS.value, name, cell, record)
    table_cards.write(RESULTS.value, name, cell)


def names_of(cell: Cell) -> set[str]:
    """What --only may call a cell: its name, and that of all checkpoints of its network."""
    return {cell.name, cell.name.partition("@")[0]}


def write_table() -> None:
    print(f"table: {table.write_table(RESULTS.value, published=ROOT / 'results' / 'published.json')}")


def config_of(scale: Scale, cell: Cell) -> Any:
    """What a cell is trained by."""
    config = runpy.run_path(str(cli.find_config(scale.config)))["get_config"](cell.trained)
    config.seed = cell.seed
    return config


def described(scale: Scale, cell: Cell) -> dict[str, str]:
    """What a card says of a network."""
    config = config_of(scale, cell)
    options = {name: config.model[name] for name in ("depth", "width", "batch_norm") if config.model.get(name)}
    attack, objective = config.attack, config.objective.name
    own = {name: value for name, value in config.defense.items() if name != "name" and value is not None}
    settings = lambda values: "".join(f", {name} {value}" for name, value in values.items())  # noqa: E731
    return {
        "config": f"`configs/{scale.config}.py:{cell.trained}`, seed {cell.seed}",
        "data": f"{config.data.name}, {config.data.validation_examples:,} of the training images for validation",
        "model": config.model.name + settings(options),
        "threat": f"{attack.norm} {attack.epsilon:g}",
        "training_attack": "none" if objective == "standard" else (
            f"{objective}, {attack.num_steps} steps of {attack.step_size:g}, {config.train.num_epochs} epochs"
        ),
        "defense": f"{cell.switched_on}, not in training: `{AT_EVALUATION[cell.switched_on]}`" if cell.switched_on
        else (config.defense.name or "none") + settings(own),
    }  # fmt: skip


def workdir(scale: str, cell: Cell) -> str:
    """The folder of the run that a cell evaluates."""
    return str(Path(RUNS.value) / scale / f"{cell.trained}_{cell.seed}")


def has_network(scale: str, cell: Cell) -> bool:
    """Whether a cell's network is there."""
    return (Path(workdir(scale, cell)) / "checkpoints").is_dir()


def examples(scale: Scale, cell: Cell, usual: int | None) -> int | None:
    """How many images a cell is evaluated on, which for a stochastic network are fewer."""
    return scale.stochastic_examples if cell.switched_on == "sap" else usual


def train(name: str, scale: Scale, cell: Cell) -> dict[str, Any]:
    """Trains a cell's network, unless another cell has."""
    config = config_of(scale, cell)
    started = time.perf_counter()
    if not runs.train(config, workdir(name, cell)).complete:
        raise KeyboardInterrupt  # it has saved and goes on when it is started again; half a training is no record
    lines = [json.loads(line) for line in (Path(workdir(name, cell)) / "metrics.jsonl").read_text().splitlines()]
    validated = [line for line in lines if line["split"] == "validation"]
    return {
        "rate_factor": rate_factor(config, [line for line in lines if line["split"] == "train"][-1]),
        "epochs": config.train.num_epochs,
        "best_validation_pgd": max(line["pgd_accuracy"] for line in validated),
        "last_validation_pgd": validated[-1]["pgd_accuracy"],
        "trained_here": time.perf_counter() - started,
    }


def rate_factor(config: Any, line: Mapping[str, Any]) -> float:
    """What a run's learning rate was multiplied by, which has been halved wherever its loss was not finite."""
    schedule = build.optimizer(config, steps_per_epoch=round(line["step"] / line["epoch"]))[1]
    return round(line["learning_rate"] / float(schedule(line["step"] - 1)), 6)


def protocol(name: str, scale: Scale, cell: Cell) -> dict[str, Any]:
    """The attacks of the papers, AutoAttack, and images made for the network without the defense."""
    names = ["clean", "fgsm", "pgd20", "cw", "pgd100", "autoattack:version=fast"]
    if cell.switched_on == "sap":
        names[-1] = "autoattack:version=rand"
    if cell.base is not None and has_network(name, cell.base):
        names.append(f"transfer:{workdir(name, cell.base)}")
    options = evaluation.Options(
        workdir(name, cell), names, num_examples=examples(scale, cell, scale.test_examples), seed=cell.seed,
        checkpoint=cell.checkpoint, defense=AT_EVALUATION.get(cell.switched_on),
    )  # fmt: skip
    result = evaluation.evaluate_run(options)
    assert isinstance(result, evaluation.Evaluation)
    bits = {record["attack"].partition(":")[0]: packed(record["robust"]) for record in result.records}
    return {"n": len(result.worst_case["robust"]), "robust": bits}


def judge(name: str, scale: Scale, cell: Cell) -> dict[str, Any]:
    """The verdict on the network's program alone."""
    run = runs.load(workdir(name, cell), checkpoint=cell.checkpoint, defense=AT_EVALUATION.get(cell.switched_on))
    test = run.test_data(examples(scale, cell, scale.verdict_examples))
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
    there = base is not None and has_network(name, base)
    options = evaluation.Options(
        workdir(name, cell),
        ["adaptive"],
        num_examples=examples(scale, cell, scale.verdict_examples),
        seed=cell.seed,
        checkpoint=cell.checkpoint,
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
        "stochastic": bool(verdict.acceptance),
        "failed": [name for name, flag in verdict.flags.items() if flag.status == "fail"],
        "warned": [name for name, flag in verdict.flags.items() if flag.status == "warn"],
        "findings": [f"{finding.kind} at {finding.where}" for finding in verdict.findings],
    }


if __name__ == "__main__":
    cli.run(main)
