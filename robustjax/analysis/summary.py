"""The records of several networks as a table: one row for runs that differ only in the seed, one column per attack.

A network is a run, or another network whose records ``evaluate --model=... --output=DIR`` or ``Evaluation.save`` wrote,
or whose report ``Verdict.save`` wrote.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustjax import config as config_lib
from robustjax.analysis import _files, _forms
from robustjax.evaluation.protocol.threats import NO_BALL, UNION, of_record
from robustjax.runtime import files
from robustjax.statistics import wilson_interval
from robustjax.types import InputError

# What a record must have to be one, and of what kind; other files of an evaluation are passed over.
FIELDS: dict[str, Callable[[Any], bool]] = {
    "attack": lambda value: isinstance(value, str) and value != "",
    "accuracy": lambda value: type(value) in (int, float) and 0 <= value <= 1,
    "num_examples": lambda value: type(value) is int and 0 < value < 2**31,
    "epsilon": lambda value: type(value) in (int, float) and 0 <= value < math.inf,
    "norm": lambda value: isinstance(value, str),
    "robust": lambda value: isinstance(value, list),
}


# The data set of what was not evaluated by a command.
GIVEN = "images given from Python"


def _is_config(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and type(value.get("seed")) is int
        and all(isinstance(value.get(section), dict) and "name" in value[section] for section in ("model", "objective"))
    )


class Cell(NamedTuple):
    """Accuracy under one attack, over runs of different seeds.

    Attributes:
        accuracies: one for each run.
        num_examples: that each was measured on; the runs share the images, so more runs do not narrow the interval.
    """

    accuracies: tuple[float, ...]
    num_examples: int

    @property
    def mean(self) -> float:
        """Over the runs."""
        return statistics.fmean(self.accuracies)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean accuracy over test images."""
        return wilson_interval(round(self.mean * self.num_examples), self.num_examples)

    @property
    def spread(self) -> float:
        """Standard deviation over the runs; 0 for one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


class Row(NamedTuple):
    """Runs that differ only in the seed.

    Attributes:
        label: what sets their config apart from the other rows'; of a network that is not a run, its name.
        seeds: of the runs; none of a network that is not a run.
        cells: attack -> accuracy.
        workdirs: of the runs.
        record: one of the records, for what all of them share.
        records: attack -> record of the first run.
        folder: of these records.
    """

    label: str
    seeds: tuple[int, ...]
    cells: Mapping[str, Cell]
    workdirs: tuple[Path, ...]
    record: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Any]]
    folder: Path

    @property
    def threats(self) -> list[str]:
        """The threats of the first run's records, in words."""
        return list(dict.fromkeys(threat for record in self.records.values() for threat in of_record(record)))


def summarise(workdirs: Sequence[str | Path]) -> list[Row]:
    """A row for each config, in the order in which the runs are given, and for each network that is not a run.

    Args:
        workdirs: of runs that were evaluated, or folders of the records of other networks.

    Where rows are of different threats, their labels say of which.

    Raises:
        InputError: a folder holds no evaluation, or runs of one row were not evaluated alike: on other images, under
            another threat, or with a worst case over other attacks.
    """
    groups: dict[str, list[_Evaluated]] = {}
    for workdir in dict.fromkeys(map(files.place, workdirs)):  # one that is named twice is not a second seed
        evaluations = _evaluations(workdir) or _of_verdict(workdir)
        if not evaluations:
            quoted = shlex.quote(str(workdir))
            raise InputError(
                f"{workdir} holds no evaluation; run python -m robustjax.evaluate --workdir={quoted} first, or of a "
                f"--model with --output={quoted}; from Python, save an Evaluation or a Verdict there"
            )
        for variant, records in evaluations.items():
            config = next(iter(records.values()))["config"]
            identity = json.dumps(
                [variant, {key: value for key, value in config.items() if key != "seed"}], sort_keys=True
            )
            folder = _root(workdir) / variant
            groups.setdefault(identity, []).append(_Evaluated(workdir, records, folder))
    labels = _labels([json.loads(identity) for identity in groups])
    rows = [_row(label, runs) for label, runs in zip(labels, groups.values(), strict=True)]
    if len({tuple(row.threats) for row in rows}) > 1:
        rows = [row._replace(label=f"{row.label} ({', '.join(row.threats)})") for row in rows]
    return rows


