"""A trained network as the function that attacks call, and a checksum that tells networks apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.types import Array, Key


def logits_fn(module: Any, *, stochastic: bool, prediction_draws: int = 1) -> Callable[..., Array]:
    """``(variables, images) -> logits`` of a network in inference mode; ``(variables, images, key)`` if it is
    stochastic.

    Args:
        module: with the call of ``robustjax.models``.
        stochastic: whether inference draws from the rng stream "defense".
        prediction_draws: draws that one prediction averages, see ``softmax_average``.
    """
    if not stochastic:
        return lambda variables, images: module.apply(variables, images, train=False).logits

    def drawn(variables: Any, images: Array, key: Key) -> Array:
        return module.apply(variables, images, train=False, rngs={"defense": key}).logits

    return drawn if prediction_draws == 1 else softmax_average(drawn, num_draws=prediction_draws)


def softmax_average(drawn: Callable[[Any, Array, Key], Array], *, num_draws: int) -> Callable[[Any, Array, Key], Array]:
    r"""The classifier that averages a stochastic network's probabilities over draws, as SAP's paper predicts.

    .. math:: \log \frac{1}{n} \sum_{i=1}^n \mathrm{softmax}(f(x, k_i))

    One draw is made after the other, and made again for the gradient, so that memory does not grow with their number.

    Example:
        >>> noisy = lambda variables, images, key: images + jax.random.normal(key, images.shape)
        >>> mean = softmax_average(noisy, num_draws=500)(None, jnp.zeros((1, 2)), jax.random.key(0))
        >>> bool((abs(jnp.exp(mean) - 0.5) < 0.05).all())
        True
    """

    def averaged(variables: Any, images: Array, key: Key) -> Array:
        @jax.checkpoint
        def draw(key: Key) -> Array:
            return jax.nn.log_softmax(drawn(variables, images, key).astype(jnp.float32))

        log_probabilities = jax.lax.map(draw, jax.random.split(key, num_draws))
        return jax.nn.logsumexp(log_probabilities, axis=0) - jnp.log(jnp.float32(num_draws))

    return averaged


def digest(variables: Any) -> str:
    """A checksum of all variables, names, shapes and values: other weights, another digest.

    Example:
        >>> digest({"kernel": np.zeros(3)}) == digest({"kernel": np.ones(3)})
        False
    """
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(jax.device_get(variables)):
        value = np.ascontiguousarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape};".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()
