"""Accuracy against the strength of an attack: the size of its ball, or its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from robustjax.analysis.estimate import Estimate, bootstrap, proportion
from robustjax.types import InputError

MEANINGS = {
    "half_at": "strength at which half of the accuracy at the first point is left, between points linearly",
    "last": "accuracy at the last point; in a ball that holds a grey image it must be chance",
    "last_loss": "accuracy that the last increase costs; near 0 the attack has converged",
}


class Curve(NamedTuple):
    """Accuracy against the strength of an attack.

    Attributes:
        at: strengths, rising, [P].
        accuracies: one for each.
        estimates: "half_at", "last" and "last_loss"; each says what it is in ``meaning``.
    """

    at: np.ndarray
    accuracies: list[Estimate]
    estimates: Mapping[str, Estimate]


def curve(at: Sequence[float], right: np.ndarray) -> Curve:
    """Accuracy at rising strengths of an attack, on the same examples.

    Args:
        at: rising strengths, P >= 2.
        right: bool [P, N], whether each example is classified correctly; N at least 2.

    Returns:
        A :class:`Curve`.

    Raises:
        InputError: the strengths do not rise, or the shapes do not belong together.

    Example:
        >>> found = curve([0.0, 0.1, 0.3], np.array([[True, True], [True, True], [False, False]]))
        >>> round(found.estimates["half_at"].value, 3), found.accuracies[1].value
        (0.2, 1.0)
    """
    strengths, right = np.asarray(at, np.float64), np.asarray(right, bool)
    if right.ndim != 2 or len(strengths) != len(right) or len(strengths) < 2 or np.any(np.diff(strengths) <= 0):
        raise InputError(f"at must be rising strengths, one for each row of right, got {list(at)} and {right.shape}")

    def statistic(chosen: np.ndarray) -> dict[str, float]:
        accuracy = right[:, chosen].mean(axis=1)
        return {
            "half_at": _first_below(strengths, accuracy, accuracy[0] / 2),
            "last": float(accuracy[-1]),
            "last_loss": float(accuracy[-2] - accuracy[-1]),
        }

    found = bootstrap(statistic, right.shape[1], meanings=MEANINGS)
    return Curve(strengths, [proportion(row) for row in right], found)


def _first_below(at: np.ndarray, accuracy: np.ndarray, level: float) -> float:
    below = np.flatnonzero(accuracy <= level)
    if not len(below) or below[0] == 0:
        return float("nan")
    i = below[0]
    share = (accuracy[i - 1] - level) / (accuracy[i - 1] - accuracy[i])
    return float(at[i - 1] + share * (at[i] - at[i - 1]))
