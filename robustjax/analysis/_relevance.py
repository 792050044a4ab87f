"""Whether adversarial images activate channels with negative weights for their class (CIFS, figures 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from robustjax.analysis.estimate import Estimate, bootstrap
from robustjax.types import InputError

MEANINGS = {
    "rank_correlation_natural": "Spearman's correlation over channels of classifier weight and natural activation",
    "rank_correlation_adversarial": "the same of adversarial images; lower, where attacks misalign the channels",
    "rank_correlation_gap": "the adversarial one of the less robust half of the classes minus that of the other; below "
    "0 as CIFS claims",
    "over_activation": "rise of negatively relevant channels under attack, over the mean natural magnitude",
    "over_activation_gap": "over_activation of the less robust half of the classes minus that of the other; above 0 "
    "as CIFS claims",
}


class Relevance(NamedTuple):
    """Of each class and channel.

    Attributes:
        classes: int [M], those that occur.
        weights: of the class in the classifier, [M, C].
        activation: mean natural and adversarial activation, [2, M, C].
        rank_correlation: natural and adversarial, [2, M].
        over_activation: [M].
        robust_accuracy: [M].
        estimates: "rank_correlation_natural", "rank_correlation_adversarial" and "over_activation", means over the
            classes, and "rank_correlation_gap" and "over_activation_gap", of the less robust half of the classes and
            the other; each says what it is in ``meaning``.
    """

    classes: np.ndarray
    weights: np.ndarray
    activation: np.ndarray
    rank_correlation: np.ndarray
    over_activation: np.ndarray
    robust_accuracy: np.ndarray
    estimates: Mapping[str, Estimate]


def relevance(
    natural: np.ndarray, adversarial: np.ndarray, labels: np.ndarray, weights: np.ndarray, robust: np.ndarray
) -> Relevance:
    """Activations of a classifier's inputs against its weights of the true class (Yan et al. 2021, arXiv 2102.05311).

    A channel is positively relevant to a class whose weight is above 0 and negatively relevant where it is below. The
    paper's claims: attacks activate negatively relevant channels and suppress positively relevant ones, and in the
    classes that are less robust activation and relevance go together less.

    Args:
        natural, adversarial: what the linear classifier is given, [N, C], of the same examples, at least 2.
        labels: integers [N] in [0, K).
        weights: of the classifier, [C, K].
        robust: bool [N], whether the adversarial image is classified correctly.

    Returns:
        A :class:`Relevance`.

    Raises:
        InputError: the shapes do not belong together.

    Example:
        >>> seen = relevance(
        ...     np.array([[2.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([0, 0]),
        ...     np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([False, True]))
        >>> seen.rank_correlation.tolist(), seen.over_activation.tolist()
        ([[1.0], [0.0]], [1.0])
    """
    if not (
        natural.shape == adversarial.shape
        and natural.ndim == 2
        and weights.shape[:1] == natural.shape[1:]
        and labels.shape == robust.shape == natural.shape[:1]
    ):
        raise InputError(
            "natural and adversarial must be [N, C], labels and robust [N] and weights [C, K], got "
            f"{list(natural.shape)}, {list(adversarial.shape)}, {list(labels.shape)}, {list(robust.shape)} and "
            f"{list(weights.shape)}"
        )
    both = np.stack([natural, adversarial]).astype(np.float64)
    classes = np.unique(labels)
    of_class = weights.T[classes].astype(np.float64)
    negative = (of_class < 0).astype(np.float64)

    def measured(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        members = (labels[chosen][None, :] == classes[:, None]).astype(np.float64)
        members = members / np.where(members.sum(axis=1, keepdims=True) > 0, members.sum(axis=1, keepdims=True), np.nan)
        activation = members @ both[:, chosen]
        count, scale = negative.sum(axis=1), np.abs(activation[0]).mean(axis=1)
        rise = (negative * (activation[1] - activation[0])).sum(axis=1) / np.where(count > 0, count, np.nan)
        over = rise / np.where(scale > 0, scale, np.nan)
        return activation, spearman(activation, of_class[None]), over, members @ robust[chosen].astype(np.float64)

    def statistic(chosen: np.ndarray) -> dict[str, float]:
        _, correlation, over, accuracy = measured(chosen)
        order = np.argsort(accuracy, kind="stable")
        half = len(classes) // 2
        gap = lambda values: _mean(values[order[:half]]) - _mean(values[order[half:]]) if half else np.nan  # noqa: E731
        return {
            "rank_correlation_natural": _mean(correlation[0]),
            "rank_correlation_adversarial": _mean(correlation[1]),
            "rank_correlation_gap": gap(correlation[1]),
            "over_activation": _mean(over),
            "over_activation_gap": gap(over),
        }

    activation, correlation, over, accuracy = measured(np.arange(len(labels)))
    found = bootstrap(statistic, len(labels), meanings=MEANINGS)
    return Relevance(classes, of_class, activation, correlation, over, accuracy, found)


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis, 0 where one side is constant.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0])).item()
        1.0
    """
    ranks = [rankdata(values, axis=-1) for values in np.broadcast_arrays(first, second)]
    one, other = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
    spread = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    return (one * other).sum(axis=-1) / np.where(spread > 0, spread, np.inf)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
