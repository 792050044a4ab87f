"""What became of each mutant, as long as its code and the test that noticed it are there, and what is said of it.

A record holds as long as there is the same function, class or other statement at the top of a file, whatever becomes of
its docstrings, comments and layout, of the file and of other code; and one of a mutant that was killed, as long as the
test that noticed is there.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mutants_rules import Mutant, generate, line_starts, short

from robustjax.runtime import files

NOT_NOTICED = ("survived", "uncovered")


class Records:
    """results/mutants.json, of a checkout with its `sources` and tests."""

    def __init__(self, root: Path, sources: dict[str, bytes]):
        self.root, self.sources = root, sources
        self.path = root / "results" / "mutants.json"
        self.all = self._read()
        listed = root / "results" / "mutants_equivalent.json"
        self.equivalent: list[dict[str, Any]] = json.loads(listed.read_text()) if listed.exists() else []

    def _read(self) -> list[dict[str, Any]]:
        return json.loads(self.path.read_text()) if self.path.exists() else []

    def find(self, mutant: Mutant) -> dict[str, Any] | None:
        """The record of this very change of this very code, where it holds."""
        return next((record for record in self._of(mutant) if _is_there(self.root, record["by"])), None)

    def _of(self, mutant: Mutant) -> list[dict[str, Any]]:
        """The records of this very change of this very code."""
        code, changed = self._code(mutant)
        same = [record for record in self.all if record["code"] == code and record["changed"] == changed]
        # A definition may have gone to another file; but where two files have the same one, each has its own records.
        here = {mutant.file} | {file for file in {record["file"] for record in same} if not self._holds(file, code)}
        return [record for record in same if record["file"] in here]

    def _holds(self, file: str, code: str) -> bool:
        return file in self.sources and code in _digests(self.sources[file])

    def _code(self, mutant: Mutant) -> tuple[str, str]:
        """Digests of the definition around it, as it is and as changed: what a mutant is, wherever that stands."""
        text, start = self._text(mutant), self._around(mutant).start
        changed = text[: mutant.start - start] + mutant.after.encode() + text[mutant.stop - start :]
        return _digest(text), _digest(changed)

    def _text(self, mutant: Mutant) -> bytes:
        """The definition around it."""
        around = self._around(mutant)
        return self.sources[mutant.file][around.start : around.stop]

    def _around(self, mutant: Mutant) -> Definition:
        (around,) = (part for part in definitions(self.sources[mutant.file]) if part.start <= mutant.start < part.stop)
        return around

    def found(self) -> list[tuple[Mutant, dict[str, Any]]]:
        """Each mutant of the sources of which there is a record, and the record."""
        known = {record["code"] for record in self.all}
        pairs = []
        for file, source in self.sources.items():
            if known & _digests(source):
                made = (mutant for mutant in generate(file, source) if _digest(self._text(mutant)) in known)
                pairs += [(mutant, record) for mutant in made if (record := self.find(mutant))]
        return pairs

    def add(self, mutant: Mutant, outcome: str, by: str | None, seconds: float) -> None:
        """Writes what became of it, in place of what was known."""
        self.all = self._read()  # another run of this program may have added something
        old = self._of(mutant)
        code, changed = self._code(mutant)
        found = self._place(mutant) | {
            "outcome": outcome,
            "by": by,
            "seconds": round(seconds, 1),
            "code": code,
            "changed": changed,
        }
        self.all = sorted(
            [*(record for record in self.all if record not in old), found],
            key=lambda record: (record["file"], record["line"], record["column"], record["rule"], record["after"]),
        )
        lines = ",\n".join(json.dumps(record) for record in self.all)
        files.write(self.path, f"[\n{lines}\n]\n")

    def _place(self, mutant: Mutant) -> dict[str, Any]:
        """What people read of it in results/mutants.json."""
        return {
            "file": mutant.file,
            "definition": self._around(mutant).name,
            "line": mutant.line,
            "column": mutant.column,
            "rule": mutant.rule,
            "before": short(mutant.before),
            "after": short(mutant.after),
        }

    def noticed(self, file: str) -> Counter[str]:
        """How many mutants of a file each test function has killed."""
        return Counter(function_of(record["by"]) for record in self.all if record["file"] == file and record["by"])

    def reason(self, mutant: Mutant) -> str | None:
        """Why no test can tell a mutant from the original, where that is known.

        An entry names the line of code and the place `at` in it, as the line's number changes with other lines.
        """
        line = self.line(mutant)
        place = self._place(mutant) | {"code": line.strip(), "at": mutant.column - 1 - len(line) + len(line.lstrip())}
        del place["file"], place["line"], place["column"]
        return next((entry["reason"] for entry in self.equivalent if place.items() <= entry.items()), None)

    def line(self, mutant: Mutant) -> str:
        """The line of code that a mutant begins in."""
        return self.sources[mutant.file].decode().splitlines()[mutant.line - 1]


def report(records: Records, only: Sequence[str] = ()) -> list[str]:
    """What the records say of the files as they are, in lines."""
    outcomes = ("killed", "timeout", "equivalent", "survived", "uncovered")
    table: dict[str, Counter] = {}
    rules: dict[str, Counter] = {}
    left, explained = [], []
    pairs = records.found()
    for mutant, record in pairs:
        if only and not mutant.file.startswith(tuple(only)):
            continue
        outcome, reason = record["outcome"], None
        if outcome in NOT_NOTICED and (reason := records.reason(mutant)):
            outcome = "equivalent"
        table.setdefault(mutant.file, Counter())[outcome] += 1
        rules.setdefault(mutant.rule, Counter())[outcome] += 1
        if outcome in NOT_NOTICED:
            left += [f"{mutant} ({outcome})", f"    {records.line(mutant).strip()}"]
        elif outcome == "equivalent":
            explained += [f"{mutant}", f"    {records.line(mutant).strip()}", f"    {reason}"]
    rows = [*sorted(table.items()), *sorted(rules.items()), ("all", sum(table.values(), Counter()))]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'file or rule':{width}}  " + "  ".join(f"{outcome:>10}" for outcome in outcomes)]
    for name, counts in rows:
        lines.append(f"{name:{width}}  " + "  ".join(f"{counts[outcome]:10}" for outcome in outcomes))
    lines += ["", "No test notices:", *left] if left else ["", "None survives but the equivalent ones."]
    lines += ["", "No test can notice:", *explained] if explained else []
    older = len(records.all) - len(pairs)
    lines += ["", f"{older} records are of code or tests that are no longer there."] if older else []
    return lines


class Definition(NamedTuple):
    """What stands at the top of a file: its name, or that of what it is assigned to, and its bytes with decorators."""

    name: str
    start: int
    stop: int


@functools.cache
def definitions(source: bytes) -> list[Definition]:
    """All functions, classes and other statements at the top of a file, in order."""
    starts = line_starts(source)
    found = []
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        name = getattr(node, "name", None) or getattr(target, "id", "")
        first = min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))
        stop = starts[node.end_lineno - 1] + node.end_col_offset
        found.append(Definition(name, starts[first - 1], stop))
    return found


@functools.cache
def _digests(source: bytes) -> frozenset[str]:
    """Of all definitions of a file."""
    return frozenset(_digest(source[found.start : found.stop]) for found in definitions(source))


@functools.cache
def _digest(source: bytes) -> str:
    """Sixteen digits that change with the code, but not with its docstrings, comments and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_docstring(line)]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def function_of(test: str) -> str:
    """The test function of a node id, without its parameters, also those of absl and chex."""
    return re.split(r"\[|_*\(|__with", test)[0]


def _is_there(root: Path, test: str | None) -> bool:
    """Whether a test, a documented example, or what else noticed a mutant is in the checkout."""
    file, _, names = (test or "").partition("::")
    if not names:
        return True  # nothing noticed, or the mutant could not be imported
    path = root / file
    if not path.is_file():
        return False
    # An example is named as what it explains: module.name, or the module alone.
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    names = names.removeprefix(module).removeprefix(".").replace(".", "::")
    return not names or function_of(names) in _names(path.read_bytes())


@functools.cache
def _names(source: bytes) -> frozenset[str]:
    """Names of the functions and classes of a file, those in classes as Class::name."""

    def inside(body: Sequence[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield prefix + node.name
                if isinstance(node, ast.ClassDef):
                    yield from inside(node.body, f"{prefix}{node.name}::")

    return frozenset(inside(ast.parse(source).body, ""))
