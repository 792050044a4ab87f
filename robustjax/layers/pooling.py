"""Pooling that is fast on a CPU: by slices of the whole array instead of a loop over windows.

XLA's CPU backend visits the pixels of a window one by one, and scatters the gradient of a maximum one by one. Slices of
the whole array, one for each place in the window, are compared or summed in a few vectorized passes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, primitives

from robustjax.layers import quick
from robustjax.types import Array

Pads = Sequence[tuple[int, int]]
MOST_PLACES = 16  # of a window


def _slices(padded: Array, lengths: Sequence[int], strides: Sequence[int]) -> Iterator[Array]:
    """What each place of a window sees, first to last."""
    limits = [
        (size - length) // stride * stride + 1
        for size, length, stride in zip(padded.shape, lengths, strides, strict=True)
    ]
    for starts in itertools.product(*map(range, lengths)):
        ends = [start + limit for start, limit in zip(starts, limits, strict=True)]
        yield jax.lax.slice(padded, starts, ends, strides)


def _padded(values: Array, fill: float, padding: Pads) -> Array:
    return jax.lax.pad(values, jnp.asarray(fill, values.dtype), [(low, high, 0) for low, high in padding])


def _reduced(
    combine: Callable[[Array, Array], Array],
    identity: float,
    values: Array,
    *,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Pads,
    **dilation: Any,
) -> Array:
    """Maximum or sum of each window, one axis after the other."""
    values = _padded(values, identity, padding)
    for axis in range(values.ndim):
        lengths, strides = [1] * values.ndim, [1] * values.ndim
        lengths[axis], strides[axis] = window_dimensions[axis], window_strides[axis]
        if values.shape[axis] < lengths[axis]:  # a window that is larger than the array is nowhere
            values = jax.lax.slice_in_dim(values, 0, 0, axis=axis)
        else:
            values = reduce(combine, _slices(values, lengths, strides))
    return values


def _scattered(
    source: Array,
    operand: Array,
    *,
    select_prim: Primitive,
    window_dimensions: Sequence[int],
    window_strides: Sequence[int],
    padding: Pads,
) -> Array:
    """The gradient of a maximum (or minimum): each window's goes to the first of its greatest entries."""
    if not source.size:
        return jnp.zeros_like(operand)
    worst = -jnp.inf if select_prim is primitives.ge_p else jnp.inf
    padded = _padded(operand, worst, padding)
    places = itertools.product(*map(range, window_dimensions))
    seen = enumerate(_slices(padded, window_dimensions, window_strides))
    _, best = next(seen)
    chosen = jnp.zeros(source.shape, jnp.int8)
    for i, values in seen:
        stays = select_prim.bind(best, values)
        best, chosen = jnp.where(stays, best, values), jnp.where(stays, chosen, jnp.int8(i))
    # In blocks of strides' entries, a place of the window is always at the same entry of a block.
    shape = [
        count + (length - 1) // stride
        for count, length, stride in zip(source.shape, window_dimensions, window_strides, strict=True)
    ]
    entries: dict[tuple[int, ...], Array] = {}
    for i, place in enumerate(places):
        block, entry = zip(*map(divmod, place, window_strides), strict=True)
        edges = [(low, total - count - low) for low, total, count in zip(block, shape, source.shape, strict=True)]
        part = _padded(jnp.where(chosen == i, source, jnp.zeros_like(source)), 0.0, edges)
        entries[entry] = entries[entry] + part if entry in entries else part
    nothing = jnp.zeros(shape, source.dtype)  # of entries that no window covers
    blocks = jnp.stack([entries.get(entry, nothing) for entry in itertools.product(*map(range, window_strides))])
    axes = [axis for pair in zip(range(len(shape), 2 * len(shape)), range(len(shape)), strict=True) for axis in pair]
    whole = blocks.reshape(*window_strides, *shape).transpose(axes)
    whole = whole.reshape([total * stride for total, stride in zip(shape, window_strides, strict=True)])
    edges = [
        (-low, size + low - total) for (low, _), size, total in zip(padding, operand.shape, whole.shape, strict=True)
    ]
    return _padded(whole, 0.0, edges)


def _few_places(
    *,
    window_dimensions: Sequence[int],
    base_dilation: Sequence[int] = (),
    window_dilation: Sequence[int] = (),
    **rest: Any,
) -> bool:
    """Whether slices of a maximum pay: in large windows there are too many of them."""
    return math.prod(window_dimensions) <= MOST_PLACES and {*base_dilation, *window_dilation} <= {1}


def _overlap(*, window_dimensions: Sequence[int], window_strides: Sequence[int], **dilation: Any) -> bool:
    """Whether slices of a sum pay: where windows are apart, XLA's own gradient does as well."""
    apart = all(length <= stride for length, stride in zip(window_dimensions, window_strides, strict=True))
    return not apart and _few_places(window_dimensions=window_dimensions, **dilation)


quick.register(primitives.reduce_window_max_p, partial(_reduced, jnp.maximum, -jnp.inf), pays=_few_places)
quick.register(primitives.select_and_scatter_add_p, _scattered, pays=_few_places)
quick.register(primitives.select_and_gather_add_p, pays=_few_places)
quick.register(primitives.reduce_window_sum_p, partial(_reduced, jnp.add, 0.0), pays=_overlap)
