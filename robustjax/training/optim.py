"""Stochastic gradient descent and its learning-rate schedules, through optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from robustjax.types import Config


def _constant(config: Config, total: int, per_epoch: int) -> optax.Schedule:
    return optax.constant_schedule(config.learning_rate)


def _piecewise(config: Config, total: int, per_epoch: int) -> optax.Schedule:
    factors = {round(epoch * per_epoch): config.factor for epoch in config.boundaries}
    return optax.piecewise_constant_schedule(config.learning_rate, factors)


def _cosine(config: Config, total: int, per_epoch: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(config.learning_rate, total - round(config.warmup_epochs * per_epoch))


def _cyclic(config: Config, total: int, per_epoch: int) -> optax.Schedule:
    return optax.linear_schedule(config.learning_rate, 0.0, total - round(config.warmup_epochs * per_epoch))


# What follows the warm-up. Each takes (config.optimizer, steps of the run, steps of an epoch).
SCHEDULES = {"constant": _constant, "piecewise": _piecewise, "cosine": _cosine, "cyclic": _cyclic}


def create(
    config: Config, *, num_epochs: int, steps_per_epoch: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser of a run and the schedule it follows, step -> learning rate.

    Args:
        config: ``config.optimizer``.
        num_epochs: length of the run.
        steps_per_epoch: updates of an epoch.
    """
    after = SCHEDULES[config.schedule](config, num_epochs * steps_per_epoch, steps_per_epoch)
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    whole = after
    if warmup_steps and config.schedule == "piecewise":  # its boundaries count from the start of the run
        warmup = optax.linear_schedule(0.0, 1.0, warmup_steps)
        whole = lambda step: warmup(step) * after(step)  # noqa: E731
    elif warmup_steps:
        warmup = optax.linear_schedule(0.0, config.learning_rate, warmup_steps)
        whole = optax.join_schedules([warmup, after], [warmup_steps])

    def schedule(step: ArrayLike) -> ArrayLike:
        return whole(jnp.asarray(step, jnp.float32))  # optax mixes integers and floats, which strict promotion refuses

    transform = optax.chain(
        optax.add_decayed_weights(config.weight_decay, None if config.decay_norms_and_biases else is_kernel),
        optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov),
    )
    return transform, schedule


def is_kernel(params: Any) -> Any:
    """True at the leaves that weight decay is for: all but biases and the scales and biases of BatchNorm.

    Example:
        >>> import jax.numpy as jnp
        >>> is_kernel({"conv": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)}})
        {'conv': {'bias': False, 'kernel': True}}
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
