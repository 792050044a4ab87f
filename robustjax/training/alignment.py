"""Gradient alignment, which keeps single-step training from catastrophic overfitting."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax.attacks.losses import cross_entropy
from robustjax.types import Array, Key


def misalignment(
    logits_fn: Callable[[Array], Array], key: Key, images: Array, labels: Array, *, epsilon: Array | float
) -> Array:
    r"""How much the loss's gradient turns within the ball (GradAlign; Andriushchenko and Flammarion 2020, 2007.02617).

    .. math:: 1 - \cos\bigl(\nabla_x L(x), \nabla_x L(x + \eta)\bigr), \quad \eta \sim U(-\epsilon, \epsilon)

    An example whose gradient is 0 in one of the two places counts as aligned.

    Args:
        logits_fn: images -> logits [B, K], differentiable twice.
        key: of the noise.
        images: [B, H, W, C].
        labels: integers [B].
        epsilon: radius of the linf ball.

    Returns:
        float32 [B], in [0, 2].

    Example:
        >>> linear = lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.zeros(x.shape[0])], axis=1)
        >>> misalignment(linear, jax.random.key(0), jnp.ones((1, 2, 2, 1)), jnp.array([0]), epsilon=0.1).round(4)
        Array([0.], dtype=float32)
    """
    noise = epsilon * jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)

    def slope(points: Array) -> Array:
        gradient = jax.grad(lambda points: jnp.sum(cross_entropy(logits_fn(points), labels)))(points)
        gradient = gradient.reshape(gradient.shape[0], -1)
        # The cosine does not depend on its length, the squares of small gradients would underflow.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(gradient), axis=1, keepdims=True))
        return gradient / jnp.where(largest > 0, largest, 1.0)

    here, there = slope(images), slope(images + noise)
    squares = jnp.sum(here**2, axis=1) * jnp.sum(there**2, axis=1)
    flat = squares == 0.0
    return jnp.where(flat, 0.0, 1.0 - jnp.sum(here * there, axis=1) * jax.lax.rsqrt(jnp.where(flat, 1.0, squares)))
