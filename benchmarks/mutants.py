"""Changes one thing at a time in the code that attacks, trains and gives verdicts, and counts the tests that notice.

python benchmarks/mutants.py [--count=160] [--seed=0] [--only=robustjax/attacks] [--again]
python benchmarks/mutants.py --list | --report

Mutants are made by rule (mutants_rules.py). `--count` of them are drawn by `--seed`, from every file and otherwise in
proportion to what a file holds; nobody looks whether they are caught.

A mutant meets the tests whose execution reaches its line, the quickest first, until one fails. They run in a copy of
the checkout, so the files here can be worked on meanwhile. Which tests reach which lines is measured once and kept in
the user's cache folder; what has changed since is measured again. A test that takes longer than `FACTOR` times its
usual time and `PATIENCE` seconds is ended: either the mutant runs on for ever or the machine was busy.

results/mutants.json has a record after every mutant: the same command goes on where it was, and a mutant is not run
twice unless its code has changed or, with `--again`, it was not killed. results/mutants_equivalent.json says of which
mutants no test can tell the difference, and why.
"""

from __future__ import annotations

import fnmatch
import signal
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from mutants_records import NOT_NOTICED, Records, report
from mutants_rules import Mutant, choose
from mutants_tests import Copy, Coverage

from robustjax import cli
from robustjax.runtime import process, progress
from robustjax.types import InputError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = (
    "robustjax/attacks/**.py",
    "robustjax/defenses/**.py",
    "robustjax/evaluation/verdict/**.py",
    "robustjax/objectives.py",
    "robustjax/ops.py",
    "robustjax/statistics.py",
    "robustjax/training/optim.py",
    "robustjax/training/state.py",
    "robustjax/training/step.py",
)
FACTOR, PATIENCE = 6.0, 120.0  # a test's limit: times its usual seconds, and seconds more


def read_sources(root: Path, patterns: Sequence[str] = SOURCES) -> dict[str, bytes]:
    """path -> content of the files that are changed."""
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*.py") if "." not in str(path.parent.name)[:1])
    return {
        file: (root / file).read_bytes()
        for file in found
        if any(fnmatch.fnmatchcase(file, pattern.replace("**", "*")) for pattern in patterns)
    }


def run(
    root: Path,
    cache: Path,
    *,
    patterns: Sequence[str] = SOURCES,
    only: Sequence[str] = (),
    count: int,
    seed: int,
    again: bool,
    tests: Sequence[str] = ("tests",),
    most_seconds: float = 600.0,
) -> None:
    """Runs those of the drawn mutants that have no record yet and, `again`, those of all records that survived."""
    with Copy(root) as copy:
        sources = read_sources(copy.root, patterns)
        records = Records(root, sources)
        chosen = _only(sources, only)
        due = [mutant for mutant in choose(chosen, count, seed) if not records.find(mutant)]
        print(f"{count} mutants are drawn, of which {len(due)} have no record")
        if again:
            alive = [mutant for mutant, record in records.found() if record["outcome"] != "killed"]
            due += [mutant for mutant in alive if mutant.file in chosen and not records.reason(mutant)]
            print(f"with those that no test has killed, {len(due)} are to be run")
        if not due:
            return
        coverage = Coverage(cache, sources)
        coverage.measure(copy, [*sorted({mutant.file for mutant in due}), *tests])
        for measured in coverage.files.values():
            for name in measured["failed"]:
                print(f"fails without any change, and is left out: {name}")
        survived = 0
        with progress.Progress("mutants", total=len(due)) as bar:
            for done, mutant in enumerate(due, 1):
                reaching = coverage.tests(mutant, most_seconds, records.noticed(mutant.file))
                outcome, by, seconds = _meet(copy, mutant, sources[mutant.file], reaching)
                records.add(mutant, outcome, by, seconds)
                survived += outcome in NOT_NOTICED
                if outcome != "killed":
                    bar.say(f"{outcome}: {mutant}")
                bar.update(done, f"{survived} unnoticed")


def _meet(copy: Copy, mutant: Mutant, source: bytes, tests: dict[str, float]) -> tuple[str, str | None, float]:
    """What became of a mutant: outcome, the test that noticed, seconds."""
    if not tests:
        return "uncovered", None, 0.0
    began = time.monotonic()
    changed = copy.root / mutant.file
    try:
        changed.write_bytes(mutant.applied(source))
        paths = list(dict.fromkeys(name.partition("::")[0] for name in tests))
        status, report = copy.pytest(paths, limits={name: FACTOR * spent + PATIENCE for name, spent in tests.items()})
    finally:
        changed.write_bytes(source)
    seconds = time.monotonic() - began
    if status is None:
        return "timeout", None, seconds
    if status == 0:
        return "survived", None, seconds
    for name, (outcome, _) in report.get("tests", {}).items():
        if outcome in ("failed", "timeout"):
            return "killed" if outcome == "failed" else outcome, name, seconds
    if 1 <= status <= 4 or (status < 0 and status != -signal.SIGKILL):
        return "killed", "import" if status > 0 else f"signal {-status}", seconds
    raise RuntimeError(f"{mutant}: no test ran, exit status {status}: {report['output']}")


def _only(sources: dict[str, bytes], only: Sequence[str]) -> dict[str, bytes]:
    chosen = {file: source for file, source in sources.items() if not only or file.startswith(tuple(only))}
    if not chosen:
        raise InputError(f"`only` must be the beginning of one of the files that are changed, got {', '.join(only)}")
    return chosen


def _options() -> types.SimpleNamespace:
    """Defines the flags; only where this is the program that runs, since others have flags of the same names."""
    return types.SimpleNamespace(
        count=flags.DEFINE_integer("count", 160, "Mutants to draw, over all files.", lower_bound=0),
        seed=flags.DEFINE_integer("seed", 0, "Of the draw."),
        only=flags.DEFINE_multi_string("only", [], "Only of files whose path begins so; may be repeated."),
        again=flags.DEFINE_boolean("again", False, "Run those of all records once more that no test has killed."),
        list=flags.DEFINE_boolean("list", False, "Print the mutants that were drawn and run nothing."),
        report=flags.DEFINE_boolean("report", False, "Print what the records say and run nothing."),
        tests=flags.DEFINE_list(
            "tests", ["tests"], "Files and folders of tests, besides the examples of a file itself."
        ),
        most=flags.DEFINE_float(
            "most_seconds", 600.0, "Of tests that a mutant meets; the slowest are left out beyond that."
        ),
    )


def main() -> None:
    """Runs, lists or reports."""
    sources = read_sources(ROOT)
    only = OPTIONS.only.value
    if OPTIONS.list.value:
        print("\n".join(map(str, choose(_only(sources, only), OPTIONS.count.value, OPTIONS.seed.value))))
        return
    if not OPTIONS.report.value:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        run(
            ROOT,
            process.cache_folder() / "mutants_coverage.json",
            only=only,
            count=OPTIONS.count.value,
            seed=OPTIONS.seed.value,
            again=OPTIONS.again.value,
            tests=OPTIONS.tests.value,
            most_seconds=OPTIONS.most.value,
        )
    _only(sources, only)
    print("\n".join(report(Records(ROOT, sources), only)))


if __name__ == "__main__":
    OPTIONS = _options()
    cli.run(main)
