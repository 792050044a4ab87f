"""The attacks that a verdict runs: AutoAttack's, PGD with its options varied, gradient-free ones, and adaptive ones.

All return shares, float32 [N]: of each example the share of draws in which the attack's image is misclassified, 0 or 1
for a deterministic network (see :class:`robustjax.evaluation.verdict.trial.Trial`).
"""

from __future__ import annotations

import functools
import time
from typing import Any, NamedTuple

import numpy as np

from robustjax import attacks
from robustjax.attacks.engine.verify import is_misclassified
from robustjax.evaluation.verdict.budgets import MOST_RESTARTS
from robustjax.evaluation.verdict.goals import Networks
from robustjax.evaluation.verdict.probes import RecordedPGD
from robustjax.evaluation.verdict.trial import Trial

# Step sizes of the recorded PGD, in units of epsilon, and radii at which accuracy must fall, in the same units.
STEP_SIZES = (0.1, 0.25, 0.5)
RADII = (0.25, 0.5, 1.0, 2.0)
# Step sizes of the attack that may change the whole image, in units of the box.
UNBOUNDED_STEP_SIZES = (0.25, 0.02)
# What the names of direct gradient-based attacks begin with.
GRADIENT_BASED = ("apgd", "fab", "fgsm", "pgd")
# Shares of draws misclassified, from and below, at which stronger attacks or other draws may change the majority.
CLOSE = (0.25, 0.65)
# Weights of the auxiliary heads' loss beside that of the logits; infinity for the heads alone.
WEIGHTS = (0.0, 0.1, 1.0, 2.0, 10.0, 100.0, float("inf"))


def ensemble(trial: Trial) -> None:
    """AutoAttack, or the quick budget's part of it; of a stochastic network Square comes later."""
    rows = trial.remaining()
    if trial.budget.autoattack:
        started = time.perf_counter()
        result = attacks.autoattack(
            trial.networks.direct, trial.key(), trial.images, trial.labels, epsilon=trial.epsilon, norm=trial.norm,
            version="rand" if trial.stochastic else "standard", bounds=trial.bounds,
        )  # fmt: skip
        before, shares = trial.attacked, []
        for name, after in result.by_attack.items():
            found = np.flatnonzero(before & ~after)
            shares.append(trial.submit(name, found, result.images[found]))
            before = before & after
        trial.timed("autoattack", rows, started, np.max(shares, axis=0))
    else:
        left = trial.left(rows, trial.apgd("apgd-ce", rows, view="direct", loss="ce"))
        if trial.stochastic:
            trial.apgd("apgd-dlr", left, view="direct", loss="dlr")
        else:
            trial.targeted("apgd-t", left, view="direct")
    if "square" not in trial.shares and not trial.stochastic:
        trial.square("square", trial.remaining())
    trial.end_ensemble()


class PGDGrid(NamedTuple):
    """Results of PGD with its options varied, shares [N] except for the last three.

    Attributes:
        one_step: a single step of size epsilon.
        by_step_size: step size in units of epsilon -> share.
        by_radius: [E, N], at each of ``RADII``.
        unbounded: the whole box allowed.
        by_steps: bool [D, N], misclassified after k, 2 k, 4 k steps.
        late_rise: of measured examples that stay robust, the share of the whole rise of the loss that falls into the
            last tenth of the steps; empty for a stochastic network, whose loss differs from draw to draw.
        record: the iterates with the step size 0.25, of the measured examples alone.
    """

    one_step: np.ndarray
    by_step_size: dict[float, np.ndarray]
    by_radius: np.ndarray
    unbounded: np.ndarray
    by_steps: np.ndarray
    late_rise: np.ndarray
    record: RecordedPGD[np.ndarray]

    def from_the_image(self) -> np.ndarray:
        """The largest share of those attacks, all of which start at the image, that stay inside the verdict's ball."""
        return np.max([self.one_step, *self.by_step_size.values(), *self.by_radius[:-1]], axis=0)


