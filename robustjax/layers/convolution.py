"""Convolution that is fast on a CPU, with its gradients, also inside compiled loops such as those of attacks.

XLA's CPU backend has one fast convolution: images NHWC, kernel HWIO. It converts others to that form, but not in the
body of a loop. There the gradient of the images takes five times as long or more, and that of the kernel a hundred
times. So for that backend every convolution is converted to that form here, or replaced by a matrix product where that
is faster still.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from robustjax.layers import quick, winograd
from robustjax.types import Array

Pair = tuple[int, int]
Padding = Sequence[Pair]


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
    layouts = ("NHWC", "HWIO", "NHWC")
    return quick.call(partial(jax.lax.conv_general_dilated, dimension_numbers=layouts, **window), images, kernel)


class _Window(NamedTuple):
    """How a kernel moves over images; see ``jax.lax.conv_general_dilated``.

    Attributes:
        strides: of the kernel.
        padding: (low, high) of each axis, at least 0.
        gaps: from pixel to pixel of the images, which lie apart in the gradient of a convolution with strides.
        kernel_gaps: from entry to entry of the kernel.
        groups: of channels, each with kernels of its own.
    """

    strides: Any
    padding: tuple[Pair, ...]
    gaps: Any
    kernel_gaps: Any
    groups: int


def _on_cpu(
    images: Array,
    kernel: Array,
    *,
    dimension_numbers: jax.lax.ConvDimensionNumbers,
    window_strides: Sequence[int],
    padding: Sequence[Pair],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    batch_group_count: int,
    preferred_element_type: Any,
    **rest: Any,
) -> Array:
    """Any convolution, with the parameters of JAX's primitive: in XLA's quick layout, by the quickest form."""
    images_axes, kernel_axes, outputs_axes = dimension_numbers
    images = images.transpose(images_axes[0], *images_axes[2:], images_axes[1])
    kernel = kernel.transpose(*kernel_axes[2:], kernel_axes[1], kernel_axes[0])
    gaps = tuple(lhs_dilation)
    if any(min(pads) < 0 for pads in padding):  # XLA's own would read beyond its memory
        images = _padded(images, padding, gaps)
        padding, gaps = [(0, 0)] * len(gaps), (1,) * len(gaps)
    window = _Window(tuple(window_strides), tuple(padding), gaps, tuple(rhs_dilation), feature_group_count)
    if images.ndim == 4 and images.size and batch_group_count == 1 and preferred_element_type in (None, images.dtype):
        outputs = _quickest(images, kernel, window)
    else:
        options = {"batch_group_count": batch_group_count, "preferred_element_type": preferred_element_type}
        outputs = _by_xla(images, kernel, window, **options)
    return outputs.transpose(np.argsort([outputs_axes[0], *outputs_axes[2:], outputs_axes[1]]))


def _by_xla(images: Array, kernel: Array, window: _Window, **options: Any) -> Array:
    """XLA's convolution of images [B, ..., I] and a kernel [..., I / groups, O]."""
    last = images.ndim - 1
    form, kernel_form = (0, last, *range(1, last)), (last, last - 1, *range(last - 1))
    strides, padding, gaps, kernel_gaps, groups = window
    return jax.lax.conv_general_dilated(
        images, kernel, strides, padding, gaps, kernel_gaps, jax.lax.ConvDimensionNumbers(form, kernel_form, form),
        feature_group_count=groups, **options,
    )  # fmt: skip


