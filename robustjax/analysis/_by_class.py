"""Accuracy of each class under attack, and the confusion of classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from robustjax.analysis.estimate import Estimate, bootstrap, proportion
from robustjax.types import InputError

MEANINGS = {
    "worst_class": "accuracy of the class that has the lowest",
    "class_gap": "accuracy of the best class minus that of the worst; 0, where all classes are as robust",
    "class_variance": "variance over the classes of their accuracies, less what chance adds to it; above 0 where some "
    "are more robust than others",
}


class ByClass(NamedTuple):
    """Robustness class by class.

    Attributes:
        classes: int [M], those that occur.
        accuracies: of each of them.
        confusion: share of each class's images that is taken for class k, [M, K].
        estimates: "worst_class", "class_gap" and "class_variance"; each says what it is in ``meaning``.
    """

    classes: np.ndarray
    accuracies: list[Estimate]
    confusion: np.ndarray
    estimates: Mapping[str, Estimate]


def by_class(predictions: np.ndarray, labels: np.ndarray, *, num_classes: int) -> ByClass:
    r"""Accuracy class by class, and confusion.

    The gap of best and worst class is above 0 by chance alone. The variance of the M classes' true accuracies is
    estimated without bias, from the accuracies :math:`p` that :math:`n` images of each have:

    .. math:: \frac{1}{M - 1} \sum_k (p_k - \bar p)^2 - \frac{1}{M} \sum_k \frac{p_k (1 - p_k)}{n_k - 1}

    Args:
        predictions: integers [N] in [0, K).
        labels: integers [N] in [0, K); N at least 2.
        num_classes: K.

    Returns:
        A :class:`ByClass`.

    Raises:
        InputError: the shapes differ, or a class is out of range.

    Example:
        >>> found = by_class(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]), num_classes=2)
        >>> found.confusion.tolist(), found.estimates["class_gap"].value
        ([[0.5, 0.5], [0.0, 1.0]], 0.5)
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    both = np.concatenate([predictions, labels]) if predictions.shape == labels.shape else np.array([-1])
    if predictions.ndim != 1 or not len(predictions) or both.min() < 0 or both.max() >= num_classes:
        raise InputError(f"predictions and labels must be classes [N] below {num_classes}, N >= 1, got others")
    classes, class_index = np.unique(labels, return_inverse=True)
    members = labels[None, :] == classes[:, None]
    hits = (predictions == labels).astype(np.float64)
    confusion = np.stack([np.bincount(predictions[own], minlength=num_classes) / own.sum() for own in members])

    def statistic(chosen: np.ndarray) -> dict[str, float]:
        drawn = class_index[chosen]
        count = np.bincount(drawn, minlength=len(classes)).astype(np.float64)
        count[count == 0] = np.nan
        accuracy = np.bincount(drawn, hits[chosen], minlength=len(classes)) / count
        noise = accuracy * (1 - accuracy) / np.where(count > 1, count - 1, np.nan)
        enough = np.isfinite(noise)
        return {
            "worst_class": float(np.nanmin(accuracy)),
            "class_gap": float(np.nanmax(accuracy) - np.nanmin(accuracy)),
            "class_variance": float(np.var(accuracy[enough], ddof=1) - noise[enough].mean())
            if enough.sum() > 1
            else np.nan,
        }

    accuracies = [proportion(predictions[own] == labels[own]) for own in members]
    return ByClass(classes, accuracies, confusion, bootstrap(statistic, len(labels), meanings=MEANINGS))
