"""Attacks on what a network's own program hides: the remedies of its findings, tried on a sample and used on the rest.

Each finding of :func:`robustjax.transforms.inspect` is relaxed alone, and all of them are relaxed together at several
temperatures. How much of each is relaxed is a traced number, so that one compiled attack serves every trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import transforms
from robustjax.attacks.engine.verify import is_misclassified
from robustjax.evaluation.verdict import goals
from robustjax.evaluation.verdict.budgets import MOST_RESTARTS
from robustjax.evaluation.verdict.goals import Goal, Networks
from robustjax.evaluation.verdict.trial import Trial
from robustjax.transforms import Finding, Findings
from robustjax.transforms._relax import has_replacements, relaxable, relaxed
from robustjax.types import Array, Key

# In units of what the comparisons and scores are; all findings are relaxed at each, a single one at the first.
TEMPERATURES = (1.0, 0.3, 3.0)
# The most findings that are relaxed alone; of more, those of one kind are relaxed together.
MOST_ALONE = 8
# A gradient at less than this cosine to another has another direction.
LEAST_COSINE = 0.5
LOOPS, CALLBACK = "inner_optimisation", "callback"


class Remedy(NamedTuple):
    """What relaxing a finding did.

    Attributes:
        finding: of the network's program.
        hidden: images whose input gradient has another direction, or is there at all, once the finding is relaxed.
        num_images: images that was measured on.
        misclassified: examples of the sample that direct gradient-based attacks did not misclassify but APGD on
            cross-entropy with this finding alone relaxed did (of more than eight, with others of its kind).
        tried: examples of the sample.
    """

    finding: Finding
    hidden: int
    num_images: int
    misclassified: int
    tried: int


class Relaxations(NamedTuple):
    """Results of the attacks on a program's findings.

    Attributes:
        findings: of the network's program.
        remedies: of each finding that can be relaxed, in their order.
        share: float32 [N], the largest share of draws misclassified under any of the attacks; None where none ran.
        helped: what the best attack relaxed, in words, of those that keep noise and masks; empty where none helped.
        networks: the network relaxed as that attack had it, or in all places; None where nothing can be relaxed.
    """

    findings: Findings
    remedies: tuple[Remedy, ...] = ()
    share: np.ndarray | None = None
    helped: str = ""
    networks: Networks | None = None


class _Plan(NamedTuple):
    """One trial: how much of each finding is relaxed, float32 [F], the temperature, the way through loops, whether all
    calls into Python have derivatives by differences, and whether random factors are their means, of which one draw in
    a gradient is enough, and masks drop nothing."""

    name: str
    strengths: np.ndarray
    temperature: float
    loops: str
    differences: bool = False
    replace: bool = False


def find(logits_fn: Any, images: np.ndarray, keys: tuple[Key, ...]) -> Findings:
    """The findings of a network's program at a few images."""
    return transforms.inspect(logits_fn, jnp.asarray(images), *keys)


def attack(
    trial: Trial,
    network: Any,
    findings: Findings,
    rows: np.ndarray,
    measured: np.ndarray,
    *,
    before: np.ndarray,
    quicken: bool,
) -> Relaxations:
    """Attacks through the relaxed network, on what direct gradient-based attacks left.

    Args:
        trial: the examples.
        network: under evaluation, as :func:`goals.as_logits_fn` returns it.
        findings: of its program.
        rows: the examples to attack.
        measured: examples on which hidden gradients are counted.
        before: share of draws misclassified under the direct gradient-based attacks, [N].
        quicken: run the relaxed network by :func:`robustjax.transforms.quicken`.
    """
    if not len(trial.images):
        return Relaxations(findings)
    candidates = relaxable(findings, network, jnp.asarray(trial.images[:2]), *trial.network_keys())
    if not candidates:
        return Relaxations(findings)
    relaxing = _Relaxing(trial, network, candidates, quicken)
    every = _Plan("all", np.ones(len(candidates), np.float32), TEMPERATURES[0], "through")
    if not _differentiable(relaxing.networks(every).direct, trial, np.arange(1)):
        return Relaxations(findings)
    if not len(rows):
        return Relaxations(findings, networks=relaxing.networks(every))
    groups = _groups(candidates)
    # None are correct by majority where all are attacked because they may be.
    some = measured if len(measured) else rows
    hidden = _hidden(trial, lambda strengths: relaxing.networks(every._replace(strengths=strengths)), groups, some)
    replaces = has_replacements(candidates, network, jnp.asarray(trial.images[:2]), *trial.network_keys())
    plans, sample = list(_plans(candidates, groups, replaces=replaces)), rows[: trial.budget.num_tried]
    on_sample = [relaxing.run(plan, sample, "ce") for plan in plans]
    found = [int((is_misclassified(share) & ~is_misclassified(before)).sum()) for share in on_sample]
    # A stochastic network's majority seldom turns at once: how much nearer to it they came ranks them as well.
    nearer = [float(np.maximum(share - before, 0.0).sum()) for share in on_sample]
    best, tried = (_best(plans, nearer, trial.stochastic), rows) if any(found) else ([every], sample)
    for plan in best:
        relaxing.run(plan, np.setdiff1d(trial.left(tried, relaxing.shares), sample), "ce")
        relaxing.run_aimed(plan, tried)
    first = next(plan for plan in best if not plan.replace)
    # Aimed at classes it may find what none did before, on the sample alone: the new starts are on all.
    helps = bool((is_misclassified(relaxing.shares) & ~is_misclassified(before)).any())
    # From other random starts, as long as they find more; a stochastic network's close calls are attacked again later.
    for _ in range(MOST_RESTARTS if helps and not trial.stochastic else 0):
        left = trial.left(rows, relaxing.shares)
        relaxing.run(first, left, "ce")
        relaxing.run_aimed(first, rows)
        if len(trial.left(rows, relaxing.shares)) == len(left):
            break
    remedies = tuple(
        Remedy(candidates[i], int(hidden[group].sum()), hidden.shape[1], found[group], len(sample))
        for group, indices in enumerate(groups)
        for i in indices
    )
    words = _words(first, candidates) if helps else ""
    return Relaxations(findings, remedies, relaxing.shares, words, relaxing.networks(first))


