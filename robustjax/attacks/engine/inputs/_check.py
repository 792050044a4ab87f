"""The check of all arguments of an attack or a driver."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from robustjax.attacks import geometry, losses
from robustjax.attacks.engine.inputs._arguments import (
    LIBRARY_LOSSES,
    as_images,
    as_labels,
    box,
    check_in_box,
    check_key,
    check_loss,
    check_outputs,
    check_radius,
    labels_in_range,
    static,
    unwrapped,
)
from robustjax.attacks.engine.inputs._convert import in_dtype_of
from robustjax.types import AnyArray, Array, InputError, Key, LogitsFn, LossFn


class Inputs(NamedTuple):
    """What an attack works on, checked.

    Attributes:
        logits_fn: takes float32 points and calls the network on them in the dtype of the images that were given.
        images: float32 [B, ...].
        labels: int32 [B]; with a loss of the user's own whatever it takes.
        bounds: a pair of floats, or of tuples of floats, one for each channel; hashable.
        loss: (outputs, labels) -> [B]; a loss of this library reads ``outputs.logits`` where there is such a field.
        given: the images as they were given.
    """

    logits_fn: LogitsFn
    images: Array
    labels: Array
    bounds: geometry.Bounds
    loss: LossFn
    given: Array

    @property
    def is_empty(self) -> bool:
        """Whether there is no image: attacks then return the images at once."""
        return self.images.shape[0] == 0

    def returned(self, points: Array) -> Array:
        """Float32 points in the dtype of the images that were given."""
        return in_dtype_of(self.given, points, self.bounds)


def check(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    norm: str,
    bounds: geometry.Bounds,
    radii: Mapping[str, Any] | None = None,
    loss: LossFn = losses.cross_entropy,
    eot_samples: int = 0,
    keys_per_example: bool = False,
    allow_infinite: bool = False,
    num_axes: int | None = None,
) -> Inputs:
    """Checks what an attack is given.

    Args:
        logits_fn, key, images, labels, norm, bounds, eot_samples: as the attack was given them.
        radii: name -> value of the options that are numbers >= 0, or one for each example, such as epsilon.
        loss: (outputs, labels) -> [B]. With one of the user's own, outputs may be any pytree and labels anything.
        keys_per_example: whether ``key`` may also be one key for each example [B].
        allow_infinite: whether ``radii`` may be infinite.
        num_axes: axes that images must have; by default any number from 2.

    Returns:
        An :class:`Inputs`.

    Raises:
        InputError: for whatever is wrong.
    """
    geometry.get(norm)
    static(0, eot_samples=eot_samples)
    check_loss(loss)
    given = jnp.asarray(as_images(images, num_axes))
    bounds = box(bounds, given.shape[-1], given.dtype)
    check_in_box(given, bounds)
    num_examples = given.shape[0]
    check_key(key, num_examples if keys_per_example else None)
    for name, value in (radii or {}).items():
        check_radius(name, value, num_examples, allow_infinite=allow_infinite)
    library_loss = unwrapped(loss) in LIBRARY_LOSSES
    labels = as_labels(labels, num_examples, loss=loss)
    if library_loss:
        loss = functools.partial(_of_logits, loss)
    if num_examples:
        check_outputs(logits_fn, key, given, labels, loss, eot_samples=eot_samples, library_loss=library_loss)

    def network(points: Array, *keys: Key) -> Any:
        return logits_fn(in_dtype_of(given, points, bounds), *keys)

    plain = given.dtype == jnp.float32
    return Inputs(logits_fn if plain else network, given.astype(jnp.float32), labels, bounds, loss, given)


def on_host(
    images: AnyArray,
    labels: AnyArray,
    epsilon: AnyArray | float,
    norm: str,
    bounds: geometry.Bounds,
    *,
    keep_dtype: bool = False,
    allow_empty: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, geometry.Bounds]:
    """Checks what a driver on the host is given, by value.

    Args:
        images: float [N, H, W, C] inside bounds.
        labels: integers [N], at least 0. The driver compares them with the number of logits.
        epsilon: a number >= 0, or one for each image [N].
        norm: "linf", "l2" or "l1".
        bounds: the box.
        keep_dtype: leave images in the dtype that JAX has for theirs, rather than make them float32.
        allow_empty: whether there may be no image.

    Returns:
        NumPy arrays images, labels int32 [N] and epsilon float32 [N]; and bounds as :func:`box` has them.

    Raises:
        InputError: for whatever is wrong.

    Warns:
        UserWarning: where the channels of images come first, as far as sizes tell.

    Example:
        >>> import jax.numpy as jnp
        >>> on_host(jnp.full((1, 2, 2, 1), 0.5), jnp.array([3]), 0.1, "linf", (0.0, 1.0))[1:]
        (array([3], dtype=int32), array([0.1], dtype=float32), (0.0, 1.0))
    """
    if any(isinstance(value, Tracer) for value in (images, labels, epsilon, jnp.zeros(()))):  # within jit the last is
        mend = "call what compiles by itself outside jit, vmap and grad"
        raise InputError(f"images, labels and epsilon must be known by value, got traced ones; {mend}")
    geometry.get(norm)
    images = as_images(images, 4)
    bounds = box(bounds, images.shape[-1], images.dtype)
    check_in_box(images, bounds)
    height, width, channels = images.shape[1:]
    if height in (1, 3) and width == channels > 4:
        warnings.warn(
            f"images {list(images.shape)} look as if channels came first, while attacks by squares and bounds of "
            "channels take the last axis for them; give [B, H, W, C], and a function that transposes them",
            stacklevel=3,
        )
    if not (len(images) or allow_empty):
        raise InputError("images must be at least one, got none; give some")
    labels = as_labels(labels, len(images), loss=losses.cross_entropy)
    labels_in_range(labels, None)
    check_radius("epsilon", epsilon, len(images), allow_infinite=False)
    dtype = jax.dtypes.canonicalize_dtype(images.dtype) if keep_dtype else np.float32
    radius = np.broadcast_to(np.asarray(epsilon, np.float32), images.shape[:1])
    return np.asarray(images).astype(dtype), np.asarray(labels), radius, bounds


def _of_logits(loss: LossFn, outputs: Any, labels: Array) -> Array:
    return loss(getattr(outputs, "logits", outputs), labels)
