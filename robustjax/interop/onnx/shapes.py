"""Operators on axes and shapes: reductions, transposition, slicing, and computations with shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustjax.interop.onnx.node import Node, Value, known, namespace, option
from robustjax.types import InputError


def _reduction(function: Callable[..., Value]) -> Callable[..., Value]:
    def apply(node: Node, x: Value, *given: Value) -> Value:
        axes = option(node, given, "axes")
        if not axes:
            if node.attributes.get("noop_with_empty_axes", 0):
                return x
            axes = range(x.ndim)
        return function(namespace(x), x, axis=tuple(axes), keepdims=bool(node.attributes.get("keepdims", 1)))

    return apply


def _l2_norm(xp: Any, x: Value, **options: Any) -> Value:
    squares = xp.sum(x * x, **options)
    positive = squares > 0  # the gradient at 0 would not be a number
    return xp.where(positive, xp.sqrt(xp.where(positive, squares, 1)), 0)


def _flatten(node: Node, x: Value) -> Value:
    axis = node.attributes.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _reshape(node: Node, x: Value, shape: Value) -> Value:
    sizes = known(shape, "shape").tolist()
    if not node.attributes.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _transpose(node: Node, x: Value) -> Value:
    return x.transpose(node.attributes.get("perm", range(x.ndim)[::-1]))


def _squeeze(node: Node, x: Value, *given: Value) -> Value:
    axes = option(node, given, "axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(node: Node, x: Value, *given: Value) -> Value:
    return namespace(x).expand_dims(x, tuple(option(node, given, "axes")))


def _concat(node: Node, *values: Value) -> Value:
    xp = namespace(*values)
    return xp.concatenate([xp.asarray(value) for value in values], axis=node.attributes["axis"])


def _slice(node: Node, x: Value, *given: Value) -> Value:
    starts, ends = option(node, given[0:], "starts"), option(node, given[1:], "ends")
    axes = option(node, given[2:], "axes", list(range(len(starts))))
    steps = option(node, given[3:], "steps", [1] * len(starts))
    parts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        parts[axis] = slice(start, end, step)
    return x[tuple(parts)]


def _gather(node: Node, x: Value, indices: Value) -> Value:
    axis = node.attributes.get("axis", 0)
    size = x.shape[axis]
    xp = namespace(x, indices)
    if xp is jnp and isinstance(indices, np.ndarray | np.generic) and not np.all((-size <= indices) & (indices < size)):
        raise InputError(f"indices must be -{size} to {size - 1}, got {np.min(indices)} to {np.max(indices)}")
    indices = xp.asarray(indices)
    return xp.take(x, xp.where(indices < 0, indices + size, indices), axis=axis)


def _places(indices: Value) -> tuple[Value, ...]:
    """Indices [..., k] of the first k axes, as NumPy takes them."""
    return tuple(indices[..., axis] for axis in range(indices.shape[-1]))


def _gather_nd(node: Node, x: Value, indices: Value) -> Value:
    if node.attributes.get("batch_dims", 0):
        raise InputError("batch_dims must be 0; export the network without")
    return namespace(x, indices).asarray(x)[_places(indices)]


def _scatter_nd(node: Node, x: Value, indices: Value, updates: Value) -> Value:
    if node.attributes.get("reduction", "none") != "none":
        raise InputError("reduction must be none; export the network without")
    if namespace(x, indices, updates) is jnp:
        return jnp.asarray(x).at[_places(indices)].set(updates)
    x = np.array(x)
    x[_places(indices)] = updates
    return x


def _split(node: Node, x: Value, *given: Value) -> tuple[Value, ...]:
    axis = node.attributes.get("axis", 0)
    sizes = option(node, given, "split")
    if sizes is None:
        largest = -(-x.shape[axis] // len(node.outputs))
        ends = [min(largest * part, x.shape[axis]) for part in range(1, len(node.outputs))]
    else:
        ends = np.cumsum(sizes)[:-1].tolist()
    return tuple(namespace(x).split(x, ends, axis=axis))


def _pad(node: Node, x: Value, *given: Value) -> Value:
    pads = option(node, given, "pads")
    value = option(node, given[1:], "value", 0.0)
    axes = option(node, given[2:], "axes", list(range(x.ndim)))
    widths = [(0, 0)] * x.ndim
    for axis, low, high in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        widths[axis] = (low, high)
    mode = node.attributes.get("mode", "constant")
    if mode == "constant":  # negative widths cut off
        return lax.pad(x, np.asarray(value, x.dtype).reshape(()), [(low, high, 0) for low, high in widths])
    if min(map(min, widths)) < 0:
        raise InputError(f"pads must be at least 0 with mode {mode}, got {pads}")
    return jnp.pad(x, widths, mode=mode)


def _expand(node: Node, x: Value, shape: Value) -> Value:
    return namespace(x).broadcast_to(x, np.broadcast_shapes(x.shape, tuple(known(shape, "shape").tolist())))


def _tile(node: Node, x: Value, repeats: Value) -> Value:
    return namespace(x).tile(x, tuple(known(repeats, "repeats").tolist()))


def _shape(node: Node, x: Value) -> np.ndarray:
    return np.array(x.shape, np.int64)[node.attributes.get("start", 0) : node.attributes.get("end")]


def _constant_of_shape(node: Node, shape: Value) -> np.ndarray:
    value = np.asarray(node.attributes.get("value", np.zeros(1, np.float32)))
    return np.full(known(shape, "shape").tolist(), value.item(), value.dtype)


def _range(node: Node, *limits: Value) -> np.ndarray:
    return np.arange(*(known(limit, "start, limit and delta").item() for limit in limits), dtype=limits[0].dtype)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Range": _range,
    "ReduceL1": _reduction(lambda xp, x, **options: xp.sum(xp.abs(x), **options)),
    "ReduceL2": _reduction(_l2_norm),
    "ReduceLogSumExp": _reduction(lambda xp, x, **options: jax.nn.logsumexp(x, **options)),
    "ReduceMax": _reduction(lambda xp, x, **options: xp.max(x, **options)),
    "ReduceMean": _reduction(lambda xp, x, **options: xp.mean(x, **options)),
    "ReduceMin": _reduction(lambda xp, x, **options: xp.min(x, **options)),
    "ReduceProd": _reduction(lambda xp, x, **options: xp.prod(x, **options)),
    "ReduceSum": _reduction(lambda xp, x, **options: xp.sum(x, **options)),
    "ReduceSumSquare": _reduction(lambda xp, x, **options: xp.sum(x * x, **options)),
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
