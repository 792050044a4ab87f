"""Changes one thing at a time in the code that attacks, trains and gives verdicts, and counts the tests that notice.

python benchmarks/mutants.py [--count=160] [--seed=0] [--only=robustjax/attacks] [--jobs=2] [--again]
python benchmarks/mutants.py --list | --report

Mutants are made by rule from the syntax tree: another constant, sign, comparison, minimum for maximum, `&` for `|`, a
sum without one of its terms, exchanged branches, a `not` less. What cannot matter is left out by rule: annotations,
messages, errors, checks of types, and the numbers that only choose a stream of random numbers. `--count` of them are
drawn by `--seed`, from every file and otherwise in proportion to what a file holds; nobody looks whether they are
caught.

A mutant meets the tests whose execution reaches its line, the quickest first, until one fails. They run in a copy of
the checkout, so the files here can be worked on meanwhile. Which tests reach which lines is measured once and kept in
the user's cache folder; what has changed since is measured again. A test that takes longer than `FACTOR` times its
usual time and `PATIENCE` seconds is ended: either the mutant runs on for ever or the machine was busy.

results/mutants.json has a record after every mutant: the same command goes on where it was, and a mutant is not run
twice unless its code has changed or, with `--again`, it was not killed. A record holds as long as there is the same
function, class or other statement at the top of a file, whatever becomes of its docstrings, comments and layout, of the
file and of other code; and one of a mutant that was killed, as long as the test that noticed is there.
results/mutants_equivalent.json says of which mutants no test can tell the difference, and why.
"""

from __future__ import annotations

import ast
import bisect
import concurrent.futures
import contextlib
import fnmatch
import functools
import hashlib
import itertools
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from robustjax import cli
from robustjax.runtime import files, process, progress
from robustjax.types import InputError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
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
# Tests of other things, or by way of processes of their own, in which nothing is measured.
APART = (
    "tests/bad_input",
    "tests/data",
    "tests/interop",
    "tests/runtime",
    "tests/test_commands",
    "tests/test_faults",
    "tests/test_launch",
    "tests/test_mutants",
)
FACTOR, PATIENCE = 6.0, 120.0  # a test's limit: times its usual seconds, and seconds more
START = 300.0  # seconds that Python and the tests may take to load
NOT_NOTICED = ("survived", "uncovered")
EXAMPLES = "examples"  # the unit of measurement that is not a file of tests but the doctests of the sources

