"""Optimisers and their learning-rate schedules, through optax."""

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


def _decayed_gradient(transform: optax.GradientTransformation, config: Config, mask: Any):
    """Weight decay as a part of the loss: added to the gradient, before whatever else is done with it."""
    return optax.chain(optax.add_decayed_weights(config.weight_decay, mask), transform)


# Each takes (config.optimizer, schedule, which weights decay). Where a name ends in "w", or has no other form, weight
# decay shrinks the weights themselves, by learning rate times weight_decay (Loshchilov and Hutter 2019); lamb scales
# that together with its update.
OPTIMIZERS = {
    "sgd": lambda config, schedule, mask: _decayed_gradient(
        optax.sgd(schedule, momentum=config.momentum or None, nesterov=config.nesterov), config, mask
    ),
    "adam": lambda config, schedule, mask: _decayed_gradient(optax.adam(schedule), config, mask),
    "adamw": lambda config, schedule, mask: optax.adamw(schedule, weight_decay=config.weight_decay, mask=mask),
    "nadamw": lambda config, schedule, mask: optax.nadamw(schedule, weight_decay=config.weight_decay, mask=mask),
    "rmsprop": lambda config, schedule, mask: _decayed_gradient(
        optax.rmsprop(schedule, momentum=config.momentum or None, nesterov=config.nesterov), config, mask
    ),
    "lamb": lambda config, schedule, mask: optax.lamb(schedule, weight_decay=config.weight_decay, mask=mask),
    "lion": lambda config, schedule, mask: optax.lion(schedule, weight_decay=config.weight_decay, mask=mask),
}
# Those that config.optimizer.momentum and nesterov are for; the others have optax's own defaults.
WITH_MOMENTUM = ("sgd", "rmsprop")


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

    mask = None if config.decay_norms_and_biases else is_kernel
    return _promoting(OPTIMIZERS[config.name](config, schedule, mask)), schedule


def _promoting(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same where jax's dtype promotion is strict: optax raises floats to the power of its integer counts."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return transform.update(updates, state, params)

    return optax.GradientTransformation(transform.init, update)


def is_kernel(params: Any) -> Any:
    """True at the leaves that weight decay is for: all but biases and the scales and biases of BatchNorm.

    Example:
        >>> import jax.numpy as jnp
        >>> is_kernel({"conv": {"kernel": jnp.ones((3, 3, 1, 8)), "bias": jnp.ones(8)}})
        {'conv': {'bias': False, 'kernel': True}}
    """
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
