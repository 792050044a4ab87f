"""What a verdict measures with nothing declared: direct attacks, and what the red flags of the network are read off."""

from __future__ import annotations

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks
from robustjax.attacks import geometry
from robustjax.evaluation.verdict import adaptive, comparisons, probes, red_flags
from robustjax.evaluation.verdict.red_flags import Flag
from robustjax.evaluation.verdict.trial import Trial
from robustjax.types import LogitsFn

# Steps of the recorded PGD, in units of epsilon, and the radii at which accuracy has to fall, in the same units.
STEP_SIZES = (0.1, 0.25, 0.5)
RADII = (0.25, 0.5, 1.0, 2.0)
# Steps of the attack that may change everything, in units of the whole box.
UNBOUNDED_STEP_SIZES = (0.25, 0.02)
BY_GRADIENT = ("apgd", "fab", "fgsm", "pgd")


class Found(NamedTuple):
    """What direct attacks found, bool [N] each.

    Attributes:
        white: broken by attacks that follow the network's own gradient.
        walked: broken by those of them that start at the image, of the measured examples.
        lucky: those of `white` that random points break too, and `walked` does not hold: a random start may do.
    """

    white: np.ndarray
    walked: np.ndarray
    lucky: np.ndarray


def autoattack(trial: Trial) -> None:
    """AutoAttack, or the quick budget's part of it, and Square."""
    rows, stochastic = np.flatnonzero(trial.correct), trial.stochastic
    if trial.budget.autoattack:
        started = time.perf_counter()
        result = attacks.autoattack(
            trial.networks.direct, trial.key(), trial.images, trial.labels, epsilon=trial.epsilon, norm=trial.norm,
            version="rand" if stochastic else "standard", bounds=trial.bounds,
        )  # fmt: skip
        before = trial.correct
        for name, after in result.by_attack.items():
            broken = np.flatnonzero(before & ~after)
            trial.submit(name, broken, result.images[broken])
            before = before & after
        trial.timed("autoattack", rows, started, trial.correct & ~before)
    else:
        broken = trial.apgd("apgd-ce", rows, view="direct", loss="ce")
        left = rows[~broken[rows]]
        if stochastic:
            trial.apgd("apgd-dlr", left, view="direct", loss="dlr")
        else:
            trial.targeted("apgd-t", left, view="direct")
    if "square" not in trial.broken:
        trial.square("square", trial.standing())


