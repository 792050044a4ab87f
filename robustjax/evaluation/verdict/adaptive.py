"""Adaptive attacks (Tramer et al. 2020, arXiv 2002.08347), from what a network's author declares and nothing else.

An author says where the network is random, where its gradient is of no use and what to use instead, which auxiliary
heads it has, and what it is without its defense. `hints_of` reads the same off a defense of this library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.defenses.convention import Defense
from robustjax.evaluation.verdict.trial import Trial
from robustjax.types import Array, Key, LogitsFn

# The attacker's weight of the heads' loss against that of the logits, infinity for the heads only.
WEIGHTS = (0.0, 0.1, 1.0, 2.0, 10.0, 100.0, float("inf"))
# The head of FSR that is trained to name a wrong class: to raise its loss of the label leads nowhere.
TRAINED_WRONG = "nonrobust"


class Hints(NamedTuple):
    """What a network's author declares of it.

    Attributes:
        stochastic: every function takes (images, key), and equal keys give equal outputs.
        surrogate_fn: the same outputs with a gradient that is of use (BPDA).
        auxiliary_fn: logits [S, B, K] of auxiliary heads, to be attacked together with the network's own.
        undefended_fn: the twin with the defense switched off, to transfer from.
        trained_fn: another network that solves the same task, say a plain adversarially trained one, to transfer from.
        bfloat16_fn: the same network computing in bfloat16, to compare verdicts with.
    """

    stochastic: bool = False
    surrogate_fn: LogitsFn | None = None
    auxiliary_fn: Callable[..., Array] | None = None
    undefended_fn: LogitsFn | None = None
    trained_fn: LogitsFn | None = None
    bfloat16_fn: LogitsFn | None = None


def hints_of(
    create_module: Callable[[Defense | None], Any], defense: Defense | None, variables: Any
) -> tuple[LogitsFn, Hints]:
    """A network of this library as `judge` takes it: its logits, and all that its defense declares.

    Args:
        create_module: defense -> flax module, such as `lambda defense: models.create("resnet18", defense=defense)`.
        defense: of the network, or None.
        variables: of the network, as trained.

    Returns:
        logits_fn: images -> logits, or (images, key) -> logits for a stochastic defense.
        hints: with the surrogate in place of the defense, its heads (seen through the surrogate as well), and the
            network with the defense switched off.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import defenses, models
        >>> build = lambda defense: models.create("small_cnn", defense=defense)
        >>> guard = defenses.create("cifs", hidden=4)
        >>> images = jnp.zeros((3, 8, 8, 1))
        >>> variables = jax.jit(build(guard).init)(jax.random.key(0), images)
        >>> logits_fn, hints = hints_of(build, guard, variables)
        >>> jax.eval_shape(logits_fn, images).shape, jax.eval_shape(hints.auxiliary_fn, images).shape
        ((3, 10), (2, 3, 10))
    """

    def answers(defense: Defense | None, read: Callable[[Any], Array]) -> LogitsFn:
        module = create_module(defense)

        def apply(variables: Any, images: Array, *key: Key) -> Array:
            return read(module.apply(variables, images, rngs={"defense": key[0]} if key else None))

        return jax.tree_util.Partial(apply, variables)

    logits = lambda outputs: outputs.logits  # noqa: E731
    if defense is None:
        return answers(None, logits), Hints()
    kinds = [kind for kind in defense.heads if kind != TRAINED_WRONG]
    return answers(defense, logits), Hints(
        stochastic=defense.stochastic,
        surrogate_fn=answers(defense.surrogate, logits),
        auxiliary_fn=answers(
            defense.surrogate, lambda outputs: jnp.concatenate([outputs.auxiliary[kind] for kind in kinds])
        )
        if kinds
        else None,
        undefended_fn=answers(defense.switched_off, logits),
    )


class Outcome(NamedTuple):
    """Which examples each family of adaptive attacks broke, bool [N], of those that direct attacks left.

    Attributes:
        surrogate, auxiliary, transfer: None where nothing was declared.
        control: what the sweep over the heads' weight broke at weight 0.
        averaged, frozen: broken with fresh keys and with a frozen one; curve: bool [D, N], by draws in a gradient.
    """

    surrogate: np.ndarray | None
    auxiliary: np.ndarray | None
    control: np.ndarray | None
    transfer: np.ndarray | None
    averaged: np.ndarray | None
    frozen: np.ndarray | None
    curve: np.ndarray | None


def battery(trial: Trial, rows: np.ndarray, measured: np.ndarray) -> Outcome:
    """Runs every adaptive attack for which something was declared.

    Args:
        trial: of the network.
        rows: examples that direct attacks left.
        measured: examples on which the convergence of EOT is measured.
    """
    views = trial.networks.views()
    loss = "dlr" if trial.stochastic else "targeted"

    def both(name: str, view: str) -> np.ndarray:
        broken = trial.apgd(f"{name}:apgd-ce", rows, view=view, loss="ce")
        left = rows[~broken[rows]]
        if loss == "targeted":
            return broken | trial.targeted(f"{name}:apgd-t", left, view=view)
        return broken | trial.apgd(f"{name}:apgd-dlr", left, view=view, loss=loss)

    surrogate = both("surrogate", "surrogate") if "surrogate" in views else None
    auxiliary = control = None
    if "auxiliary" in views:
        # Every weight sees the same examples, so that the sweep compares weights.
        by_weight = {
            weight: np.logical_or.reduce([_joint(trial, rows, weight, loss) for loss in ("ce", "margin")])
            for weight in WEIGHTS
        }
        control = by_weight.pop(0.0)
        auxiliary = np.logical_or.reduce(list(by_weight.values()))
    twins = [
        trial.apgd(f"transfer:{view}:{loss}", rows, view=view, loss=loss)
        for view in ("undefended", "trained")
        if view in views
        for loss in ("ce", "dlr")
    ]
    transfer = np.logical_or.reduce(twins) if twins else None
    averaged = frozen = curve = None
    if trial.stochastic and len(measured):
        steps = trial.budget.pgd_steps // 2
        options = {"step_size": 0.25, "num_steps": steps}
        curve = np.stack(
            [trial.ascend(f"eot-{draws}", measured, num_draws=draws, **options)[0] for draws in trial.budget.curve]
        )
        _, ascent = trial.ascend("eot-frozen", measured, num_draws=1, frozen=True, **options)
        averaged, frozen = curve[-1], np.zeros_like(curve[-1])
        # What counts here is the deterministic network that it attacked.
        frozen[measured] = ascent.broken[:, -1]
    return Outcome(surrogate, auxiliary, control, transfer, averaged, frozen, curve)


def _joint(trial: Trial, rows: np.ndarray, weight: float, loss: str) -> np.ndarray:
    own, heads = (0.0, 1.0) if weight == float("inf") else (1.0, weight)
    name = "only" if weight == float("inf") else f"{weight:g}"
    return trial.apgd(f"auxiliary:{loss}:{name}", rows, view="auxiliary", loss=loss, own=own, heads=heads)
