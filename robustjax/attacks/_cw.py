"""The l2 attack of Carlini and Wagner, which trades distance against misclassification."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax.attacks import geometry, losses
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.search import network_key
from robustjax.attacks.engine.verify import is_correct
from robustjax.attacks.eot import expected_logits_fn
from robustjax.ops import in_dtypes_of
from robustjax.types import Array, Key, LogitsFn

# Pixels at a wall are moved inside by this share of the box, where tanh still has a gradient.
INSIDE = 1e-6
LARGEST_WEIGHT = 1e10


class Weights(NamedTuple):
    """Binary search for the weight of misclassification, [B]: attacks failed at ``low`` and succeeded at ``high``."""

    low: Array
    high: Array
    value: Array

    def after(self, succeeded: Array) -> Weights:
        """Halved towards what failed after a success; towards what succeeded, or tenfold, after a failure."""
        high = jnp.where(succeeded, jnp.minimum(self.high, self.value), self.high)
        low = jnp.where(succeeded, self.low, jnp.maximum(self.low, self.value))
        bracketed = high < LARGEST_WEIGHT
        return Weights(low, high, jnp.where(bracketed, 0.5 * (low + high), 10.0 * self.value))


def cw(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    num_steps: int = 1000,
    num_searches: int = 9,
    learning_rate: float = 0.01,
    initial_weight: Array | float = 1e-3,
    confidence: Array | float = 0.0,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
) -> Array:
    r"""C&W-L2 (Carlini and Wagner 2017, arXiv 1608.04644): the nearest misclassified image that Adam finds.

    .. math:: \min_w \|x' - x\|_2^2 + c \max\bigl(z_y - \max_{k \ne y} z_k, -\kappa\bigr), \quad
              x' = \tfrac{1}{2} (\tanh w + 1)

    (in the unit box). For each example the weight c is searched for, beginning at ``initial_weight``: ten times more
    until it succeeds, then by bisection.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, or outputs that carry them as ``.logits``; with ``eot_samples >=
            1``, (images, key) -> those.
        key: a typed key, or one for each example [B]; only EOT draws from it.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works). The network is called in the
            dtype given; the attack computes in float32.
        labels: integers [B].
        num_steps: of Adam, for each weight.
        num_searches: weights tried.
        learning_rate: of Adam, in units of w, at least 0.
        initial_weight: first c, a number >= 0 or one for each example [B].
        confidence: kappa, the margin by which an image must be misclassified to count, likewise.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 averages the logits over n fresh keys in each step; 0 for deterministic networks.
        targeted: labels are targets, to be reached.

    Returns:
        The nearest image that is misclassified by the margin kappa; where none was found, and where the image itself
        is, exactly the image. There is no ball: ask how far they are. In the dtype given. An empty batch is returned as
        it is.

    Raises:
        InputError: for counts below 1, or arguments of the wrong shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> cw(linear, jax.random.key(0), images, labels, num_steps=200).ravel().round(2)
        Array([0.45, 0.45], dtype=float32)
    """
    inputs.at_least(1, num_steps=num_steps, num_searches=num_searches)
    inputs.are_flags(targeted=targeted)
    inputs.check_radius("learning_rate", learning_rate, None, allow_infinite=False)
    given = inputs.check(
        logits_fn, key, images, labels, norm="l2", bounds=bounds,
        radii={"confidence": confidence, "initial_weight": initial_weight}, eot_samples=eot_samples,
        keys_per_example=True,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    images, labels = given.images, given.labels
    confidence, initial_weight = (jnp.asarray(value, images.dtype) for value in (confidence, initial_weight))
    low, high = geometry.walls(given.bounds, images)
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    start = jnp.arctanh((images - middle) / half * (1.0 - INSIDE))
    optimizer = optax.adam(learning_rate)
    # Not in the loop, where zeros like an array from outside, on explicit axes, would not be sharded as it is.
    moments = optimizer.init(start)
    sign = -1.0 if targeted else 1.0
    key = network_key(key)
    distance = geometry.get("l2").norm

    def pixels(w: Array) -> Array:
        return jnp.clip(half * jnp.tanh(w) + middle, low, high)

    def logits_and_margin(points: Array, key: Key) -> tuple[Array, Array]:
        logits = expected_logits_fn(given.logits_fn, key, num_samples=eot_samples)(points)
        return logits, sign * losses.margin(logits, labels)

    def succeeds(logits: Array, margin: Array) -> Array:
        correct = is_correct(logits, labels)
        # The margin of logits that contain NaN is NaN: they are misclassified by any margin.
        return (correct if targeted else ~correct) & ~(margin < confidence)

    def search(i: Array, carry: tuple[Weights, Best]) -> tuple[Weights, Best]:
        weights, best = carry

        def objective(w: Array, key: Key) -> tuple[Array, tuple[Array, Array]]:
            points = pixels(w)
            logits, margin = logits_and_margin(points, key)
            squares = jnp.sum((points - images) ** 2, axis=tuple(range(1, images.ndim)))
            # At a confidence of 0 the published hinge stops exactly on the boundary, where nothing is misclassified.
            total = jnp.sum(squares + weights.value * jnp.maximum(-margin, -confidence))
            return total, (succeeds(logits, margin), points)

        def step(j: Array, carry: tuple) -> tuple:
            w, state, best, succeeded = carry
            draws = jax.random.fold_in(jax.random.fold_in(key, i), j)
            gradient, (success, points) = jax.grad(objective, has_aux=True)(w, draws)
            best = best.or_better(
                points,
                jnp.where(success, 1.0, -1.0),
                jnp.where(success, -distance(points - images), -jnp.inf),
            )
            with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
                updates, moved = optimizer.update(jnp.where(jnp.isfinite(gradient), gradient, 0.0), state)
                w, state = in_dtypes_of((w, state), (optax.apply_updates(w, updates), moved))
            return w, state, best, succeeded | success

        nothing = weights.value < 0
        *_, best, succeeded = jax.lax.fori_loop(0, num_steps, step, (start, moments, best, nothing))
        return weights.after(succeeded), best

    # An image that is misclassified as it is cannot be improved on: its distance is 0.
    already = succeeds(*logits_and_margin(images, key))
    best = Best.none(images).or_better(images, jnp.where(already, 1.0, -1.0), jnp.where(already, 0.0, -jnp.inf))
    zeros = jnp.zeros_like(best.share)
    weights = Weights(zeros, zeros + LARGEST_WEIGHT, zeros + initial_weight)
    _, best = jax.lax.fori_loop(0, num_searches, search, (weights, best))
    return given.returned(best.images)
