"""The training state: everything that a run carries from one step to the next, and that a checkpoint holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax.defenses.convention import Tracker
from robustjax.types import Array, InputError, Key


class TrainState(NamedTuple):
    """The state of a run after ``step`` updates. Order, augmentation and attack are functions of (key, step).

    Attributes:
        step: int32 scalar.
        key: the run's key; folded with the step, never split and carried.
        variables: {"params": ..., "batch_stats": ...} of the network.
        optimizer: optax's state.
        average: exponential moving average of variables, or None.
        sums: sums of metrics since the last line of metrics.jsonl, and under "steps" how many steps they cover.
        rate_factor: float32 scalar on the learning rate, 1 until the run has gone back from a loss that was not finite.
        carried: what the defense carries from step to step, or None. Where perturbations are carried, a dict of that
            under "defense" and of float16 [N, H, W, C] in units of epsilon under "perturbations".
    """

    step: Array
    key: Key
    variables: dict[str, Any]
    optimizer: optax.OptState
    average: dict[str, Any] | None
    sums: dict[str, Array]
    rate_factor: Array
    carried: Any = None

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables that validation and evaluation use: the average where there is one."""
        return self.variables if self.average is None else self.average


def create(
    module: Any,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    image_shape: tuple[int, int, int],
    averaged: bool,
    sum_names: tuple[str, ...],
    tracker: Tracker | None = None,
    perturbed_examples: int = 0,
) -> TrainState:
    """The state before the first step; pure, so that ``jax.eval_shape`` gives the shapes without the work.

    Args:
        module: the network.
        optimizer: its optimiser.
        seed: of the run.
        image_shape: (H, W, C).
        averaged: whether to carry an average of the weights.
        sum_names: the metrics that a step yields.
        tracker: of a defense that carries something.
        perturbed_examples: N of the perturbations that are carried, which begin uniform in the ball; 0: none are.
    """
    key_init, key_run = jax.random.split(jax.random.key(seed))
    rngs, images = {"params": key_init, "defense": key_init}, jnp.zeros((1, *image_shape), jnp.float32)
    outputs, variables = module.init_with_output(rngs, images)
    variables = {"batch_stats": {}, **variables}
    average = jax.tree.map(jnp.copy, variables) if averaged else None  # donated buffers must not be shared
    sums = {name: jnp.zeros((), jnp.float32) for name in sum_names}
    carried = tracker.initial(outputs.features) if tracker else None
    state = TrainState(
        jnp.zeros((), jnp.int32),
        key_run,
        variables,
        optimizer.init(variables["params"]),
        average,
        sums,
        jnp.ones((), jnp.float32),
        carried,
    )
    if not perturbed_examples:
        return state
    shape = (perturbed_examples, *image_shape)
    start = jax.random.uniform(jax.random.fold_in(key_init, 1), shape, jnp.float32, -1.0, 1.0)
    return with_perturbations(state, start.astype(jnp.float16))


def with_perturbations(state: TrainState, perturbations: Any) -> TrainState:
    """A state without perturbations as one that carries these, arrays or their shapes."""
    return state._replace(carried={"defense": state.carried, "perturbations": perturbations})


def carries_perturbations(state: TrainState) -> bool:
    """Whether the attack starts where it ended for the same example before."""
    return isinstance(state.carried, dict) and "perturbations" in state.carried


def merge(own: dict[str, Any], found: dict[str, Any], *, source: str, may_begin_anew: str) -> dict[str, Any]:
    """A network's variables with those of another run in their place.

    Args:
        own: of the network.
        found: to be taken; every entry has to have its place in ``own``, of the same shape.
        source: where they come from, for the message.
        may_begin_anew: prefix of the layers that may keep their own entries where ``found`` has none.

    Raises:
        InputError: naming every entry that is missing, surplus or of another shape.

    Example:
        >>> merge({"params": {"a": jnp.zeros(2)}}, {"params": {}}, source="run", may_begin_anew="guards_")
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: run does not fit the network, missing: params/a
    """
    mine, theirs = _by_name(own), _by_name(found)
    missing = {name for name in mine.keys() - theirs.keys() if f"/{may_begin_anew}" not in name}
    misshapen = {name for name in mine.keys() & theirs.keys() if mine[name].shape != theirs[name].shape}
    problems = {"missing": missing, "surplus": theirs.keys() - mine.keys(), "of another shape": misshapen}
    if any(problems.values()):
        listed = (f"{kind}: {', '.join(sorted(names))}" for kind, names in problems.items() if names)
        raise InputError(f"{source} does not fit the network, {'; '.join(listed)}")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: theirs.get(_name(path), leaf), own)


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
