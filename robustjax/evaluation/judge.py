"""A verdict on any network: the strongest attacks that apply to it, and whether their figure can be trusted."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks
from robustjax.attacks import geometry
from robustjax.attacks.autoattack import DEFAULT_BATCH_SIZE, DEFAULT_BATCH_SIZE_ON_CPU, checked
from robustjax.evaluation import adaptive, probes, red_flags
from robustjax.evaluation.adaptive import Hints
from robustjax.evaluation.probes import Networks
from robustjax.evaluation.records import wilson_interval
from robustjax.evaluation.red_flags import Flag
from robustjax.evaluation.trial import BUDGETS, Trial
from robustjax.types import Array, InputError, Key, LogitsFn

# Examples and calls by which undeclared randomness is looked for: outside `jit`, which would freeze it.
NUM_REPEATED, NUM_CALLS = 16, 5
# Steps of the recorded PGD, in units of epsilon; the radii at which accuracy has to fall, in the same units.
STEP_SIZES = (0.1, 0.25, 0.5)
RADII = (0.25, 0.5, 1.0, 2.0)


class Acceptance(NamedTuple):
    """How a stochastic network fares on so many fresh draws for each image.

    Attributes:
        num_draws: m.
        expected: accuracy of a single draw, on average.
        interval_95: of `expected`, over examples.
        majority: share of examples that are correct in at least half of the draws.
        worst: share of examples that are correct in every draw.
    """

    num_draws: int
    expected: float
    interval_95: tuple[float, float]
    majority: float
    worst: float


class Verdict(NamedTuple):
    """What is left of a network's accuracy, and how far that can be trusted.

    Attributes:
        clean: accuracy as it is; of a stochastic network by majority of fresh draws, like everything below.
        autoattack: accuracy after AutoAttack ("standard", or "rand" for a stochastic network); with the budget "quick"
            after APGD on cross-entropy and on the targeted ratio, and Square, of fewer steps and queries.
        worst_case: `robust.mean()`.
        robust: bool [B], correct as it is and broken by no attack that ran.
        won_by: for each example the first attack that broke it, in the order of `broken`; "clean" where it is
            misclassified as it is; None where it is robust.
        flags: by name.
        broken: attack -> bool [B], what it broke, of the examples that it was run on. Attacks after the first are run
            on what the direct attacks before them left.
        acceptance: "clean" and "worst_case" (the strongest image found of each example, on draws that had no part in
            finding it) for a stochastic network, else empty.
        seconds: part -> wall time, compilation included; they sum up to "total".
        seconds_by_attack: the same by attack.
        threat: epsilon, norm, bounds, and the budget.
    """

    clean: float
    autoattack: float
    worst_case: float
    robust: np.ndarray
    won_by: list[str | None]
    flags: dict[str, Flag]
    broken: dict[str, np.ndarray]
    acceptance: dict[str, Acceptance]
    seconds: dict[str, float]
    seconds_by_attack: dict[str, float]
    threat: dict[str, Any]


def judge(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: float,
    norm: str = "linf",
    bounds: geometry.Bounds = (0.0, 1.0),
    hints: Hints = Hints(),  # noqa: B008
    budget: str = "quick",
    progress: bool = False,
) -> Verdict:
    """Attacks a network with all that applies to it, and looks for signs that the attacks failed.

    Direct attacks come first (AutoAttack's); what they leave is attacked with whatever `hints` declares: through a
    surrogate's gradient, jointly with auxiliary heads at every weight, by transfer from an undefended twin, averaging
    over a stochastic network's draws. Every image that an attack returns is checked against ball and box and classified
    anew; a stochastic network counts as broken where most of a number of fresh draws are misclassified. This is a
    driver on the host and compiles by itself: call it outside `jit`.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, in inference mode; (images, key) -> logits with `hints.stochastic`.
            Given as `jax.tree_util.Partial(apply, variables)`, the variables are arguments of what is compiled.
        key: a typed key.
        images: float [B, H, W, C] inside bounds.
        labels: integers [B].
        epsilon: radius of the ball, at least 0.
        norm: "linf", "l2" or "l1".
        bounds: box of valid pixels.
        hints: what the network's author declares.
        budget: "quick", or "full" for the standard numbers of steps, queries and draws.
        progress: print a line for each attack.

    Returns:
        A `Verdict`; `trust.markdown` and `trust.table` put it into words.

    Raises:
        InputError: for an unknown budget or norm, images outside bounds or not finite, labels that are not classes, or
            arguments or outputs of the wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 2.0)], axis=1)
        >>> images = jnp.stack([jnp.full((2, 2, 1), 0.55), jnp.full((2, 2, 1), 0.8)])
        >>> verdict = judge(linear, jax.random.key(0), images, jnp.array([0, 0]), epsilon=0.1)
        >>> verdict.worst_case, verdict.won_by, verdict.flags["black_box_beats_white_box"].status
        (0.5, ['apgd-ce', None], 'pass')
    """
    started = time.perf_counter()
    if budget not in BUDGETS:
        raise InputError(f"budget: expected one of {', '.join(BUDGETS)}, got {budget!r}")
    images, labels, _ = checked(images, labels, epsilon, norm, bounds)
    if np.ndim(epsilon):
        raise InputError(f"epsilon: expected a number, got shape {list(np.shape(epsilon))}")
    flags: dict[str, Flag] = {}
    flags["randomness"] = _randomness(logits_fn, key, jnp.asarray(images[:NUM_REPEATED]), hints.stochastic)
    keys = (key,) if hints.stochastic else ()
    _check(hints, logits_fn, images[:2], keys)
    direct, trouble = _differentiable(logits_fn, images[:1], keys)
    trial = Trial(
        Networks(
            direct,
            *(_partial(fn) for fn in (hints.surrogate_fn, hints.auxiliary_fn, hints.undefended_fn, hints.trained_fn)),
        ),
        key,
        images,
        labels,
        epsilon=float(epsilon),
        norm=norm,
        bounds=bounds,
        stochastic=hints.stochastic,
        budget=BUDGETS[budget],
        batch_size=DEFAULT_BATCH_SIZE_ON_CPU if jax.default_backend() == "cpu" else DEFAULT_BATCH_SIZE,
        report=print if progress else lambda line: None,
    )
    if np.min(labels) < 0 or np.max(labels) >= trial.num_classes:
        given = f"{np.min(labels)} to {np.max(labels)}"
        raise InputError(f"labels: expected classes 0 to {trial.num_classes - 1}, as there are logits, got {given}")
    seconds = {"clean": time.perf_counter() - started}

    def spent(part: str) -> None:
        seconds[part] = time.perf_counter() - started - sum(seconds.values())

    _autoattack(trial)
    autoattack = len(trial.standing()) / len(images)
    spent("autoattack")
    measured = np.flatnonzero(trial.correct)[: trial.budget.num_measured]
    flags |= _convergence(trial, measured)
    flags |= _gradients(trial, measured, trouble)
    white = _white(trial)
    left = np.flatnonzero(trial.correct & ~white)
    trial.random_search("random", left)
    spent("red flags")
    outcome = adaptive.battery(trial, left, measured)
    spent("adaptive")
    flags |= _comparisons(trial, white, outcome)
    flags["bfloat16_disagrees"] = _bfloat16(trial, hints.bfloat16_fn)
    flags["probabilities"] = red_flags.probabilities(trial.logits)
    flags["invalid_perturbation"] = red_flags.invalid_perturbation(np.concatenate([*trial.valid, np.ones(0, bool)]))
    robust = np.isin(np.arange(len(images)), trial.standing())
    acceptance = {}
    if hints.stochastic:
        every = np.arange(len(images))
        acceptance = {
            "clean": _acceptance(trial.share, trial.judged_draws),
            "worst_case": _acceptance(trial.classified(every, trial.strongest)[1], trial.judged_draws),
        }
    spent("judgement")
    return Verdict(
        clean=float(trial.correct.mean()),
        autoattack=autoattack,
        worst_case=float(robust.mean()),
        robust=robust,
        won_by=_won_by(trial),
        flags={name: flags[name] for name in red_flags.NAMES},
        broken=trial.broken,
        acceptance=acceptance,
        seconds=seconds | {"total": sum(seconds.values())},
        seconds_by_attack=trial.seconds,
        threat={"epsilon": float(epsilon), "norm": norm, "bounds": bounds, "budget": budget},
    )


def _partial(network: Any) -> Any:
    if network is None or isinstance(network, jax.tree_util.Partial):
        return network
    return jax.tree_util.Partial(network)


def _check(hints: Hints, logits_fn: LogitsFn, images: np.ndarray, keys: tuple[Key, ...]) -> None:
    """The shapes of what was declared."""
    expected = jax.eval_shape(lambda points: probes.float_logits(logits_fn(points, *keys)), images).shape
    for name, network in hints._asdict().items():
        if name == "stochastic" or network is None:
            continue
        outputs = jax.eval_shape(network, images, *keys)
        shape = getattr(getattr(outputs, "logits", outputs), "shape", ())
        if name == "auxiliary_fn" and not (len(shape) == 3 and shape[0] > 0 and shape[1:] == expected):
            wanted = f"logits [S, B, K] with B = {expected[0]} and K = {expected[1]}"
            raise InputError(f"auxiliary_fn: expected {wanted}, got shape {list(shape)}")
        if name != "auxiliary_fn" and shape != expected:
            raise InputError(f"{name}: expected logits {list(expected)} as of logits_fn, got shape {list(shape)}")


def _randomness(logits_fn: LogitsFn, key: Key, images: Array, stochastic: bool) -> Flag:
    def calls(*keys: tuple) -> np.ndarray:
        return np.stack([np.asarray(probes.float_logits(logits_fn(images, *key))) for key in keys])

    if not stochastic:
        return red_flags.randomness(calls(*[()] * NUM_CALLS), declared=False)
    fresh = [(jax.random.fold_in(key, i),) for i in range(NUM_CALLS)]
    return red_flags.randomness(calls(*fresh), declared=True, same_key=calls(*fresh[:1] * 2))


def _differentiable(logits_fn: LogitsFn, images: np.ndarray, keys: tuple[Key, ...]) -> tuple[Any, str]:
    """The network, and why JAX cannot differentiate it, if so: it then counts as one whose gradient is zero."""
    total = lambda points: jnp.sum(probes.float_logits(logits_fn(points, *keys)))  # noqa: E731
    jax.eval_shape(total, images)
    try:
        jax.eval_shape(jax.grad(total), images)
    except (TypeError, ValueError, NotImplementedError) as error:
        constant = lambda points, *keys: logits_fn(jax.lax.stop_gradient(points), *keys)  # noqa: E731
        return jax.tree_util.Partial(constant), str(error).splitlines()[0]
    return _partial(logits_fn), ""


def _autoattack(trial: Trial) -> None:
    """AutoAttack, or the quick budget's part of it."""
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


