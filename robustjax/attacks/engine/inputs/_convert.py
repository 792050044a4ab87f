"""Conversions between what users pass and what is computed with: dtypes and float32, functions and pytrees."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks.engine.inputs._state import unchanged
from robustjax.ops import straight_through
from robustjax.types import Array


@overload
def as_pytree(function: None) -> None: ...
@overload
def as_pytree(function: Callable[..., Any]) -> jax.tree_util.Partial: ...
def as_pytree(function: Callable[..., Any] | None) -> jax.tree_util.Partial | None:
    """A function as a pytree that jitted functions take as an argument; None stays None.

    Arrays of a ``jax.tree_util.Partial`` become traced arguments, so that other weights compile nothing new. So do
    those of a ``functools.partial`` of a function, or of a method of a frozen module, whose positional arguments are
    pytrees of arrays with floats among them, as ``partial(module.apply, variables, train=False)``.

    What was compiled for a function serves again as long as all that the function reads is the same; an object that may
    change unseen makes it another function in each call.

    Example:
        >>> import functools
        >>> import numpy as np
        >>> add = lambda x, y, twice: (x + y) * (2 if twice else 1)
        >>> made = [as_pytree(functools.partial(add, np.ones(2) * i, twice=True)) for i in range(2)]
        >>> made[0].func == made[1].func, made[1].args, made[1](2.0)
        (True, (array([1., 1.]),), array([6., 6.]))
    """
    if function is None or isinstance(function, jax.tree_util.Partial):
        return function
    if isinstance(function, functools.partial):
        arguments_traced = _with_traced_arguments(function)
        if arguments_traced is not None:
            return arguments_traced
    same = unchanged(function) if inspect.isfunction(function) else None
    # A callable object may hold arrays and lack a hash, which jit needs: a function around it has one, and is new.
    return jax.tree_util.Partial((lambda *arguments: function(*arguments)) if same is None else same)


class _Bound(NamedTuple):
    """A function with keyword arguments that are not arrays; equal to another of the same."""

    function: Callable[..., Any]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **dict(self.keywords), **keywords)


def _with_traced_arguments(function: functools.partial[Any]) -> jax.tree_util.Partial | None:
    """The partial as a pytree of its arrays; None where one of its arguments is neither array nor value, or where
    nothing says that two functions are the same."""

    def holds_arrays(tree: Any) -> bool:
        leaves = jax.tree.leaves(tree)
        # Integers alone may be a shape or an axis, which the function needs as values.
        of_floats = any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves if hasattr(leaf, "dtype"))
        return of_floats and all(isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves)

    arrays = {name: value for name, value in function.keywords.items() if holds_arrays(value)}
    values = tuple(item for item in function.keywords.items() if item[0] not in arrays)
    same = unchanged(function.func) if inspect.isfunction(function.func) else function.func
    if same is None:
        return None
    static = _Bound(same, values) if values else same
    owner = getattr(function.func, "__self__", None)
    # An object that may change its state between calls must be traced anew.
    frozen = inspect.isfunction(function.func) or (inspect.ismethod(function.func) and dataclasses.is_dataclass(owner))
    if not frozen or not all(map(holds_arrays, function.args)):
        return None
    try:
        hash((static, owner))
    except TypeError:
        return None
    return jax.tree_util.Partial(static, *function.args, **arrays)


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
        moved = given + (points - images).astype(given.dtype)
        return straight_through(jnp.clip(moved, low, high), moved)  # a clip's gradient is halved at the walls
    nearest = points.astype(given.dtype)
    constant = jax.lax.stop_gradient(nearest)
    too_far = jnp.abs(constant.astype(jnp.float32) - images) > jnp.abs(jax.lax.stop_gradient(points) - images)
    return straight_through(jnp.where(too_far, jnp.nextafter(constant, given), constant), nearest)
