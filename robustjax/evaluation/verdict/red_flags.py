"""Red flags: signs that a figure of robustness is the attack's failure and not the network's merit.

Each check is a pure function of what an evaluation measured, arrays in, one :class:`Flag` out: here those of a network
and its gradients, in :mod:`comparisons` those of one attack against another. From Athalye et al. 2018 (arXiv
1802.00420), Carlini et al. 2019 (arXiv 1902.06705), Croce and Hein 2020 (arXiv 2003.01690), Tramer et al. 2020 (arXiv
2002.08347) and Pintor et al. 2022 (arXiv 2106.09947). If no flag is raised, nothing is proven: it only means that none
of the known mistakes was seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from robustjax.attacks.engine.output_warnings import not_finite

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
    "nonfinite_logits",
    "probabilities",
    "randomness",
    "batch_dependent",
    *GRADIENTS,
    "unstable_predictions",
    *CONVERGENCE,
    "black_box_beats_white_box",
    "label_only_beats_white_box",
    "transfer_beats_white_box",
    "random_search_succeeds",
    "auxiliary_attack_helps",
    "surrogate_helps",
    "relaxation_helps",
    "silent_success",
    "planted_examples_missed",
    *STOCHASTIC,
    "bfloat16_disagrees",
    "broader_threats",
)
EMPTY = "there are no examples to look at"


class Flag(NamedTuple):
    """The outcome of one check.

    Attributes:
        status: "pass", "warn", "fail", or "na" where the check does not apply.
        value: what was measured.
        threshold: beyond which it counts, where it is also more than noise.
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


def nonfinite_logits(nonfinite: np.ndarray) -> Flag:
    """Examples with logits that are NaN or infinite, as given or under an attack, bool [n]; not -inf of masked classes.

    Example:
        >>> nonfinite_logits(np.array([False, True])).status
        'fail'
    """
    explanation = not_finite(int(np.sum(nonfinite)), len(nonfinite), "examples, as given or under an attack")
    return _graded(_share(nonfinite), len(nonfinite), explanation, "all logits are finite")


def probabilities(logits: np.ndarray, *, tolerance: float = 1e-3) -> Flag:
    """Whether outputs are probabilities: then cross-entropy applies its softmax twice, and gradients vanish.

    Args:
        logits: [n, K].
        tolerance: of a row's sum, which rounding moves off 1; larger for outputs of 16 bits.

    Example:
        >>> probabilities(np.array([[0.9, 0.1], [1.0, 0.0]])).status
        'fail'
    """
    rows = (
        (np.abs(np.sum(logits, axis=1) - 1.0) < tolerance)
        & (np.min(logits, axis=1) >= 0.0)
        & (np.max(logits, axis=1) <= 1.0 + tolerance)
    )
    if not len(rows):
        return Flag.not_applicable(EMPTY)
    share = _share(rows)
    return Flag(
        "fail" if share == 1.0 else "pass", share, 1.0, len(logits),
        "the outputs are probabilities: hand over the logits before the softmax, whose saturation hides gradients"
        if share == 1.0 else "the outputs are not probabilities",
    )  # fmt: skip


def randomness(outputs: np.ndarray, *, declared: bool, same_key: np.ndarray | None = None) -> Flag:
    """Whether logits vary from call to call on the same images.

    Args:
        outputs: logits [R, n, K] of R calls, with fresh keys where randomness is declared.
        declared: the network was said to be stochastic.
        same_key: [R, n, K] of calls with one and the same key, for a stochastic network.

    Example:
        >>> randomness(np.array([[[1.0, 2.0]], [[1.0, 2.1]]]), declared=False).status
        'fail'
    """
    if not outputs.size:
        return Flag.not_applicable(EMPTY)
    hidden = outputs if same_key is None else same_key
    value, n = _variation(hidden), outputs.shape[1]
    if value > 1e-4:
        how = "with one and the same key" if declared else "from call to call, which was not declared"
        return Flag(
            "fail", value, 1e-4, n,
            f"outputs vary {how}: attacks chase noise and successes cannot be repeated; draw everything from the key "
            "and declare Hints(stochastic=True), so that gradients and verification average over draws",
        )  # fmt: skip
    if declared:
        return Flag(
            "pass", _variation(outputs), 1e-4, n,
            "stochastic, as declared: gradients average over draws, and success is verified on fresh draws",
        )  # fmt: skip
    return Flag("pass", value, 1e-4, n, "the same images give the same outputs")


