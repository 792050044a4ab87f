"""A network reduced to the question whether an image is of one class, so that untargeted attacks can aim at a class."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.attacks.engine.inputs import logits_of
from robustjax.types import Array, Key, LogitsFn


def one_against_rest(logits_fn: LogitsFn, targets: Array) -> LogitsFn:
    r"""Two logits in place of K: those of all classes but the target t, and its own.

    .. math:: g(x) = \bigl(\max_{k \ne t} z_k(x),\; z_t(x)\bigr)

    An image that this network sees as class 1 is one of the class t, so what makes it misclassify the label 0 reaches
    the target.

    Args:
        logits_fn: images -> logits [B, K], or outputs that carry them as ``.logits``; further arguments are handed on.
        targets: integers [B].

    Example:
        >>> import jax.numpy as jnp
        >>> one_against_rest(lambda x: x, jnp.array([2]))(jnp.array([[3.0, 1.0, 2.0]]))
        Array([[3., 2.]], dtype=float32)
    """

    def known(points: Array, *keys: Key) -> Array:
        values = logits_of(logits_fn(points, *keys), points.shape[0]).astype(jnp.float32)
        is_target = jax.nn.one_hot(targets, values.shape[-1], dtype=bool)
        others = jnp.max(jnp.where(is_target, -jnp.inf, values), axis=-1)
        own_value = jnp.max(jnp.where(is_target, values, -jnp.inf), axis=-1)
        return jnp.stack([others, own_value], axis=-1)

    return known