def convergence(trial: Trial, rows: np.ndarray) -> tuple[dict[str, Flag], np.ndarray]:
    """The flags of attacks that have not converged, or that more of the same would change; and what PGD broke, [N]."""
    if not len(rows):
        missing = Flag.not_applicable("no example is classified correctly")
        return dict.fromkeys(red_flags.CONVERGENCE, missing), np.zeros_like(trial.correct)
    steps = trial.budget.pgd_steps
    one, _ = trial.ascend("fgsm", rows, step_size=1.0, num_steps=1)
    walks = {size: trial.ascend(f"pgd-{steps}:{size:g}", rows, step_size=size, num_steps=steps) for size in STEP_SIZES}
    broken, ascent = walks[0.25]
    by_radius = np.stack([
        broken if radius == 1.0 else trial.ascend(
            f"pgd-{steps}:radius-{radius:g}", rows, step_size=0.25, num_steps=steps, epsilon=radius * trial.epsilon
        )[0]
        for radius in RADII
    ])  # fmt: skip
    unbounded = np.logical_or.reduce([
        trial.ascend("unbounded", rows, step_size=size, num_steps=steps, epsilon=trial.whole_box())[0]
        for size in UNBOUNDED_STEP_SIZES
    ])  # fmt: skip
    if trial.stochastic:
        # The more steps, the likelier a lucky draw along the way: only fresh draws of the ends compare.
        fewer = [
            trial.ascend(f"pgd-{count}:0.25", rows, step_size=0.25, num_steps=count)[0]
            for count in (steps // 4, steps // 2)
        ]
        by_steps, loss_left = np.stack([*fewer, broken])[:, rows], np.zeros(0)
    else:
        by_steps, loss_left = ascent.broken[:, [steps // 4, steps // 2, steps]].T, _loss_left(ascent, steps)
    before = _by_gradient(trial)
    left = np.flatnonzero(trial.correct & ~before)
    again = trial.apgd("apgd-ce:restart", left, view="direct", loss="ce")
    again |= trial.apgd("apgd-dlr:restart", left, view="direct", loss="dlr")
    flags = {
        "one_step_beats_many": comparisons.one_step_beats_many(one[rows], walks[0.1][0][rows]),
        "more_steps_help": comparisons.more_steps_help(by_steps, loss_left),
        "more_restarts_help": comparisons.more_restarts_help(before, before | again),
        "step_size_sensitive": comparisons.step_size_sensitive(
            {f"{size:g}": broken[rows] for size, (broken, _) in walks.items()}
        ),
        "accuracy_rises_with_epsilon": comparisons.accuracy_rises_with_epsilon(by_radius[:, rows]),
        "unbounded_attack_fails": red_flags.unbounded_attack_fails(unbounded[rows]),
        "loss_and_margin_disagree": red_flags.loss_and_margin_disagree(
            ascent.loss[:, : steps + 1].T, ascent.margin[:, : steps + 1].T
        ),
    }
    return flags, np.logical_or.reduce([one, *(broken for broken, _ in walks.values()), *by_radius[:-1]])


def _loss_left(ascent: probes.Ascent, steps: int) -> np.ndarray:
    """Share of the rise of the best loss that fell into the last tenth of the steps, for examples that stand."""
    loss = np.maximum.accumulate(ascent.loss[~ascent.broken[:, -1], : steps + 1], axis=1)
    rise = loss[:, -1] - loss[:, 0]
    return ((loss[:, -1] - loss[:, -1 - steps // 10]) / np.where(rise > 0, rise, 1.0))[rise > 0]


def _by_gradient(trial: Trial) -> np.ndarray:
    """What direct attacks by gradients broke so far, bool [N]."""
    broken = [rows for name, rows in trial.broken.items() if name.startswith(BY_GRADIENT)]
    return np.logical_or.reduce([np.zeros_like(trial.correct), *broken])


def without_gradients(trial: Trial, rows: np.ndarray, walked: np.ndarray) -> Found:
    """Random search on what PGD left of some examples, and Square on what other attacks broke by luck perhaps.

    An attack that starts at random also succeeds where any random point does, which says nothing of its gradients.
    """
    white = _by_gradient(trial)
    tried = ~white
    tried[rows] = ~walked[rows]
    random = trial.random_search("random", np.flatnonzero(trial.correct & tried))
    lucky = random & white
    if lucky.any():
        trial.square("square", np.flatnonzero(lucky))
    return Found(white, walked, lucky)


def gradients(trial: Trial, rows: np.ndarray, trouble: str) -> dict[str, Flag]:
    """The flags of gradients at the images, at random points and at the ends of attacks.

    Args:
        trial: of the network.
        rows: examples to look at.
        trouble: why the network cannot be differentiated, or "".
    """
    if not len(rows):
        return dict.fromkeys(red_flags.GRADIENTS, Flag.not_applicable("no example is classified correctly"))
    key, network_keys = trial.key(), trial.network_keys()
    noise = geometry.get(trial.norm).random_start(key, jnp.asarray(trial.images), jnp.float32(trial.epsilon))
    places = (trial.images, np.clip(trial.images + np.asarray(noise), *trial.bounds), trial.strongest)
    found = [
        trial.over(
            rows,
            lambda some, place=place, loss=loss: probes.gradients(
                trial.networks, place[some], trial.labels[some], trial.goal(some, view="direct", loss=loss),
                *network_keys,
            ),
        )
        for place in places for loss in ("ce", "margin")
    ]  # fmt: skip
    zero, nonfinite = (np.logical_or.reduce(column) for column in zip(*found, strict=True))
    flags = {
        "zero_gradients": red_flags.zero_gradients(zero),
        "nonfinite_gradients": red_flags.nonfinite_gradients(nonfinite),
    }
    if trouble:
        explanation = f"the network cannot be differentiated ({trouble}): declare a surrogate_fn"
        flags["zero_gradients"] = flags["zero_gradients"]._replace(explanation=explanation)
    # Short against the ball, and long against the rounding of pixels.
    length = max(0.1 * trial.epsilon, 1e-4 * trial.whole_box())
    cosine = trial.over(
        rows,
        lambda some: probes.directional_agreement(
            trial.networks, jax.random.fold_in(key, int(some[0])), trial.images[some], trial.labels[some],
            trial.goal(some, view="direct", loss="margin"), jnp.float32(length), *network_keys, norm=trial.norm,
        ),
    )  # fmt: skip
    flags["shattered_gradients"] = red_flags.shattered_gradients(cosine)
    return flags


def compared(trial: Trial, rows: np.ndarray, found: Found, outcome: adaptive.Outcome) -> dict[str, Flag]:
    """The flags of attacks that should not find what direct attacks by gradients leave."""
    missing = Flag.not_applicable
    white, walked, lucky = found
    seen = missing("the draws along an attack are not those of the judgement")
    if not trial.stochastic:
        broken = np.logical_or.reduce(list(trial.broken.values()))
        seen = comparisons.silent_success(trial.seen & trial.correct, broken)
    flags = {
        "black_box_beats_white_box": comparisons.black_box_beats_white_box(trial.broken["square"], white & ~lucky),
        "transfer_beats_white_box": missing("no undefended_fn and no trained_fn declared"),
        "random_search_succeeds": comparisons.random_search_succeeds(trial.broken["random"][rows], walked[rows])
        if len(rows) else missing("no example is classified correctly"),
        "auxiliary_attack_helps": missing("no auxiliary_fn declared"),
        "surrogate_helps": missing("no surrogate_fn declared"),
        "silent_success": seen,
    } | dict.fromkeys(red_flags.STOCHASTIC, missing("the network is not declared as stochastic"))  # fmt: skip
    if outcome.surrogate is not None:
        flags["surrogate_helps"] = comparisons.surrogate_helps(outcome.surrogate, white)
    if outcome.auxiliary is not None:
        flags["auxiliary_attack_helps"] = comparisons.auxiliary_attack_helps(outcome.auxiliary, white | outcome.control)
    if outcome.transfer is not None:
        flags["transfer_beats_white_box"] = comparisons.transfer_beats_white_box(outcome.transfer, white)
    if outcome.curve is not None:
        flags["eot_not_converged"] = comparisons.eot_not_converged(outcome.curve)
        flags["frozen_key_resists"] = comparisons.frozen_key_resists(outcome.frozen, outcome.averaged)
    return flags


def in_bfloat16(trial: Trial, bfloat16_fn: LogitsFn | None) -> Flag:
    """The flag of verdicts that depend on precision: the strongest images, judged in both."""
    if bfloat16_fn is None:
        return Flag.not_applicable("no bfloat16_fn declared")
    rows = np.arange(len(trial.images))
    robust, other = (
        trial.classified(rows, trial.strongest, network=network)[1] < 0.5
        for network in (trial.networks.direct, probes.partial(bfloat16_fn))
    )
    return red_flags.bfloat16_disagrees(robust, other)
