"""The one place that decides whether an attack succeeded, apart from the attack and in full float32.

An attack's own record is not taken: :func:`verify` re-checks ball, box and class of the images that it returned. The
rules, for everybody:

- The prediction is the class of the largest logit, on an exact tie the first of these classes. A row of logits that
  contains NaN is misclassified, whatever its largest entry (:func:`is_correct`).
- An image is valid if it is finite, inside the box, and inside the ball up to float32 rounding (:func:`is_valid`).
- A stochastic network is robust on an image if more than half of m fresh draws are right; a tie is misclassified.
"""

from __future__ import annotations

from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks.engine.inputs import logits_of
from robustjax.ops import lookup
from robustjax.statistics import wilson_interval
from robustjax.types import Array, ArrayT, Attack, Key, LogitsFn


class Verified(NamedTuple, Generic[ArrayT]):
    """The verified result of an attack's images.

    Attributes:
        valid: bool [B], by :func:`is_valid`.
        share: float32 [B], share of draws that are misclassified; 0 or 1 for a deterministic network.
        logits: float32 [B, K], the mean over draws.
        votes: int32 [B, K], how many draws predict each class.
    """

    valid: ArrayT
    share: ArrayT
    logits: ArrayT
    votes: ArrayT

    @property
    def misclassified(self) -> ArrayT:
        """bool [B], whether at least half of the draws are misclassified."""
        return is_misclassified(self.share)


class Acceptance(NamedTuple):
    """Accuracy of a stochastic network over the draws that decide, each under its name, with 95 % intervals.

    Attributes:
        num_draws: m, of each image.
        expected: accuracy of a single draw, on average.
        interval_95: of ``expected``, over examples.
        majority: share of examples that are correct in more than half of the draws.
        worst: share of examples that are correct in every draw.
        majority_interval_95, worst_interval_95: of these.
    """

    num_draws: int
    expected: float
    interval_95: tuple[float, float]
    majority: float
    worst: float
    majority_interval_95: tuple[float, float]
    worst_interval_95: tuple[float, float]

    @classmethod
    def of(cls, share: np.ndarray, num_draws: int) -> Acceptance:
        """From the share of draws in which each example is misclassified, at least one example.

        Example:
            >>> found = Acceptance.of(np.array([0.0, 0.25, 0.5, 0.75]), 4)
            >>> found.expected, found.majority, found.worst
            (0.625, 0.5, 0.25)
        """
        n = len(share)
        accuracies = (
            1.0 - float(np.mean(share, dtype=np.float64)),
            *(float(np.mean(right)) for right in (~is_misclassified(share), share == 0)),
        )
        expected, majority, worst = accuracies
        interval, *others = (wilson_interval(accuracy * n, n) for accuracy in accuracies)
        return cls(num_draws, expected, interval, majority, worst, *others)


def is_misclassified(share: ArrayT) -> ArrayT:
    """The majority rule, bool like ``share``: misclassified where half or more of the draws are, so also on a tie.

    Example:
        >>> import jax.numpy as jnp
        >>> is_misclassified(jnp.array([0.45, 0.5, 1.0]))
        Array([False,  True,  True], dtype=bool)
    """
    return share >= 0.5


def exact_share(share: Array, num_draws: int) -> Array:
    """The nearest one of 0, 1/m, 2/m, ..., 1, each correctly rounded.

    Compiled, a mean over m draws is a product with the rounded 1/m, so that 41 of 41 would be less than 1 and 41 of 82
    less than a half.

    Example:
        >>> import jax.numpy as jnp
        >>> exact_share(jnp.array([0.99999994]), 41) == 1
        Array([ True], dtype=bool)
    """
    shares = jnp.asarray(np.arange(num_draws + 1) / num_draws, share.dtype)
    return lookup(shares, jnp.round(share * num_draws).astype(jnp.int32))


