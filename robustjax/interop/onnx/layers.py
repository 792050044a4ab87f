"""Operators of layers: convolution, pooling, normalisation and matrix products."""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from robustjax.interop.onnx.node import Node, Value, aligned, known, per_channel
from robustjax.types import InputError


def _padding(
    node: Node, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """What is added before and after each spatial axis."""
    automatic = node.attributes.get("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        reach = [(width - 1) * dilation + 1 for width, dilation in zip(kernel, dilations, strict=True)]
        total = [
            max((-(-size // stride) - 1) * stride + width - size, 0)
            for size, stride, width in zip(sizes, strides, reach, strict=True)
        ]
        small, large = [each // 2 for each in total], [each - each // 2 for each in total]
        return list(zip(*((small, large) if automatic == "SAME_UPPER" else (large, small)), strict=True))
    if automatic == "VALID":
        return [(0, 0)] * len(sizes)
    pads = node.attributes.get("pads", [0] * 2 * len(sizes))
    return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))


def _conv(node: Node, x: Value, kernel: Value, bias: Value = None) -> Value:
    spatial = x.ndim - 2
    strides = node.attributes.get("strides", [1] * spatial)
    dilations = node.attributes.get("dilations", [1] * spatial)
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        _padding(node, x.shape[2:], kernel.shape[2:], strides, dilations),
        rhs_dilation=dilations,
        feature_group_count=node.attributes.get("group", 1),
    )
    return y if bias is None else y + per_channel(bias, x.ndim)


class _Windows(NamedTuple):
    """The windows of a pooling over the spatial axes; ``beyond`` is what ``ceil_mode`` adds to the last ones."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    padding: list[tuple[int, int]]
    beyond: list[int]
    outputs: list[int]


def _windows(node: Node, sizes: Sequence[int]) -> _Windows:
    kernel = node.attributes["kernel_shape"]
    strides = node.attributes.get("strides", [1] * len(sizes))
    dilations = node.attributes.get("dilations", [1] * len(sizes))
    padding = _padding(node, sizes, kernel, strides, dilations)
    beyond, outputs = [], []
    for size, (low, high), width, stride, dilation in zip(sizes, padding, kernel, strides, dilations, strict=True):
        reach = (width - 1) * dilation + 1
        free = size + low + high - reach
        steps = free // stride
        if node.attributes.get("ceil_mode", 0):
            steps = -(-free // stride)
            steps -= steps * stride >= size + low  # a window has to begin before what is padded at the end
        outputs.append(steps + 1)
        beyond.append(max(steps * stride - free, 0))
    return _Windows(kernel, strides, dilations, padding, beyond, outputs)


def _reduce_windows(x: Value, windows: _Windows, initial: float, function: Callable[..., Value]) -> Value:
    """Combines the values of each window by ``lax.max`` or ``lax.add``; what is padded is ``initial``."""
    padding = [(0, 0)] * 2
    padding += [(low, high + more) for (low, high), more in zip(windows.padding, windows.beyond, strict=True)]
    if all(dilation == 1 for dilation in windows.dilations):
        size, strides = (1, 1, *windows.kernel), (1, 1, *windows.strides)
        return lax.reduce_window(x, np.asarray(initial, x.dtype), function, size, strides, padding)
    # JAX has no gradient of dilated windows: their values are strided slices.
    x = jnp.pad(x, padding, constant_values=initial)
    parts = []
    for place in itertools.product(*map(range, windows.kernel)):
        starts = [at * dilation for at, dilation in zip(place, windows.dilations, strict=True)]
        ends = [
            at + (count - 1) * stride + 1
            for at, count, stride in zip(starts, windows.outputs, windows.strides, strict=True)
        ]
        parts.append(lax.slice(x, (0, 0, *starts), (*x.shape[:2], *ends), (1, 1, *windows.strides)))
    return functools.reduce(function, parts)


def _max_pool(node: Node, x: Value) -> Value:
    return _reduce_windows(x, _windows(node, x.shape[2:]), -np.inf, lax.max)


def _average_pool(node: Node, x: Value) -> Value:
    windows = _windows(node, x.shape[2:])
    # How many values each window has: a product over the axes.
    counts = np.ones((1, 1), np.int64)
    for axis, size in enumerate(x.shape[2:]):
        low, high = windows.padding[axis] if node.attributes.get("count_include_pad", 0) else (0, 0)
        first = np.arange(windows.outputs[axis]) * windows.strides[axis] - windows.padding[axis][0]
        places = first[:, None] + np.arange(windows.kernel[axis]) * windows.dilations[axis]
        counts = counts[..., None] * np.sum((places >= -low) & (places < size + high), axis=1)
    return _reduce_windows(x, windows, 0.0, lax.add) / counts.astype(x.dtype)


def _spatial_axes(x: Value) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _batch_norm(node: Node, x: Value, scale: Value, bias: Value, mean: Value, variance: Value) -> Value:
    if node.attributes.get("training_mode", 0) or node.attributes.get("spatial", 1) != 1:
        raise InputError("training_mode must be 0 and spatial 1; export the network in inference mode")
    factor = scale * lax.rsqrt(jnp.asarray(variance) + node.attributes.get("epsilon", 1e-5))
    mean, factor, bias = (per_channel(each, x.ndim) for each in (mean, factor, bias))
    return (x - mean) * factor + bias


def _normalised(x: Value, axes: tuple[int, ...], epsilon: float) -> Value:
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(centred**2, axes, keepdims=True) + epsilon)


def _instance_norm(node: Node, x: Value, scale: Value, bias: Value) -> Value:
    y = _normalised(x, _spatial_axes(x), node.attributes.get("epsilon", 1e-5))
    return y * per_channel(scale, x.ndim) + per_channel(bias, x.ndim)


def _layer_norm(node: Node, x: Value, scale: Value, bias: Value = None) -> Value:
    axes = tuple(range(node.attributes.get("axis", -1) % x.ndim, x.ndim))
    y = operator.mul(*aligned(_normalised(x, axes, node.attributes.get("epsilon", 1e-5)), scale))
    return y if bias is None else operator.add(*aligned(y, bias))


def _local_response_norm(node: Node, x: Value) -> Value:
    size = node.attributes["size"]
    before = (size - 1) // 2
    padding = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
    window = (1, size, *[1] * (x.ndim - 2))
    squares = lax.reduce_window(x**2, np.asarray(0, x.dtype), lax.add, window, [1] * x.ndim, padding)
    scale = node.attributes.get("bias", 1.0) + node.attributes.get("alpha", 1e-4) / size * squares
    return x / scale ** node.attributes.get("beta", 0.75)


def _dropout(node: Node, x: Value, ratio: Value = None, training_mode: Value = None) -> Value:
    if training_mode is not None and known(training_mode, "training_mode").any():
        raise InputError("training_mode must be false; export the network in inference mode")
    return x


def _gemm(node: Node, a: Value, b: Value, c: Value = None) -> Value:
    a = a.T if node.attributes.get("transA", 0) else a
    b = b.T if node.attributes.get("transB", 0) else b
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    y = jnp.matmul(a, b)
    y = y if alpha == 1 else alpha * y
    return y if c is None else operator.add(*aligned(y, c if beta == 1 else beta * c))


def _matmul(node: Node, a: Value, b: Value) -> Value:
    return jnp.matmul(*(aligned(a, b) if min(a.ndim, b.ndim) >= 2 else (a, b)))


def _einsum(node: Node, *values: Value) -> Value:
    return jnp.einsum(node.attributes["equation"], *values)


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda node, x: jnp.mean(x, _spatial_axes(x), keepdims=True),
    "GlobalMaxPool": lambda node, x: jnp.max(x, _spatial_axes(x), keepdims=True),
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
}