OPPOSITE = {"+": "-", "-": "+", "*": "/", "/": "*", "&": "|", "|": "&", "and": "or", "or": "and"}
NEIGHBOURS = {"<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",), "!=": ("==",)}
EXTREMES = {"min": "max", "minimum": "maximum", "argmin": "argmax"}
EXTREMES |= {other: name for name, other in EXTREMES.items()}
# Calls whose arguments say something to people, ask for a type, or only choose a stream of random numbers.
WITHOUT_EFFECT = {"print", "say", "warn", "isinstance", "issubclass", "hasattr", "fold_in", "split", "key", "format"}
# Arguments that choose how something is computed, not what.
SETTINGS = {
    "precision",
    "donate_argnums",
    "static_argnums",
    "static_argnames",
    "unroll",
    "check_vma",
    "indent",
    "shown",
}


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        file: path from the root.
        line, column: where, from 1.
        rule: what kind of change.
        before, after: text of the file from byte `start` to `stop`, and what takes its place.
        reached: lines of which a test has to execute one to be able to notice.
        definition: what it is in of that which stands at the top of the file: a function, a class or another statement.
    """

    file: str
    line: int
    column: int
    rule: str
    before: str
    after: str
    start: int
    stop: int
    reached: frozenset[int]
    definition: Definition

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.start] + self.after.encode() + source[self.stop :]

    def code(self, source: bytes) -> tuple[str, str]:
        """Digests of its definition as it is and as changed: what a mutant is, wherever the definition stands.

        Docstrings, comments and layout have no part in them.
        """
        first, last = self.definition.start, self.definition.stop
        changed = source[first : self.start] + self.after.encode() + source[self.stop : last]
        return _digest_of_code(source[first:last]), _digest_of_code(changed)

    def record(self) -> dict[str, Any]:
        """What people read of it in results/mutants.json."""
        return {
            "file": self.file,
            "definition": self.definition.name,
            "line": self.line,
            "column": self.column,
            "rule": self.rule,
            "before": _short(self.before),
            "after": _short(self.after),
        }

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.rule}: {_short(self.before)} -> {_short(self.after)}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:40]} ... {text[-25:]}"


def digest(content: bytes) -> str:
    """Sixteen digits that change with the content."""
    return hashlib.sha256(content).hexdigest()[:16]


class Definition(NamedTuple):
    """What stands at the top of a file: its name, or that of what it is assigned to, and its bytes with decorators."""

    name: str
    start: int
    stop: int


def definitions(source: bytes) -> list[Definition]:
    """All functions, classes and other statements at the top of a file, in order."""
    starts = _line_starts(source)
    found = []
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        name = getattr(node, "name", None) or getattr(target, "id", "")
        first = min(part.lineno for part in (node, *getattr(node, "decorator_list", ())))
        stop = starts[node.end_lineno - 1] + node.end_col_offset
        found.append(Definition(name, starts[first - 1], stop))
    return found


def _line_starts(source: bytes) -> list[int]:
    """Where each line begins, and where the last one ends."""
    return [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]


@functools.cache
def _digest_of_code(source: bytes) -> str:
    """Of the code as Python would write it, without the strings that stand for themselves, which are docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [line for line in body if not _is_text(line)]
    return digest(ast.unparse(tree).encode())


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@functools.cache
def _digests(source: bytes) -> frozenset[str]:
    """Of all definitions of a file."""
    return frozenset(_digest_of_code(source[found.start : found.stop]) for found in definitions(source))


# --- Making mutants


