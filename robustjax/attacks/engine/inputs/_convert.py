"""Between what users give and what is computed with: the images' dtype and float32, functions and pytrees."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry
from robustjax.ops import straight_through
from robustjax.types import Array


@overload
def as_pytree(function: None) -> None: ...
@overload
def as_pytree(function: Callable[..., Any]) -> jax.tree_util.Partial: ...
def as_pytree(function: Callable[..., Any] | None) -> jax.tree_util.Partial | None:
    """A function as a pytree that jitted functions take as an argument; None stays None.

    Arrays of a ``jax.tree_util.Partial`` become traced arguments, so that other weights compile nothing new.
    """
    if function is None or isinstance(function, jax.tree_util.Partial):
        return function
    # A callable object may hold arrays and lack a hash, which jit needs; a function around it has one.
    return jax.tree_util.Partial(function if inspect.isfunction(function) else lambda *arguments: function(*arguments))


def in_dtype_of(given: Array, points: Array, bounds: geometry.Bounds) -> Array:
    """Float32 points in the dtype of the images they belong to, no further from them; differentiable as a cast.

    In float16 and bfloat16 each pixel is rounded towards the image, so that what was inside ball and box stays there.
    In float64 the change of each pixel is added to the image, so that what did not change is exactly the image.

    Args:
        given: the images, of any float dtype.
        points: float32, like them.
        bounds: the box, which float64 points are clipped to.

    Returns:
        An array like ``given``.

    Example:
        >>> import jax.numpy as jnp
        >>> in_dtype_of(jnp.zeros(1, jnp.bfloat16), jnp.array([0.3]), (0.0, 1.0))  # its neighbours: 0.2988 and 0.3008
        Array([0.298828], dtype=bfloat16)
    """
    if given.dtype == jnp.float32:
        return points
    images = given.astype(jnp.float32)
    if jnp.finfo(given.dtype).bits > 32:
        low, high = geometry.walls(bounds, given)
        return jnp.clip(given + (points - images).astype(given.dtype), low, high)
    nearest = points.astype(given.dtype)
    constant = jax.lax.stop_gradient(nearest)
    too_far = jnp.abs(constant.astype(jnp.float32) - images) > jnp.abs(jax.lax.stop_gradient(points) - images)
    return straight_through(jnp.where(too_far, jnp.nextafter(constant, given), constant), nearest)
