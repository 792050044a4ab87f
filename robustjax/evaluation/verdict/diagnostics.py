"""From measurements to flags: what the network's outputs and gradients do, and how the attacks compare.

The rules themselves are in :mod:`red_flags` and :mod:`comparisons`; here is what each of them is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks.engine.verify import is_misclassified
from robustjax.evaluation.verdict import broader, comparisons, goals, probes, red_flags
from robustjax.evaluation.verdict.batteries import AdaptiveResults, PGDGrid, label_only_missing
from robustjax.evaluation.verdict.red_flags import Flag
from robustjax.evaluation.verdict.relaxations import Relaxations
from robustjax.evaluation.verdict.trial import Trial
from robustjax.types import Array, Key, LogitsFn

# Examples on which outputs are compared; how often the network is traced anew, and calls of each trace.
NUM_REPEATED, NUM_TRACES, NUM_CALLS = 16, 2, 3
# Random directions along which derivatives are compared with differences.
NUM_DIRECTIONS = 16
# Random points near an image at which its margin is compared.
NUM_NEARBY = 100
# The most that a pixel changes where predictions are to be stable, in units of the box.
NEARBY = 8 / 255


def randomness(logits_fn: LogitsFn, key: Key, images: Array, *, stochastic: bool) -> Flag:
    """The flag of outputs that vary without being declared to; traced anew, because a trace freezes Python's draws."""

    def calls(*keys: tuple) -> np.ndarray:
        traced = jax.jit(lambda images, *key: goals.float_logits(logits_fn(images, *key)))
        return np.stack([np.asarray(traced(images, *key)) for key in keys])

    if not stochastic:
        return red_flags.randomness(
            np.concatenate([calls(*[()] * NUM_CALLS) for _ in range(NUM_TRACES)]), declared=False
        )
    keys = [(jax.random.fold_in(key, i),) for i in range(NUM_CALLS)]
    traces = [calls(*keys, keys[0]) for _ in range(NUM_TRACES)]
    same_key = np.concatenate([outputs[[0, -1]] for outputs in traces])
    return red_flags.randomness(traces[0][:-1], declared=True, same_key=same_key)


def batch_dependence(network: object, images: np.ndarray, bounds: geometry.Bounds, keys: tuple[Key, ...]) -> Flag:
    """The flag of outputs that change with the rest of the batch.

    The images stay at their places in batches of one size, and their key is the same, so that the noise of a stochastic
    network, which may depend on both, is the same too.

    Args:
        network: as in :class:`goals.Networks`.
        images: float32 [n, H, W, C].
        bounds: of valid pixels.
        keys: the network's arguments after the images.
    """
    low, high = map(np.asarray, bounds)
    # Other images, of other brightness and contrast, than any statistics over the batch would be used to.
    noise = np.random.default_rng(0).uniform(low, high, images.shape).astype(images.dtype)
    companies = (images, noise, (low + 0.1 * (noise - low)).astype(images.dtype))
    outputs = [
        np.asarray(probes.compute_logits(network, np.concatenate([images, company]), *keys))[: len(images)]
        for company in companies
    ]
    return red_flags.batch_dependent(np.stack(outputs))


def gradients(trial: Trial, rows: np.ndarray, trouble: str) -> dict[str, Flag]:
    """The flags of gradients at the images, at random points and at the strongest images so far.

    Args:
        trial: the examples.
        rows: those to look at.
        trouble: why the network cannot be differentiated, or "".
    """
    if not len(rows):
        return dict.fromkeys(red_flags.GRADIENTS, Flag.not_applicable("no example is classified correctly"))
    key, network_keys = trial.key(), trial.network_keys()
    at_random, strongest = trial.random_points(rows, 1, key=key).strongest, trial.candidates.strongest().points[rows]
    zero, nonfinite = np.zeros((2, len(rows)), bool)
    pixels = tuple(range(1, trial.images.ndim))
    # The last one is that of the margin at the images.
    for points in (at_random, strongest, trial.images[rows]):
        for loss in ("ce", "margin"):
            gradient = trial.gradient_at(rows, points, loss, *network_keys)[1]
            zero |= np.all(gradient == 0, axis=pixels)
            nonfinite |= ~np.all(np.isfinite(gradient), axis=pixels)
    flags = {
        "zero_gradients": red_flags.zero_gradients(zero),
        "nonfinite_gradients": red_flags.nonfinite_gradients(nonfinite),
    }
    if trouble:
        explanation = f"the network cannot be differentiated ({trouble}): declare a surrogate_fn"
        flags["zero_gradients"] = flags["zero_gradients"]._replace(explanation=explanation)
    # Short against the ball, and long against the rounding of pixels.
    length = max(0.1 * trial.epsilon, 1e-4 * trial.whole_box())
    along = [
        _along(trial, rows, gradient, length, jax.random.fold_in(key, i), network_keys) for i in range(NUM_DIRECTIONS)
    ]
    derivatives, differences = np.swapaxes(along, 0, 1)
    return flags | {"shattered_gradients": red_flags.shattered_gradients(agreement(derivatives, differences))}


