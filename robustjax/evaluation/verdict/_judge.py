"""A verdict on any network: the strongest attacks that apply to it, and whether their figure can be trusted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import transforms
from robustjax.attacks import geometry
from robustjax.attacks._autoattack import default_batch_size
from robustjax.attacks.engine import inputs, sizes
from robustjax.attacks.engine.verify import Acceptance, is_misclassified
from robustjax.evaluation.protocol import records
from robustjax.evaluation.protocol.threats import Threat, check_width
from robustjax.evaluation.verdict import active, batteries, diagnostics, goals, notebook, red_flags, relaxations, trust
from robustjax.evaluation.verdict.budgets import BUDGETS, Budget
from robustjax.evaluation.verdict.examples import Decision
from robustjax.evaluation.verdict.goals import Networks
from robustjax.evaluation.verdict.hints import Hints
from robustjax.evaluation.verdict.red_flags import Flag
from robustjax.evaluation.verdict.trial import Trial
from robustjax.runtime import compiler
from robustjax.transforms import _heads
from robustjax.types import AnyArray, InputError, Key, LogitsFn


class Verdict(NamedTuple):
    """A network's accuracy under attack, and how far the figure can be trusted.

    Of a stochastic network ``clean``, ``autoattack``, ``worst_case`` and ``robust`` are by majority of m fresh draws,
    the same for all images, of which no attack has seen any; a tie is misclassified. Each is decided on one image of
    each example, so more attacks are not more chances.

    Attributes:
        clean: accuracy on the images as given.
        autoattack: accuracy under AutoAttack ("standard", or "rand" for a stochastic network); with the budget "quick"
            under APGD on cross-entropy and on the targeted DLR loss, and Square, of fewer steps and queries (of a
            stochastic network APGD on cross-entropy and on the DLR loss).
        worst_case: ``robust.mean()``.
        robust: bool [B], correctly classified as given and under every attack that ran.
        won_by: of each example the attack whose image is misclassified, the first in the order of ``misclassified_by``
            (of a stochastic network that of its strongest image); "clean" where it is misclassified as given; None
            where it is robust.
        flags: by name.
        misclassified_by: attack -> bool [B], examples misclassified under it, of those that it was run on; robust
            examples are never among them. Most attacks are run on what the attacks before them left.
        adversarial: float32 [B, H, W, C], of each example the valid image that was misclassified in most draws.
        acceptance: "clean" and "worst_case" (the images ``adversarial``) of a stochastic network, else empty.
        seconds: part -> wall time, compilation included; they sum up to "total".
        seconds_by_attack: the same by attack.
        threat: epsilon, norm, bounds, and the budget.
        findings: what in the network's program may hide gradients or make it random, by
            :func:`robustjax.transforms.inspect`. A finding alone accuses of nothing.
        remedies: for each finding that can be relaxed (attacked with another derivative), how many images it hid the
            gradient for, and what attacks that relax it alone found.
    """

    clean: float
    autoattack: float
    worst_case: float
    robust: np.ndarray
    won_by: list[str | None]
    flags: dict[str, Flag]
    misclassified_by: dict[str, np.ndarray]
    adversarial: np.ndarray
    acceptance: dict[str, Acceptance]
    seconds: dict[str, float]
    seconds_by_attack: dict[str, float]
    threat: dict[str, Any]
    findings: transforms.Findings = transforms.Findings()
    remedies: tuple[relaxations.Remedy, ...] = ()

    def __str__(self) -> str:
        return trust.sentence(self)

    def __repr__(self) -> str:
        """In short: arrays of images would fill a screen many times."""
        return f"<{type(self).__name__}: {self}>"

    def report(self) -> str:
        """The trust report as Markdown: the verdict in a sentence, accuracies, attacks, flags and findings."""
        return trust.markdown(self, conditions=records.conditions())

    def save(self, path: str | Path) -> None:
        """Writes the trust report to ``path/trust.md`` and, with all that is in it, ``path/trust.json``.

        ``python -m robustjax.report --workdirs=path`` makes a page of it.

        Raises:
            WriteError: the folder cannot be written.
        """
        trust.write(path, self, **records.conditions())

    def _repr_html_(self) -> str:
        """Accuracies and the flags that were raised, as notebooks show them."""
        return notebook.html(self)


@np.errstate(over="ignore", invalid="ignore")  # of logits that are not finite, which a flag tells of
def judge(
    logits_fn: LogitsFn,
    key: Key,
    images: AnyArray,
    labels: AnyArray,
    *,
    epsilon: float,
    norm: str = "linf",
    bounds: geometry.Bounds = (0.0, 1.0),
    hints: Hints = Hints(),  # noqa: B008
    budget: str = "quick",
    quicken: bool = True,
    progress: bool = False,
) -> Verdict:
    """Attacks a network with all that applies to it, and looks for signs that the attacks failed.

    Direct attacks come first (AutoAttack's, PGD with its options varied, and new starts of APGD); what they leave is
    attacked with whatever ``hints`` declares: through a surrogate's gradient, jointly with auxiliary heads at several
    weights, by transfer from an undefended network, averaging over a stochastic network's draws; and, undeclared,
    through the network with other derivatives, made from its own program, where
    :func:`robustjax.transforms.inspect` finds something that hides them, and jointly with scores of the classes by
    which the program chooses something. Last, of a deterministic network, APGD starts anew on what is left, up to five
    times while that finds more. Every image that an attack returns is verified: checked against ball and box, and
    classified in a float32 forward pass apart from the attack. A stochastic network's examples are attacked until they
    are misclassified beyond doubt, and the verdict is by majority of fresh draws. This is a driver on the host and
    compiles by itself: call it outside ``jit``.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, or outputs with a field ``logits``, in inference mode; with
            ``hints.stochastic``, (images, key) -> the same. Given as ``jax.tree_util.Partial(apply, variables)``, the
            variables are arguments of what is compiled: others of the same shapes compile nothing. Within a ``jax.jit``
            of the caller's, what it read besides when it was traced stays.
        key: a typed key.
        images: float [B, H, W, C] inside bounds; the network is given them as float32.
        labels: integers [B].
        epsilon: radius of the ball, at least 0; for linf at most the width of the box.
        norm: "linf", "l2" or "l1".
        bounds: box of valid pixels.
        hints: what the author of the network declares.
        budget: "quick", or "full" for AutoAttack as published, the standard numbers of steps, queries and draws, and
            HopSkipJump, which sees labels only.
        quicken: run the network and the functions of the hints by :func:`robustjax.transforms.quicken`.
        progress: print a line for each attack.

    Returns:
        A :class:`Verdict`; ``print(verdict.report())`` puts it into words.

    Raises:
        InputError: for an unknown budget or norm, an epsilon that is not one number, images outside bounds or not
            finite, labels that are not classes, a legacy key, functions whose arguments or outputs are not as declared,
            or a call within ``jit``, ``vmap`` or ``grad``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 2.0)], axis=1)
        >>> images = jnp.stack([jnp.full((2, 2, 1), 0.55), jnp.full((2, 2, 1), 0.8)])
        >>> verdict = judge(linear, jax.random.key(0), images, jnp.array([0, 0]), epsilon=0.1)
        >>> verdict.worst_case, verdict.won_by, verdict.flags["black_box_beats_white_box"].status
        (0.5, ['apgd-ce', None], 'pass')
        >>> print(verdict)  # and verdict.report() all of it
        50.00% of 2 examples (95 % interval 9.45% to 90.55%) are robust against everything that was tried within linf
        epsilon 0.1, and no red flag was raised.
    """
    compiler.check()
    started = time.perf_counter()
    if not isinstance(budget, str) or budget not in BUDGETS:
        raise InputError(f"budget must be one of {', '.join(BUDGETS)}, got {budget!r}")
    if np.ndim(epsilon):
        raise InputError(f"epsilon must be a number, got shape {list(np.shape(epsilon))}; judge one radius at a time")
    inputs.check_radius("epsilon", epsilon, None, allow_infinite=False)
    inputs.check_key(key)
    inputs.are_flags(quicken=quicken, progress=progress)
    images, labels, _, bounds = inputs.on_host(images, labels, epsilon, norm, bounds)
    threat = Threat(norm, float(epsilon), bounds)
    check_width(threat)
    keys = (key,) if checked_hints(hints).stochastic else ()
    outputs = check_functions(hints, logits_fn, images[:2], labels, keys)
    with inputs.blaming("logits_fn", logits_fn, images[:2], *keys):
        return _examined(
            logits_fn, key, images, labels, threat, hints, budget, outputs.dtype, started, quicken=quicken,
            report=print if progress else lambda line: None,
        )  # fmt: skip


def _examined(
    logits_fn: LogitsFn, key: Key, images: np.ndarray, labels: np.ndarray, threat: Threat, hints: Hints, budget: str,
    dtype: Any, started: float, *, quicken: bool, report: Callable[[str], None],
) -> Verdict:  # fmt: skip
    """The verdict on what :func:`judge` has checked; ``dtype`` is that of the logits."""
    keys = (key,) if hints.stochastic else ()
    direct, trouble = _differentiable(logits_fn, images[:2], keys)
    # Of the network alone: that its logits are made float32 is not its own.
    findings = relaxations.find(logits_fn, images[:2], keys)
    few = images[: diagnostics.NUM_REPEATED]
    flags = {"randomness": diagnostics.randomness(logits_fn, key, jnp.asarray(few), stochastic=hints.stochastic)}
    flags["batch_dependent"] = (
        Flag.not_applicable("outputs vary from call to call in any batch")
        if flags["randomness"].status == "fail"
        else diagnostics.batch_dependence(goals.as_logits_fn(logits_fn), few, threat.bounds, keys)
    )
    networks = Networks(
        direct,
        goals.as_logits_fn(hints.surrogate_fn),
        inputs.as_pytree(hints.auxiliary_fn),
        goals.as_logits_fn(hints.undefended_fn),
        goals.as_logits_fn(hints.trained_fn),
    )
    heads = None
    if networks.auxiliary is None and len(images):
        heads = _heads.find(goals.as_logits_fn(logits_fn), jnp.asarray(few), *keys)
        networks = networks._replace(auxiliary=heads and heads.scores)
    if quicken:
        networks = Networks(*(None if network is None else transforms.quicken(network) for network in networks))
    trial = Trial(
        networks,
        key,
        images,
        labels,
        epsilon=threat.epsilon,
        norm=threat.norm,
        bounds=threat.bounds,
        stochastic=hints.stochastic,
        budget=BUDGETS[budget],
        batch_size=_batch_size(BUDGETS[budget], stochastic=hints.stochastic),
        heavy=sizes.is_heavy(direct, images[:1], keys),
        report=report,
    )
    seconds = {"clean": time.perf_counter() - started}

    def spent(part: str) -> None:
        seconds[part] = time.perf_counter() - started - sum(seconds.values())

    batteries.ensemble(trial)
    spent("autoattack")
    measured = trial.measured
    grid = batteries.pgd_grid(trial, measured) if len(measured) else None
    by_gradient = batteries.by_gradient(trial)
    restarted = batteries.restart(trial)
    flags |= diagnostics.convergence(measured, grid) | diagnostics.gradients(trial, measured, trouble)
    flags |= diagnostics.surroundings(trial, measured)
    from_the_image = by_gradient if grid is None else grid.from_the_image()
    random = batteries.random_search(trial, measured, from_the_image)
    spent("red flags")
    adaptive = batteries.adaptive(trial, measured)
    before = batteries.by_gradient(trial)
    relaxed = relaxations.attack(
        trial, goals.as_logits_fn(logits_fn), findings,
        np.flatnonzero(trial.attacked & ~trial.certainly_misclassified(before)), measured, before=before,
        quicken=quicken,
    )  # fmt: skip
    label_only = batteries.black_box(trial, measured)
    if hints.stochastic:
        batteries.close(trial, relaxed.networks if relaxed.helped else None)
    else:
        batteries.persist(trial)
    spent("adaptive")
    flags["planted_examples_missed"] = active.flag(trial, measured, relaxed)
    spent("active test")
    flags |= diagnostics.attacks(
        trial, measured, grid, by_gradient, restarted, random, adaptive, relaxed, label_only,
        chosen_by=heads.where if heads else (),
    )  # fmt: skip
    decision = trial.decide()
    flags["bfloat16_disagrees"] = diagnostics.bfloat16(trial, hints.bfloat16_fn, decision.adversarial)
    flags["nonfinite_logits"] = red_flags.nonfinite_logits(trial.nonfinite)
    flags["probabilities"] = red_flags.probabilities(trial.logits, tolerance=1e-2 if dtype.itemsize < 4 else 1e-3)
    flags["invalid_perturbation"] = red_flags.invalid_perturbation(np.concatenate([*trial.valid, np.ones(0, bool)]))
    acceptance = {}
    if hints.stochastic:
        acceptance = {
            "clean": Acceptance.of(decision.clean_share, trial.num_draws),
            "worst_case": Acceptance.of(decision.share, trial.num_draws),
        }
    spent("verification")
    return Verdict(
        clean=float(decision.clean.mean()),
        autoattack=float(decision.after_ensemble.mean()),
        worst_case=float(decision.robust.mean()),
        robust=decision.robust,
        won_by=decision.won_by,
        flags={name: flags[name] for name in red_flags.NAMES},
        misclassified_by=_misclassified_by(trial, decision),
        adversarial=decision.adversarial,
        acceptance=acceptance,
        seconds=seconds | {"total": sum(seconds.values())},
        seconds_by_attack=trial.seconds,
        threat={"epsilon": threat.epsilon, "norm": threat.norm, "bounds": threat.bounds, "budget": budget},
        findings=findings,
        remedies=relaxed.remedies,
    )


def _batch_size(budget: Budget, *, stochastic: bool) -> int:
    """Images at a time: fewer where each gradient is a mean over draws, all of which are computed at once."""
    return max(default_batch_size() // budget.eot_samples, 16) if stochastic else default_batch_size()


def checked_hints(hints: Hints) -> Hints:
    if not isinstance(hints, Hints):
        raise InputError(f"hints must be Hints(...), got {type(hints).__name__}")
    if not isinstance(hints.stochastic, bool | np.bool_):
        raise InputError(f"hints.stochastic must be True or False, got {hints.stochastic!r}")
    return hints


def check_functions(
    hints: Hints, logits_fn: LogitsFn, images: np.ndarray, labels: np.ndarray, keys: tuple[Key, ...]
) -> jax.ShapeDtypeStruct:
    """Checks arguments and outputs of the network and of the functions in the hints; returns the logits' shape."""
    functions = {"logits_fn": logits_fn} | {
        f"hints.{name}": value for name, value in hints._asdict().items() if name != "stochastic" and value is not None
    }
    for name, function in functions.items():
        wanted = "(images, key), as the hints say stochastic" if keys else "(images)"
        mend = "leave stochastic out of the hints" if keys else "declare Hints(stochastic=True), or bind the key"
        inputs.takes(name, function, (images, *keys), wanted, mend)
    outputs = inputs.traced("logits_fn", logits_fn, images, *keys)
    expected = inputs.logits_of(outputs, len(images)).shape
    inputs.labels_in_range(labels, expected[1])
    for name, function in functions.items():
        answer = inputs.traced(name, function, images, *keys)  # of logits_fn once more: it may keep traced values
        if name == "hints.auxiliary_fn":
            shape = getattr(answer, "shape", ())
            if not (len(shape) == 3 and shape[0] > 0 and shape[1:] == expected):
                wanted = f"logits [S, B, K] with B = {expected[0]} and K = {expected[1]}"
                given = f"shape {list(shape)}" if hasattr(answer, "shape") else type(answer).__name__
                raise InputError(f"{name} must return {wanted}, got {given}; stack the heads on the first axis")
            continue
        shape = getattr(getattr(answer, "logits", answer), "shape", None)
        if shape != expected:
            given = type(answer).__name__ if shape is None else f"shape {list(shape)}"
            raise InputError(
                f"{name} must return logits {list(expected)} as logits_fn does, got {given}; give it the same classes"
            )
    return getattr(outputs, "logits", outputs)


def _differentiable(logits_fn: LogitsFn, images: np.ndarray, keys: tuple[Key, ...]) -> tuple[Any, str]:
    """The network, and why JAX cannot differentiate it, if so: it then counts as one whose gradient is zero."""
    trouble = inputs.gradient_trouble(logits_fn, images, *keys)
    if not trouble:
        return goals.as_logits_fn(logits_fn), ""
    constant = lambda points, *keys: logits_fn(jax.lax.stop_gradient(points), *keys)  # noqa: E731
    return goals.as_logits_fn(constant), trouble


def _misclassified_by(trial: Trial, decision: Decision) -> dict[str, np.ndarray]:
    """What each attack's images are misclassified on, as far as the decision confirms it."""
    won_by = np.array(decision.won_by, object)
    lost = decision.clean & ~decision.robust
    return {name: lost & (is_misclassified(share) | (won_by == name)) for name, share in trial.shares.items()}
