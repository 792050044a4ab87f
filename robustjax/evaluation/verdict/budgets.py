"""How much a verdict spends: steps, queries and draws, and never seconds."""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """How much is spent.

    Attributes:
        autoattack: run :func:`robustjax.attacks.autoattack` as published; otherwise its APGD and Square in the sizes
            below.
        num_steps: of APGD.
        num_targets: classes that targeted APGD aims at.
        num_queries: of Square.
        num_decisions: queries of HopSkipJump; 0: it does not run.
        num_random: random points.
        pgd_steps: of the recorded PGD.
        num_measured: examples on which the costlier red flags are measured.
        num_measured_by_draws: the same of a stochastic network, whose every gradient costs ``eot_samples`` times as
            much.
        eot_samples: draws in a gradient, of a stochastic network.
        num_draws: draws on which an image is classified, of a stochastic network.
        curve: draws in a gradient at which the convergence of EOT is measured.
    """

    autoattack: bool
    num_steps: int
    num_targets: int
    num_queries: int
    num_decisions: int
    num_random: int
    pgd_steps: int
    num_measured: int
    num_measured_by_draws: int
    eot_samples: int
    num_draws: int
    curve: tuple[int, ...]


BUDGETS = {
    "quick": Budget(False, 50, 3, 1000, 0, 200, 80, 512, 128, 4, 20, (1, 2, 4, 8, 16)),
    "full": Budget(True, 100, 9, 5000, 5000, 10000, 160, 512, 256, 20, 100, (1, 2, 4, 8, 16, 32, 64)),
}
