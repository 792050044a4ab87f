"""Mutants of a file, by rule from its syntax tree: what they are, and a sample of them.

Another constant, sign, comparison, minimum for maximum, `&` for `|`, a sum without one of its terms, exchanged
branches, a `not` less. What cannot matter is left out by rule: annotations, messages, errors, checks of types, and the
numbers that only choose a stream of random numbers.
"""

from __future__ import annotations

import ast
import bisect
import itertools
import random
import re
from typing import NamedTuple

OPPOSITE = {"+": "-", "-": "+", "*": "/", "/": "*", "&": "|", "|": "&", "and": "or", "or": "and"}
NEIGHBOURS = {"<": ("<=", ">="), "<=": ("<", ">"), ">": (">=", "<="), ">=": (">", "<"), "==": ("!=",), "!=": ("==",)}
EXTREMES = {"min": "max", "minimum": "maximum", "argmin": "argmax"}
EXTREMES |= {other: name for name, other in EXTREMES.items()}
# Calls whose arguments say something to people, ask for a type, or only choose a stream of random numbers.
WITHOUT_EFFECT = {"print", "say", "warn", "isinstance", "issubclass", "hasattr", "fold_in", "split", "key", "format"}
# Arguments that choose how something is computed, not what.
SETTINGS = {"precision", "donate_argnums", "static_argnums", "static_argnames", "unroll", "check_vma", "shown"}


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        file: path from the root.
        line, column: where, from 1.
        rule: what kind of change.
        before, after: text of the file from byte `start` to `stop`, and what takes its place.
        reached: lines of which a test has to execute one to be able to notice.
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

    def applied(self, source: bytes) -> bytes:
        """The file with the change."""
        return source[: self.start] + self.after.encode() + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.rule}: {short(self.before)} -> {short(self.after)}"


def short(text: str) -> str:
    """At most 70 characters of it, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= 70 else f"{text[:40]} ... {text[-25:]}"


def line_starts(source: bytes) -> list[int]:
    """Where each line begins, and where the last one ends."""
    return [0, *itertools.accumulate(len(line) for line in source.splitlines(keepends=True))]


def generate(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in the order of the text."""
    generator = _Generator(file, source)
    generator.visit(generator.tree)
    unique = {str(mutant): mutant for mutant in generator.mutants}
    return sorted(unique.values(), key=lambda mutant: (mutant.start, mutant.stop, mutant.rule, mutant.after))


class _Generator(ast.NodeVisitor):
    """Collects the mutants of a file in one pass over its syntax tree."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source, self.tree = file, source, ast.parse(source)
        self.mutants: list[Mutant] = []
        self.starts = line_starts(source)
        self.reached: frozenset[int] = frozenset()
        self.statements: list[tuple[range, set[str]]] | None = None
        self.functions = 0  # that the present node is inside of
        self.index = False  # whether it is an index or an axis

    # Where things are

    def _span(self, node: ast.AST) -> tuple[int, int]:
        first, last = self.starts[node.lineno - 1], self.starts[node.end_lineno - 1]
        return first + node.col_offset, last + node.end_col_offset

    def _text(self, node: ast.AST) -> str:
        start, stop = self._span(node)
        return self.source[start:stop].decode()

    def _add(self, rule: str, start: int, stop: int, after: str) -> None:
        line = bisect.bisect_right(self.starts, start) - 1
        before = self.source[start:stop].decode()
        column = len(self.source[self.starts[line] : start].decode()) + 1
        if after != before:
            self.mutants.append(Mutant(self.file, line + 1, column, rule, before, after, start, stop, self.reached))

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
    return sorted(mutant for *_, mutant in sorted(ranked)[:count])
