"""From a data set in memory to the batches of a step."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from robustjax.types import AnyArray, Array, Batch, InputError


def batches(images: np.ndarray, labels: np.ndarray, batch_size: int) -> Iterator[Batch[np.ndarray]]:
    """Examples in order, cut into batches of one size, so that one compilation serves every batch.

    The last batch is filled up with black images of class 0 whose mask is False: averages over a batch weigh by the
    mask.

    Args:
        images: [N, H, W, C], of any dtype.
        labels: integers [N].
        batch_size: at least 1.

    Yields:
        Batches of NumPy arrays: images, labels and a bool mask.

    Raises:
        InputError: ``batch_size`` is below 1, or there are not as many labels as images.

    Example:
        >>> from robustjax.data import load
        >>> test = load("digits", "test")
        >>> [int(batch.mask.sum()) for batch in batches(test.images, test.labels, 200)]
        [200, 160]
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if len(images) != len(labels):
        raise InputError(f"labels must be one for each of {len(images)} images, got {len(labels)}; give as many")
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        count = len(labels[part])
        padding = batch_size - count
        yield Batch(
            images=np.pad(images[part], ((0, padding), (0, 0), (0, 0), (0, 0))),
            labels=np.pad(labels[part], (0, padding)),
            mask=np.arange(batch_size) < count,
        )


def to_float(images: AnyArray) -> Array:
    """uint8 images as the floats in [0, 1] that networks and attacks take, exactly x / 255.

    Args:
        images: uint8 in 0..255, of any shape.

    Returns:
        float32 in [0, 1], of the same shape.

    Raises:
        InputError: they are of another dtype. Floats in [0, 1] are what networks and attacks take already.

    Example:
        >>> to_float(np.array([0, 255], np.uint8))
        Array([0., 1.], dtype=float32)
    """
    if getattr(images, "dtype", None) != np.uint8:
        got = getattr(images, "dtype", type(images).__name__)
        raise InputError(f"images must be uint8 in 0..255, got {got}; floats in [0, 1] are taken as they are")
    return jnp.asarray(images, jnp.float32) / 255
