"""Requirements such as ``autoattack>=0.5``; ``python -m robustjax.evaluate`` exits with 1 where one does not hold."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from robustjax.evaluation.protocol import threats
from robustjax.types import InputError, nearest

COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
WORST_CASE = "worst_case"


class Requirement(NamedTuple):
    """A bound on the accuracy of every record of one attack.

    Attributes:
        text: as it was written.
        attack: name of the records, or "worst_case".
        comparison: one of :data:`COMPARISONS`.
        bound: an accuracy in [0, 1].
    """

    text: str
    attack: str
    comparison: str
    bound: float

    def unmet(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """A line for each record that does not hold it: by how much, and the interval."""
        own, compare = [record for record in records if record["attack"] == self.attack], COMPARISONS[self.comparison]
        return [
            self._line(record, several=len(own) > 1) for record in own if not compare(record["accuracy"], self.bound)
        ]

    def _line(self, record: Mapping[str, Any], *, several: bool) -> str:
        low, high = record["interval_95"]
        short = 100 * (self.bound - record["accuracy"])
        inside = "; the bound is inside it" if low <= self.bound <= high else ""
        threat = f" under {' or '.join(threats.of_record(record))}" if several else ""
        return (
            f"{self.text} does not hold{threat}: accuracy is {record['accuracy']:.2%}, {abs(short):.2f} points too "
            f"{'low' if self.comparison.startswith('>') else 'high'} "
            f"(95 % interval {low:.2%} to {high:.2%} for {record['num_examples']:,} images{inside})"
        )


def parse(expressions: Sequence[str], attacks: Sequence[str]) -> list[Requirement]:
    """The requirements that a command line names.

    Args:
        expressions: a list, or one, as ``"autoattack>=0.5"`` or ``"worst_case>=45%"``; a comparison with ``>=``,
            ``>``, ``<=`` or ``<``.
        attacks: names of the records that there will be, beside the worst case.

    Raises:
        InputError: naming every expression that is wrong.

    Example:
        >>> (requirement,) = parse(["pgd20>=50%"], ["clean", "pgd20"])
        >>> record = {"attack": "pgd20", "accuracy": 0.42, "interval_95": (0.38, 0.46), "num_examples": 500}
        >>> requirement.unmet([record])
        ['pgd20>=50% does not hold: accuracy is 42.00%, 8.00 points too low (95 % interval 38.00% to 46.00% for 500
        images)']
    """
    found, problems = [], []
    for text in [expressions] if isinstance(expressions, str) else expressions:
        name, comparison, value = _parts(str(text))
        bound = _share(value)
        if not comparison or bound is None:
            problems.append(f"{text!r} (as in autoattack>=0.5, with a share in [0, 1] or a percentage)")
        elif name not in (*attacks, WORST_CASE):
            there = [*attacks, WORST_CASE]
            hint = nearest(name, there) or f" (there are {', '.join(there)})"
            problems.append(f"{text!r}, {name or 'nothing'} being no attack of this evaluation{hint}")
        else:
            found.append(Requirement(str(text), name, comparison, bound))
    if problems:
        raise InputError(f"require must be comparisons of an attack's accuracy, got {'; '.join(problems)}")
    return found


def _parts(text: str) -> tuple[str, str, str]:
    """Name, comparison and bound; a name may hold an = of its own, so the last comparison counts."""
    match = re.fullmatch(r"(.*?)\s*(>=|<=|>|<)\s*([^<>=]*)", text.strip())
    return (match[1].strip(), match[2], match[3].strip()) if match else (text, "", "")


def _share(text: str) -> float | None:
    try:
        value = threats.number(text[:-1]) / 100 if text.endswith("%") else threats.number(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None
