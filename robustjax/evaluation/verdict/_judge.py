"""A verdict on any network: the strongest attacks that apply to it, and whether their figure can be trusted."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks._autoattack import DEFAULT_BATCH_SIZE, DEFAULT_BATCH_SIZE_ON_CPU
from robustjax.attacks.engine import inputs
from robustjax.evaluation.verdict import adaptive, examination, probes, red_flags
from robustjax.evaluation.verdict.adaptive import Hints
from robustjax.evaluation.verdict.probes import Networks
from robustjax.evaluation.verdict.red_flags import Flag
from robustjax.evaluation.verdict.trial import BUDGETS, Trial
from robustjax.statistics import wilson_interval
from robustjax.types import Array, InputError, Key, LogitsFn

# Examples by which undeclared randomness is looked for, how often the network is traced anew, and calls of each trace.
NUM_REPEATED, NUM_TRACES, NUM_CALLS = 16, 2, 3


class Acceptance(NamedTuple):
    """How a stochastic network fares on so many fresh draws for each image.

    Attributes:
        num_draws: m.
        expected: accuracy of a single draw, on average.
        interval_95: of `expected`, over examples.
        majority: share of examples that are correct in more than half of the draws.
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
        strongest: float32 [B, H, W, C], for each example the valid image that was misclassified in most draws.
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
    strongest: np.ndarray
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
    if np.ndim(epsilon):
        raise InputError(f"epsilon: expected a number, got shape {list(np.shape(epsilon))}")
    bounds = (float(bounds[0]), float(bounds[1]))
    inputs.check_key(key)
    images, labels, _ = inputs.on_host(images, labels, epsilon, norm, bounds)
    keys = (key,) if hints.stochastic else ()
    _check(hints, logits_fn, images[:2], labels, keys)
    direct, trouble = _differentiable(logits_fn, images[:2], keys)
    flags = {"randomness": _randomness(logits_fn, key, jnp.asarray(images[:NUM_REPEATED]), hints.stochastic)}
    declared = (hints.surrogate_fn, hints.auxiliary_fn, hints.undefended_fn, hints.trained_fn)
    trial = Trial(
        Networks(direct, *map(probes.partial, declared)),
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
    seconds = {"clean": time.perf_counter() - started}

    def spent(part: str) -> None:
        seconds[part] = time.perf_counter() - started - sum(seconds.values())

    examination.autoattack(trial)
    autoattack = len(trial.standing()) / len(images)
    spent("autoattack")
    measured = np.flatnonzero(trial.correct)[: trial.budget.num_measured]
    converged, walked = examination.convergence(trial, measured)
    flags |= converged | examination.gradients(trial, measured, trouble)
    found = examination.without_gradients(trial, measured, walked)
    spent("red flags")
    outcome = adaptive.battery(trial, np.flatnonzero(trial.correct & ~found.white), measured)
    spent("adaptive")
    flags |= examination.compared(trial, measured, found, outcome)
    flags["bfloat16_disagrees"] = examination.in_bfloat16(trial, hints.bfloat16_fn)
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
        strongest=trial.strongest,
        acceptance=acceptance,
        seconds=seconds | {"total": sum(seconds.values())},
        seconds_by_attack=trial.seconds,
        threat={"epsilon": float(epsilon), "norm": norm, "bounds": bounds, "budget": budget},
    )


def _check(hints: Hints, logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, keys: tuple[Key, ...]) -> None:
    """Labels and the shapes of what was declared, against the logits."""
    expected = jax.eval_shape(lambda points: probes.float_logits(logits_fn(points, *keys)), images).shape
    if np.min(labels) < 0 or np.max(labels) >= expected[1]:
        given = f"{np.min(labels)} to {np.max(labels)}"
        raise InputError(f"labels: expected classes 0 to {expected[1] - 1}, as there are logits, got {given}")
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
    """Calls of the network, traced anew now and then: what Python draws is frozen within a trace."""

    def calls(*keys: tuple) -> np.ndarray:
        traced = jax.jit(lambda images, *key: probes.float_logits(logits_fn(images, *key)))
        return np.stack([np.asarray(traced(images, *key)) for key in keys])

    if not stochastic:
        again = np.concatenate([calls(*[()] * NUM_CALLS) for _ in range(NUM_TRACES)])
        return red_flags.randomness(again, declared=False)
    fresh = [(jax.random.fold_in(key, i),) for i in range(NUM_CALLS)]
    traces = [calls(*fresh, fresh[0]) for _ in range(NUM_TRACES)]
    same_key = np.concatenate([answers[[0, -1]] for answers in traces])
    return red_flags.randomness(traces[0][:-1], declared=True, same_key=same_key)


def _differentiable(logits_fn: LogitsFn, images: np.ndarray, keys: tuple[Key, ...]) -> tuple[Any, str]:
    """The network, and why JAX cannot differentiate it, if so: it then counts as one whose gradient is zero."""
    total = lambda points: jnp.sum(probes.float_logits(logits_fn(points, *keys)))  # noqa: E731
    try:
        jax.eval_shape(jax.grad(total), images)
    except (TypeError, ValueError, NotImplementedError) as error:
        constant = lambda points, *keys: logits_fn(jax.lax.stop_gradient(points), *keys)  # noqa: E731
        return jax.tree_util.Partial(constant), str(error).splitlines()[0]
    return probes.partial(logits_fn), ""


def _won_by(trial: Trial) -> list[str | None]:
    won = np.where(trial.correct, None, "clean")
    for name, broken in trial.broken.items():
        won = np.where(broken & (won == None), name, won)  # noqa: E711
    return won.tolist()


def _acceptance(share: np.ndarray, num_draws: int) -> Acceptance:
    expected, n = 1.0 - float(np.mean(share, dtype=np.float64)), len(share)
    return Acceptance(
        num_draws, expected, wilson_interval(expected * n, n), float(np.mean(share < 0.5)), float(np.mean(share == 0))
    )