def pgd_grid(trial: Trial, rows: np.ndarray) -> PGDGrid:
    """PGD from the image, with step size, steps and radius varied; ``rows`` are the measured examples, at least one."""
    # These runs are compared with each other, so that fewer steps and draws than an attack needs are the same for all.
    steps = trial.budget.pgd_steps // (2 if trial.stochastic else 1)
    run = functools.partial(trial.recorded_pgd, num_draws=max(1, trial.eot_samples // 2))
    one_step, _ = run("fgsm", rows, step_size=1.0, num_steps=1)
    runs = {size: run(f"pgd-{steps}:{size:g}", rows, step_size=size, num_steps=steps) for size in STEP_SIZES}
    share, record = runs[0.25]
    by_radius = [
        share if radius == 1.0 else run(
            f"pgd-{steps}:radius-{radius:g}", rows, step_size=0.25, num_steps=steps, epsilon=radius * trial.epsilon
        )[0]
        for radius in RADII
    ]  # fmt: skip
    unbounded = [
        run("unbounded", rows, step_size=size, num_steps=steps, epsilon=trial.whole_box())[0]
        for size in UNBOUNDED_STEP_SIZES
    ]
    counts = (steps // 4, steps // 2)
    if trial.stochastic:
        # The more steps, the more chances of a draw that happens to be misclassified: only the results compare.
        fewer = [run(f"pgd-{count}:0.25", rows, step_size=0.25, num_steps=count)[0] for count in counts]
        by_steps = is_misclassified(np.stack([*fewer, share]))
    else:
        by_steps = np.zeros((3, len(trial.images)), bool)
        by_steps[:, rows] = record.misclassified[:, [*counts, steps]].T
    return PGDGrid(
        one_step,
        {size: share for size, (share, _) in runs.items()},
        np.stack(by_radius),
        np.max(unbounded, axis=0),
        by_steps,
        np.zeros(0) if trial.stochastic else _late_rise(record),
        record,
    )


def by_gradient(trial: Trial) -> np.ndarray:
    """The largest share of the direct gradient-based attacks so far."""
    names = [name for name in trial.shares if name.startswith(GRADIENT_BASED)]
    return trial.strongest_share(*names) if names else np.zeros(len(trial.images), np.float32)


def restart(trial: Trial) -> np.ndarray:
    """APGD from other random starts, on what gradient-based attacks left; of a stochastic network, of the measured."""
    left = trial.attacked & ~trial.certainly_misclassified(by_gradient(trial))
    rows = trial.measured[left[trial.measured]] if trial.stochastic else np.flatnonzero(left)
    return np.maximum(
        trial.apgd("apgd-ce:restart", rows, view="direct", loss="ce"),
        trial.apgd("apgd-dlr:restart", rows, view="direct", loss="dlr"),
    )


def random_search(trial: Trial, rows: np.ndarray, from_the_image: np.ndarray) -> np.ndarray:
    """Random points; and Square on what both they and gradient-based attacks found.

    An attack with a random start succeeds wherever any random point does, which says nothing about gradients. So random
    points are also tried on those measured examples that only attacks with a random start found.

    Args:
        trial: the examples.
        rows: the measured ones.
        from_the_image: shares of the attacks that start at the image.
    """
    found = trial.certainly_misclassified(by_gradient(trial))
    tried = ~found
    tried[rows] = ~trial.certainly_misclassified(from_the_image[rows])
    share = trial.random_search("random", np.flatnonzero(trial.attacked & tried))
    both = np.flatnonzero(trial.certainly_misclassified(share) & found)
    if len(both):
        trial.square("square", both)
    return share


def black_box(trial: Trial, measured: np.ndarray) -> np.ndarray | None:
    """Attacks without gradients, on what all others left, and for comparison on what direct gradient-based ones did.

    Of a stochastic network Square, which AutoAttack's version for these does not hold, and which costs more than all
    gradients: on the first of the measured examples, and on the others only if it finds what everything else missed
    there. With the full budget HopSkipJump, which sees labels only.

    Args:
        trial: the examples.
        measured: those of which what direct gradient-based attacks left is attacked too.

    Returns:
        The share of HopSkipJump, or None where it did not run.
    """
    missed, left = measured[~trial.certainly_misclassified(by_gradient(trial)[measured])], trial.remaining()
    if trial.stochastic:
        missed = missed[: trial.budget.num_tried]
        share = trial.square("square", missed)
        if trial.certainly_misclassified(share[np.intersect1d(missed, left)]).any():
            trial.square("square", np.setdiff1d(left, missed))
    if label_only_missing(trial):
        return None
    return trial.hopskipjump("hopskipjump", np.union1d(left, missed))


def persist(trial: Trial) -> None:
    """Of a deterministic network APGD from other starts on what is left, up to five times while it finds more.

    Each hint adds attacks, and with them starts: without this, a network of which nothing is declared would look better
    only for having been attacked less often. This holds for a network whose relaxation helped, too: what withstands the
    relaxed gradient may give way to the network's own. No flag looks at what is found here, as many starts find a
    little more on any network.
    """
    left = trial.remaining()
    for _ in range(MOST_RESTARTS if len(left) else 0):
        trial.apgd("again:apgd-ce", left, view="direct", loss="ce")
        trial.targeted("again:apgd-t", trial.remaining(), view="direct")
        before, left = left, trial.remaining()
        if len(left) == len(before):
            break


def close(trial: Trial, relaxed: Networks | None) -> None:
    """Of a stochastic network APGD of more steps and draws, on examples whose majority is close.

    Everything before takes gradients of few draws, which is enough for the others. The network's own gradient is
    followed only where no better one is known.

    Args:
        trial: the examples.
        relaxed: the network relaxed as it was attacked best; None where that found nothing.
    """
    budget, share = trial.budget, trial.strongest_share()
    # What found most before comes first and leaves less to do.
    ways: dict[str, dict[str, Any]] = {}
    if relaxed is not None:
        ways["relaxed"] = {"view": "direct", "networks": relaxed}
    if "surrogate" in trial.networks.views():
        ways["surrogate"] = {"view": "surrogate"}
    ways = ways or {"apgd": {"view": "direct"}}
    for way, options in ways.items():
        for loss in ("ce", "dlr"):
            rows = np.flatnonzero(trial.attacked & (share >= CLOSE[0]) & (share < CLOSE[1]))
            found = trial.apgd(
                f"{way}:close:{loss}", rows, loss=loss, num_draws=budget.close_draws, num_steps=budget.close_steps,
                **options,
            )  # fmt: skip
            share = np.maximum(share, found)


def label_only_missing(trial: Trial) -> str:
    """Why no attack sees labels only, or "" where one does."""
    if trial.stochastic:
        return "a stochastic network's label would have to be asked for many times in each query; Square was run"
    if trial.norm not in ("linf", "l2"):
        return f"there is no attack on labels alone in {trial.norm}; Square was run"
    return "" if trial.budget.num_decisions else "attacks on labels alone are run with the full budget; Square was run"


class AdaptiveResults(NamedTuple):
    """Shares [N] of each family of adaptive attacks, None where it does not apply.

    Attributes:
        surrogate, auxiliary, transfer: with what the hints declare.
        control: the joint attack with the heads' weight 0.
        frozen: bool [N], misclassified by the frozen network, of the measured examples.
        curve: [D, N], by draws in a gradient.
    """

    surrogate: np.ndarray | None = None
    auxiliary: np.ndarray | None = None
    control: np.ndarray | None = None
    transfer: np.ndarray | None = None
    frozen: np.ndarray | None = None
    curve: np.ndarray | None = None


def adaptive(trial: Trial, measured: np.ndarray) -> AdaptiveResults:
    """Every adaptive attack that the hints allow, on what direct gradient-based attacks left.

    Args:
        trial: the examples.
        measured: those on which the convergence of EOT is measured.
    """
    rows = np.flatnonzero(trial.attacked & ~trial.certainly_misclassified(by_gradient(trial)))
    views = trial.networks.views()
    loss = "dlr" if trial.stochastic else "targeted"
    surrogate = auxiliary = control = frozen = curve = None
    if "surrogate" in views:
        surrogate = trial.apgd("surrogate:apgd-ce", rows, view="surrogate", loss="ce")
        left = trial.left(rows, surrogate)
        if loss == "targeted":
            more = trial.targeted("surrogate:apgd-t", left, view="surrogate")
        else:
            more = trial.apgd("surrogate:apgd-dlr", left, view="surrogate", loss=loss)
        surrogate = np.maximum(surrogate, more)
    if "auxiliary" in views:
        # Every weight is tried on the same examples, so that the sweep compares weights.
        by_weight = {
            weight: np.maximum(*(_joint(trial, rows, weight, loss) for loss in ("ce", "margin"))) for weight in WEIGHTS
        }
        control = by_weight.pop(0.0)
        auxiliary = np.max(list(by_weight.values()), axis=0)
    transferred = [
        # Without its defense a network has no noise to average over.
        trial.apgd(f"transfer:{view}:{loss}", rows, view=view, loss=loss, num_draws=1)
        for view in ("undefended", "trained")
        if view in views
        for loss in ("ce", "dlr")
    ]
    transfer = np.max(transferred, axis=0) if transferred else None
    if trial.stochastic and len(measured):
        options = {"step_size": 0.25, "num_steps": trial.budget.pgd_steps // 2}
        curve = np.stack([
            trial.recorded_pgd(f"eot-{draws}", measured, num_draws=draws, **options)[0]
            for draws in trial.budget.curve
        ])  # fmt: skip
        _, record = trial.recorded_pgd("eot-frozen", measured, num_draws=1, frozen=True, **options)
        # What counts here is the deterministic network under attack, not other draws.
        frozen = np.zeros(len(trial.images), bool)
        frozen[measured] = record.misclassified[:, -1]
    return AdaptiveResults(surrogate, auxiliary, control, transfer, frozen, curve)


def _late_rise(record: RecordedPGD[np.ndarray]) -> np.ndarray:
    loss = np.maximum.accumulate(record.loss[~record.misclassified[:, -1]], axis=1)
    rise, steps = loss[:, -1] - loss[:, 0], loss.shape[1] - 1
    return ((loss[:, -1] - loss[:, -1 - steps // 10]) / np.where(rise > 0, rise, 1.0))[rise > 0]


def _joint(trial: Trial, rows: np.ndarray, weight: float, loss: str) -> np.ndarray:
    weights = (0.0, 1.0) if weight == float("inf") else (1.0, weight)
    name = "only" if weight == float("inf") else f"{weight:g}"
    return trial.apgd(
        f"auxiliary:{loss}:{name}", rows, view="auxiliary", loss=loss, logits_weight=weights[0], heads_weight=weights[1]
    )
