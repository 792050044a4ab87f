"""Convolution whose gradients are quick on a CPU, also inside compiled loops, where attacks and training live.

XLA's CPU backend has one quick convolution: images NHWC, kernel HWIO. It brings every other to that form, but not in
the body of a loop, and gradients come in others: there, that of the images takes five times as long and more, that of
the kernel a hundred times. So on that backend derivatives are spelled such that what JAX transposes them into is of the
quick form, and where a matrix product is quicker still, it stands for the convolution. Other backends keep XLA's own.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from robustjax.layers import winograd
from robustjax.types import Array


def conv2d(images: Array, kernel: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """Cross-correlation of images [B, H, W, I] with a kernel [h, w, I, O], as in every deep-learning library.

    Differentiable in both modes, any number of times; it is the first reverse derivative that is made quick.

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
    if jax.default_backend() == "cpu":
        return _quick(images, kernel, stride, padding)
    return _convolve(images, kernel, stride, padding)


def _convolve(
    images: Array, kernel: Array, stride: int, padding: int, layouts: tuple[str, str, str] = ("NHWC", "HWIO", "NHWC")
) -> Array:
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=layouts
    )


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _quick(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    if _is_winograds(images, kernel, stride, padding):
        return winograd.convolve(images, kernel)
    convolve = _multiply if _is_quicker_multiplied(images.shape, kernel.shape, stride, most_strided=64) else _convolve
    return convolve(images, kernel, stride, padding)


@partial(_quick.defjvp, symbolic_zeros=True)
def _quick_jvp(stride: int, padding: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    """Transposing swaps in and out of the kernel to get at the images, and batch and channels of the images to get at
    the kernel. Here they are swapped in storage beforehand, so that transposing puts them in order.
    """
    images, kernel = primals
    to_images, to_kernel = tangents
    terms = []
    if not isinstance(to_images, SymbolicZero):
        if _is_winograds(images, kernel, stride, padding):
            # The transpose of the gradient, for transposing it gives the gradient back: a convolution like this one.
            turned = kernel[::-1, ::-1].swapaxes(2, 3)
            shape = jax.ShapeDtypeStruct((*images.shape[:3], kernel.shape[3]), images.dtype)
            pull = jax.linear_transpose(lambda slope: winograd.convolve(slope, turned), shape)
            terms.extend(pull(to_images))
        elif _is_quicker_multiplied(images.shape, kernel.shape, stride):
            terms.append(_multiply(to_images, kernel, stride, padding))
        else:
            swapped = kernel.swapaxes(2, 3)
            terms.append(_convolve(to_images, swapped, stride, padding, ("NHWC", "HWOI", "NHWC")))
    if not isinstance(to_kernel, SymbolicZero):
        swapped, to_swapped = images.transpose(3, 1, 2, 0), to_kernel.transpose(2, 0, 1, 3)
        term = _convolve(swapped, to_swapped, stride, padding, ("CHWN", "IHWO", "HWNC"))
        terms.append(term.transpose(2, 0, 1, 3))
    return _quick(images, kernel, stride, padding), sum(terms[1:], terms[0])


def _is_winograds(images: Array, kernel: Array, stride: int, padding: int) -> bool:
    quicker = winograd.is_quicker(images.shape, kernel.shape, stride, padding)
    return quicker and images.dtype == kernel.dtype == jnp.float32


def _is_quicker_multiplied(
    images: tuple[int, ...], kernel: tuple[int, ...], stride: int, *, most_strided: float = math.inf
) -> bool:
    """Whether ``_multiply`` beats XLA's convolution: unless it has to store the images many times over.

    With strides and 1 x 1 kernels it does not, and a few channels are little to store. On maps as small as the kernel
    XLA's own may be a hundred times slower. With strides it is the gradient that XLA is slow at; in the forward pass
    its own is twice as quick on maps of more than ``most_strided`` positions.
    """
    _, height, width, channels = images
    positions = height * width
    return kernel[:2] == (1, 1) or channels <= 8 or positions <= (most_strided if stride > 1 else 16)


def _multiply(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """The convolution as one matrix product: what the kernel sees at each position, with the kernel."""
    batch, *sizes, channels = images.shape
    height, width, _, outputs = kernel.shape
    rows, columns = ((n + 2 * padding - k) // stride + 1 for n, k in zip(sizes, (height, width), strict=True))
    # In blocks of stride x stride pixels, what a position sees begins with whole blocks: no slice below has strides.
    down, right = rows - 1 + -(-height // stride), columns - 1 + -(-width // stride)
    pads = [(padding, blocks * stride - n - padding, 0) for blocks, n in zip((down, right), sizes, strict=True)]
    padded = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    blocks = padded.reshape(batch, down, stride, right, stride * channels)
    # First down, then across: a few large slices instead of one for each entry of the kernel.
    strips = jnp.concatenate([blocks[:, i : i + rows] for i in range(down - rows + 1)], axis=2)[:, :, :height]
    seen = [strips[..., j : j + columns, :].swapaxes(2, 3) for j in range(right - columns + 1)]
    seen = jnp.concatenate(seen, axis=-1)[..., : width * channels].reshape(batch, rows, columns, -1)
    return seen @ kernel.reshape(-1, outputs)
