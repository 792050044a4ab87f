"""Small operations that several packages share: substituted gradients, dtypes, channels, sequences."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from robustjax.types import Array, InputError


@jax.custom_jvp
def straight_through(value: Array, surrogate: Array) -> Array:
    """The value of the one, exactly, with the gradient of the other (Bengio et al. 2013, arXiv 1308.3432).

    The usual ``surrogate + stop_gradient(value - surrogate)`` rounds the value; this does not.

    Args:
        value: any shape; receives no gradient.
        surrogate: same shape and dtype; receives all of it.

    Returns:
        value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.value_and_grad(lambda x: straight_through(jnp.round(x), x**2))(1.4)
        (Array(1., dtype=float32...), Array(2.8, dtype=float32...))
    """
    del surrogate
    return value


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return straight_through(*primals), tangents[1]


def bpda(forward: Callable[..., Array], backward: Callable[..., Array]) -> Callable[..., Array]:
    """Backward-pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420).

    Args:
        forward: the function to attack, perhaps without a useful gradient.
        backward: a differentiable approximation of it: same arguments, same shape and dtype of the result.

    Returns:
        A function with the values of ``forward`` and the derivatives of ``backward``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> quantised = bpda(lambda x: jnp.round(4 * x) / 4, lambda x: x)
        >>> jax.value_and_grad(quantised)(0.3)
        (Array(0.25, dtype=float32...), Array(1., dtype=float32...))
    """
    return lambda *args: straight_through(forward(*args), backward(*args))


def in_dtypes_of(old: Any, new: Any) -> Any:
    """A pytree in the dtypes of another of the same structure, so that it can be the carry of a loop.

    Example:
        >>> import jax.numpy as jnp
        >>> in_dtypes_of({"a": jnp.zeros(1)}, {"a": jnp.ones(1, jnp.bfloat16)})
        {'a': Array([1.], dtype=float32)}
    """
    return jax.tree.map(lambda one, other: other.astype(one.dtype), old, new)


def as_floats(name: str, values: Any, *, least_axes: int = 0) -> Array:
    """An array of JAX or NumPy as one of JAX, in the nearest dtype that JAX has: float64 of NumPy usually as float32.

    Refuses arrays that are not floats, such as integers, which would truncate results, or have too few axes.

    Example:
        >>> import numpy as np
        >>> as_floats("cas: features", np.ones((2, 3)), least_axes=2).dtype
        dtype('float32')
        >>> as_floats("cas: features", np.ones((2, 3), int), least_axes=2)
        Traceback (most recent call last):
        robustjax.types.InputError: cas: features must be an array of floats with 2 axes or more, got int64 [2, 3];
        convert them
    """
    if not (hasattr(values, "dtype") and jnp.issubdtype(values.dtype, jnp.floating) and values.ndim >= least_axes):
        wanted = "an array of floats" + (f" with {least_axes} axes or more" if least_axes else "")
        got = f"{values.dtype} {list(values.shape)}" if hasattr(values, "dtype") else type(values).__name__
        raise InputError(f"{name} must be {wanted}, got {got}; convert them")
    return jnp.asarray(values)


def check_number(name: str, value: Any, interval: str, *, whole: bool = False) -> None:
    """Refuses what is not a number in an interval, such as NaN, True or a string; traced ones by shape and dtype alone.

    Args:
        name: of the number, for the message.
        value: a number of Python or NumPy, or an array without axes.
        interval: such as "(0, 1]", which excludes 0, or "[0, inf)", which excludes infinity.
        whole: accept integers only.

    Example:
        >>> check_number("kwta: fraction", 2, "(0, 1]")
        Traceback (most recent call last):
        robustjax.types.InputError: kwta: fraction must be in (0, 1], got 2; give one that is
        >>> check_number("cas: beta", "2", "[0, inf)")
        Traceback (most recent call last):
        robustjax.types.InputError: cas: beta must be at least 0 and finite, got '2'; give a number
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):  # traced values are arrays of JAX, too
        kinds = (jnp.integer,) if whole else (jnp.integer, jnp.floating)
        number = value.shape == () and any(jnp.issubdtype(value.dtype, each) for each in kinds)
        got = str(value) if number and not isinstance(value, Tracer) else f"{value.dtype} {list(value.shape)}"
    else:
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        got = reprlib.repr(value)  # of one line, whatever it is
    if number and isinstance(value, Tracer):
        return
    low, high = map(float, interval[1:-1].split(", "))
    try:
        given = float(value) if number else np.nan  # a Python number: an array of JAX is traced within a trace
    except OverflowError:  # of an integer
        given = np.inf
    above = given >= low if interval[0] == "[" else given > low
    below = given <= high if interval[-1] == "]" else given < high
    if not (above and below):
        from_low = f"{'at least' if interval[0] == '[' else 'above'} {low:g} and finite"
        wanted = from_low if interval.endswith("inf)") else f"in {interval}"
        mend = "one that is" if number else "an integer" if whole else "a number"
        raise InputError(f"{name} must be {wanted}, got {got}; give {mend}")


