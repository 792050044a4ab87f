"""Adversarial weight perturbation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from robustjax.training.optim import is_kernel
from robustjax.types import Array


def move(params: Any, gradient: Any, *, gamma: Array | float) -> Any:
    r"""Weights a step up the loss, each layer by a fixed share of its own size (Wu et al. 2020, arXiv 2004.05884).

    .. math:: w + \gamma \, \|w\| \, g / \|g\|

    Biases and the scales and biases of BatchNorm stay, as in the published code; so does a layer without a gradient.
    The gradient of an update is taken at the moved weights, and changes the ones that were not moved.

    Args:
        params: pytree of weights.
        gradient: of the loss, same structure.
        gamma: at least 0; in the published code 0.01 with adversarial training, 0.005 with TRADES.

    Returns:
        Weights of the same structure.

    Example:
        >>> params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.ones(2)}
        >>> gradient = {"kernel": jnp.array([[0.0, 2.0]]), "bias": jnp.ones(2)}
        >>> move(params, gradient, gamma=0.1)
        {'bias': Array([1., 1.], dtype=float32), 'kernel': Array([[3. , 4.5]], dtype=float32)}
    """

    def moved(moves: bool, weight: Array, slope: Array) -> Array:
        if not moves:
            return weight
        # Scaled by the largest entry, or the squares of a small gradient would underflow.
        largest = jnp.max(jnp.abs(slope))
        unit = slope / jnp.where(largest > 0, largest, 1.0)
        norm = jnp.linalg.norm(unit.ravel())
        return weight + gamma * jnp.linalg.norm(weight.ravel()) * unit / jnp.where(norm > 0, norm, 1.0)

    return jax.tree.map(moved, is_kernel(params), params, gradient)
