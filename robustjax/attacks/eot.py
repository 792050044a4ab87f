"""Expectation over transformation (Athalye et al. 2018, arXiv 1707.07397): averages over a network's own randomness.

The gradient, and the share of draws that are misclassified, are averaged over ``num_samples`` fresh keys.
``num_samples = 0`` means a deterministic network, called without a key. Draws are made one after the other in a
compiled loop, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustjax.attacks.engine.inputs import logits_of
from robustjax.attacks.engine.verify import exact_share, is_correct
from robustjax.types import Array, Key, LogitsFn, LossFn


def expected_gradient(
    logits_fn: LogitsFn, key: Key, images: Array, labels: Array, *, loss: LossFn, num_samples: int
) -> Array:
    r"""Gradient of the expected loss, :math:`\frac{1}{n} \sum_i \nabla_x L(f(x, k_i), y)`, non-finite entries as 0.

    Args:
        logits_fn: images -> outputs if ``num_samples`` is 0, else (images, key) -> outputs.
        key: folded with the number of the draw.
        images: [B, ...].
        labels: whatever ``loss`` takes.
        loss: (outputs, labels) -> [B].
        num_samples: draws n, or 0.

    Returns:
        An array like images.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> noisy = lambda x, key: x + jax.random.normal(key, x.shape)
        >>> square = lambda outputs, labels: jnp.sum(outputs**2, axis=1)
        >>> zeros = jnp.zeros((1, 2))
        >>> gradient = expected_gradient(noisy, jax.random.key(0), zeros, None, loss=square, num_samples=1000)
        >>> bool((abs(gradient) < 0.3).all())
        True
    """

    def gradient(apply: Callable[[Array], Any]) -> Array:
        return jax.grad(lambda points: jnp.sum(loss(apply(points), labels)))(images)

    value = _average(gradient, logits_fn, key, num_samples)
    return jnp.where(jnp.isfinite(value), value, 0.0)


def expected_outcome(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    loss: LossFn,
    num_samples: int,
    targeted: bool = False,
) -> tuple[Array, Array]:
    """The share of draws misclassified and the mean loss, each float32 [B].

    With ``targeted`` the share is that of draws which reach the label. Outputs that are not logits [B, K], nor carry
    them as ``.logits``, have no prediction: their share is 0 throughout and the loss alone decides.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax.attacks import losses
        >>> share, loss = expected_outcome(lambda x: x, jax.random.key(0), jnp.array([[2.0, 0.0]]), jnp.array([1]),
        ...                                loss=losses.margin, num_samples=0)
        >>> share, loss
        (Array([1.], dtype=float32), Array([2.], dtype=float32))
    """

    def outcome(apply: Callable[[Array], Any]) -> tuple[Array, Array]:
        outputs = apply(images)
        value = loss(outputs, labels).astype(jnp.float32)
        return _share(outputs, labels, value, targeted=targeted), value

    share, value = _average(outcome, logits_fn, key, num_samples)
    return exact_share(share, max(num_samples, 1)), value


def expected_gradient_and_outcome(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    loss: LossFn,
    num_samples: int,
    targeted: bool = False,
) -> tuple[Array, Array, Array]:
    """:func:`expected_gradient` and :func:`expected_outcome` from the same passes: half the cost.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax.attacks import losses
        >>> logits, labels = jnp.array([[2.0, 0.0]]), jnp.array([1])
        >>> expected_gradient_and_outcome(lambda x: x, jax.random.key(0), logits, labels, loss=losses.margin,
        ...                               num_samples=0)[0]
        Array([[ 1., -1.]], dtype=float32)
    """

    def evaluate(apply: Callable[[Array], Any]) -> tuple[Array, tuple[Array, Array]]:
        def total(points: Array) -> tuple[Array, tuple[Array, Array]]:
            outputs = apply(points)
            value = loss(outputs, labels).astype(jnp.float32)
            return jnp.sum(value), (_share(outputs, labels, value, targeted=targeted), value)

        return jax.grad(total, has_aux=True)(images)

    gradient, (share, value) = _average(evaluate, logits_fn, key, num_samples)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0), exact_share(share, max(num_samples, 1)), value


def expected_logits_fn(logits_fn: LogitsFn, key: Key, *, num_samples: int) -> Callable[[Array], Array]:
    """images -> logits, float32, averaged over draws that stay the same from call to call: a deterministic network.

    For attacks that work on the logits themselves. Differentiable; the draws are recomputed rather than stored.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> noisy = lambda x, key: x + jax.random.normal(key, x.shape)
        >>> mean = expected_logits_fn(noisy, jax.random.key(0), num_samples=1000)(jnp.zeros((1, 2)))
        >>> bool((abs(mean) < 0.2).all())
        True
    """

    def logits(apply: Callable[[Array], Any], images: Array) -> Array:
        return logits_of(apply(images), images.shape[0]).astype(jnp.float32)

    if num_samples == 0:
        return lambda images: logits(logits_fn, images)

    def expected(images: Array) -> Array:
        @jax.checkpoint
        def draw(i: Array | int) -> Array:
            return logits(lambda points: logits_fn(points, jax.random.fold_in(key, i)), images)

        zeros = jnp.zeros_like(jax.eval_shape(draw, 0))
        total, _ = jax.lax.scan(lambda sums, i: (sums + draw(i), None), zeros, jnp.arange(num_samples))
        return total / num_samples

    return expected


def _share(outputs: Any, labels: Array, value: Array, *, targeted: bool) -> Array:
    """1 where the attack succeeds in this draw, float32 [B]; 0 throughout for outputs without a prediction."""
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, jax.Array) or logits.ndim != 2:
        return jnp.zeros_like(value)
    classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    hit = is_correct(logits, classes)
    return (hit if targeted else ~hit).astype(jnp.float32)


def _average(evaluate: Callable[[Callable[[Array], Any]], Any], logits_fn: LogitsFn, key: Key, num_samples: int) -> Any:
    """The mean of evaluate(x -> logits_fn(x, fresh key)) over the draws, or its one value without draws."""
    if num_samples == 0:
        return evaluate(logits_fn)

    def draw(i: Array | int) -> Any:
        return evaluate(lambda images: logits_fn(images, jax.random.fold_in(key, i)))

    if num_samples == 1:
        return draw(0)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw, 0))
    total = jax.lax.fori_loop(0, num_samples, lambda i, sums: jax.tree.map(jnp.add, sums, draw(i)), zeros)
    return jax.tree.map(lambda sums: sums / num_samples, total)
