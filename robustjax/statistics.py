"""Confidence intervals of proportions and of their differences, for every accuracy that is reported."""

from __future__ import annotations

import math

import numpy as np

from robustjax.types import InputError


def wilson_interval(successes: float, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    r"""The 95 % interval of a proportion (Wilson 1927), which unlike the usual one holds at 0 and 1.

    .. math:: \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    Args:
        successes: in [0, total].
        total: at least 1.
        z: standard normal quantile of the wanted level.

    Returns:
        Its ends, in [0, 1] and around the share itself.

    Raises:
        InputError: there is no trial, or successes are not in [0, total].

    Example:
        >>> low, high = wilson_interval(50, 100)
        >>> print(f"{low:.3f} {high:.3f}")
        0.404 0.596
    """
    if not (total >= 1 and 0 <= successes <= total):  # not a number compares false
        wanted = "at least 1 and successes from 0 to it"
        raise InputError(f"total must be {wanted}, got {total} and {successes}; count on at least one example")
    share = successes / total
    scale = 1 + z**2 / total
    middle = (share + z**2 / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / scale
    # At 0 and 1 the formula's ends are exact; rounding must move them neither out of [0, 1] nor past the share itself.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def mcnemar(first: int, second: int) -> float:
    r"""How likely chance alone makes two methods differ so unevenly on the same examples: McNemar's exact test.

    Of the m examples on which only one of the two succeeds, each is as likely the first's as the second's. With k the
    larger of the two counts,

    .. math:: p = \min\Big(1,\ 2 \sum_{i = k}^{m} \binom{m}{i} 2^{-m}\Big)

    Args:
        first, second: examples on which only the one or only the other succeeds, at least 0.

    Returns:
        The two-sided p-value (McNemar 1947).

    Raises:
        InputError: a count is no integer, or below 0.

    Example:
        >>> mcnemar(4, 0), mcnemar(6, 0), mcnemar(5, 5)
        (0.125, 0.03125, 1.0)
    """
    if not all(isinstance(count, int | np.integer) and count >= 0 for count in (first, second)):
        raise InputError(f"first and second must be integers, at least 0, got {first} and {second}; count examples")
    total, larger = int(first) + int(second), int(max(first, second))  # NumPy's integers would overflow
    tail, ways = 0, math.comb(total, larger)
    for i in range(larger, total + 1):
        tail, ways = tail + ways, ways * (total - i) // (i + 1)
    return min(1.0, 2 * tail / 2**total)


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, z: float = 1.959964
) -> tuple[float, tuple[float, float]]:
    r"""How much more often one network is right than another on the same images, with its 95 % interval.

    With :math:`d_i` the difference on image i (of several seeds their mean), the interval is that of Agresti and Min
    (2005, doi 10.1002/sim.1781), which adds half an image to each of the four kinds of pairs:

    .. math:: \bar d \pm z \sqrt{\frac{1}{n + 2} \Big( \frac{1 + \sum_i d_i^2}{n + 2} - \bar d^2 \Big)},
        \qquad \bar d = \frac{1}{n + 2} \sum_i d_i

    Args:
        first, second: bool [n], or [seeds, n]; row s of both belongs together.
        z: standard normal quantile of the wanted level.

    Returns:
        The mean of the differences as it is, in [-1, 1], and the interval.

    Raises:
        InputError: the two differ in shape, hold anything but 0 and 1, or are of no image.

    Example:
        >>> first, second = np.array([True] * 90 + [False] * 10), np.array([True] * 80 + [False] * 20)
        >>> difference, (low, high) = paired_difference(first, second)
        >>> print(f"{difference:.3f} {low:.3f} {high:.3f}")
        0.100 0.037 0.159
    """
    both = [np.asarray(flags) for flags in (first, second)]
    fine = both[0].shape == both[1].shape and both[0].ndim in (1, 2) and both[0].size > 0
    if not (fine and all(np.isin(flags, (0, 1)).all() for flags in both)):
        got = " and ".join(f"{flags.dtype} {list(flags.shape)}" for flags in both)
        raise InputError(f"first and second must be bool [n] or [seeds, n] of one shape, got {got}; pair them by image")
    first, second = (np.atleast_2d(flags).astype(np.float64) for flags in both)
    change = (first - second).mean(axis=0)
    n = len(change) + 2
    middle = change.sum() / n
    half = z * math.sqrt(max(0.0, (1 + np.square(change).sum()) / n - middle**2) / n)
    return float(change.mean()), (max(-1.0, float(middle - half)), min(1.0, float(middle + half)))
