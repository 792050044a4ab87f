"""Warnings of a driver about outputs that would make its accuracies misleading, such as probabilities.

Outputs are compared on a few images and with wide tolerances, because false warnings teach users to ignore them. Only
outputs that are not finite are counted over all images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks.engine.inputs import logits_of
from robustjax.attacks.engine.verify import has_no_maximum
from robustjax.types import Array, Key

# Change of a logit, as a share of the range of all logits: between two calls of one program, whose rounding is
# the same, and between two programs, of which one may compute in bfloat16 what the other does not.
SAME_PROGRAM, OTHER_PROGRAM = 1e-3, 5e-2


def output_warnings(
    network: Any,
    key: Key,
    images: np.ndarray,
    logits: np.ndarray,
    *,
    bounds: geometry.Bounds,
    stochastic: bool,
    size: int,
    split: Callable[[Any], Any],
) -> Iterator[str]:
    """One sentence for each fault of the outputs.

    Args:
        network: a ``jax.tree_util.Partial``: images -> logits, or (images, key) -> logits where it is stochastic.
        key: a typed key.
        images: [N, H, W, C], N >= 1.
        logits: float32 [N, K], of these images, from another program than this module's.
        bounds: the box.
        stochastic: whether the network was declared to be.
        size: of the batch that is looked at.
        split: puts a batch on its devices.
    """
    if (count := int(np.sum(has_no_maximum(logits)))) > 0:
        yield not_finite(count, len(logits), "images")
    if are_probabilities(logits):
        yield (
            "outputs are probabilities: their saturation hides gradients, so the network looks more robust than it is; "
            "hand over the logits before the softmax"
        )
    keys = (key,) if stochastic else ()
    rows = np.resize(np.arange(len(images)), max(size, 2))  # of one alone there is no rest of the batch
    some, half = images[rows], len(rows) // 2
    low, high = (np.asarray(wall, images.dtype) for wall in bounds)
    # The same images first, and other ones after them: mirrored, so that there are some of a single image, too.
    mixed = np.concatenate([some[:half], np.clip(low + high - some[half:], low, high).astype(some.dtype)])
    first, again, other = (np.asarray(_logits(network, split(batch), keys)) for batch in (some, some, mixed))
    if not stochastic and (
        np.any(_changed(first, again, SAME_PROGRAM))
        or np.mean(_changed(first, logits[rows], OTHER_PROGRAM)) > 0.5  # drawn while it was traced
    ):
        yield (
            "outputs differ between two calls on the same images: attacks chase noise and cannot be repeated; "
            "draw everything from a key, logits_fn(images, key), and set version='rand' or eot_samples"
        )
    elif np.mean(_changed(first[:half], other[:half], SAME_PROGRAM)) > 0.5:
        yield (
            "outputs change with the rest of the batch, as those of BatchNorm in training mode do: an accuracy means "
            "nothing for a single image; switch the network to inference mode"
        )


def not_finite(count: int, total: int, what: str) -> str:
    """The sentence on logits that :func:`robustjax.attacks.engine.verify.has_no_maximum` finds.

    Example:
        >>> print(not_finite(2, 10, "images"))
        logits are not finite for 2 of 10 images: NaN counts as misclassified, ...
    """
    return (
        f"logits are not finite for {count} of {total} {what}: NaN counts as misclassified, and from infinity no "
        "gradient leads away, so the figure is none of the network's; find the operation that makes them"
    )


def are_probabilities(logits: np.ndarray) -> bool:
    """Whether all rows of outputs [N, K] are in [0, 1] and sum up to 1."""
    in_range = np.all((logits >= 0.0) & (logits <= 1.0 + 1e-6))
    return bool(in_range and np.all(np.abs(np.sum(logits, axis=1, dtype=np.float64) - 1.0) < 1e-3))


def _changed(first: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """Rows of logits that differ by more than a share of the range of all, bool [n]."""
    finite = first[np.isfinite(first)].astype(np.float64)  # whose range may be more than float32 holds
    span = float(np.ptp(finite)) if finite.size else 0.0
    scale = max(span, 1e-3 * float(np.max(np.abs(finite), initial=0.0)), 1e-12)
    with np.errstate(invalid="ignore", over="ignore"):
        differ = np.abs(first - other) > share * scale
    equal = (first == other) | (np.isnan(first) & np.isnan(other))
    return np.any((differ | ~np.isfinite(first) | ~np.isfinite(other)) & ~equal, axis=1)


@jax.jit
def _logits(network: Any, images: Array, keys: tuple[Key, ...]) -> Array:
    with jax.default_matmul_precision("float32"):
        return logits_of(network(images, *keys), images.shape[0]).astype(jnp.float32)