def batch_dependent(outputs: np.ndarray) -> Flag:
    """Whether the logits of an image change with the rest of its batch.

    Args:
        outputs: logits [R, n, K] of the same images among R different batches, at the same places and with the same
            key.

    Example:
        >>> batch_dependent(np.array([[[1.0, 2.0]], [[1.0, 2.1]]])).status
        'fail'
    """
    if not outputs.size:
        return Flag.not_applicable(EMPTY)
    value = _variation(outputs)
    return _above(
        value, 1e-4, outputs.shape[1], "fail",
        "outputs change with the rest of the batch, so that no accuracy of it is that of single images, and what an "
        "attack finds in one batch fails in another: use the network in inference mode (BatchNorm with its running "
        "statistics, train=False)",
        "outputs do not depend on the rest of the batch",
    )  # fmt: skip


def zero_gradients(zero: np.ndarray) -> Flag:
    """Examples with an input gradient of exactly zero somewhere, bool [n].

    Example:
        >>> zero_gradients(np.array([False] * 3 + [True])).status
        'fail'
    """
    share = _share(zero)
    explanation = (
        f"{share:.2%} of examples have an input gradient of exactly zero (cross-entropy or margin; at the image, a "
        "random point, or at an attack's result), where gradient-based attacks cannot move: look for saturation, or "
        "declare a surrogate_fn"
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
        f"{share:.2%} of examples have NaN or infinite input gradients, which no attack can follow: find the operation "
        "that makes them"
    )
    return _graded(share, len(nonfinite), explanation, "all input gradients are finite")


def shattered_gradients(cosine: np.ndarray) -> Flag:
    """Agreement [n] of derivatives with finite differences along random directions: warns below 0.9, fails below 0.5.

    Example:
        >>> shattered_gradients(np.array([0.1, 0.0, 0.2])).status
        'fail'
    """
    if not len(cosine):
        return Flag.not_applicable(EMPTY)
    median = float(np.median(cosine))
    status = "pass" if median >= 0.9 else "warn" if median >= 0.5 else "fail"
    return Flag(
        status, median, 0.9, len(cosine),
        "derivatives agree with finite differences" if status == "pass" else
        f"derivatives and finite differences agree only to a cosine of {median:.2f} in the median: gradients do "
        "not say what the network does nearby (shattered, substituted or detached); declare a surrogate_fn",
    )  # fmt: skip


def unstable_predictions(change: np.ndarray) -> Flag:
    """The relative change [n] of margins at random points nearby (Pintor et al. 2022, indicator 2).

    Warns above 0.5 in the median, which examples next to the boundary do not decide.

    Example:
        >>> unstable_predictions(np.array([0.9, 0.8, 1.0])).status
        'warn'
    """
    if not len(change):
        return Flag.not_applicable(EMPTY)
    value = float(np.median(change))
    return _above(
        value, 0.5, len(change), "warn",
        f"random noise inside the ball, a pixel's at most 8/255 of the box, changes margins by {value:.0%} of "
        "themselves in the median: predictions are unstable, and gradients say little about the next steps; average "
        "attacks over noise",
        f"random noise inside the ball changes margins by {value:.0%} of themselves in the median",
    )  # fmt: skip


def broader_threats(accuracies: Mapping[str, float], n: int) -> Flag:
    """What is left of the accuracy under changes that are no part of the threat: for information, never a warning.

    Example:
        >>> broader_threats({"Gaussian noise of 0.1": 0.9, "shifts by 10%": 0.8}, 100).value
        0.8
    """
    if not accuracies:
        return Flag.not_applicable(EMPTY)
    listed = ", ".join(f"{accuracy:.1%} under {kind}" for kind, accuracy in accuracies.items())
    return Flag(
        "pass", min(accuracies.values()), None, n,
        f"for information, on examples that are correctly classified as given: {listed}; other norms are "
        "evaluated by --threat",
    )  # fmt: skip


def unbounded_attack_fails(misclassified: np.ndarray) -> Flag:
    """Examples misclassified, bool [n], where anything inside the box is allowed: nothing can be robust then.

    Warns where more than 2 % stay robust, fails above 5 % and three examples.

    Example:
        >>> unbounded_attack_fails(np.zeros(50, bool)).status
        'fail'
    """
    if not len(misclassified):
        return Flag.not_applicable(EMPTY)
    n, robust = len(misclassified), int(np.sum(~misclassified))
    accuracy = robust / n
    status = "fail" if accuracy > 0.05 and robust > 3 else "warn" if accuracy > 0.02 and robust > 1 else "pass"
    return Flag(
        status, accuracy, 0.02, n,
        f"attacks that may change everything succeed on all but {robust} of {n} examples" if status == "pass" else
        f"accuracy stays at {accuracy:.2%} where an attack may change the image into any other: it is the attack that "
        "fails, so gradients are masked",
    )  # fmt: skip


