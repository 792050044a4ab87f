"""Red flags: signs that a figure of robustness is the attack's failure and not the network's merit.

Each check is a pure function of what an evaluation measured, arrays in, one `Flag` out. Where two attacks are compared
it is example by example, and a difference counts only above both its threshold and the noise of so many examples. From
Athalye et al. 2018 (arXiv 1802.00420), Carlini et al. 2019 (arXiv 1902.06705), Croce and Hein 2020 (arXiv 2003.01690),
Tramer et al. 2020 (arXiv 2002.08347) and Pintor et al. 2022 (arXiv 2106.09947). A clean list proves nothing: it only
means that none of the known mistakes was seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# In the order in which a report lists them.
GRADIENTS = ("zero_gradients", "nonfinite_gradients", "shattered_gradients")
CONVERGENCE = (
    "one_step_beats_many",
    "more_steps_help",
    "more_restarts_help",
    "step_size_sensitive",
    "accuracy_rises_with_epsilon",
    "unbounded_attack_fails",
    "loss_and_margin_disagree",
)
STOCHASTIC = ("eot_not_converged", "frozen_key_resists")
NAMES = (
    "invalid_perturbation",
    "probabilities",
    "randomness",
    *GRADIENTS,
    *CONVERGENCE,
    "black_box_beats_white_box",
    "transfer_beats_white_box",
    "random_search_succeeds",
    "auxiliary_attack_helps",
    "surrogate_helps",
    "silent_success",
    *STOCHASTIC,
    "bfloat16_disagrees",
)


class Flag(NamedTuple):
    """The outcome of one check.

    Attributes:
        status: "pass", "warn", "fail", or "na" where the check does not apply.
        value: what was measured.
        threshold: beyond which it counts; noise permitting.
        n: examples it was measured on.
        explanation: what it means here, and what to do.
    """

    status: str
    value: float | None
    threshold: float | None
    n: int
    explanation: str

    @classmethod
    def not_applicable(cls, reason: str) -> Flag:
        """A check that has nothing to look at."""
        return cls("na", None, None, 0, reason)


def invalid_perturbation(valid: np.ndarray) -> Flag:
    """Images that attacks returned outside the ball or the box, or not finite; bool [n], True where valid.

    Example:
        >>> invalid_perturbation(np.array([True, False])).status
        'fail'
    """
    share = _share(~valid)
    return _above(
        share, 0.0, len(valid), "fail",
        f"{share:.2%} of the images that attacks returned lie outside the ball or the box, or are not finite; they "
        "count as failures of the attack",
        "every adversarial image is finite and inside ball and box",
    )  # fmt: skip


def probabilities(logits: np.ndarray) -> Flag:
    """Whether outputs [n, K] are probabilities: then cross-entropy applies its softmax twice, and gradients vanish.

    Example:
        >>> probabilities(np.array([[0.9, 0.1], [1.0, 0.0]])).status
        'fail'
    """
    rows = (
        (np.abs(np.sum(logits, axis=1) - 1.0) < 1e-3)
        & (np.min(logits, axis=1) >= 0.0)
        & (np.max(logits, axis=1) <= 1.0 + 1e-6)
    )
    share = _share(rows)
    return Flag(
        "fail" if share == 1.0 else "pass", share, 1.0, len(logits),
        "the outputs are probabilities: hand over the logits before the softmax, whose saturation hides gradients"
        if share == 1.0 else "the outputs are not probabilities",
    )  # fmt: skip


def randomness(answers: np.ndarray, *, declared: bool, same_key: np.ndarray | None = None) -> Flag:
    """Whether logits vary from call to call: answers [R, n, K] of calls on the same images.

    Args:
        answers: of calls with fresh keys where randomness is declared, else of plain calls.
        declared: the network was said to be stochastic.
        same_key: [R, n, K] of calls with one and the same key, for a stochastic network.

    Example:
        >>> randomness(np.array([[[1.0, 2.0]], [[1.0, 2.1]]]), declared=False).status
        'fail'
    """
    hidden = answers if same_key is None else same_key
    value, n = _variation(hidden), answers.shape[1]
    if value > 1e-4:
        how = "with one and the same key" if declared else "from call to call, which was not declared"
        return Flag(
            "fail", value, 1e-4, n,
            f"outputs vary {how}: attacks chase noise and successes cannot be repeated; draw everything from the key "
            "and declare Hints(stochastic=True), so that gradients and judgements average over draws",
        )  # fmt: skip
    if declared:
        return Flag(
            "pass", _variation(answers), 1e-4, n,
            "stochastic, as declared: gradients average over draws, and success is judged on fresh ones",
        )  # fmt: skip
    return Flag("pass", value, 1e-4, n, "the same images give the same outputs")


def zero_gradients(zero: np.ndarray) -> Flag:
    """Examples with an input gradient of exactly zero somewhere, bool [n].

    Example:
        >>> zero_gradients(np.array([False] * 3 + [True])).status
        'fail'
    """
    share = _share(zero)
    explanation = (
        f"{share:.2%} of examples have an input gradient of exactly zero (cross-entropy or margin; at the image, a "
        "random point, or along an attack), where gradient attacks stand still: look for saturation, or declare a "
        "surrogate_fn"
    )
    return _graded(share, len(zero), explanation, "no input gradient is exactly zero")


def nonfinite_gradients(nonfinite: np.ndarray) -> Flag:
    """Examples with NaN or infinite entries in an input gradient somewhere, bool [n].

    Example:
        >>> nonfinite_gradients(np.array([False, True])).status
        'fail'
    """
    share = _share(nonfinite)
    explanation = (
        f"{share:.2%} of examples have NaN or infinite input gradients: attacks are blind there; mend or hide them"
    )
    return _graded(share, len(nonfinite), explanation, "all input gradients are finite")


def shattered_gradients(cosine: np.ndarray) -> Flag:
    """Agreement [n] of derivatives with finite differences along random directions: warns below 0.9, fails below 0.5.

    Example:
        >>> shattered_gradients(np.array([0.1, 0.0, 0.2])).status
        'fail'
    """
    median = float(np.median(cosine))
    status = "pass" if median >= 0.9 else "warn" if median >= 0.5 else "fail"
    return Flag(
        status, median, 0.9, len(cosine),
        "derivatives agree with finite differences" if status == "pass" else
        f"derivatives and finite differences agree only to a cosine of {median:.2f} in the median: gradients do "
        "not say what the network does nearby (shattered, substituted or detached); declare a surrogate_fn",
    )  # fmt: skip


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

    Example:
        >>> step_size_sensitive({"0.1": np.ones(50, bool), "0.2": np.zeros(50, bool)}).status
        'warn'
    """
    best, worst = (choose(broken, key=lambda size: int(np.sum(broken[size]))) for choose in (max, min))
    flag = _compared(
        broken[best], broken[worst], 0.005,
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


def unbounded_attack_fails(broken: np.ndarray) -> Flag:
    """Examples broken, bool [n], where anything inside the box is allowed: nothing can be robust then.

    Warns where more than 2 % stand, fails above 5 % and three examples.

    Example:
        >>> unbounded_attack_fails(np.zeros(50, bool)).status
        'fail'
    """
    n, standing = len(broken), int(np.sum(~broken))
    accuracy = standing / n
    status = "fail" if accuracy > 0.05 and standing > 3 else "warn" if accuracy > 0.02 and standing > 1 else "pass"
    return Flag(
        status, accuracy, 0.02, n,
        "attacks that may change everything break everything" if status == "pass" else
        f"accuracy stays at {accuracy:.2%} where an attack may change the image into any other: it is the attack that "
        "fails, so gradients are masked",
    )  # fmt: skip


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


def loss_and_margin_disagree(loss: np.ndarray, margin: np.ndarray) -> Flag:
    """Rank correlation of attack loss and margin over the iterates [T, n]; warns below 0.8 in the median.

    Example:
        >>> rising = np.arange(10.0)[:, None]
        >>> loss_and_margin_disagree(rising, -rising).status
        'warn'
    """
    moved = (np.ptp(loss, axis=0) > 1e-6) & (np.ptp(margin, axis=0) > 1e-6)
    if not moved.any():
        return Flag.not_applicable("the loss moved for no example")
    correlation = float(np.median(_rank_correlation(loss[:, moved], margin[:, moved])))
    return Flag(
        "warn" if correlation < 0.8 else "pass", correlation, 0.8, int(moved.sum()),
        f"the attack's loss and the margin rise together only to a rank correlation of {correlation:.2f}: what is "
        "climbed is not what misclassifies" if correlation < 0.8 else "the attack's loss and the margin rise together",
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


def bfloat16_disagrees(robust: np.ndarray, robust_bfloat16: np.ndarray) -> Flag:
    """Examples robust in float32 and in bfloat16 under the same images, bool [n] each.

    Example:
        >>> bfloat16_disagrees(np.ones(50, bool), np.zeros(50, bool)).status
        'warn'
    """
    share = _share(robust != robust_bfloat16)
    return _above(
        share, 0.002, len(robust), "warn",
        f"bfloat16 and float32 disagree on {share:.2%} of examples: judge in float32",
        "bfloat16 and float32 agree",
    )  # fmt: skip


def _share(rows: np.ndarray) -> float:
    return float(np.mean(rows)) if len(rows) else 0.0


def _above(value: float, threshold: float, n: int, status: str, fires: str, silent: str) -> Flag:
    fired = value > threshold
    return Flag(status if fired else "pass", value, threshold, n, fires if fired else silent)


def _graded(share: float, n: int, fires: str, silent: str) -> Flag:
    """Warns for any example, fails above one in a hundred."""
    return Flag("fail" if share > 0.01 else "warn" if share > 0 else "pass", share, 0.01, n, fires if share else silent)


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


def _variation(answers: np.ndarray) -> float:
    """Largest distance of answers [R, n, K] from the first, in units of the first's size; 1 for another argmax."""
    first = answers[0].astype(np.float64)
    size = np.maximum(np.linalg.norm(first - first.mean(axis=-1, keepdims=True), axis=-1), 1e-12)
    distance = np.nan_to_num(np.linalg.norm(answers - first, axis=-1) / size)
    # A tie may be broken either way by the last bit; that alone is no randomness.
    other = (np.argmax(answers, axis=-1) != np.argmax(first, axis=-1)) & (distance > 1e-6)
    return 1.0 if other.any() else float(np.max(distance))


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's, over the first axis; steps below a thousandth of the range are ties, kept in their order."""

    def ranks(values: np.ndarray) -> np.ndarray:
        low, span = values.min(axis=0), np.ptp(values, axis=0)
        rounded = np.round(1000 * (values - low) / span)
        order = np.argsort(rounded, axis=0, kind="stable")
        return np.argsort(order, axis=0).astype(np.float64)

    first, second = (values - values.mean(axis=0) for values in (ranks(first), ranks(second)))
    return np.sum(first * second, axis=0) / np.sqrt(np.sum(first**2, axis=0) * np.sum(second**2, axis=0))