class _Relaxing:
    """Attacks through a network as plans relax it.

    Attributes:
        shares: float32 [N], the largest share of draws misclassified under any of them so far.
    """

    def __init__(self, trial: Trial, network: Any, findings: tuple[Finding, ...], quicken: bool):
        self._trial, self._network, self._findings, self._quicken = trial, network, findings, quicken
        self.shares = np.zeros(len(trial.images), np.float32)

    def networks(self, plan: _Plan) -> Networks:
        static = _Relaxed(self._findings, plan.loops, plan.differences, plan.replace)
        strengths, temperature = jnp.asarray(plan.strengths), jnp.float32(plan.temperature)
        relaxed = jax.tree_util.Partial(static, self._network, strengths, temperature)
        return Networks(transforms.quicken(relaxed) if self._quicken else relaxed)

    def run(self, plan: _Plan, rows: np.ndarray, loss: str, target: int = 0) -> np.ndarray:
        """APGD; the share of draws misclassified, float32 [N]."""
        share = self._trial.apgd(
            f"relaxed:{plan.name}", rows, view="direct", loss=loss, target=target, networks=self.networks(plan),
            num_draws=1 if plan.replace else draws_of(self._trial),
        )  # fmt: skip
        np.maximum(self.shares, share, out=self.shares)
        return share

    def run_aimed(self, plan: _Plan, rows: np.ndarray) -> None:
        """APGD at one likely class after the other, each on what was left; over draws, which tell little of each, at
        the nearest."""
        trial = self._trial
        if trial.stochastic and not plan.replace:
            self.run(plan, trial.left(rows, self.shares), "dlr")
            return
        for target in range(min(trial.budget.num_targets, trial.num_classes - 1)):
            self.run(plan, trial.left(rows, self.shares), "targeted", target)


def _best(plans: Sequence[_Plan], nearer: Sequence[float], stochastic: bool) -> list[_Plan]:
    """The plans to go on with, by how much nearer to another class they brought the sample.

    First the one without noise, whose gradients cost one draw, or without masks; then the best of the others, of a
    deterministic network the best three.
    """
    ranked = [plans[i] for i in sorted(range(len(plans)), key=lambda i: -nearer[i])]
    replaced = [plan for plan in ranked if plan.replace]
    return replaced + [plan for plan in ranked if not plan.replace][: 1 if stochastic else 3]


