"""Convolution that is quick on a CPU, its gradients too, also inside compiled loops, where attacks and training live.

XLA's CPU backend has one quick convolution: images NHWC, kernel HWIO. It brings every other to that form, but not in
the body of a loop, and gradients come in others: there, that of the images takes five times as long and more, that of
the kernel a hundred times. So on that backend every convolution is brought to that form here, and where a matrix
product is quicker still, it stands for the convolution.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from robustjax.layers import quick, winograd
from robustjax.types import Array

Pair = tuple[int, int]
Padding = Sequence[Pair]
FORMS = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO, NHWC


def conv2d(images: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of images [B, H, W, I] with a kernel [h, w, I, O], as in every deep-learning library.

    Differentiable in both modes, any number of times.

    Args:
        images: [B, H, W, I].
        kernel: [h, w, I, O], of the images' dtype.
        stride: of both axes.
        padding: zeros on every side.

    Returns:
        [B, (H + 2 padding - h) // stride + 1, (W + 2 padding - w) // stride + 1, O].

    Example:
        >>> import jax.numpy as jnp
        >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), padding=1)[0, :2, :2, 0]
        Array([[4., 6.],
               [6., 9.]], dtype=float32)
    """
    window = {"window_strides": (stride, stride), "padding": [(padding, padding)] * 2}
    return quick.call(partial(jax.lax.conv_general_dilated, dimension_numbers=FORMS, **window), images, kernel)


def _on_cpu(images: Array, kernel: Array, *, dimension_numbers: jax.lax.ConvDimensionNumbers, **window: Any) -> Array:
    """Any convolution, with the parameters of JAX's primitive: in XLA's quick layout, by the quickest form."""
    images_axes, kernel_axes, outputs_axes = dimension_numbers
    images = images.transpose(images_axes[0], *images_axes[2:], images_axes[1])
    kernel = kernel.transpose(*kernel_axes[2:], kernel_axes[1], kernel_axes[0])
    outputs = _in_layout(images, kernel, **window)
    return outputs.transpose(np.argsort([outputs_axes[0], *outputs_axes[2:], outputs_axes[1]]))


def _in_layout(
    images: Array,
    kernel: Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[Pair],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
    **rest: Any,
) -> Array:
    """The convolution of images [B, ..., I] and a kernel [..., I / groups, O]."""
    if any(min(pads) < 0 for pads in padding):  # where XLA's own reads beyond its memory
        edges = [(low, high, gap - 1) for (low, high), gap in zip(padding, lhs_dilation, strict=True)]
        images = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        padding, lhs_dilation = [(0, 0)] * len(edges), [1] * len(edges)
    strides: Any = tuple(window_strides)
    gaps: Any = tuple(lhs_dilation)
    plain = images.ndim == 4 and feature_group_count == batch_group_count == math.prod(rhs_dilation) == 1
    if plain and images.size and preferred_element_type in (None, images.dtype):
        if strides == gaps == (1, 1) and winograd.is_quicker(images, kernel, padding):
            return winograd.convolve(images, kernel, tuple(padding))
        if gaps == (1, 1) and _is_quicker_multiplied(images.shape, kernel.shape, strides):
            return _multiply(images, kernel, strides, padding)
        if strides == (1, 1) and (gaps != (1, 1) or kernel.shape[3] <= FEW_CHANNELS):
            return _spread(images, kernel, gaps, padding)
    last = images.ndim - 1
    form = (0, last, *range(1, last)), (last, last - 1, *range(last - 1)), (0, last, *range(1, last))
    return jax.lax.conv_general_dilated(
        images, kernel, strides, padding, gaps, rhs_dilation, jax.lax.ConvDimensionNumbers(*form),
        feature_group_count, batch_group_count, precision, preferred_element_type,
    )  # fmt: skip


# So few are little to store once for each entry of the kernel.
FEW_CHANNELS = 8