def check_classes(name: str, labels: Any, num_examples: int, num_classes: int) -> None:
    """Refuses labels that are not classes [B], which indexing would wrap or clip; traced ones by shape and dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> check_classes("cas: labels", jnp.array([-1, 0]), 2, 3)
        Traceback (most recent call last):
        robustjax.types.InputError: cas: labels must be integers [2] of classes 0 to 2, got -1 to 0; number the classes
        from 0
    """
    wanted = f"{name} must be integers [{num_examples}] of classes 0 to {num_classes - 1}"
    dtype, shape = getattr(labels, "dtype", type(labels).__name__), list(getattr(labels, "shape", ()))
    if not (hasattr(labels, "dtype") and jnp.issubdtype(dtype, jnp.integer) and shape == [num_examples]):
        raise InputError(f"{wanted}, got {dtype} {shape}; give the number of each example's class")
    if isinstance(labels, Tracer) or not getattr(labels, "is_fully_addressable", True) or not num_examples:
        return
    values = np.asarray(labels)  # within a trace, what is computed of an array of JAX would be traced
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= num_classes:
        raise InputError(f"{wanted}, got {least} to {most}; number the classes from 0")


def is_explicit(values: Array) -> bool:
    """Whether an array's type names mesh axes, as the arrays on the axes that ``jax.make_mesh`` makes do.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> shards = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
        >>> is_explicit(jax.device_put(jnp.zeros(2), shards)), is_explicit(jnp.zeros(2))
        (True, False)
    """
    return AxisType.Explicit in jax.typeof(values).sharding.mesh.axis_types


def rowwise(function: Callable[..., Array], *rows: Array) -> Array:
    """``vmap(function)(*rows)``, also where the rows of some are sharded over explicit axes, and those of others not.

    All rows are then sharded as those are, so each device computes its own; what is within a row is not sharded.

    Args:
        function: of one row of each; closes over no arrays.
        rows: of the same length.

    Example:
        >>> import jax.numpy as jnp
        >>> rowwise(jnp.add, jnp.array([1, 2]), jnp.array([3, 4]))
        Array([4, 6], dtype=int32)
    """
    explicit = [jax.typeof(each).sharding for each in rows if is_explicit(each)]
    if not explicit:
        return jax.vmap(function)(*rows)
    # Not the first one's: keys, of which every device has all, would have each device compute all rows.
    mesh = explicit[0].mesh
    spec = PartitionSpec(next((each.spec[0] for each in explicit if each.spec[0] is not None), None))
    rows = tuple(jax.sharding.reshard(each, NamedSharding(mesh, spec)) for each in rows)
    return jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=spec, out_specs=spec)(*rows)


def lookup(table: Any, indices: Array) -> Array:
    """``table[indices]``, also where the indices, of any axis, are sharded over explicit axes, and the table is not.

    JAX alone leaves to the caller how the result is sharded: here as the indices are.

    Example:
        >>> import jax.numpy as jnp
        >>> lookup(jnp.array([5, 6, 7]), jnp.array([2, 0]))
        Array([7, 5], dtype=int32)
    """
    table = jnp.asarray(table)
    if not is_explicit(indices):
        return table[indices]
    shards = jax.typeof(indices).sharding
    rest = (None,) * (table.ndim - 1)
    return table.at[indices].get(out_sharding=NamedSharding(shards.mesh, PartitionSpec(*shards.spec, *rest)))


def global_average_pool(features: Array) -> Array:
    """Mean over positions: [B, ..., C] of any float dtype to float32 [B, C].

    Example:
        >>> import jax.numpy as jnp
        >>> global_average_pool(jnp.arange(4.0).reshape(1, 2, 1, 2))
        Array([[1., 2.]], dtype=float32)
    """
    return jnp.mean(features.astype(jnp.float32), axis=tuple(range(1, features.ndim - 1)))


def scale_channels(features: Array, weights: Array) -> Array:
    """Each channel times its weight: features [B, ..., C], weights [B, C]; shape and dtype of the features.

    Example:
        >>> import jax.numpy as jnp
        >>> scale_channels(jnp.ones((1, 1, 2, 2)), jnp.array([[2.0, 3.0]]))
        Array([[[[2., 3.],
                 [2., 3.]]]], dtype=float32)
    """
    batch, channels = weights.shape
    weights = weights.reshape((batch,) + (1,) * (features.ndim - 2) + (channels,))
    return (features.astype(jnp.float32) * weights.astype(jnp.float32)).astype(features.dtype)


def chosen(which: Sequence[bool], values: Sequence[Any]) -> list[Any]:
    """The values at the places that ``which`` marks.

    Example:
        >>> chosen([True, False, True], "abc")
        ['a', 'c']
    """
    return [value for marked, value in zip(which, values, strict=True) if marked]


def merged(which: Sequence[bool], some: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """``some`` in order at the places that ``which`` marks, and what ``others`` has at the rest.

    Example:
        >>> merged([True, False, True], "xy", "abc")
        ['x', 'b', 'y']
    """
    taken = iter(some)
    return [next(taken) if marked else other for marked, other in zip(which, others, strict=True)]
