"""How often and how strongly channels are activated, by natural and by adversarial images (CAS, figures 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from robustjax.analysis.estimate import Estimate, bootstrap
from robustjax.types import InputError

MEANINGS = {
    "magnitude_ratio": "mean channel magnitude of adversarial over natural images; above 1, attacks activate more",
    "l1_gap": "mean over channels of |natural - adversarial activation frequency|; CAS claims to narrow it",
    "entropy_natural": "entropy of the natural activation frequencies over log C; 1 where all channels are used alike",
    "entropy_adversarial": "the same of adversarial images; above the natural one, attacks use channels more uniformly",
    "gini_natural": "Gini coefficient of the natural activation frequencies; 0 where all channels are used alike",
    "gini_adversarial": "the same of adversarial images",
}


class Channels(NamedTuple):
    """Magnitude and frequency of each class and channel, natural first and adversarial second.

    Attributes:
        classes: int [M], those that occur.
        magnitude: mean activation, [2, M, C].
        frequency: share of images in which the channel exceeds 1 % of that image's largest, [2, M, C].
        estimates: "magnitude_ratio", "l1_gap", "entropy_natural", "entropy_adversarial", "gini_natural" and
            "gini_adversarial", each the mean over the classes; each says what it is in ``meaning``.
    """

    classes: np.ndarray
    magnitude: np.ndarray
    frequency: np.ndarray
    estimates: Mapping[str, Estimate]


def channels(natural: np.ndarray, adversarial: np.ndarray, labels: np.ndarray, *, threshold: float = 0.01) -> Channels:
    """Magnitude and activation frequency of the channels of a site, class by class (Bai et al. 2021, arXiv 2103.08307).

    The paper's claims: adversarial images activate channels more strongly, which adversarial training mends, and more
    uniformly, which it does not mend and CAS does.

    Args:
        natural, adversarial: features averaged over positions [N, C], of the same examples, at least 2; after a ReLU.
        labels: integers [N].
        threshold: share of an image's largest channel above which a channel is activated.

    Returns:
        A :class:`Channels`.

    Raises:
        InputError: the shapes do not belong together.

    Example:
        >>> seen = channels(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 1.0]]), np.array([0, 0]))
        >>> seen.frequency.tolist(), seen.estimates["l1_gap"].value, seen.estimates["magnitude_ratio"].value
        ([[[1.0, 0.0]], [[1.0, 1.0]]], 0.5, 2.0)
    """
    both = np.stack([natural, adversarial]).astype(np.float64) if natural.shape == adversarial.shape else None
    if both is None or both.ndim != 3 or labels.shape != natural.shape[:1]:
        raise InputError(
            f"natural and adversarial must be [N, C] and labels [N], got {list(natural.shape)}, "
            f"{list(adversarial.shape)} and {list(labels.shape)}"
        )
    active = both > threshold * np.maximum(both.max(axis=2, keepdims=True), np.finfo(np.float64).tiny)
    active = active.astype(np.float64)
    classes = np.unique(labels)

    def means(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Over the chosen examples of each class, [2, M, C]; of a class without any, nan."""
        members = (labels[chosen][None, :] == classes[:, None]).astype(np.float64)
        members = np.where(members.sum(axis=1, keepdims=True) > 0, members, np.nan)
        return (members / members.sum(axis=1, keepdims=True)) @ values[:, chosen]

    def statistic(chosen: np.ndarray) -> dict[str, float]:
        frequency, magnitude = means(chosen, active), means(chosen, both)
        mean = lambda values: float(np.nanmean(values)) if np.isfinite(values).any() else np.nan  # noqa: E731
        strength = magnitude.mean(axis=2)
        return {
            "magnitude_ratio": mean(strength[1] / np.where(strength[0] > 0, strength[0], np.nan)),
            "l1_gap": mean(np.abs(frequency[0] - frequency[1]).mean(axis=1)),
            "entropy_natural": mean(entropy(frequency[0])),
            "entropy_adversarial": mean(entropy(frequency[1])),
            "gini_natural": mean(gini(frequency[0])),
            "gini_adversarial": mean(gini(frequency[1])),
        }

    everything = np.arange(len(labels))
    return Channels(
        classes,
        means(everything, both),
        means(everything, active),
        bootstrap(statistic, len(labels), meanings=MEANINGS),
    )


def entropy(frequencies: np.ndarray) -> np.ndarray:
    r"""Entropy of frequencies as a distribution over channels, over its largest value, :math:`-\sum p \log p / \log C`.

    Args:
        frequencies: at least 0, [..., C]; all zero: 0, as of one channel.

    Example:
        >>> entropy(np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])).tolist()
        [1.0, 0.0, 0.0]
    """
    shares = _shares(frequencies)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return 0.0 - (shares * logs).sum(axis=-1) / np.log(max(frequencies.shape[-1], 2))


def gini(frequencies: np.ndarray) -> np.ndarray:
    r"""Gini coefficient: 0 of equal frequencies, 1 - 1/C of one channel.

    .. math:: \sum_i (2 i - C - 1) f_{(i)} / (C \sum_i f_i)

    Args:
        frequencies: at least 0, [..., C]; all zero: 0.

    Example:
        >>> gini(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
        [0.0, 0.5]
    """
    count = frequencies.shape[-1]
    ranks = 2 * np.arange(1, count + 1) - count - 1
    return (np.sort(_shares(frequencies), axis=-1) * ranks).sum(axis=-1) / count


def _shares(frequencies: np.ndarray) -> np.ndarray:
    totals = frequencies.sum(axis=-1, keepdims=True)
    return frequencies / np.where(totals == 0, 1.0, totals)
