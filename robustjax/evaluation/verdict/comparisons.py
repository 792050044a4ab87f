"""Red flags of one attack against another: the weaker one must not win.

Attacks are compared example by example, and a difference counts only above both its threshold and the noise of so many
examples, so that an honest network is not accused by chance. See `red_flags` for the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np

from robustjax.evaluation.verdict.red_flags import Flag


def one_step_beats_many(one_step: np.ndarray, many: np.ndarray) -> Flag:
    """Examples broken by a single step against those broken by many, bool [n] each.

    Example:
        >>> one_step_beats_many(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _compared(
        one_step, many, 0.002,
        "a single step breaks {value:.2%} more examples than many small ones, which could have walked there: the "
        "iterative attack is caught in local maxima or misled",
        "many steps break at least what one does",
    )  # fmt: skip


def more_steps_help(broken: np.ndarray, loss_left: np.ndarray) -> Flag:
    """What doublings of the steps still gain.

    Args:
        broken: bool [D, n], examples broken after k, 2 k, 4 k, ... steps.
        loss_left: share [m] of the whole rise of the loss that fell into the last tenth of the steps, for each example
            that still stands; above 0.05 in the median warns.

    Example:
        >>> more_steps_help(np.array([[False] * 50, [True] * 50]), np.zeros(0)).status
        'fail'
    """
    flags = [
        _compared(
            longer, shorter, 0.003,
            "doubling the steps still breaks {value:.2%} more examples: the attack had not converged",
            "doubling the steps gains nothing more",
        )
        for shorter, longer in itertools.pairwise(broken)
    ]  # fmt: skip
    worst = max(flags, key=lambda flag: (flag.status == "fail", flag.value))
    if worst.status == "pass" and len(loss_left) >= 4 and np.median(loss_left) > 0.05:
        return worst._replace(
            status="warn",
            explanation=f"the last tenth of the steps still brought {np.median(loss_left):.0%} of the rise of the loss "
            "on examples that stand: the attack had not converged",
        )
    return worst


def more_restarts_help(before: np.ndarray, after: np.ndarray) -> Flag:
    """Examples broken before and after the attacks ran once more from other starts, bool [n] each.

    Example:
        >>> more_restarts_help(np.zeros(50, bool), np.ones(50, bool)).status
        'fail'
    """
    return _compared(
        after, before, 0.003,
        "another start breaks {value:.2%} more examples: chance decides, so use more restarts",
        "another start gains nothing more",
    )  # fmt: skip


def step_size_sensitive(broken: Mapping[str, np.ndarray]) -> Flag:
    """Examples broken by the same attack at several step sizes, bool [n] each.

    The threshold is above the up to 2 % by which it differs on plainly adversarially trained networks (the digits).

    Example:
        >>> step_size_sensitive({"0.1": np.ones(50, bool), "0.2": np.zeros(50, bool)}).status
        'warn'
    """
    best, worst = (choose(broken, key=lambda size: int(np.sum(broken[size]))) for choose in (max, min))
    flag = _compared(
        broken[best], broken[worst], 0.03,
        f"a step of {best} epsilon breaks {{value:.2%}} more examples than one of {worst} epsilon: the loss is rugged",
        "accuracy hardly depends on the step size",
    )  # fmt: skip
    return flag._replace(status="warn") if flag.status == "fail" else flag


def accuracy_rises_with_epsilon(broken: np.ndarray) -> Flag:
    """Examples broken at rising radii, bool [E, n]: a larger ball holds the smaller one.

    Example:
        >>> accuracy_rises_with_epsilon(np.array([[True] * 50, [False] * 50])).status
        'fail'
    """
    flags = [
        _compared(
            smaller, larger, 0.0,
            "a larger radius breaks {value:.2%} fewer examples than a smaller one inside it: the attack fails, not the "
            "perturbation",
            "accuracy falls as the radius grows",
        )
        for smaller, larger in itertools.pairwise(broken)
    ]  # fmt: skip
    return max(flags, key=lambda flag: (flag.status == "fail", flag.value))


def black_box_beats_white_box(black: np.ndarray, white: np.ndarray) -> Flag:
    """Examples broken by an attack without gradients and by those with, bool [n] each.

    Example:
        >>> black_box_beats_white_box(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        black, white, 0.002,
        "Square, which needs no gradient, breaks {value:.2%} of examples that gradient attacks leave: these are masked",
        "Square finds nothing that gradient attacks miss",
    )  # fmt: skip


def transfer_beats_white_box(transfer: np.ndarray, white: np.ndarray) -> Flag:
    """Examples broken by images made for another network and by attacks on this one, bool [n] each.

    Example:
        >>> transfer_beats_white_box(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        transfer, white, 0.002,
        "images made for another network break {value:.2%} of examples that direct attacks leave: gradients are masked",
        "nothing transfers that direct attacks miss",
    )  # fmt: skip


def random_search_succeeds(random: np.ndarray, white: np.ndarray) -> Flag:
    """Examples broken by random points and by gradient attacks, bool [n] each.

    Example:
        >>> random_search_succeeds(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        random, white, 0.0,
        "random points of the ball break {value:.2%} of examples that gradient attacks leave: gradients mislead",
        "random points break nothing that gradient attacks miss",
    )  # fmt: skip


def auxiliary_attack_helps(joint: np.ndarray, white: np.ndarray) -> Flag:
    """Examples broken by attacks on logits and heads together and by those on the logits alone, bool [n] each.

    Example:
        >>> auxiliary_attack_helps(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        joint, white, 0.002,
        "attacking the auxiliary heads as well breaks {value:.2%} of examples more: the logits are not the only target",
        "attacking the auxiliary heads as well gains nothing",
    )  # fmt: skip


def surrogate_helps(surrogate: np.ndarray, white: np.ndarray) -> Flag:
    """Examples broken through the surrogate's gradient and through the network's own, bool [n] each.

    Example:
        >>> surrogate_helps(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        surrogate, white, 0.002,
        "the surrogate's gradient breaks {value:.2%} of examples more: the network's own gradient hides them",
        "the surrogate's gradient gains nothing over the network's own",
    )  # fmt: skip


def silent_success(seen: np.ndarray, broken: np.ndarray) -> Flag:
    """Examples that an attack saw misclassified on its way, and those that count as broken in the end, bool [n] each.

    Example:
        >>> silent_success(np.ones(50, bool), np.zeros(50, bool)).status
        'fail'
    """
    return _beyond(
        seen, broken, 0.0,
        "{value:.2%} of examples were misclassified along an attack and yet are counted as robust: the network answers "
        "differently when judged, or an attack loses what it found",
        "what an attack saw misclassified is counted as broken",
    )  # fmt: skip


def frozen_key_resists(frozen: np.ndarray, averaged: np.ndarray) -> Flag:
    """Examples broken with the key frozen (a deterministic network) and with fresh keys, bool [n] each.

    Example:
        >>> frozen_key_resists(np.zeros(50, bool), np.ones(50, bool)).status
        'fail'
    """
    return _compared(
        averaged, frozen, 0.002,
        "with its randomness frozen the network withstands {value:.2%} more: not randomness but masked gradients stop "
        "the attack",
        "with its randomness frozen the network withstands no more",
    )  # fmt: skip


def eot_not_converged(broken: np.ndarray) -> Flag:
    """Examples broken with 1, 2, 4, ... draws in each gradient, bool [D, n]: whether the last doubling still gains.

    Example:
        >>> eot_not_converged(np.array([[False] * 50, [True] * 50])).status
        'fail'
    """
    return _compared(
        broken[-1], broken[-2], 0.005,
        "the last doubling of draws in a gradient still breaks {value:.2%} more examples: average over more",
        "more draws in a gradient gain nothing more",
    )  # fmt: skip


def _compared(stronger: np.ndarray, weaker: np.ndarray, threshold: float, fires: str, silent: str) -> Flag:
    """Whether the one breaks more than the other, by McNemar's test of the examples on which they differ.

    The net gain must exceed the threshold's share of examples, and 1.96 standard deviations of a fair coin tossed once
    for every example on which the two differ: four examples at the least.
    """
    gained, lost, n = int(np.sum(stronger & ~weaker)), int(np.sum(weaker & ~stronger)), len(stronger)
    value = (gained - lost) / n
    fired = gained - lost > max(threshold * n, 1.96 * math.sqrt(gained + lost))
    return Flag("fail" if fired else "pass", value, threshold, n, fires.format(value=value) if fired else silent)


def _beyond(these: np.ndarray, those: np.ndarray, threshold: float, fires: str, silent: str) -> Flag:
    """Whether the one breaks examples that the other leaves, whatever the other breaks besides."""
    return _compared(these | those, those, threshold, fires, silent)
