"""Gradients in half precision with float32 logits, which are faster on some devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from robustjax.ops import straight_through
from robustjax.types import Array, InputError, Key, LogitsFn


def with_gradients_of(bfloat16_fn: LogitsFn, logits_fn: LogitsFn, images: Array, *key: Key) -> Any:
    """The outputs of ``logits_fn``, exactly, with the gradients of ``bfloat16_fn``.

    An attack on these steps along half precision, while its losses, its step sizes and what it accepts as misclassified
    are float32's; where no gradient is asked for, the other network is dead code. An attack that saw half precision's
    logits would be weaker: it would stop at images that only they misclassify.

    Args:
        bfloat16_fn: the same network, computing in bfloat16, or any other that returns outputs of the same shapes.
        logits_fn: images -> outputs, or (images, key) -> outputs.
        images: [B, ...].
        key: given to both.

    Returns:
        A pytree like that of ``logits_fn``.

    Raises:
        InputError: the two return outputs of different shapes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = jax.tree_util.Partial(with_gradients_of, lambda x: x.astype(jnp.bfloat16), jnp.round)
        >>> jax.value_and_grad(network)(1.4)
        (Array(1., dtype=float32...), Array(1., dtype=float32...))
    """
    exact, coarse = logits_fn(images, *key), bfloat16_fn(images, *key)
    shapes, others = (jax.tree.map(lambda leaf: tuple(jnp.shape(leaf)), outputs) for outputs in (exact, coarse))
    if shapes != others:
        raise InputError(
            f"bfloat16_fn must return outputs of logits_fn's shapes, {shapes}, got {others}; give the same network"
        )

    def substitute(value: Any, surrogate: Any) -> Any:
        return straight_through(value, surrogate.astype(value.dtype)) if _has_gradient(value) else value

    return jax.tree.map(substitute, exact, coarse)


def _has_gradient(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