def _is_quicker_multiplied(images: tuple[int, ...], kernel: tuple[int, ...], strides: Pair) -> bool:
    """Whether ``_multiply`` beats XLA's convolution: unless it has to store the images many times over.

    With 1 x 1 kernels it does not, and a few channels are little to store. On maps as small as the kernel XLA's own may
    be a hundred times slower; with strides it is twice as quick on maps of more than 64 positions.
    """
    _, height, width, channels = images
    most = 16 if strides == (1, 1) else 64
    return kernel[:2] == (1, 1) or channels <= FEW_CHANNELS or height * width <= most


def _multiply(images: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    """The convolution as one matrix product: what the kernel sees at each position, with the kernel."""
    batch, *sizes, channels = images.shape
    height, width, _, outputs = kernel.shape
    rows, columns = (
        (size + sum(pads) - length) // stride + 1
        for size, pads, length, stride in zip(sizes, padding, (height, width), strides, strict=True)
    )
    # In blocks of strides' pixels, what a position sees begins with whole blocks: no slice below has strides.
    down, right = rows - 1 + -(-height // strides[0]), columns - 1 + -(-width // strides[1])
    edges = [
        (low, blocks * stride - size - low, 0)
        for blocks, stride, size, (low, _) in zip((down, right), strides, sizes, padding, strict=True)
    ]
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    blocks = padded.reshape(batch, down, strides[0], right, strides[1] * channels)
    # First down, then across: a few large slices instead of one for each entry of the kernel.
    strips = jnp.concatenate([blocks[:, i : i + rows] for i in range(down - rows + 1)], axis=2)[:, :, :height]
    seen = [strips[..., j : j + columns, :].swapaxes(2, 3) for j in range(right - columns + 1)]
    seen = jnp.concatenate(seen, axis=-1)[..., : width * channels].reshape(batch, rows, columns, -1)
    return seen @ kernel.reshape(-1, outputs)


def _spread(images: Array, kernel: Array, gaps: Pair, padding: Padding) -> Array:
    """The convolution of images with zeros between their pixels, such as the gradient of one with strides.

    Each pixel is multiplied with the whole kernel, and what belongs to the same position is summed.
    """
    batch, *sizes, _ = images.shape
    *lengths, inputs, outputs = kernel.shape
    turned = kernel[::-1, ::-1].transpose(2, 0, 1, 3).reshape(inputs, -1)
    # In blocks of gaps' positions, what a pixel is spread to begins with whole blocks: no sum below has strides.
    down, right = (-(-length // gap) for length, gap in zip(lengths, gaps, strict=True))
    filled = [(0, blocks * gap - length) for blocks, gap, length in zip((down, right), gaps, lengths, strict=True)]
    spread = (images @ turned).reshape(batch, *sizes, *lengths, outputs)
    spread = jnp.pad(spread, [(0, 0)] * 3 + filled + [(0, 0)])
    spread = spread.reshape(batch, *sizes, down, gaps[0], right, gaps[1], outputs)
    rows = _sum(
        jnp.pad(spread[:, :, :, i], [(0, 0), (i, down - 1 - i)] + [(0, 0)] * 5) for i in range(down)
    )  # [batch, rows of blocks, columns, gap, right, gap, outputs]
    both = _sum(
        jnp.pad(rows[:, :, :, :, i], [(0, 0), (0, 0), (i, right - 1 - i)] + [(0, 0)] * 3) for i in range(right)
    )  # [batch, rows of blocks, columns of blocks, gap, gap, outputs]
    whole = both.transpose(0, 1, 3, 2, 4, 5)
    whole = whole.reshape(batch, both.shape[1] * gaps[0], both.shape[2] * gaps[1], outputs)
    edges = []
    for size, length, gap, filled, (low, high) in zip(sizes, lengths, gaps, whole.shape[1:3], padding, strict=True):
        start, total = low - (length - 1), gap * (size - 1) + 1 + low + high - length + 1
        edges.append((start, total - filled - start, 0))
    return jax.lax.pad(whole, jnp.zeros((), whole.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _sum(parts: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, parts)


quick.register(primitives.conv_general_dilated_p, _on_cpu)
