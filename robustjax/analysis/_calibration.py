"""Calibration: whether a network's confidence is its accuracy (SAP, figures 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from robustjax.analysis.estimate import Estimate, bootstrap
from robustjax.types import InputError

MEANINGS = {
    "ece": "expected calibration error: mean gap of confidence and accuracy over bins of equal width; 0 is calibrated",
    "brier": "mean squared distance of the probabilities from the label's; 0 is best, 2 worst",
    "accuracy": "share of examples whose likeliest class is the label",
    "confidence": "mean probability of the likeliest class",
}


class Calibration(NamedTuple):
    """Whether confidence is accuracy.

    Attributes:
        confidence, accuracy: mean in each bin, [M]; nan in empty ones.
        count: examples in each bin, int [M].
        estimates: "ece", "brier", "accuracy" and "confidence"; each says what it is in ``meaning``.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    estimates: Mapping[str, Estimate]


def calibration(probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 15) -> Calibration:
    r"""Reliability diagram, expected calibration error and Brier score (Guo et al. 2017, arXiv 1706.04599).

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N} |\mathrm{acc}_b - \mathrm{conf}_b|, \qquad
        \mathrm{Brier} = \frac{1}{N} \sum_i \sum_k (p_{ik} - [y_i = k])^2

    Args:
        probabilities: [N, K], rows that sum up to 1; N at least 2.
        labels: integers [N].
        num_bins: of equal width, closed above.

    Returns:
        A :class:`Calibration`.

    Raises:
        InputError: rows are not probabilities, or the shapes do not belong together.

    Example:
        >>> found = calibration(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]), num_bins=10)
        >>> round(found.estimates["ece"].value, 6), round(found.estimates["brier"].value, 6)
        (0.4, 0.82)
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or num_bins < 1:
        raise InputError(
            f"probabilities must be [N, K], labels [N] and num_bins from 1, got {list(probabilities.shape)}, "
            f"{list(labels.shape)} and {num_bins}"
        )
    if not (np.all(probabilities >= 0) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise InputError("probabilities must be at least 0 and sum up to 1 in each row; give softmax(logits)")
    if not np.all((labels >= 0) & (labels < probabilities.shape[1])):
        raise InputError(
            f"labels must be classes 0 to {probabilities.shape[1] - 1}, as there are probabilities, got "
            f"{labels.min()} to {labels.max()}; number the classes from 0"
        )
    confidence, guesses = probabilities.max(axis=1), probabilities.argmax(axis=1)
    right = (guesses == labels).astype(np.float64)
    places = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    onehot = np.arange(probabilities.shape[1])[None, :] == labels[:, None]
    squared = ((probabilities - onehot) ** 2).sum(axis=1)

    def totals(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(places[chosen], weights=values[chosen], minlength=num_bins)

    def statistic(chosen: np.ndarray) -> dict[str, float]:
        return {
            "ece": float(np.abs(totals(chosen, right) - totals(chosen, confidence)).sum() / len(chosen)),
            "brier": float(squared[chosen].mean()),
            "accuracy": float(right[chosen].mean()),
            "confidence": float(confidence[chosen].mean()),
        }

    everything = np.arange(len(labels))
    count = np.bincount(places, minlength=num_bins)
    filled = np.where(count > 0, count, np.nan)
    return Calibration(
        totals(everything, confidence) / filled,
        totals(everything, right) / filled,
        count,
        bootstrap(statistic, len(labels), meanings=MEANINGS),
    )
