"""Convolution with 3 x 3 kernels by fewer multiplications, in matrix products (Winograd; Lavin and Gray 2016).

F(4 x 4, 3 x 3): a tile of 6 x 6 pixels d and the kernel g give 4 x 4 outputs

    y = A^T [(G g G^T) * (D^T d D)] A,

where * is the elementwise product: 36 multiplications for each pair of channels instead of 144. Summed over channels
these are 36 matrix products, and the transforms around them are matrix products as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.types import Array

Padding = Sequence[tuple[int, int]]
TILE = 4
# A polynomial's values at these and at infinity stand for its coefficients. Of all such points tried, rounding in
# float32 does least harm at these: 6e-7 of the outputs' spread, where 0, +-1, +-2 give 1.3e-6 and direct sums 2e-7.
POINTS = (0.0, 3 / 2, -3 / 2, 2 / 3, -2 / 3)
# Values of a transformed chunk of the images: what stays in the caches between one product and the next.
CHUNK = 36 * 2**15


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cook and Toom's: A^T (x) A^T [16, 36], G (x) G [36, 9] and D^T (x) D^T [36, 36]."""
    points = np.array(POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    outputs = np.append(points ** np.arange(TILE)[:, None], np.eye(TILE)[:, -1:], axis=1)
    at_points = [[1, p, p * p] / np.prod(p - rest) for p, rest in zip(points, others, strict=True)]
    kernel = np.append(at_points, [[0, 0, 1]], axis=0)
    images = np.array([*(np.append(np.poly(rest)[::-1], 0) for rest in others), np.poly(points)[::-1]])
    # A power of two per point moves from one factor to the other, so that both are of the same size.
    balance = np.exp2(np.round(np.log2(np.abs(kernel).sum(1) / np.abs(images).sum(1)) / 2))[:, None]
    pairs = (outputs, kernel / balance, images * balance)
    a, b, c = (np.kron(matrix, matrix).astype(np.float32) for matrix in pairs)
    return a, b, c


OUTPUTS, KERNEL, IMAGES = _transforms()


@partial(jax.jit, static_argnums=2)
def convolve(images: Array, kernel: Array, padding: Padding) -> Array:
    """Cross-correlation of float32 images [B, H, W, I] with a kernel [3, 3, I, O], stride 1.

    Args:
        images: [B, H, W, I].
        kernel: [3, 3, I, O].
        padding: zeros above and below, and to the left and right; less than none takes pixels away.

    Example:
        >>> import jax.numpy as jnp
        >>> convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), ((1, 1), (1, 1)))[0, :2, :2, 0].round(4)
        Array([[4., 6.],
               [6., 9.]], dtype=float32)
    """
    batch, *sizes, inputs = images.shape
    outputs = kernel.shape[-1]
    transformed = jnp.matmul(KERNEL, kernel.reshape(9, -1)).reshape(36, inputs, outputs)
    height, width = _output_sizes(images.shape, padding)
    down, right = -(-height // TILE), -(-width // TILE)
    edges = [
        (low, TILE * tiles + 2 - size - low, 0)
        for tiles, size, (low, _) in zip((down, right), sizes, padding, strict=True)
    ]

    def of_chunk(images: Array) -> Array:
        padded = jax.lax.pad(images, jnp.zeros((), images.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        rows = jnp.stack([padded[:, i : i + TILE * (down - 1) + 1 : TILE] for i in range(6)])
        tiles = jnp.stack([rows[:, :, :, j : j + TILE * (right - 1) + 1 : TILE] for j in range(6)], axis=1)
        values = jnp.matmul(IMAGES, tiles.reshape(36, -1)).reshape(36, -1, inputs)
        products = jnp.matmul(values, transformed)
        blocks = jnp.matmul(OUTPUTS, products.reshape(36, -1)).reshape(TILE, TILE, -1, down, right, outputs)
        whole = blocks.transpose(2, 3, 0, 4, 1, 5).reshape(-1, TILE * down, TILE * right, outputs)
        return whole[:, :height, :width]

    count = -(-batch * down * right * 36 * max(inputs, outputs) // CHUNK)
    if count == 1:
        return of_chunk(images)
    size = -(-batch // count)
    count = -(-batch // size)
    filled = jnp.pad(images, ((0, count * size - batch), (0, 0), (0, 0), (0, 0)))
    parts = jax.lax.map(of_chunk, filled.reshape(count, size, *sizes, inputs))
    return parts.reshape(-1, height, width, outputs)[:batch]


def is_quicker(images: Array, kernel: Array, padding: Padding) -> bool:
    """Whether Winograd's algorithm is faster at stride 1: with many channels and tiles, few of them beyond the edge."""
    height, width = _output_sizes(images.shape, padding)
    tiles = -(-height // TILE) * -(-width // TILE)
    fits = kernel.shape[:2] == (3, 3) and images.dtype == kernel.dtype == jnp.float32
    filled = 2 * height * width >= tiles * TILE * TILE
    return fits and filled and min(kernel.shape[2:]) >= 64 and images.shape[0] * tiles >= 32


def _output_sizes(images: tuple[int, ...], padding: Padding) -> tuple[int, int]:
    """Height and width of what comes out."""
    height, width = (size + sum(pads) - 2 for size, pads in zip(images[1:3], padding, strict=True))
    return height, width
