"""Random crops, flips, cut-outs and CutMix of a batch: pure functions that run inside a jitted training step.

Every function takes ``(key, images)``, images [B, H, W, C] of any real dtype, and returns images of the same shape and
dtype; :func:`cutmix` also returns the shares by which labels count. Every example has its own draw. Bind the options
with ``functools.partial``, and give each function its own key.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.types import Array, InputError, Key


def _check_size(name: str, value: int) -> None:
    if value < 0:
        raise InputError(f"{name} must be at least 0 pixels, got {value}")


def random_crop(key: Key, images: Array, *, padding: int) -> Array:
    """Shifts every image by whole pixels, uniform in [-padding, padding]^2; what moves in from outside is 0.

    That is: a margin of ``padding`` zeros on all sides, then a random crop of the original size.

    Args:
        key: a typed key.
        images: [B, H, W, C].
        padding: the largest shift in pixels; 0 returns the images as they are. 4 is usual for CIFAR (He et al. 2016,
            arXiv:1512.03385).

    Returns:
        The shifted images, [B, H, W, C].

    Raises:
        InputError: ``padding`` is negative.

    >>> random_crop(jax.random.key(0), jnp.ones((4, 8, 8, 3)), padding=2).shape
    (4, 8, 8, 3)
    """
    _check_size("padding", padding)
    batch, *shape = images.shape
    corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1, jnp.int32)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # On the CPU twice as fast as a gather by pixel and five times as fast as a product with one-hot matrices.
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], jnp.int32(0)), shape))(
        padded, corners
    )


def random_flip(key: Key, images: Array) -> Array:
    """Mirrors every image left to right with probability 1/2.

    Args:
        key: a typed key.
        images: [B, H, W, C].

    Returns:
        The images, [B, H, W, C].

    >>> random_flip(jax.random.key(0), jnp.ones((4, 8, 8, 3))).shape
    (4, 8, 8, 3)
    """
    flip = jax.random.bernoulli(key, jnp.float32(0.5), shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def cutout(key: Key, images: Array, *, size: int) -> Array:
    """Sets one square of size x size pixels of every image to 0 (DeVries and Taylor 2017, arXiv:1708.04552).

    The centre is uniform over the pixels, so the square may reach over the border and then covers less. For a centre
    (y, x) it spans the rows y - size // 2 to y - size // 2 + size - 1, and the columns likewise.

    Args:
        key: a typed key.
        images: [B, H, W, C].
        size: the side of the square in pixels; 0 returns the images as they are.

    Returns:
        The images, [B, H, W, C].

    Raises:
        InputError: ``size`` is negative.

    >>> int((cutout(jax.random.key(0), jnp.ones((1, 9, 9, 1)), size=1) == 0).sum())
    1
    """
    _check_size("size", size)
    _, height, width, _ = images.shape
    key_row, key_column = jax.random.split(key)
    sizes = jnp.full((len(images), 1), size, jnp.int32)
    square = _covered(key_row, sizes, height)[:, :, None, None] & _covered(key_column, sizes, width)[:, None, :, None]
    return jnp.where(square, jnp.zeros_like(images), images)


def cutmix(key: Key, images: Array, *, share: float) -> tuple[Array, Array]:
    r"""Puts a box of the image before it in the batch into every image (Yun et al. 2019, arXiv:1905.04899).

    The box has the sides :math:`H \sqrt{1 - \lambda}` and :math:`W \sqrt{1 - \lambda}`, with :math:`\lambda` uniform in
    [0, 1], and a centre uniform over the pixels; it is cut at the border. With adversarial training and averaged
    weights it helps without more data (Rebuffi et al. 2021, arXiv:2103.01946).

    Args:
        key: a typed key.
        images: [B, H, W, C]; a batch whose order is random, as the partner of an image is the one before it.
        share: of the images that are mixed, in [0, 1].

    Returns:
        The images, [B, H, W, C], and float32 [B], the share of each image's pixels that are its own: a label of the
        image counts by it, the label of the image before by the rest.

    Raises:
        InputError: ``share`` is not in [0, 1].

    >>> mixed, own = cutmix(jax.random.key(0), jnp.eye(4).reshape(4, 2, 2, 1), share=1.0)
    >>> mixed.shape, own.shape
    ((4, 2, 2, 1), (4,))
    """
    if not 0 <= share <= 1:
        raise InputError(f"share must be in [0, 1], got {share}")
    batch, height, width, _ = images.shape
    key_size, key_row, key_column, key_which = jax.random.split(key, 4)
    side = jnp.sqrt(1.0 - jax.random.uniform(key_size, (batch, 1), jnp.float32))
    rows, columns = (jnp.floor(side * length).astype(jnp.int32) for length in (height, width))
    box = _covered(key_row, rows, height)[:, :, None] & _covered(key_column, columns, width)[:, None, :]
    box &= jax.random.bernoulli(key_which, jnp.float32(share), (batch, 1, 1))
    own = 1.0 - jnp.mean(box, axis=(1, 2), dtype=jnp.float32)
    return jnp.where(box[..., None], jnp.roll(images, 1, axis=0), images), own


def _covered(key: Key, sizes: Array, length: int) -> Array:
    """Which of ``length`` pixels [B, length] an interval of each size [B, 1] covers, around a uniform centre."""
    first = jax.random.randint(key, sizes.shape, 0, length, jnp.int32) - sizes // 2
    offset = jnp.arange(length, dtype=jnp.int32)[None, :] - first
    return (offset >= 0) & (offset < sizes)