def generate(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of the text."""
    generator = _Generator(file, source)
    generator.visit(generator.tree)
    unique = {tuple(mutant.record().values()): mutant for mutant in generator.mutants}
    return sorted(unique.values(), key=lambda mutant: (mutant.start, mutant.stop, mutant.rule, mutant.after))


class _Generator(ast.NodeVisitor):
    """Collects the mutants of a file in one pass over its syntax tree."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source, self.tree = file, source, ast.parse(source)
        self.mutants: list[Mutant] = []
        self.starts = _line_starts(source)
        self.definitions = definitions(source)
        self.reached: frozenset[int] = frozenset()
        self.statements: list[tuple[range, set[str]]] | None = None
        self.functions = 0  # that the present node is inside of
        self.index = False  # whether it is an index or an axis

    # Where things are

    def _span(self, node: ast.AST) -> tuple[int, int]:
        return (
            self.starts[node.lineno - 1] + node.col_offset,
            self.starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _text(self, node: ast.AST) -> str:
        start, stop = self._span(node)
        return self.source[start:stop].decode()

    def _add(self, rule: str, start: int, stop: int, after: str) -> None:
        line = bisect.bisect_right(self.starts, start) - 1
        before = self.source[start:stop].decode()
        column = len(self.source[self.starts[line] : start].decode()) + 1
        if after != before:
            (around,) = (found for found in self.definitions if found.start <= start < found.stop)
            found = Mutant(self.file, line + 1, column, rule, before, after, start, stop, self.reached, around)
            self.mutants.append(found)

    def _replace(self, rule: str, node: ast.AST, after: str) -> None:
        self._add(rule, *self._span(node), after)

    def _operator(self, left: ast.AST, right: ast.AST, symbol: str) -> tuple[int, int]:
        """Where an operator is between its operands, past parentheses and comments."""
        start, stop = self._span(left)[1], self._span(right)[0]
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[start:stop])
        at = start + gap.index(symbol.encode())
        return at, at + len(symbol)

    # Which lines a test has to execute

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            reached, self.reached = self.reached, self._lines(node)
            super().visit(node)
            self.reached = reached
        else:
            super().visit(node)

    def _lines(self, node: ast.stmt) -> frozenset[int]:
        if self.functions:
            return frozenset(_header(node))
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            return frozenset()  # whatever is inside has lines of its own
        # Executed on import, by every test or none: a test has to execute a use of the name that is defined.
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {inner.id for target in targets if target for inner in ast.walk(target) if isinstance(inner, ast.Name)}
        return self._uses(names) or self._uses(None)

    def _uses(self, names: set[str] | None) -> frozenset[int]:
        """Lines of the statements inside functions that use one of the names, or of all of them."""
        if self.statements is None:
            functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]
            inside = {inner for node in functions for part in node.body for inner in ast.walk(part)}
            self.statements = [
                (_header(node), {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)})
                for node in inside
                if isinstance(node, ast.stmt)
            ]
        lines = [header for header, used in self.statements if names is None or names & used]
        return frozenset(line for header in lines for line in header)

    # What is left out

    def _nothing(self, node: ast.AST) -> None:
        pass

    visit_Raise = visit_Assert = visit_JoinedStr = visit_Import = visit_ImportFrom = _nothing

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not self.functions:
            self.reached = frozenset(line for statement in node.body for line in _header(statement))
        for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
            self.visit(default)
        self.functions += 1
        for statement in node.body:
            self.visit(statement)
        self.functions -= 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in self._text(node.test):
            self.generic_visit(node)

    # The rules

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._replace("constant", node, str(not value))
        elif isinstance(value, int):
            # An index or an axis is only moved: another size would be another rank.
            others = [value + 1] if self.index else [value + 1, round(1.5 * value), 0]
            for other in dict.fromkeys(others):
                self._replace("constant", node, str(other))
        elif isinstance(value, float):
            # Half as much again of a guard against division by 0 is a guard as well.
            others = [value + 1, 0.0] if abs(value) < 1e-5 else [value + 1, 1.5 * value, 0.0]
            for other in dict.fromkeys(others):
                if other != value:
                    self._replace("constant", node, repr(other))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        operand = f"({self._text(node.operand)})"
        if isinstance(node.op, ast.USub):
            if self.index and isinstance(node.operand, ast.Constant):
                # The last axis by its number from the front is the same axis where there are two.
                self._replace("constant", node, "0")
                return
            self._replace("sign", node, operand)
        elif isinstance(node.op, ast.Not | ast.Invert) and not _called(node.operand) & WITHOUT_EFFECT:
            self._replace("negation", node, operand)
        self.visit(node.operand)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        symbol = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.BitAnd: "&", ast.BitOr: "|"}
        found = symbol.get(type(node.op))
        lists = any(_is_sequence(operand) for operand in (node.left, node.right))
        alias = isinstance(node.op, ast.BitOr | ast.BitAnd) and not self.functions  # of types
        if found and not lists and not alias:
            at = self._operator(node.left, node.right, found)
            self._add("sign" if found in "+-*/" else "logic", *at, OPPOSITE[found])
            if found in "+-":
                self._replace("term", node, f"({self._text(node.left)})")
            if found == "+":
                self._replace("term", node, f"({self._text(node.right)})")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        found = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}.get(type(node.op))
        if found and not _is_sequence(node.value):
            self._add("sign", *self._operator(node.target, node.value, f"{found}="), f"{OPPOSITE[found]}=")
        self.visit(node.value)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        symbol = "and" if isinstance(node.op, ast.And) else "or"
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._add("logic", *self._operator(left, right, symbol), OPPOSITE[symbol])
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        symbol = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
        operands = [node.left, *node.comparators]
        for operator, left, right in zip(node.ops, operands, operands[1:], strict=False):
            if found := symbol.get(type(operator)):
                for other in NEIGHBOURS[found]:
                    self._add("comparison", *self._operator(left, right, found), other)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        test, body, other = (f"({self._text(part)})" for part in (node.test, node.body, node.orelse))
        self._replace("branch", node, f"{other} if {test} else {body}")
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        self._visit_index(node.slice)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg in ("axis", "axes"):
            self._visit_index(node.value)
        elif node.arg not in SETTINGS:
            self.visit(node.value)

    def _visit_index(self, node: ast.AST) -> None:
        index, self.index = self.index, True
        self.visit(node)
        self.index = index

    def visit_Call(self, node: ast.Call) -> None:
        (name,) = _called(node)
        if name in WITHOUT_EFFECT:
            return
        if name in EXTREMES:
            stop = self._span(node.func)[1]
            self._add("extreme", stop - len(name), stop, EXTREMES[name])
        if name == "where" and len(node.args) == 3 and not node.keywords:
            first, second = (f"({self._text(argument)})" for argument in node.args[1:])
            comma = self._operator(node.args[0], node.args[1], ",")[1]
            self._add("branch", comma, self._span(node)[1] - 1, f" {second}, {first}")
        index, self.index = self.index, False
        self.generic_visit(node)
        self.index = index


