"""Red flags of one attack against another: the weaker one must not win.

Attacks are compared example by example, and a difference counts only above both its threshold and the noise of so many
examples (McNemar's test), so that no flag is raised by chance. See :mod:`red_flags` for the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from robustjax.evaluation.verdict.red_flags import EMPTY, Flag
from robustjax.statistics import mcnemar

# Of significance. The normal approximation would already take four examples of which another attack finds none for more
# than chance, which one in six verdicts on an honest network has.
LEVEL = 0.05


def one_step_beats_many(one_step: np.ndarray, many: np.ndarray) -> Flag:
    """Examples misclassified after a single step against those after many, bool [n] each.

    Example:
        >>> one_step_beats_many(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _compared(
        one_step, many, 0.002,
        finds="a single step finds",
        fires="than many small ones, whose steps could have led there: the iterative attack is caught in local maxima "
        "or misled",
        equal="many steps find as many examples as one, or more",
    )  # fmt: skip


def more_steps_help(misclassified: np.ndarray, late_rise: np.ndarray) -> Flag:
    """What doublings of the steps still gain.

    Args:
        misclassified: bool [D, n], examples misclassified after k, 2 k, 4 k, ... steps.
        late_rise: share [m] of the whole rise of the loss that fell into the last tenth of the steps, of examples that
            stay robust; above 0.05 in the median warns.

    Example:
        >>> more_steps_help(np.array([[False] * 50, [True] * 50]), np.zeros(0)).status
        'fail'
    """
    flags = [
        _compared(
            longer, shorter, 0.003,
            finds="doubling the steps finds",
            fires=": the attack had not converged",
            equal="doubling the steps gains nothing",
        )
        for shorter, longer in itertools.pairwise(misclassified)
    ]  # fmt: skip
    worst = max(flags, key=lambda flag: (flag.status == "fail", flag.value))
    if worst.status == "pass" and len(late_rise) >= 4 and np.median(late_rise) > 0.05:
        return worst._replace(
            status="warn",
            explanation=f"the last tenth of the steps still brought {np.median(late_rise):.0%} of the rise of the loss "
            "on examples that stay robust: the attack had not converged",
        )
    return worst


def more_restarts_help(before: np.ndarray, after: np.ndarray) -> Flag:
    """Examples misclassified before and after the attacks ran once more from other starts, bool [n] each.

    Example:
        >>> more_restarts_help(np.zeros(50, bool), np.ones(50, bool)).status
        'fail'
    """
    return _compared(
        after, before, 0.003,
        finds="another random start finds",
        fires=": the start decides, so use more restarts",
        equal="another random start gains nothing",
    )  # fmt: skip


def step_size_sensitive(misclassified: Mapping[str, np.ndarray]) -> Flag:
    """Examples misclassified by the same attack at several step sizes, bool [n] each.

    The threshold is above the up to 2 % by which it differs on plainly adversarially trained networks (the digits).

    Example:
        >>> step_size_sensitive({"0.1": np.ones(50, bool), "0.2": np.zeros(50, bool)}).status
        'warn'
    """
    best, worst = (choose(misclassified, key=lambda size: int(np.sum(misclassified[size]))) for choose in (max, min))
    flag = _compared(
        misclassified[best], misclassified[worst], 0.03,
        finds=f"a step size of {best} epsilon finds",
        fires=f"than one of {worst} epsilon: the loss is rugged",
        equal="every step size finds as many examples",
    )  # fmt: skip
    return flag._replace(status="warn") if flag.status == "fail" else flag


def accuracy_rises_with_epsilon(misclassified: np.ndarray) -> Flag:
    """Examples misclassified at rising radii, bool [E, n]: a larger ball holds the smaller one.

    Example:
        >>> accuracy_rises_with_epsilon(np.array([[True] * 50, [False] * 50])).status
        'fail'
    """
    flags = [
        _compared(
            smaller, larger, 0.0,
            finds="a smaller radius finds",
            fires="than a larger one around it: the attack fails, not the perturbation",
            equal="accuracy does not rise with the radius",
        )
        for smaller, larger in itertools.pairwise(misclassified)
    ]  # fmt: skip
    return max(flags, key=lambda flag: (flag.status == "fail", flag.value))


def black_box_beats_white_box(score_based: np.ndarray, gradient_based: np.ndarray) -> Flag:
    """Examples misclassified under an attack without gradients and under those with, bool [n] each.

    Example:
        >>> black_box_beats_white_box(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        score_based, gradient_based, 0.002,
        finds="Square, which needs no gradient, finds",
        fires="than gradient-based attacks: gradients are masked",
        equal="Square finds nothing that gradient-based attacks miss",
    )  # fmt: skip


def label_only_beats_white_box(label_only: np.ndarray, gradient_based: np.ndarray) -> Flag:
    """Examples misclassified under an attack that sees labels only and under those with gradients, bool [n] each.

    Example:
        >>> label_only_beats_white_box(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        label_only, gradient_based, 0.002,
        finds="HopSkipJump, which sees labels only, finds",
        fires="than gradient-based attacks: gradients are masked",
        equal="HopSkipJump, which sees labels only, finds nothing that gradient-based attacks miss",
    )  # fmt: skip


def transfer_beats_white_box(transfer: np.ndarray, direct: np.ndarray) -> Flag:
    """Examples misclassified under images made for another network and under attacks on this one, bool [n] each.

    Example:
        >>> transfer_beats_white_box(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        transfer, direct, 0.002,
        finds="transfer from another network finds",
        fires="than direct attacks: gradients are masked",
        equal="transfer finds nothing that direct attacks miss",
    )  # fmt: skip


def random_search_succeeds(random: np.ndarray, gradient_based: np.ndarray) -> Flag:
    """Examples misclassified at random points and under gradient-based attacks, bool [n] each.

    Example:
        >>> random_search_succeeds(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        random, gradient_based, 0.0,
        finds="random points of the ball find",
        fires="than gradient-based attacks: gradients mislead",
        equal="random points find nothing that gradient-based attacks miss",
    )  # fmt: skip


def auxiliary_attack_helps(joint: np.ndarray, direct: np.ndarray, *, chosen_by: Sequence[str] = ()) -> Flag:
    """Examples misclassified under attacks on logits and heads together and on the logits alone, bool [n] each.

    Args:
        joint, direct: one bool for each example.
        chosen_by: where the network chooses by the heads, if its program and not its author says so.

    Example:
        >>> auxiliary_attack_helps(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    heads = f"the scores given to {', '.join(chosen_by)}" if chosen_by else "the auxiliary heads"
    return _beyond(
        joint, direct, 0.002,
        finds=f"attacking {heads} as well finds",
        fires=": the logits are not the only target",
        equal=f"attacking {heads} as well gains nothing",
    )  # fmt: skip


def surrogate_helps(surrogate: np.ndarray, direct: np.ndarray) -> Flag:
    """Examples misclassified under the surrogate's gradient and under the network's own, bool [n] each.

    Example:
        >>> surrogate_helps(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        surrogate, direct, 0.002,
        finds="the surrogate's gradient finds",
        fires="than the network's own: it hides them",
        equal="the surrogate's gradient gains nothing over the network's own",
    )  # fmt: skip


def relaxation_helps(relaxed: np.ndarray, direct: np.ndarray, *, helped: str = "", num_findings: int = 1) -> Flag:
    """Examples misclassified under gradients of the relaxed network and under the network's own, bool [n] each.

    Args:
        relaxed, direct: the two.
        helped: what was relaxed, and where.
        num_findings: in the network's program.

    Example:
        >>> relaxation_helps(np.ones(50, bool), np.zeros(50, bool), helped="round at net.py:3 (forward)").status
        'fail'
    """
    what = f" ({helped})" if helped else ""
    return _beyond(
        relaxed, direct, 0.002,
        finds=f"relaxing what the network's program hides{what} finds",
        fires="than its own gradient: it hides them",
        equal=f"relaxing what the network's program may hide gains nothing over its own gradient ({num_findings} "
        f"finding{'s' if num_findings != 1 else ''})",
    )  # fmt: skip


def silent_success(seen: np.ndarray, verified: np.ndarray) -> Flag:
    """Examples misclassified at some step of an attack, and those verified as misclassified, bool [n] each.

    Example:
        >>> silent_success(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        seen, verified, 0.0,
        finds="the steps of an attack find",
        fires="than its images, verified apart from it: the network answers differently there, or an attack loses what "
        "it found",
        equal="what an attack's steps found was verified",
    )  # fmt: skip


def frozen_key_resists(frozen: np.ndarray, averaged: np.ndarray) -> Flag:
    """Examples misclassified with the key frozen (a deterministic network) and with fresh keys, bool [n] each.

    Example:
        >>> frozen_key_resists(np.zeros(50, bool), np.ones(50, bool)).status
        'fail'
    """
    return _compared(
        averaged, frozen, 0.002,
        finds="the attack with fresh draws finds",
        fires="than with the draw frozen, where the network is deterministic: not randomness but masked gradients stop "
        "the attack",
        equal="with the draw frozen the attack finds as many examples, or more",
    )  # fmt: skip


def eot_not_converged(misclassified: np.ndarray) -> Flag:
    """Examples misclassified with 1, 2, 4, ... draws in a gradient, bool [D, n]: whether the last doubling still gains.

    Example:
        >>> eot_not_converged(np.array([[False] * 50, [True] * 50])).status
        'fail'
    """
    return _compared(
        misclassified[-1], misclassified[-2], 0.005,
        finds="the last doubling of draws in a gradient finds",
        fires=": average over more",
        equal="the last doubling of draws in a gradient gains nothing",
    )  # fmt: skip


def _compared(
    stronger: np.ndarray, weaker: np.ndarray, threshold: float, *, finds: str, fires: str, equal: str
) -> Flag:
    """Whether one attack finds more misclassified examples than another.

    The net gain must exceed the threshold's share of examples, and be significant at 5 % by McNemar's exact test: six
    examples at the least.

    Args:
        stronger, weaker: bool [n].
        threshold: share of examples.
        finds: the start of the explanation, up to the count.
        fires: its end, where the check fails.
        equal: the explanation where nothing is gained.
    """
    gained, lost, n = int(np.sum(stronger & ~weaker)), int(np.sum(weaker & ~stronger)), len(stronger)
    net = gained - lost
    if not n:
        return Flag.not_applicable(EMPTY)
    if net <= 0:
        return Flag("pass", net / n, threshold, n, equal)
    found = f"{finds} {gained} of {n} examples more" + (f" and {lost} fewer" if lost else "")
    if mcnemar(gained, lost) > LEVEL:
        return Flag("pass", net / n, threshold, n, f"{found}, which is not significant (McNemar)")
    if net <= threshold * n:
        return Flag("pass", net / n, threshold, n, f"{found}, within the threshold of {threshold:.2%}")
    return Flag("fail", net / n, threshold, n, found + (fires if fires.startswith(":") else f" {fires}"))


def _beyond(these: np.ndarray, those: np.ndarray, threshold: float, **words: str) -> Flag:
    """Whether one attack finds examples that another misses, whatever the other finds besides."""
    return _compared(these | those, those, threshold, **words)
