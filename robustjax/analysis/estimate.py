"""A scalar that decides a claim, with its confidence interval over test images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from robustjax.statistics import wilson_interval
from robustjax.types import InputError

# Of which the ends of an interval move by a twentieth of a standard error from seed to seed; of 500, by a ninth.
NUM_RESAMPLES = 2000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A scalar measured on n examples.

    Attributes:
        value: nan where it is undefined, such as a ratio to zero.
        interval: 95 %, over examples.
        n: examples.
        meaning: what it is, in one sentence.

    Example:
        >>> print(Estimate(0.5, (0.4, 0.6), 100, "share of hits"))
        0.5 (0.4 to 0.6, n = 100)
    """

    value: float
    interval: tuple[float, float]
    n: int
    meaning: str = ""

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.3g} ({low:.3g} to {high:.3g}, n = {self.n:,})"

    def plain(self) -> dict[str, Any]:
        """As plain data for JSON; what is undefined is None."""
        finite = lambda number: number if math.isfinite(number) else None  # noqa: E731
        return {
            "value": finite(self.value),
            "interval_95": [finite(end) for end in self.interval],
            "n": self.n,
            "meaning": self.meaning,
        }


def proportion(hits: np.ndarray, meaning: str = "") -> Estimate:
    """A share of examples with Wilson's interval.

    Args:
        hits: bool [N], N at least 1.
        meaning: see :class:`Estimate`.

    Returns:
        An :class:`Estimate`.

    Raises:
        InputError: there is no example.

    Example:
        >>> print(proportion(np.array([True] * 50 + [False] * 50)))
        0.5 (0.404 to 0.596, n = 100)
    """
    hits = np.asarray(hits)
    if hits.dtype != bool or hits.ndim != 1:
        raise InputError(f"hits must be bool [N], got {hits.dtype} {list(hits.shape)}; compare them with what counts")
    count, total = int(np.sum(hits)), len(hits)
    interval = wilson_interval(count, total)
    return Estimate(count / total, interval, total, meaning)


def bootstrap(
    statistic: Callable[[np.ndarray], Mapping[str, float]],
    num_examples: int,
    *,
    meanings: Mapping[str, str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    r"""Scalars with intervals from a bootstrap over examples (Efron 1979), balanced and centred at the estimate.

    Examples are drawn with replacement as often as there are any, so what was measured on pairs stays paired. With
    :math:`q_p` the quantiles and :math:`m` the mean of the resampled scalar, and :math:`t` its value, the interval is

    .. math:: [q_{0.025} - (m - t), \ q_{0.975} - (m - t)]

    Some scalars, such as a sum of absolute gaps, grow when examples are drawn again; :math:`m - t` takes the growth
    off. For a mean it is exactly 0, as all examples occur equally often in the resamples taken together (the balanced
    bootstrap, Davison, Hinkley and Schechtman 1986). A bias of the value itself remains: if all gaps are truly 0, the
    interval is above 0. Resamples in which a scalar is undefined do not count for it.

    Args:
        statistic: indices [N] of examples -> scalars by name.
        num_examples: N, at least 2.
        meanings: of the scalars, see :class:`Estimate`.
        num_resamples: at least 20.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        Name of the scalar -> :class:`Estimate`.

    Raises:
        InputError: there are too few examples or resamples.

    Example:
        >>> heights = np.array([1.0, 2.0, 3.0, 4.0])
        >>> mean = bootstrap(lambda chosen: {"mean": heights[chosen].mean()}, 4)["mean"]
        >>> mean.value, 1.0 < mean.interval[0] < 2.5 < mean.interval[1] < 4.0
        (2.5, True)
    """
    if num_examples < 2 or num_resamples < 20:
        raise InputError(
            f"a bootstrap must have 2 examples and 20 resamples at least, got {num_examples} and {num_resamples}; "
            "measure on more examples"
        )
    rng = np.random.default_rng(seed)
    values = dict(statistic(np.arange(num_examples)))
    balanced = rng.permutation(np.tile(np.arange(num_examples, dtype=np.int32), num_resamples))
    drawn = [statistic(chosen) for chosen in balanced.reshape(num_resamples, num_examples)]
    return {
        name: Estimate(
            float(value),
            _centred(float(value), np.array([draw[name] for draw in drawn], np.float64)),
            num_examples,
            (meanings or {}).get(name, ""),
        )
        for name, value in values.items()
    }


def _centred(value: float, drawn: np.ndarray) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or not len(drawn):
        return math.nan, math.nan
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - (drawn.mean() - value)
    return min(float(low), value), max(float(high), value)
