"""Auto-PGD's schedule: the steps at which it may halve its step size, and the radius in each phase of l1."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

# l1 (arXiv 2103.01208): radii in units of epsilon and their shares of the steps.
L1_PHASES = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))


class Schedule(NamedTuple):
    """What happens at each evaluation, as tables over its number; the last row is for steps beyond the end.

    Attributes:
        phase_start: true at a phase's first evaluation; l1 then restarts from the previous phase's best point.
        radius: of the ball, in units of epsilon.
        interval: steps since the last checkpoint where there is one, else 0.
        in_ball: whether the point is inside the ball that was asked for.
    """

    phase_start: np.ndarray
    radius: np.ndarray
    interval: np.ndarray
    in_ball: np.ndarray


@functools.cache
def schedule(norm: str, num_steps: int) -> Schedule:
    """Checkpoints at ``p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)`` of the steps."""

    def share(fraction: float) -> int:
        return max(int(fraction * num_steps), 1)

    phases = [(1.0, num_steps)]
    if norm == "l1":
        lengths = [math.ceil(fraction * num_steps) for _, fraction in L1_PHASES[:-1]]
        lengths.append(num_steps - sum(lengths))
        phases = [(radius, length) for (radius, _), length in zip(L1_PHASES, lengths, strict=True)]
    rows = []
    for radius, length in phases:
        rows.append((True, radius, 0, radius == 1.0))
        if norm == "l1":
            interval, shrink, least = max(int(0.04 * length), 1), 0, 1
        else:
            interval, shrink, least = share(0.22), share(0.03), share(0.06)
        since = 0
        for _ in range(length):
            since += 1
            at_checkpoint = since == interval
            rows.append((False, radius, interval if at_checkpoint else 0, radius == 1.0))
            if at_checkpoint:
                since, interval = 0, max(interval - shrink, least)
    rows.append((False, 1.0, 0, False))
    return Schedule(*(np.array(column) for column in zip(*rows, strict=True)))
