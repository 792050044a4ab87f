"""The fields and types that JSON files must have, by which a damaged file or one of another program is recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = type(None)
NUMBER = (int, float)
INTERVAL = [NUMBER, NUMBER]
# Fields that records have today, and may lack or leave None: of an earlier version, or of another network.
OF_RECORDS: Mapping[str, Any] = {
    "per_class": [{"class": int, "accuracy": NUMBER, "interval_95": INTERVAL}],
    "attacks": [str],
    "versions": dict,
    "hardware": dict,
    "network": dict,
    "checkpoint_step": int,
    "num_draws": int,
    "dataset": str,
    "split": str,
}
SWEEP = {"points": [{"attack": str, "epsilon": NUMBER, "accuracy": NUMBER, "interval_95": INTERVAL}]}
TRUST = {
    "verdict": str,
    "flags": {
        ...: {
            "name": str, "status": str, "value": (*NUMBER, ABSENT), "threshold": (*NUMBER, ABSENT), "n": int,
            "explanation": str,
        }
    },
}  # fmt: skip
# What a report has beside them, of which a page of a verdict alone is made.
ACCURACIES = {
    "clean": NUMBER, "worst_case": NUMBER, "num_examples": int, "norm": str, "epsilon": NUMBER, "robust": list,
}  # fmt: skip
ANALYSIS = {"num_examples": int, "figures": [{"file": str, "name": str, "title": str}]}
# Of a figure, which earlier versions had not.
ESTIMATES = {...: {...: {"value": (*NUMBER, ABSENT), "interval_95": [(*NUMBER, ABSENT), (*NUMBER, ABSENT)]}}}


def fits(value: Any, form: Any) -> bool:
    """Whether a value is of a form.

    Args:
        value: as JSON holds it.
        form: a type or a tuple of types; a dict of the forms that an object's keys must have, ``...`` standing for all
            of its keys; a list of one form, that of all elements; or of several, one for each element.

    Example:
        >>> fits({"points": [{"at": 1.0}]}, {"points": [{"at": NUMBER}]}), fits([1], [int, int])
        (True, False)
    """
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return False
        parts = {key: value.values() if key is ... else [value.get(key)] for key in form}
        pairs = [(form[key], other) for key, others in parts.items() for other in others]
        return all(key is ... or key in value for key in form) and all(fits(other, part) for part, other in pairs)
    if isinstance(form, list):
        if not isinstance(value, list) or len(form) not in (1, len(value)):
            return False
        return all(fits(other, form[i] if len(form) > 1 else form[0]) for i, other in enumerate(value))
    return isinstance(value, form) and not isinstance(value, bool)