def _header(node: ast.stmt) -> range:
    """The lines of a statement, without those of the statements inside it."""
    body = getattr(node, "body", None)
    last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
    return range(node.lineno, last + 1)


def _called(node: ast.AST) -> set[str]:
    """The last part of the name of what is called, where the node is a call."""
    if not isinstance(node, ast.Call):
        return set()
    return {node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")}


def _is_sequence(node: ast.AST) -> bool:
    """Whether a sum or product with this operand joins or repeats something."""
    if isinstance(node, ast.BinOp):
        return _is_sequence(node.left) or _is_sequence(node.right)
    text = isinstance(node, ast.Constant) and not isinstance(node.value, int | float)
    return text or isinstance(node, ast.Tuple | ast.List | ast.ListComp | ast.JoinedStr)


def choose(sources: dict[str, bytes], count: int, seed: int) -> list[Mutant]:
    """A sample of the mutants of all files: one of each file at least, otherwise in proportion.

    A file's own order does not depend on the other files: what is done stays in the sample when other files change.
    """
    ranked = []
    for file, source in sorted(sources.items()):
        draw = random.Random(f"{seed} {file}")
        places: dict[tuple[int, str], list[Mutant]] = {}
        for mutant in generate(file, source):
            places.setdefault((mutant.start, mutant.rule), []).append(mutant)
        for mutants in places.values():
            draw.shuffle(mutants)
        order = list(places.values())
        draw.shuffle(order)
        # First one change at every place, then the other changes at the same places.
        turns = [[mutants[i] for mutants in order if i < len(mutants)] for i in range(max(map(len, order), default=0))]
        own = [mutant for turn in turns for mutant in turn]
        ranked += [(i / len(own), file, mutant) for i, mutant in enumerate(own)]
    valid = (mutant for *_, mutant in sorted(ranked) if _compiles(mutant.applied(sources[mutant.file])))
    return sorted(itertools.islice(valid, count))


def _compiles(source: bytes) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


# --- Running tests in a copy


class Copies:
    """Copies of a checkout, in each of which one run of tests at a time changes files as it likes."""

    def __init__(self, root: Path, count: int):
        self.folder = Path(tempfile.mkdtemp(prefix="mutants"))
        self.free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        self.running: set[subprocess.Popen] = set()
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root,
            capture_output=True,
            check=False,
        )
        for i in range(count):
            copy = self.folder / f"copy{i}"
            if listed.returncode:  # no git checkout
                shutil.copytree(root, copy, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                for name in filter(None, listed.stdout.decode().split("\0")):
                    if (root / name).is_file():
                        (copy / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy2(root / name, copy / name)
            self.free.put(copy)
        self.first = self.folder / "copy0"

    def __enter__(self) -> Copies:
        return self

    def __exit__(self, *_: object) -> None:
        for running in list(self.running):
            _end(running)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pytest(
        self,
        copy: Path,
        paths: Sequence[str],
        *,
        limits: dict[str, float] | None = None,
        data: Path | None = None,
    ) -> tuple[int | None, dict[str, Any]]:
        """Exit status, None after much more than all limits, and what the plugin reports, empty where it could not."""
        work = Path(tempfile.mkdtemp(dir=self.folder))
        job, result = work / "job.json", work / "result.json"
        job.write_text(json.dumps({"limits": limits, "measure": data is not None, "result": str(result)}))
        settings = work / "coveragerc"
        settings.write_text(f"[run]\nsource = {copy}\n")
        covered = ["coverage", "run", f"--rcfile={settings}", f"--data-file={data}", "-m"] if data else []
        command = [sys.executable, "-m", *covered, "pytest", "-p", "mutants_plugin", "-p", "no:cacheprovider"]
        command += ["-q", "--tb=no", "--doctest-modules", "-m", "not slow", *([] if data else ["-x"]), *paths]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(copy), str(HERE)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MUTANTS_JOB": str(job),
            "TMPDIR": str(work),
            "JAX_COMPILATION_CACHE_DIR": str(process.cache_folder() / "mutants"),
            # Only what the unchanged code compiles is kept.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1" if data else "1e9",
        }
        with open(work / "output", "wb") as output:
            running = subprocess.Popen(
                command, cwd=copy, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        self.running.add(running)
        try:
            status = running.wait(None if limits is None else sum(limits.values()) + START)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(running)
            self.running.discard(running)
        report = json.loads(result.read_text()) if result.exists() else {}
        report["output"] = (work / "output").read_text(errors="replace")
        shutil.rmtree(work, ignore_errors=True)
        return status, report


def _end(running: subprocess.Popen) -> None:
    """Ends a process with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()


# --- Which tests reach which lines


class Coverage:
    """test -> seconds, and file -> line -> tests, measured unit by unit; a unit is a file of tests, or the examples."""

    def __init__(self, path: Path, sources: dict[str, bytes]):
        self.path, self.sources = path, sources
        # Here, before any thread: Python 3.11 can fail where two threads parse at the same time (CPython issue 106905).
        self.inside = {file: _function_lines(source) for file, source in sources.items()}
        self.units: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, copies: Copies, paths: Sequence[str], jobs: int) -> None:
        """Measures the units that are new, or of which something has changed."""
        copy = copies.first
        wanted = [EXAMPLES]
        for path in paths:
            found = [copy / path] if (copy / path).is_file() else sorted((copy / path).rglob("test_*.py"))
            if not found:
                raise InputError(f"`tests` must be files or folders with tests, got {path!r}")
            wanted += [str(file.relative_to(copy)) for file in found]
        wanted = [unit for unit in dict.fromkeys(wanted) if not unit.startswith(APART)]
        due = [unit for unit in wanted if not self._is_current(copy, unit)]
        with progress.Progress("which tests reach which lines", total=len(due)) as bar:
            for done, (unit, found) in enumerate(in_parallel(copies, jobs, self._measured, due), 1):
                self.units[unit] = found
                files.write(self.path, json.dumps(self.units, separators=(",", ":")))
                bar.update(done, unit)
        self.units = {unit: self.units[unit] for unit in wanted}

    def _is_current(self, copy: Path, unit: str) -> bool:
        known = self.units.get(unit)
        return known is not None and known["digest"] == self._digest(copy, unit, known["lines"])

    def _digest(self, copy: Path, unit: str, reached: Sequence[str]) -> str:
        """Of the tests, of the files that help them, and of the sources in which they executed something."""
        parts = [self.sources.get(file, b"") for file in sorted(reached)]
        if unit == EXAMPLES:
            parts = [source for _, source in sorted(self.sources.items())]
        else:
            folder = (copy / unit).parent
            helpers = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("test_")]
            parts += [path.read_bytes() for path in [copy / unit, *helpers]]
        return digest(b"\0".join(parts))

    def _measured(self, copies: Copies, copy: Path, unit: str) -> dict[str, Any]:
        import coverage  # only here: records can be read without it

        data = copies.folder / f"{unit.replace('/', '.')}.data"
        paths = sorted(self.sources) if unit == EXAMPLES else [unit]
        status, report = copies.pytest(copy, paths, data=data)
        if status not in (0, 1, 5) or "tests" not in report:
            raise InputError(f"`tests` must run, got exit status {status} from {unit}: {_last_lines(report)}")
        # A test that fails, or is skipped, without any change can tell nothing.
        seconds = {name: spent for name, (outcome, spent) in report["tests"].items() if outcome == "passed"}
        tests, lines = list(seconds), {}
        number = {name: i for i, name in enumerate(tests)}
        users: dict[str, list[int]] = {}
        for name, shared in report["fixtures"].items():
            for fixture in shared:
                if name in number:
                    users.setdefault(fixture, []).append(number[name])
                    # Alone it has to wait for what the others have found ready.
                    seconds[name] += report["shared"].get(fixture, 0.0)
        measured = coverage.CoverageData(str(data))
        measured.read()
        for file in self.sources:
            inside = self.inside[file]
            by_line = {}
            for line, contexts in measured.contexts_by_lineno(str((copy / file).resolve())).items():
                reaching = {number[name] for name in contexts if name in number}
                reaching.update(i for name in contexts for i in users.get(name, ()))
                if reaching and line in inside:
                    by_line[str(line)] = sorted(reaching)
            if by_line:
                lines[file] = by_line
        failed = sorted(name for name, (outcome, _) in report["tests"].items() if outcome == "failed")
        return {
            "digest": self._digest(copy, unit, list(lines)),
            "tests": tests,
            "seconds": [seconds[name] for name in tests],
            "lines": lines,
            "failed": failed,
        }

    def tests(self, mutant: Mutant, most_seconds: float, noticed: Counter[str]) -> dict[str, float]:
        """node id -> seconds of the tests that reach a mutant, in the order in which they should run.

        Quick ones come first, those that were written for the file, and those that have `noticed` other mutants of it;
        of each function with parameters one case before the other cases, which are likely to see no more.
        """
        found: dict[str, list[tuple[float, float, str]]] = {}
        stem = Path(mutant.file).stem.strip("_")
        for unit, known in self.units.items():
            lines = known["lines"].get(mutant.file, {})
            weight = 0.2 if stem in Path(unit).stem or unit == EXAMPLES else 1.0
            for i in {i for line in mutant.reached for i in lines.get(str(line), ())}:
                name, seconds = known["tests"][i], known["seconds"][i]
                function = _function(name)
                found.setdefault(function, []).append((weight * seconds / (1 + noticed[function]), seconds, name))
        turns = [(turn, *test) for tests in found.values() for turn, test in enumerate(sorted(tests))]
        ordered, spent = {}, 0.0
        for _, _, seconds, name in sorted(turns):
            if spent + seconds <= most_seconds or not ordered:
                ordered[name] = seconds
                spent += seconds
        return ordered


def _function(test: str) -> str:
    """The test function of a node id, without its parameters, also those of absl and chex."""
    return re.split(r"\[|_*\(|__with", test)[0]


def _function_lines(source: bytes) -> set[int]:
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    bodies = [node.body if isinstance(node.body, list) else [node.body] for node in functions]
    return {line for body in bodies for line in range(body[0].lineno, body[-1].end_lineno + 1)}


def _last_lines(report: dict[str, Any]) -> str:
    return " / ".join(report.get("output", "").strip().splitlines()[-5:])


# --- Records


class Records:
    """results/mutants.json: what became of each mutant, of a checkout with its `sources` and tests."""

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
        code, changed = mutant.code(self.sources[mutant.file])
        same = [record for record in self.all if record["code"] == code and record["changed"] == changed]
        # A definition may have gone to another file; but where two files have the same one, each has its own records.
        here = {mutant.file} | {file for file in {record["file"] for record in same} if not self._holds(file, code)}
        return [record for record in same if record["file"] in here]

    def _holds(self, file: str, code: str) -> bool:
        return file in self.sources and code in _digests(self.sources[file])

    def found(self) -> list[tuple[Mutant, dict[str, Any]]]:
        """Each mutant of the sources of which there is a record, and the record."""
        known = {record["code"] for record in self.all}
        pairs = []
        for file, source in self.sources.items():
            if known & _digests(source):
                made = (mutant for mutant in generate(file, source) if _compiles(mutant.applied(source)))
                made = (mutant for mutant in made if mutant.code(source)[0] in known)
                pairs += [(mutant, record) for mutant in made if (record := self.find(mutant))]
        return pairs

    def add(self, mutant: Mutant, outcome: str, by: str | None, seconds: float) -> dict[str, Any]:
        """Writes what became of it, in place of what was known."""
        self.all = self._read()  # another run of this program may have added something
        old = self._of(mutant)
        code, changed = mutant.code(self.sources[mutant.file])
        found = mutant.record() | {
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
        return found

    def noticed(self, file: str) -> Counter[str]:
        """How many mutants of a file each test function has killed."""
        return Counter(_function(record["by"]) for record in self.all if record["file"] == file and record["by"])

    def reason(self, mutant: Mutant) -> str | None:
        """Why no test can tell a mutant from the original, where that is known.

        An entry names the line of code and the place `at` in it, as the line's number changes with other lines.
        """
        line = self.sources[mutant.file].decode().splitlines()[mutant.line - 1]
        code = line.strip()
        place = {"code": code, "at": mutant.column - 1 - line.index(code)}
        place |= {key: mutant.record()[key] for key in ("definition", "rule", "before", "after")}
        return next((entry["reason"] for entry in self.equivalent if place.items() <= entry.items()), None)


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
    return not names or _function(names) in _names(path.read_bytes())


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


def report(records: Records, only: Sequence[str] = ()) -> list[str]:
    """What the records say of the files as they are, in lines."""
    outcomes = ("killed", "timeout", "equivalent", "survived", "uncovered")
    table: dict[str, Counter] = {}
    left, explained = [], []
    pairs = records.found()
    for mutant, record in pairs:
        if only and not mutant.file.startswith(tuple(only)):
            continue
        outcome, reason = record["outcome"], None
        if outcome in NOT_NOTICED and (reason := records.reason(mutant)):
            outcome = "equivalent"
        table.setdefault(mutant.file, Counter())[outcome] += 1
        code = records.sources[mutant.file].decode().splitlines()[mutant.line - 1].strip()
        if outcome in NOT_NOTICED:
            left += [f"{mutant} ({outcome})", f"    {code}"]
        elif outcome == "equivalent":
            explained += [f"{mutant}", f"    {code}", f"    {reason}"]
    width = max(map(len, table), default=0)
    lines = [f"{'file':{width}}  " + "  ".join(f"{outcome:>10}" for outcome in outcomes)]
    for file, counts in [*sorted(table.items()), ("all", sum(table.values(), Counter()))]:
        lines.append(f"{file:{width}}  " + "  ".join(f"{counts[outcome]:10}" for outcome in outcomes))
    lines += ["", "No test notices:", *left] if left else ["", "None survives but the equivalent ones."]
    lines += ["", "No test can notice:", *explained] if explained else []
    older = len(records.all) - len(pairs)
    lines += ["", f"{older} records are of code or tests that are no longer there."] if older else []
    return lines


# --- All together


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
    jobs: int,
    again: bool,
    tests: Sequence[str] = ("tests",),
    most_seconds: float = 600.0,
) -> None:
    """Runs the mutants that have no record yet."""
    with Copies(root, jobs) as copies:
        sources = read_sources(copies.first, patterns)
        records = Records(root, sources)
        drawn = choose(_only(sources, only), count, seed)
        known = [records.find(mutant) for mutant in drawn]
        due = [
            mutant
            for mutant, record in zip(drawn, known, strict=True)
            if record is None or (again and record["outcome"] in (*NOT_NOTICED, "timeout"))
        ]
        print(f"{len(drawn)} mutants, of which {len(due)} are to be run")
        if not due:
            return
        coverage = Coverage(cache, sources)
        coverage.measure(copies, tests, jobs)
        for unit in coverage.units.values():
            for name in unit["failed"]:
                print(f"fails without any change, and is left out: {name}")

        def meet(copies: Copies, copy: Path, mutant: Mutant) -> tuple[str, str | None, float]:
            chosen = coverage.tests(mutant, most_seconds, records.noticed(mutant.file))
            return _meet(copies, copy, mutant, sources[mutant.file], chosen)

        survived = 0
        with progress.Progress("mutants", total=len(due)) as bar:
            for done, (mutant, outcome) in enumerate(in_parallel(copies, jobs, meet, due), 1):
                found = records.add(mutant, *outcome)
                survived += found["outcome"] in NOT_NOTICED
                if found["outcome"] != "killed":
                    bar.say(f"{found['outcome']}: {mutant}")
                bar.update(done, f"{survived} unnoticed")


def in_parallel(
    copies: Copies, jobs: int, work: Callable[[Copies, Path, Any], Any], items: Sequence[Any]
) -> Iterator[tuple[Any, Any]]:
    """(item, what `work` makes of it in a copy of its own), as they come; an error ends what still runs."""

    def alone(item: Any) -> Any:
        copy = copies.free.get()
        try:
            return work(copies, copy, item)
        finally:
            copies.free.put(copy)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(alone, item): item for item in items}
        try:
            for future in concurrent.futures.as_completed(started):
                yield started[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for running in list(copies.running):
                _end(running)
            raise


def _meet(
    copies: Copies, copy: Path, mutant: Mutant, source: bytes, tests: dict[str, float]
) -> tuple[str, str | None, float]:
    """What became of a mutant: outcome, the test that noticed, seconds."""
    if not tests:
        return "uncovered", None, 0.0
    began = time.monotonic()
    changed = copy / mutant.file
    try:
        changed.write_bytes(mutant.applied(source))
        paths = list(dict.fromkeys(name.partition("::")[0] for name in tests))
        limits = {name: FACTOR * seconds + PATIENCE for name, seconds in tests.items()}
        status, report = copies.pytest(copy, paths, limits=limits)
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
    if status in (2, 3, 4) or (status < 0 and status != -signal.SIGKILL):
        return "killed", "import" if status > 0 else f"signal {-status}", seconds
    raise RuntimeError(f"{mutant}: no test ran, exit status {status}: {_last_lines(report)}")


def _only(sources: dict[str, bytes], only: Sequence[str]) -> dict[str, bytes]:
    chosen = {file: source for file, source in sources.items() if not only or file.startswith(tuple(only))}
    if not chosen:
        raise InputError(f"`only` must be the beginning of one of the files that are changed, got {', '.join(only)}")
    return chosen


def _options() -> types.SimpleNamespace:
    """Defines the flags; only where this is the program that runs, since others have flags of the same names."""
    return types.SimpleNamespace(
        count=flags.DEFINE_integer("count", 160, "Mutants to draw, over all files.", lower_bound=1),
        seed=flags.DEFINE_integer("seed", 0, "Of the draw."),
        only=flags.DEFINE_multi_string("only", [], "Only of files whose path begins so; may be repeated."),
        jobs=flags.DEFINE_integer("jobs", 2, "Tests running at a time.", lower_bound=1),
        again=flags.DEFINE_boolean("again", False, "Run those once more that no test has killed."),
        list=flags.DEFINE_boolean("list", False, "Print the mutants that were drawn and run nothing."),
        report=flags.DEFINE_boolean("report", False, "Print what the records say and run nothing."),
        tests=flags.DEFINE_list(
            "tests", ["tests"], "Files and folders of tests; the files' own examples are always run."
        ),
        most=flags.DEFINE_float(
            "most_seconds", 600.0, "Of tests that a mutant meets; the slowest are left out beyond that."
        ),
    )


def main() -> None:
    """Runs, lists or reports."""
    sources = read_sources(ROOT)
    if OPTIONS.list.value:
        print("\n".join(map(str, choose(_only(sources, OPTIONS.only.value), OPTIONS.count.value, OPTIONS.seed.value))))
        return
    if not OPTIONS.report.value:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        run(
            ROOT,
            process.cache_folder() / "mutants_coverage.json",
            only=OPTIONS.only.value,
            count=OPTIONS.count.value,
            seed=OPTIONS.seed.value,
            jobs=OPTIONS.jobs.value,
            again=OPTIONS.again.value,
            tests=OPTIONS.tests.value,
            most_seconds=OPTIONS.most.value,
        )
    _only(sources, OPTIONS.only.value)
    print("\n".join(report(Records(ROOT, sources), OPTIONS.only.value)))


if __name__ == "__main__":
    OPTIONS = _options()
    cli.run(main)