def verify(
    network: LogitsFn,
    key: Key,
    images: Array,
    points: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    norm: str,
    bounds: geometry.Bounds = (0.0, 1.0),
    num_draws: int = 0,
) -> Verified[Array]:
    """Re-checks ball, box and class of an attack's images, in full float32 as far as the network's own dtype allows.

    Pure: call it under ``jit``. Calls with the same key and shape use the same draws, so an attack that changes nothing
    changes nothing in the result; take a key that the attack has not seen.

    Args:
        network: images -> logits [B, K], or outputs with a field ``logits``; with ``num_draws >= 1``, (images, key) ->
            those.
        key: a typed key, split into one for each draw.
        images: the images as they were, [B, ...] of any float dtype.
        points: what the attack returned, like images; the images themselves ask for the clean accuracy.
        labels: integers [B].
        epsilon: radius of the ball, a number or one for each example [B].
        norm: "linf", "l2" or "l1".
        bounds: the box.
        num_draws: draws m of a stochastic network, one after the other; 0 for a deterministic network.

    Returns:
        A :class:`Verified`.

    Raises:
        InputError: for outputs that are not logits [B, K] with K >= 2.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> images, labels = jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([0, 1])
        >>> verify(lambda x: x, jax.random.key(0), images, images, labels, epsilon=0.1, norm="linf").misclassified
        Array([False,  True], dtype=bool)
    """

    def draw(keys: tuple[Key, ...]) -> tuple[Array, Array, Array]:
        logits = logits_of(network(points, *keys), points.shape[0]).astype(jnp.float32)
        votes = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.int32)
        return (~is_correct(logits, labels)).astype(jnp.float32), logits, votes

    with jax.default_matmul_precision("float32"):
        if num_draws == 0:
            share, logits, votes = draw(())
        else:
            draws = jax.lax.map(lambda key: draw((key,)), jax.random.split(key, num_draws))
            share, logits = (jnp.mean(values, axis=0) for values in draws[:2])
            share = exact_share(share, num_draws)
            votes = jnp.sum(draws[2], axis=0, dtype=jnp.int32)
    valid = is_valid(images, points, epsilon=epsilon, norm=norm, bounds=bounds)
    return Verified(valid, share, logits, votes)


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
        images, adversarial: [B, ...] of any float dtype; half precision is read in float32.
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
    images, adversarial = jnp.asarray(images), jnp.asarray(adversarial)
    dtype = images.dtype if jnp.finfo(images.dtype).bits > 32 else jnp.float32
    images, adversarial = images.astype(dtype), adversarial.astype(dtype)
    axes = tuple(range(1, images.ndim))
    low, high = geometry.walls(bounds, images)
    inside_box = jnp.all((adversarial >= low) & (adversarial <= high), axis=axes)
    # A pixel's rounding is at most half an ulp at the larger wall; in l2 and l1 they add up over the pixels.
    ulp = float(jnp.finfo(jnp.float32).eps) * float(np.max(np.abs(np.asarray(bounds))))
    size = int(np.prod(images.shape[1:]))
    slack = ulp * {"linf": 1.0, "l2": 1.0, "l1": size**0.5}[norm]
    distance = geometry.get(norm).norm(adversarial - images)
    # NaN compares false everywhere, so a non-finite image is invalid.
    return inside_box & (distance <= jnp.asarray(epsilon).astype(dtype) * (1.0 + 1e-6) + slack)


def is_robust(
    logits_fn: LogitsFn,
    attack: Attack | None,
    key: Key,
    images: Array,
    labels: Array,
    *,
    attacked_fn: LogitsFn | None = None,
) -> Array:
    """Which examples a deterministic network classifies correctly both as they are and after an attack.

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
        >>> is_robust(lambda x: x, None, jax.random.key(0), jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0]))
        Array([ True, False], dtype=bool)
    """

    def right(points: Array) -> Array:
        with jax.default_matmul_precision("float32"):
            return is_correct(logits_of(logits_fn(points), points.shape[0]), labels)

    if attack is None:
        return right(images)
    adversarial = attack(logits_fn if attacked_fn is None else attacked_fn, key, images, labels)
    return right(images) & right(adversarial)


def is_correct(logits: Array, labels: Array) -> Array:
    """Where the largest logit is the label's, bool [B].

    On an exact tie the first of the largest is the prediction. Rows that contain NaN are wrong, whatever argmax makes
    of them. Logits of -inf, as of masked classes, are like any other.

    Args:
        logits: [B, K].
        labels: integers [B].

    Example:
        >>> import jax.numpy as jnp
        >>> is_correct(jnp.array([[1.0, 1.0], [1.0, 1.0], [jnp.nan, 0.0]]), jnp.array([0, 1, 0]))
        Array([ True, False, False], dtype=bool)
    """
    predicted = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return (predicted == jnp.asarray(labels).astype(jnp.int32)) & ~jnp.any(jnp.isnan(logits), axis=-1)


def has_no_maximum(logits: ArrayT) -> ArrayT:
    """Rows without a finite largest logit, bool [B]: those with NaN or infinity, or with -inf for every class.

    A figure that rests on them does not measure the network. Logits of -inf beside finite ones, as of masked classes,
    are allowed.

    Args:
        logits: [B, K].

    Example:
        >>> import jax.numpy as jnp
        >>> has_no_maximum(jnp.array([[1.0, -jnp.inf], [jnp.nan, 1.0], [jnp.inf, 1.0], [-jnp.inf, -jnp.inf]]))
        Array([False,  True,  True,  True], dtype=bool)
    """
    if isinstance(logits, np.ndarray):  # on the host nothing is compiled, whatever B is
        return ~np.isfinite(np.max(logits, axis=-1))
    return ~jnp.isfinite(jnp.max(logits, axis=-1))
