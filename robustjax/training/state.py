"""Everything that a run carries from one step to the next, and so everything that a checkpoint holds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax.types import Array, Key


class TrainState(NamedTuple):
    """The state of a run after `step` updates. Order, augmentation and attack are functions of (key, step).

    Attributes:
        step: int32 scalar.
        key: the run's key; folded with the step, never split and carried.
        variables: {"params": ..., "batch_stats": ...} of the network.
        optimizer: optax's state.
        average: exponential moving average of variables, or None.
        sums: sums of metrics since the last line of metrics.jsonl, and under "steps" how many steps they cover.
    """

    step: Array
    key: Key
    variables: dict[str, Any]
    optimizer: optax.OptState
    average: dict[str, Any] | None
    sums: dict[str, Array]

    @property
    def judged(self) -> dict[str, Any]:
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
) -> TrainState:
    """The state before the first step; pure, so that `jax.eval_shape` gives the shapes without the work.

    Args:
        module: the network.
        optimizer: its optimiser.
        seed: of the run.
        image_shape: (H, W, C).
        averaged: whether to carry an average of the weights.
        sum_names: the metrics that a step yields.
    """
    key_init, key_run = jax.random.split(jax.random.key(seed))
    variables = dict(module.init({"params": key_init, "defense": key_init}, jnp.zeros((1, *image_shape), jnp.float32)))
    variables.setdefault("batch_stats", {})
    average = jax.tree.map(jnp.copy, variables) if averaged else None  # donated buffers must not be shared
    sums = {name: jnp.zeros((), jnp.float32) for name in sum_names}
    return TrainState(jnp.zeros((), jnp.int32), key_run, variables, optimizer.init(variables["params"]), average, sums)
