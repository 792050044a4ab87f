"""An attack's word is not taken: validity and success are read off its images by a forward pass of our own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry
from robustjax.types import Array, Attack, Key, LogitsFn


def is_valid(
    images: Array,
    adversarial: Array,
    *,
    epsilon: Array | float,
    norm: str = "linf",
    bounds: geometry.Bounds = (0.0, 1.0),
) -> Array:
    """Which adversarial images are finite, inside the box, and inside the ball up to float32 rounding.

    Args:
        images, adversarial: [B, ...].
        epsilon: radius, a number or one per example.
        norm: of the ball.
        bounds: the box.

    Returns:
        bool [B].

    Example:
        >>> import jax.numpy as jnp
        >>> images = jnp.full((2, 1, 1, 1), 0.5)
        >>> is_valid(images, images + jnp.array([0.1, 0.2]).reshape(2, 1, 1, 1), epsilon=0.1)
        Array([ True, False], dtype=bool)
    """
    axes = tuple(range(1, images.ndim))
    inside_box = jnp.all((adversarial >= bounds[0]) & (adversarial <= bounds[1]), axis=axes)
    # A pixel's rounding is at most half an ulp at the larger wall; in l2 and l1 they add up over the pixels.
    ulp = jnp.finfo(jnp.float32).eps * max(abs(bounds[0]), abs(bounds[1]))
    slack = ulp * {"linf": 1.0, "l2": 1.0, "l1": max(1, images[0].size) ** 0.5}[norm]
    distance = geometry.get(norm).norm(adversarial - images)
    # NaN compares false everywhere, so a non-finite image is invalid.
    return inside_box & (distance <= jnp.asarray(epsilon, images.dtype) * (1.0 + 1e-6) + slack)


def survives(
    logits_fn: LogitsFn,
    attack: Attack | None,
    key: Key,
    images: Array,
    labels: Array,
    *,
    attacked_fn: LogitsFn | None = None,
) -> Array:
    """Which examples a network classifies correctly both as they are and after an attack, in full float32.

    Args:
        logits_fn: images -> logits [B, K].
        attack: None asks for clean accuracy.
        key: a typed key.
        images: [B, ...].
        labels: integers [B].
        attacked_fn: what the attack is given instead, such as the same network computing in bfloat16.

    Returns:
        bool [B].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> survives(lambda x: x, None, jax.random.key(0), jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]))
        Array([ True, False], dtype=bool)
    """

    def right(points: Array) -> Array:
        with jax.default_matmul_precision("float32"):
            return is_correct(logits_fn(points), labels)

    if attack is None:
        return right(images)
    adversarial = attack(logits_fn if attacked_fn is None else attacked_fn, key, images, labels)
    return right(images) & right(adversarial)


def is_correct(logits: Array, labels: Array) -> Array:
    """Where the largest logit is the label's, bool [B]. NaN logits are wrong, whatever argmax makes of them.

    Example:
        >>> import jax.numpy as jnp
        >>> is_correct(jnp.array([[1.0, 0.0], [jnp.nan, 0.0]]), jnp.array([0, 0]))
        Array([ True, False], dtype=bool)
    """
    return (jnp.argmax(logits, axis=-1) == labels) & ~jnp.any(jnp.isnan(logits), axis=-1)
