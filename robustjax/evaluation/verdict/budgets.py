"""How much a verdict spends: steps, queries and draws, and never seconds."""

from __future__ import annotations

from typing import NamedTuple

# The most rounds of new starts of APGD on what is left, each only if the last found more: through the relaxed network
# where that helped, and at last through the network itself.
MOST_RESTARTS = 5


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
        pgd_steps: of the recorded PGD; of a stochastic network half as many.
        num_measured: examples on which the costlier red flags are measured.
        num_measured_by_draws: the same of a stochastic network, whose every gradient costs ``eot_samples`` times as
            much.
        num_tried: examples on which remedies, planted examples and, of a stochastic network, Square are tried before
            all others.
        eot_samples: draws in a gradient, of a stochastic network.
        num_draws: draws on which an image is classified, of a stochastic network.
        curve: draws in a gradient at which the convergence of EOT is measured.
        close_steps, close_draws: steps of APGD, and draws in each of its gradients, where chance decides whether an
            image of a stochastic network is misclassified in most draws.
        num_choosing: draws by which the strongest of an example's images is chosen, a multiple of ``num_draws``.
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
    num_tried: int
    eot_samples: int
    num_draws: int
    curve: tuple[int, ...]
    close_steps: int
    close_draws: int
    num_choosing: int


BUDGETS = {
    "quick": Budget(
        autoattack=False, num_steps=50, num_targets=3, num_queries=1000, num_decisions=0, num_random=200,
        pgd_steps=80, num_measured=512, num_measured_by_draws=128, num_tried=64, eot_samples=4, num_draws=20,
        curve=(1, 2, 4, 8, 16), close_steps=100, close_draws=10, num_choosing=100,
    ),
    "full": Budget(
        autoattack=True, num_steps=100, num_targets=9, num_queries=5000, num_decisions=5000, num_random=10000,
        pgd_steps=160, num_measured=512, num_measured_by_draws=256, num_tried=64, eot_samples=20, num_draws=100,
        curve=(1, 2, 4, 8, 16, 32, 64), close_steps=100, close_draws=40, num_choosing=300,
    ),
}  # fmt: skip