def planted_examples_missed(found: np.ndarray) -> Flag:
    """Whether attacks found the adversarial examples that were planted for them, bool [n] (Zimmermann et al. 2022).

    Fails where fewer than nine in ten are found, and more than one is missed.

    Example:
        >>> planted_examples_missed(np.array([True] * 30 + [False] * 20)).status
        'fail'
    """
    if not len(found):
        return Flag.not_applicable(EMPTY)
    n, count = len(found), int(np.sum(found))
    what = f"gradient-based attacks find {count} of {n} adversarial examples that were planted for them"
    fired = count < 0.9 * n and n - count > 1
    return Flag(
        "fail" if fired else "pass", count / n, 0.9, n,
        f"{what}, so they would not have noticed the others: the figure says more of them than of the network; "
        "declare a surrogate_fn" if fired else what,
    )  # fmt: skip


def loss_and_margin_disagree(loss: np.ndarray, margin: np.ndarray) -> Flag:
    """Rank correlation of attack loss and margin over the iterates [T, n]; warns below 0.8 in the median.

    Example:
        >>> rising = np.arange(10.0)[:, None]
        >>> loss_and_margin_disagree(rising, -rising).status
        'warn'
    """
    if not loss.size:
        return Flag.not_applicable(EMPTY)
    moved = (np.ptp(loss, axis=0) > 1e-6) & (np.ptp(margin, axis=0) > 1e-6)
    if not moved.any():
        return Flag.not_applicable("the loss moved for no example")
    correlation = float(np.median(_rank_correlation(loss[:, moved], margin[:, moved])))
    if correlation >= 0.8:
        return Flag("pass", correlation, 0.8, int(moved.sum()), "the attack's loss and the margin rise together")
    return Flag(
        "warn", correlation, 0.8, int(moved.sum()),
        f"the attack's loss and the margin rise together only to a rank correlation of {correlation:.2f}: what the "
        "attack maximizes is not what misclassifies",
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
        f"bfloat16 and float32 disagree on {share:.2%} of examples: evaluate in float32",
        f"bfloat16 and float32 disagree on {int(np.sum(robust != robust_bfloat16))} of {len(robust)} examples",
    )  # fmt: skip


def _share(rows: np.ndarray) -> float:
    return float(np.mean(rows)) if len(rows) else 0.0


def _above(value: float, threshold: float, n: int, status: str, fires: str, silent: str) -> Flag:
    if not n:
        return Flag.not_applicable(EMPTY)
    fired = value > threshold
    return Flag(status if fired else "pass", value, threshold, n, fires if fired else silent)


def _graded(share: float, n: int, fires: str, silent: str) -> Flag:
    """Warns for any example, fails above one in a hundred."""
    if not n:
        return Flag.not_applicable(EMPTY)
    return Flag("fail" if share > 0.01 else "warn" if share > 0 else "pass", share, 0.01, n, fires if share else silent)


def _variation(outputs: np.ndarray) -> float:
    """Largest distance of outputs [R, n, K] from the first, in units of the first's size; 1 for another argmax.

    Of entries that are not finite, such as the -inf of masked classes, only another value counts, as another argmax.
    """
    finite = np.isfinite(outputs)
    values = np.ma.array(np.where(finite, outputs, 0.0).astype(np.float64), mask=~finite)
    first = values[0] - values[0].mean(axis=-1, keepdims=True)
    size = np.maximum(np.linalg.norm(first.filled(0.0), axis=-1), 1e-12)
    distance = np.nan_to_num(np.linalg.norm((values - values[0]).filled(0.0), axis=-1) / size)
    # The last bit may decide a tie either way; that alone is no randomness.
    other = (np.argmax(outputs, axis=-1) != np.argmax(outputs[0], axis=-1)) & (distance > 1e-6)
    changed = (outputs != outputs[0]) & ~(np.isnan(outputs) & np.isnan(outputs[0]))
    other |= np.any(changed & ~(finite & finite[0]), axis=-1)
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