def draws_of(trial: Trial) -> int:
    """Draws in a gradient of the relaxed network, of a stochastic network: half of those that others take."""
    return -(-trial.eot_samples // 2)


class _Relaxed(NamedTuple):
    """Static part of a relaxed network: which findings may be relaxed, and how."""

    findings: tuple[Finding, ...]
    loops: str
    differences: bool
    replace: bool

    def __call__(self, network: Any, strengths: Array, temperature: Array, images: Array, *key: Key) -> Array:
        place = {finding[:3]: i for i, finding in enumerate(self.findings)}
        strength_of = lambda key: strengths[place[key]] if key in place else None  # noqa: E731
        return relaxed(
            network, strength_of, temperature, self.loops, self.differences, False, self.replace, images, *key
        )


def _groups(findings: Sequence[Finding]) -> list[list[int]]:
    """Indices of findings that are tried together."""
    if len(findings) <= MOST_ALONE:
        return [[i] for i in range(len(findings))]
    kinds = dict.fromkeys(finding.kind for finding in findings)
    return [[i for i, finding in enumerate(findings) if finding.kind == kind] for kind in kinds]


def _plans(findings: Sequence[Finding], groups: list[list[int]], *, replaces: bool) -> Iterator[_Plan]:
    """Each group alone, in their order; then all of them at every temperature, around loops where there are any, with
    differences where there are calls into Python, and with the means of random factors and without masks where there
    are some."""
    for some in groups:
        yield _Plan(findings[some[0]].kind, _mask(findings, some), TEMPERATURES[0], "through")
    # Images of the network without its loops are transferred to it as it is.
    ways = ("through", "around", "without") if any(finding.kind == LOOPS for finding in findings) else ("through",)
    graded = any(finding.kind in ("selection", "saturation") or finding.primitive == "sign" for finding in findings)
    for loops in ways:
        for temperature in TEMPERATURES if graded else TEMPERATURES[:1]:
            if len(groups) > 1 or (loops, temperature) != ("through", TEMPERATURES[0]):
                yield _Plan("all", np.ones(len(findings), np.float32), temperature, loops)
    if any(finding.kind == CALLBACK for finding in findings):
        for temperature in (TEMPERATURES[0], TEMPERATURES[-1]):  # near and far: Python is slow
            yield _Plan("differences", np.ones(len(findings), np.float32), temperature, "through", True)
    if replaces:
        # Images of the network without its noise, or without its masks, are transferred to it as it is.
        name = "means" if any(finding.kind == "random" for finding in findings) else "unmasked"
        yield _Plan(name, np.ones(len(findings), np.float32), TEMPERATURES[0], "through", replace=True)


def _mask(findings: Sequence[Finding], some: list[int]) -> np.ndarray:
    return np.isin(np.arange(len(findings)), some).astype(np.float32)


def _words(plan: _Plan, findings: Sequence[Finding]) -> str:
    chosen = [finding for finding, strength in zip(findings, plan.strengths, strict=True) if strength]
    lines = list(dict.fromkeys(f"{finding.primitive} at {finding.where}" for finding in chosen))
    return ", ".join(lines[:3]) + (f" and {len(lines) - 3} more" if len(lines) > 3 else "")


def _differentiable(network: Any, trial: Trial, rows: np.ndarray) -> bool:
    total = lambda points: jnp.sum(network(points, *trial.network_keys()))  # noqa: E731
    try:
        jax.eval_shape(jax.grad(total), trial.images[rows])
    except Exception:  # anyone's derivative rule
        return False
    return True


def _hidden(
    trial: Trial, networks: Callable[[np.ndarray], Networks], groups: list[list[int]], rows: np.ndarray
) -> np.ndarray:
    """Where relaxing a group changes the direction of the input gradient, alone or beside all others, bool [G, n].

    Args:
        trial: the examples.
        networks: of how much of each finding is relaxed.
        groups: of findings.
        rows: examples.
    """
    rows, keys = rows[: trial.budget.num_tried], trial.network_keys()

    def gradient(strengths: np.ndarray) -> np.ndarray:
        given = networks(strengths)
        return trial.over(
            rows,
            lambda some: _gradient(
                given, trial.images[some], trial.labels[some], trial.goal(some, view="direct", loss="margin"), *keys
            ),
        ).reshape(len(rows), -1)

    count = sum(map(len, groups))
    masks = [np.isin(np.arange(count), some).astype(np.float32) for some in groups]
    none, every = gradient(np.zeros(count, np.float32)), gradient(np.ones(count, np.float32))
    if len(groups) == 1:
        return _turned(every, none)[None]
    return np.stack([_turned(gradient(mask), none) | _turned(gradient(1 - mask), every) for mask in masks])


@jax.jit
def _gradient(networks: Networks, images: Array, labels: Array, goal: Goal, *key: Key) -> Array:
    def total(points: Array) -> Array:
        return jnp.sum(goals.goal_loss(goals.view_outputs(networks, goal, points, *key), labels))

    with jax.default_matmul_precision("float32"):
        gradient = jax.grad(total)(images)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


def _turned(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    product = np.sum(one * other, axis=1)
    return (product < LEAST_COSINE * lengths[0] * lengths[1]) | ((lengths[0] > 0) != (lengths[1] > 0))