class _Evaluated(NamedTuple):
    workdir: Path
    records: dict[str, dict[str, Any]]  # attack -> record
    folder: Path


def _root(workdir: Path) -> Path:
    """The folder of the records: of a run a folder in it, of another network the one that its evaluation was given."""
    of_run = workdir / "evaluation"
    return of_run if of_run.is_dir() else workdir


def _evaluations(workdir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Folder below evaluation/ ("" or the defense switched on) -> attack -> record."""
    found: dict[str, list[dict[str, Any]]] = {}
    root = _root(workdir)
    for path in sorted(root.glob("*.json" if root == workdir else "**/*.json")):
        if "earlier" in path.relative_to(root).parts or not path.is_file():  # put aside, of other conditions; a folder
            continue
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is damaged: {reason}; evaluate again") from error
        if isinstance(record, dict) and all(field in record for field in FIELDS):
            if wrong := _wrong_fields(record):
                raise InputError(f"{path} is damaged, in {', '.join(wrong)}; evaluate again")
            record["config"] = _config(record, workdir)
            variant = path.parent.relative_to(root).as_posix()
            found.setdefault("" if variant == "." else variant, []).append(record)
    return {variant: _by_name(records) for variant, records in found.items()}


def _of_verdict(workdir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Of a folder that only a ``Verdict`` was saved to, its accuracies as records; empty where there is none."""
    path = workdir / "trust.json"
    if not path.is_file():
        return {}
    trust = _files.read_json(path, _forms.TRUST | _forms.ACCURACIES) or {}
    shared = {name: trust.get(name) for name in ("norm", "epsilon", "num_examples", "robust", "commit")}
    shared |= {name: trust.get(name) or {} for name in ("versions", "hardware")}
    accuracies = {"clean": trust["clean"], "adaptive": trust["worst_case"], "worst_case": trust["worst_case"]}
    found = {name: {**shared, "attack": name, "accuracy": accuracy} for name, accuracy in accuracies.items()}
    if wrong := [name for record in found.values() for name in _wrong_fields(record)]:
        raise InputError(f"{path} is damaged, in {', '.join(dict.fromkeys(wrong))}; judge again")
    return {"": {name: {**record, "config": _config(record, workdir)} for name, record in found.items()}}


def _wrong_fields(record: dict[str, Any]) -> list[str]:
    """Fields that hold what no record does."""
    union = record["norm"] == UNION and _are_threats(record.get("threats"))  # whose epsilons stand there
    wrong = [name for name, right in FIELDS.items() if not (right(record[name]) or (union and name == "epsilon"))]
    config = record.get("config")  # None of a network that is not a run
    wrong += ["config"] if config is not None and not _is_config(config) else []
    there = {name: form for name, form in _forms.OF_RECORDS.items() if record.get(name) is not None}
    return wrong + [name for name, form in there.items() if not _forms.fits(record[name], form)]


def _are_threats(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(isinstance(threat, dict) for threat in value):
        return False
    return all(FIELDS[name](threat.get(name)) for threat in value for name in ("norm", "epsilon"))


def _config(record: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """The config of a run, or what is known of another network, by the same keys."""
    if record.get("config") is not None:
        # Records of an earlier version lack newer keys, whose defaults are what that version did.
        return _completed(record["config"], config_lib.plain(config_lib.base()))
    about = record.get("network") or {}
    model = {"name": about.get("model") or workdir.resolve().name, "weights": about.get("weights")}
    return {"model": model, "folder": str(workdir)}


def data_of(record: Mapping[str, Any]) -> str:
    """The images of a record, in words."""
    name = record.get("dataset") or GIVEN
    return f"{name}, {record['split']} split" if record.get("split") else str(name)


def _completed(stored: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A config's keys and sections over those of the defaults."""
    both = {
        key: _completed(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in stored.items()
    }
    return {**defaults, **both}


def _by_name(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records by attack; where they are of several threats, what is of one alone by attack and threat."""
    several = len({(record["norm"], record["epsilon"]) for record in records if record["norm"] != NO_BALL}) > 1

    def name(record: dict[str, Any]) -> str:
        of_all = record["attack"] == "clean" or record["norm"] == NO_BALL or record.get("threats")
        return record["attack"] + ("" if of_all or not several else f" ({record['norm']} {record['epsilon']:.4g})")

    return {name(record): record for record in records}


def _row(label: str, runs: list[_Evaluated]) -> Row:
    cells = {}
    for attack in dict.fromkeys(attack for run in runs for attack in run.records):
        records = [run.records[attack] for run in runs if attack in run.records]
        _check_alike(label, attack, records)
        cells[attack] = Cell(tuple(record["accuracy"] for record in records), records[0]["num_examples"])
    first = runs[0]
    configs = [next(iter(run.records.values()))["config"] for run in runs]
    seeds = tuple(config["seed"] for config in configs if "seed" in config)
    workdirs = tuple(run.workdir for run in runs)
    return Row(label, seeds, cells, workdirs, next(iter(first.records.values())), first.records, first.folder)


def _check_alike(label: str, attack: str, records: Sequence[Mapping[str, Any]]) -> None:
    """Refuses to average what was measured in different ways."""
    ways: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "on {} images": lambda record: str(record["num_examples"]),
        "on {}": data_of,
        "on the images of subset_seed {}": lambda record: str(_subset_seed(record)),
        "under {}": lambda record: " or ".join(of_record(record)),
        "over {}": lambda record: ", ".join(sorted(record.get("attacks") or [])),
    }
    for words, read in ways.items():
        found = sorted({read(record) for record in records}, key=lambda text: (len(text), text))
        if len(found) > 1:
            raise InputError(
                f"{label}: {attack} must be alike in the runs of one row, got it {words.format(' and '.join(found))}; "
                "evaluate the runs with the same flags"
            )


def _subset_seed(record: Mapping[str, Any]) -> Any:
    about = record.get("data")
    subset = about.get("subset") if isinstance(about, dict) else None
    return subset.get("seed") if isinstance(subset, dict) else None


EVALUATED_WITH = "evaluated with"


def _labels(identities: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """Each config by the keys in which the configs differ; by its network where there is nothing to tell apart."""
    flat = [dict(leaves({EVALUATED_WITH: variant or None, **config})) for variant, config in identities]
    runs = [entry for entry in flat if "folder" not in entry]
    keys = [key for key in {key for entry in runs for key in entry} if _differs(key, runs)]
    # The name before its options, and the defense that was switched on for the evaluation last.
    keys.sort(key=lambda key: (key == EVALUATED_WITH, key.rpartition(".")[0], not key.endswith("name"), key))
    labels = [
        entry["model.name"]
        if "folder" in entry
        else ", ".join(_told_apart(entry, keys)) or f"{entry['model.name']}, {entry['objective.name']}"
        for entry in flat
    ]
    return [
        f"{label} ({entry['folder']})" if "folder" in entry and labels.count(label) > 1 else label
        for label, entry in zip(labels, flat, strict=True)
    ]


def _told_apart(entry: dict[str, Any], keys: list[str]) -> Iterator[str]:
    for key in keys:
        section, _, option = key.rpartition(".")
        if option == "name":
            yield f"{section} {entry[key]}" if entry.get(key) else f"no {section}"
        elif entry.get(key) is not None:
            yield f"{key}{' ' if key == EVALUATED_WITH else '='}{entry[key]}"


def _differs(key: str, entries: list[dict[str, Any]]) -> bool:
    return any(entry.get(key) != entries[0].get(key) for entry in entries)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