def _along(
    trial: Trial, rows: np.ndarray, gradient: np.ndarray, length: float, key: Key, network_keys: tuple[Key, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The derivative of the margin on the way to random points in balls of this radius, and its central difference."""
    images = trial.images[rows]
    delta = trial.random_points(rows, 1, key=key, epsilon=length).strongest - images
    ahead, behind = (trial.gradient_at(rows, images + way, "margin", *network_keys)[0] for way in (delta, -delta))
    with np.errstate(invalid="ignore"):  # of what is not finite
        products = (gradient * delta).reshape(len(rows), -1)
        return np.asarray(np.sum(products, axis=1, dtype=np.float64)), 0.5 * (ahead - behind)


def agreement(derivatives: np.ndarray, differences: np.ndarray) -> np.ndarray:
    r"""Cosine [n] between directional derivatives and central differences, [D, n] each.

    .. math:: \nabla L(x) \cdot d \quad\text{against}\quad \frac{L(x + d) - L(x - d)}{2}

    1 where both are zero in every direction; 0 where only one of them is, or where one is not finite.

    Example:
        >>> agreement(np.array([[1.0, 0.0, 1.0]]), np.array([[2.0, 0.0, 0.0]]))
        array([1., 1., 0.])
    """
    with np.errstate(invalid="ignore"):
        # Divided by the largest first, as the squares of tiny or huge derivatives would be 0 or infinite.
        sizes = [np.max(np.abs(values), axis=0) for values in (derivatives, differences)]
        first, second = derivatives / sizes[0], differences / sizes[1]
        lengths = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
        cosine = np.nan_to_num(np.sum(first * second, axis=0) / lengths)
    return np.where((sizes[0] == 0) & (sizes[1] == 0), 1.0, cosine)


def surroundings(trial: Trial, rows: np.ndarray) -> dict[str, Flag]:
    """The flags of what happens near the images without any attack, and under other changes than the threat's."""
    names = ("unstable_predictions", "broader_threats")
    if not len(rows):
        return dict.fromkeys(names, Flag.not_applicable("no example is classified correctly"))
    flags = {"broader_threats": red_flags.broader_threats(broader.accuracies(trial, rows), len(rows))}
    if trial.stochastic:
        reason = "the network's own draws change its margins"
        return flags | {"unstable_predictions": Flag.not_applicable(reason)}
    low, high = map(np.asarray, trial.bounds)
    key, most = trial.key(), NEARBY * float(np.mean(high - low))
    change = trial.random_points(rows, NUM_NEARBY, key=key, most=most).change
    return flags | {"unstable_predictions": red_flags.unstable_predictions(change)}


def convergence(rows: np.ndarray, grid: PGDGrid | None) -> dict[str, Flag]:
    """The flags of PGD with its options varied, on the measured examples ``rows``; without a grid they do not apply."""
    if grid is None:
        return dict.fromkeys(red_flags.CONVERGENCE, Flag.not_applicable("no example is classified correctly"))
    by_size = {size: is_misclassified(share[rows]) for size, share in grid.by_step_size.items()}
    return {
        "one_step_beats_many": comparisons.one_step_beats_many(is_misclassified(grid.one_step[rows]), by_size[0.1]),
        "more_steps_help": comparisons.more_steps_help(grid.by_steps[:, rows], grid.late_rise),
        "step_size_sensitive": comparisons.step_size_sensitive({f"{size:g}": hit for size, hit in by_size.items()}),
        "accuracy_rises_with_epsilon": comparisons.accuracy_rises_with_epsilon(
            is_misclassified(grid.by_radius[:, rows])
        ),
        "unbounded_attack_fails": red_flags.unbounded_attack_fails(is_misclassified(grid.unbounded[rows])),
        "loss_and_margin_disagree": red_flags.loss_and_margin_disagree(grid.record.loss.T, grid.record.margin.T),
    }


def attacks(
    trial: Trial, rows: np.ndarray, grid: PGDGrid | None, by_gradient: np.ndarray, restarted: np.ndarray,
    random: np.ndarray, adaptive: AdaptiveResults, relaxations: Relaxations, label_only: np.ndarray | None,
    chosen_by: Sequence[str] = (),
) -> dict[str, Flag]:  # fmt: skip
    """The flags of attacks that should find nothing beyond what direct gradient-based attacks find.

    Of a stochastic network the former count only where images are misclassified beyond doubt, the latter where they are
    by majority: with many attacks, some images are misclassified in most draws by chance.

    Args:
        trial: the examples.
        rows: the measured ones.
        grid: PGD's results on them; None without measured examples.
        by_gradient: shares [N] of direct gradient-based attacks, before the restart.
        restarted, random: shares [N] of :func:`batteries.restart` and :func:`batteries.random_search`.
        adaptive: shares of adaptive attacks.
        relaxations: of attacks on what the network's program hides.
        label_only: share [N] of an attack that sees labels only; None where there is none.
        chosen_by: lines of the network's program at which its undeclared auxiliary heads were found.
    """
    missing, certain = Flag.not_applicable, trial.certainly_misclassified
    direct = is_misclassified(np.maximum(by_gradient, restarted))
    flags = {
        "more_restarts_help": missing("no example is classified correctly"),
        "random_search_succeeds": missing("no example is classified correctly"),
        "transfer_beats_white_box": missing("no undefended_fn and no trained_fn declared"),
        "auxiliary_attack_helps": missing(
            "no auxiliary_fn declared, and nothing in the network's program is chosen by scores of the classes"
        ),
        "surrogate_helps": missing("no surrogate_fn declared"),
        "relaxation_helps": missing(_nothing_to_relax(relaxations)),
        "silent_success": missing("the draws of an attack's steps are not those on which its images are verified"),
    } | dict.fromkeys(red_flags.STOCHASTIC, missing("the network is not declared as stochastic"))
    if grid is not None:
        from_the_image, before = is_misclassified(grid.from_the_image()), is_misclassified(by_gradient)
        flags["more_restarts_help"] = comparisons.more_restarts_help(before, before | certain(restarted))
        flags["random_search_succeeds"] = comparisons.random_search_succeeds(
            certain(random)[rows], from_the_image[rows]
        )
    # What an attack with a random start finds where any random point does is no merit of the gradient.
    by_merit = direct & ~certain(random)
    flags["black_box_beats_white_box"] = comparisons.black_box_beats_white_box(
        certain(trial.shares["square"]), by_merit
    )
    flags["label_only_beats_white_box"] = (
        missing(label_only_missing(trial))
        if label_only is None
        else comparisons.label_only_beats_white_box(certain(label_only), by_merit)
    )
    if adaptive.surrogate is not None:
        flags["surrogate_helps"] = comparisons.surrogate_helps(certain(adaptive.surrogate), direct)
    if relaxations.share is not None:
        flags["relaxation_helps"] = comparisons.relaxation_helps(
            certain(relaxations.share), direct, helped=relaxations.helped, num_findings=len(relaxations.findings)
        )
    if adaptive.auxiliary is not None and adaptive.control is not None:  # both or neither
        flags["auxiliary_attack_helps"] = comparisons.auxiliary_attack_helps(
            certain(adaptive.auxiliary), direct | is_misclassified(adaptive.control), chosen_by=chosen_by
        )
    if adaptive.transfer is not None:
        flags["transfer_beats_white_box"] = comparisons.transfer_beats_white_box(certain(adaptive.transfer), direct)
    if adaptive.curve is not None and adaptive.frozen is not None:  # both or neither
        curve = is_misclassified(adaptive.curve)
        flags["eot_not_converged"] = comparisons.eot_not_converged(curve)
        flags["frozen_key_resists"] = comparisons.frozen_key_resists(adaptive.frozen, curve[-1])
    if not trial.stochastic:
        found = is_misclassified(trial.strongest_share())
        flags["silent_success"] = comparisons.silent_success(trial.seen & trial.correct, found)
    return flags


def _nothing_to_relax(relaxations: Relaxations) -> str:
    if not relaxations.findings:
        return "nothing in the network's program hides a gradient"
    return "what the network's program holds cannot be relaxed, or attacks on its own gradient left no example"


def bfloat16(trial: Trial, bfloat16_fn: LogitsFn | None, adversarial: np.ndarray) -> Flag:
    """The flag of outcomes that depend on the precision: the strongest images, classified in both."""
    if bfloat16_fn is None:
        return Flag.not_applicable("no bfloat16_fn declared")
    every = np.arange(len(trial.images))
    robust, other = (
        ~is_misclassified(trial.classified(every, adversarial, network=network)[1])
        for network in (trial.networks.direct, goals.as_logits_fn(bfloat16_fn))
    )
    return red_flags.bfloat16_disagrees(robust, other)