def _quickest(images: Array, kernel: Array, window: _Window) -> Array:
    """The convolution of images [B, H, W, I] and a kernel [h, w, I / groups, O]."""
    strides, padding, gaps, kernel_gaps, groups = window
    if kernel.shape[2] == 1 < groups:
        return _by_channel(images, kernel, window)
    if 1 < groups <= FEW_GROUPS:
        each = window._replace(groups=1)
        pairs = zip(jnp.split(images, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
        return jnp.concatenate([_quickest(*pair, each) for pair in pairs], axis=-1)
    if groups > 1 or kernel_gaps != (1, 1):
        return _by_xla(images, kernel, window)
    if gaps == strides == (1, 1) and winograd.is_quicker(images, kernel, padding):
        return winograd.convolve(images, kernel, padding)
    if gaps == (1, 1) and _is_quicker_multiplied(images.shape, kernel.shape, strides):
        return _multiply(images, kernel, strides, padding)
    if strides == (1, 1) and (gaps != (1, 1) or kernel.shape[3] <= FEW_CHANNELS):
        return _spread(images, kernel, gaps, padding)
    return _by_xla(images, kernel, window)


# XLA's takes so many groups one after the other as well.
FEW_GROUPS = 8
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
        (low, blocks * stride - size - low)
        for blocks, stride, size, (low, _) in zip((down, right), strides, sizes, padding, strict=True)
    ]
    blocks = _padded(images, edges, (1, 1)).reshape(batch, down, strides[0], right, strides[1] * channels)
    # First down, then across: a few large slices instead of one for each entry of the kernel.
    strips = jnp.concatenate([blocks[:, i : i + rows] for i in range(down - rows + 1)], axis=2)[:, :, :height]
    seen = [strips[..., j : j + columns, :].swapaxes(2, 3) for j in range(right - columns + 1)]
    seen = jnp.concatenate(seen, axis=-1)[..., : width * channels].reshape(batch, rows, columns, -1)
    return seen @ kernel.reshape(-1, outputs)


def _spread(images: Array, kernel: Array, gaps: Pair, padding: Padding) -> Array:
    """The convolution of images with zeros between their pixels, such as the gradient of one with strides.

    As the transpose of a convolution with strides: each pixel is multiplied with the whole kernel, and what belongs to
    the same position is summed.
    """
    batch, *sizes, _ = images.shape
    *lengths, _, outputs = kernel.shape
    shape, edges = [], []
    for size, length, gap, (low, high) in zip(sizes, lengths, gaps, padding, strict=True):
        spread = gap * (size - 1) + 1
        shape.append(spread + low + high - length + 1)
        edges.append((length - 1 - low, spread - shape[-1] + low))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    whole = jax.typeof(images).update(shape=(batch, *shape, outputs))
    return jax.linear_transpose(lambda points: _multiply(points, turned, gaps, edges), whole)(images)[0]


def _by_channel(images: Array, kernel: Array, window: _Window) -> Array:
    """The convolution of each channel with kernels of its own: whole slices times one number for each channel."""
    batch, _, _, channels = images.shape
    height, width, _, outputs = kernel.shape
    padded = _padded(images, window.padding, window.gaps)
    sizes = [
        (size - gap * (length - 1) - 1) // stride + 1
        for size, gap, length, stride in zip(
            padded.shape[1:3], window.kernel_gaps, (height, width), window.strides, strict=True
        )
    ]
    total = jnp.zeros((), images.dtype)
    for i, j in itertools.product(range(height), range(width)):
        first = (i * window.kernel_gaps[0], j * window.kernel_gaps[1])
        ends = [at + step * (size - 1) + 1 for at, step, size in zip(first, window.strides, sizes, strict=True)]
        seen = jax.lax.slice(padded, (0, *first, 0), (batch, *ends, channels), (1, *window.strides, 1))
        total = total + seen[..., None] * kernel[i, j, 0].reshape(1, 1, 1, channels, -1)
    return total.reshape(batch, *sizes, outputs)


def _padded(images: Array, padding: Sequence[Pair], gaps: Sequence[int]) -> Array:
    """Zeros around images and between their pixels."""
    edges = [(low, high, gap - 1) for (low, high), gap in zip(padding, gaps, strict=True)]
    return jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


quick.register(primitives.conv_general_dilated_p, _on_cpu)
