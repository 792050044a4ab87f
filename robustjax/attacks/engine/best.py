"""The strongest point that an attack has found so far, for each example."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from robustjax.types import Array


class Best(NamedTuple):
    """Images, ranked by (share of draws misclassified, loss).

    The loss alone would be wrong: an example may be misclassified at a lower cross-entropy than another that is not.

    Attributes:
        images: [B, ...].
        share: float32 [B], in [0, 1]; -1 where nothing was found yet.
        loss: float32 [B].
    """

    images: Array
    share: Array
    loss: Array

    @classmethod
    def none(cls, images: Array) -> Best:
        """A start value that any image is stronger than."""
        per_example = zeros(images, jnp.float32)
        return cls(images, jnp.full_like(per_example, -1.0), jnp.full_like(per_example, -jnp.inf))

    def or_better(self, images: Array, share: Array, loss: Array) -> Best:
        """Each example's better of self and the given; the earlier one on a tie."""
        better = (share > self.share) | ((share == self.share) & (loss > self.loss))
        keep = better.reshape(better.shape + (1,) * (images.ndim - 1))
        return Best(
            jnp.where(keep, images, self.images),
            jnp.where(better, share, self.share),
            jnp.where(better, loss, self.loss),
        )


@functools.partial(jax.jit, static_argnums=1)
def zeros(images: Array, dtype: DTypeLike) -> Array:
    """A zero for each example [B], which varies over the axes that the images vary over under ``shard_map``.

    Example:
        >>> import jax.numpy as jnp
        >>> zeros(jnp.ones((2, 3, 3, 1)), jnp.int32)
        Array([0, 0], dtype=int32)
    """
    # A sum, which XLA folds: JAX takes no slice of an image whose height or width is sharded over explicit axes.
    # Compiled: in a loop, zeros like an array from outside would not be sharded as it is.
    return jnp.sum(jnp.zeros_like(images, dtype=dtype), axis=tuple(range(1, images.ndim)), dtype=dtype)
