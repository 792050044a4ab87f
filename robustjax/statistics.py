"""Intervals of proportions, for every accuracy that is reported."""

from __future__ import annotations

import math


def wilson_interval(successes: float, total: int, *, z: float = 1.959964) -> tuple[float, float]:
    r"""The 95 % interval of a proportion (Wilson 1927), which unlike the usual one holds at 0 and 1.

    .. math:: \frac{\hat p + z^2 / 2n \pm z \sqrt{\hat p (1 - \hat p) / n + z^2 / 4 n^2}}{1 + z^2 / n}

    Args:
        successes: in [0, total].
        total: at least 1.
        z: standard normal quantile of the wanted level.

    Example:
        >>> low, high = wilson_interval(50, 100)
        >>> print(f"{low:.3f} {high:.3f}")
        0.404 0.596
    """
    share = successes / total
    scale = 1 + z**2 / total
    middle = (share + z**2 / (2 * total)) / scale
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / scale
    # At 0 and 1 the formula's ends are exact; rounding must move them neither out of [0, 1] nor past the share itself.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))