def _white(trial: Trial) -> np.ndarray:
    """What direct attacks by gradients broke, bool [N]."""
    without = ("square", "random")
    return np.logical_or.reduce([broken for name, broken in trial.broken.items() if name not in without])


def _convergence(trial: Trial, rows: np.ndarray) -> dict[str, Flag]:
    """The flags of attacks that have not converged, or that more of the same would change."""
    if not len(rows):
        reason = Flag.not_applicable("no example is classified correctly")
        return dict.fromkeys(red_flags.CONVERGENCE, reason)
    flags = {}
    steps = trial.budget.pgd_steps
    one, _ = trial.ascend("fgsm", rows, step_size=1.0, num_steps=1)
    by_size, ascents = {}, {}
    for size in STEP_SIZES:
        name = f"pgd-{steps}:{size:g}"
        by_size[f"{size:g}"], ascents[size] = trial.ascend(name, rows, step_size=size, num_steps=steps)
    flags["one_step_beats_many"] = red_flags.one_step_beats_many(one[rows], by_size["0.1"][rows])
    flags["step_size_sensitive"] = red_flags.step_size_sensitive(
        {size: broken[rows] for size, broken in by_size.items()}
    )
    ascent = ascents[0.25]
    flags["more_steps_help"] = red_flags.more_steps_help(
        ascent.broken[:, [steps // 4, steps // 2, steps]].T, _loss_left(ascent, steps)
    )
    flags["loss_and_margin_disagree"] = red_flags.loss_and_margin_disagree(
        ascent.loss[:, : steps + 1].T, ascent.margin[:, : steps + 1].T
    )
    by_radius = [
        by_size["0.25"]
        if factor == 1.0
        else trial.ascend(
            f"pgd-{steps}:radius-{factor:g}", rows, step_size=0.25, num_steps=steps, epsilon=factor * trial.epsilon
        )[0]
        for factor in RADII
    ]
    flags["accuracy_rises_with_epsilon"] = red_flags.accuracy_rises_with_epsilon(np.stack(by_radius)[:, rows])
    everything = trial.whole_box()
    unbounded = trial.apgd("unbounded", rows, epsilon=everything, view="direct", loss="ce")
    unbounded |= trial.targeted("unbounded", rows[~unbounded[rows]], view="direct", epsilon=everything)
    flags["unbounded_attack_fails"] = red_flags.unbounded_attack_fails(unbounded[rows])
    before = _white(trial)
    left = np.flatnonzero(trial.correct & ~before)
    again = trial.apgd("apgd-ce:restart", left, view="direct", loss="ce")
    again |= trial.apgd("apgd-dlr:restart", left, view="direct", loss="dlr")
    flags["more_restarts_help"] = red_flags.more_restarts_help(before, before | again)
    return flags


def _loss_left(ascent: probes.Ascent, steps: int) -> np.ndarray:
    """Share of the rise of the best loss that fell into the last tenth of the steps, for examples that stand."""
    loss = np.maximum.accumulate(ascent.loss[~ascent.broken[:, -1], : steps + 1], axis=1)
    rise = loss[:, -1] - loss[:, 0]
    return ((loss[:, -1] - loss[:, -1 - steps // 10]) / np.where(rise > 0, rise, 1.0))[rise > 0]


def _gradients(trial: Trial, rows: np.ndarray, trouble: str) -> dict[str, Flag]:
    """The flags of gradients at the images, at random points and at the ends of attacks."""
    if not len(rows):
        return dict.fromkeys(red_flags.GRADIENTS, Flag.not_applicable("no example is classified correctly"))
    key, network_keys = trial.key(), trial.network_keys()
    shape = geometry.get(trial.norm)
    noise = np.asarray(shape.random_start(key, jnp.asarray(trial.images), jnp.float32(trial.epsilon)))
    places = (trial.images, np.clip(trial.images + noise, *trial.bounds), trial.strongest)
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


def _comparisons(trial: Trial, white: np.ndarray, outcome: adaptive.Outcome) -> dict[str, Flag]:
    """The flags of attacks that should not find what direct attacks by gradients leave."""
    missing = Flag.not_applicable
    correct = trial.correct

    def compared(check, these: np.ndarray | None, those: np.ndarray, reason: str) -> Flag:
        return missing(reason) if these is None else check(these, those)

    flags = {
        "black_box_beats_white_box": red_flags.black_box_beats_white_box(trial.broken["square"], white),
        "random_search_succeeds": red_flags.random_search_succeeds(trial.broken["random"], white),
        "surrogate_helps": compared(red_flags.surrogate_helps, outcome.surrogate, white, "no surrogate_fn declared"),
        "auxiliary_attack_helps": compared(
            red_flags.auxiliary_attack_helps,
            outcome.auxiliary,
            white if outcome.control is None else white | outcome.control,
            "no auxiliary_fn declared",
        ),
        "transfer_beats_white_box": compared(
            red_flags.transfer_beats_white_box,
            outcome.transfer,
            white,
            "no undefended_fn and no trained_fn declared",
        ),
    }
    if trial.stochastic:
        random = missing("the draws along an attack are not those of the judgement")
        flags["silent_success"] = random
    else:
        flags["silent_success"] = red_flags.silent_success(
            trial.seen & correct, np.logical_or.reduce(list(trial.broken.values()))
        )
    if outcome.curve is None:
        flags |= dict.fromkeys(red_flags.STOCHASTIC, missing("the network is not declared as stochastic"))
    else:
        flags["eot_not_converged"] = red_flags.eot_not_converged(outcome.curve)
        flags["frozen_key_resists"] = red_flags.frozen_key_resists(outcome.frozen, outcome.averaged)
    return flags


def _bfloat16(trial: Trial, bfloat16_fn: LogitsFn | None) -> Flag:
    if bfloat16_fn is None:
        return Flag.not_applicable("no bfloat16_fn declared")
    rows = np.arange(len(trial.images))
    robust, other = (
        trial.classified(rows, trial.strongest, network=network)[1] <= 0.5
        for network in (trial.networks.direct, _partial(bfloat16_fn))
    )
    return red_flags.bfloat16_disagrees(robust, other)


def _won_by(trial: Trial) -> list[str | None]:
    won = np.where(trial.correct, None, "clean")
    for name, broken in trial.broken.items():
        won = np.where(broken & (won == None), name, won)  # noqa: E711
    return won.tolist()


def _acceptance(share: np.ndarray, num_draws: int) -> Acceptance:
    expected, n = 1.0 - float(np.mean(share, dtype=np.float64)), len(share)
    return Acceptance(
        num_draws, expected, wilson_interval(expected * n, n), float(np.mean(share <= 0.5)), float(np.mean(share == 0))
    )
