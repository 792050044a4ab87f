"""The collectives of a compiled program, read off its text."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any, NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%[\w.-]+ = (.*?) ([\w-]+)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """Operations of one kind in a step: how many, and the bytes that they take or return on each chip, together."""

    count: int
    bytes: float


def collectives(text: str) -> dict[str, Collective]:
    """The collectives of a compiled program by kind, a loop's as often as it runs.

    A loop whose condition compares with no constant, such as that over the steps of a dispatch, counts as one turn.

    Example:
        >>> text = '''ENTRY %main (a: f32[8]) -> f32[8] {
        ...   %a = f32[8]{0} parameter(0)
        ...   ROOT %sum = f32[8]{0} all-reduce(%a), to_apply=%add
        ... }'''
        >>> collectives(text)
        {'all-reduce': Collective(count=1, bytes=32.0)}
    """
    own: dict[str, dict[Any, float]] = {}
    called: dict[str, list[tuple[str, int]]] = {}
    constants: dict[str, list[int]] = {}
    bodies: list[tuple[str, str, str]] = []
    entry = at = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            at = head[1]
            own[at], called[at], constants[at] = defaultdict(float), [], []
            entry = at if line.startswith("ENTRY") else entry
            continue
        found = _INSTRUCTION.match(line)
        if not found or not at:
            continue
        shape, operation = found.groups()
        kind = operation.removesuffix("-start")
        if kind in KINDS:
            own[at][kind] += 1
            # What is begun here and ended elsewhere returns its operands beside its results.
            size = _bytes(shape) / (2 if operation.endswith("-start") and kind != "all-reduce" else 1)
            own[at][kind, "bytes"] += size
        if operation == "while":
            names = dict(re.findall(r"(condition|body)=%?([\w.-]+)", line))
            bodies.append((at, names["condition"], names["body"]))
            continue
        if operation == "constant" and (number := re.search(r"constant\((\d+)\)", line)):
            constants[at].append(int(number[1]))
        for one, several in _CALLED.findall(line):
            called[at] += [(name.strip().lstrip("%"), 1) for name in (several.split(",") if several else [one])]
    for where, condition, body in bodies:
        turns = constants.get(condition, [])
        called[where].append((body, turns[0] if len(turns) == 1 else 1))

    totals: dict[Any, float] = defaultdict(float)

    def visit(name: str, times: int) -> None:
        for key, value in own.get(name, {}).items():
            totals[key] += times * value
        for inner, turns in called.get(name, ()):
            visit(inner, times * turns)

    visit(entry, 1)
    return {kind: Collective(int(totals[kind]), totals[kind, "bytes"]) for kind in KINDS if totals[kind]}


def _bytes(shape: str) -> float:
    """Of all arrays in the text of a shape, such as (f32[8,2]{1,0}, bf16[])."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    return float(sum(_BYTES[kind] * math.prod(map(int, filter(None, sides.split(",")))) for kind, sides in arrays
                     if kind in _BYTES))  # fmt: skip
