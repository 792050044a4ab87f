"""Convolution whose input gradient is quick on a CPU, where attacks spend their time.

Inside a compiled loop XLA's CPU backend leaves the gradient with respect to the images as a convolution with swapped
kernel dimensions and misses its fast kernel: an attack loop then runs at less than half its speed. On that backend the
gradient is given here as the ordinary convolution that it is; other backends keep XLA's own.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from robustjax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv2d(images: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of images [B, H, W, I] with a kernel [h, w, I, O], as in every deep-learning library.

    On a CPU it is differentiable in reverse mode only, any number of times; elsewhere in forward mode too.

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
    if jax.default_backend() != "cpu":
        return _xla(images, kernel, stride, padding)
    height, width = kernel.shape[:2]
    if height == width == 1 and padding == 0:
        return images[:, ::stride, ::stride] @ kernel[0, 0]
    sizes = [size + 2 * padding for size in images.shape[1:3]]
    if stride > 1 and height == width == 2 * stride and not any(size % stride for size in sizes):
        return _by_blocks(images, kernel, stride, padding)
    return _explicit(images, kernel, stride, padding)


def _xla(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_LAYOUT
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _explicit(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    return _xla(images, kernel, stride, padding)


def _explicit_forward(images: Array, kernel: Array, stride: int, padding: int):
    return _xla(images, kernel, stride, padding), (images, kernel)


def _explicit_backward(stride: int, padding: int, residuals: tuple[Array, Array], cotangent: Array):
    images, kernel = residuals
    to_images = _input_gradient(cotangent, kernel, images.shape[1:3], stride, padding)
    (to_kernel,) = jax.linear_transpose(lambda kernel: _xla(images, kernel, stride, padding), kernel)(cotangent)
    return to_images, to_kernel


_explicit.defvjp(_explicit_forward, _explicit_backward)


def _input_gradient(cotangent: Array, kernel: Array, size: tuple[int, int], stride: int, padding: int) -> Array:
    """The cotangent, its entries `stride` apart, convolved with the kernel turned around, in and out swapped."""
    pads = []
    for length, outputs, extent in zip(size, cotangent.shape[1:3], kernel.shape[:2], strict=True):
        before = extent - 1 - padding
        pads.append((before, length + extent - 1 - before - ((outputs - 1) * stride + 1)))
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    return jax.lax.conv_general_dilated(
        cotangent, turned, (1, 1), pads, lhs_dilation=(stride, stride), dimension_numbers=_LAYOUT
    )


def _by_blocks(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """A kernel of twice the stride sees two by two whole blocks of pixels: one matrix product, also for gradients."""
    images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    batch, height, width, channels = images.shape
    rows, columns = height // stride, width // stride
    blocks = images.reshape(batch, rows, stride, columns, stride, channels).swapaxes(2, 3)
    blocks = blocks.reshape(batch, rows, columns, -1)
    corners = [(i, j) for i in (0, 1) for j in (0, 1)]
    seen = jnp.concatenate([blocks[:, i : i + rows - 1, j : j + columns - 1] for i, j in corners], axis=-1)
    parts = kernel.reshape(2, stride, 2, stride, channels, -1).swapaxes(1, 2)
    return seen @ parts.reshape(seen.shape[-1], -1)
