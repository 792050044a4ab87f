"""HopSkipJump: a decision-based attack, which uses the predicted class alone."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.search import example_keys, network_key
from robustjax.attacks.engine.verify import is_misclassified
from robustjax.attacks.eot import expected_outcome
from robustjax.types import AnyArray, Array, InputError, Key, LogitsFn

NORMS = ("linf", "l2")
# Queries at most for a start, and halvings of a step's length.
NUM_STARTS, NUM_HALVINGS = 100, 12
# Halvings of the way from the image to a misclassified point, as many as the pixels ask for: above 20, float32 is flat.
LEAST_BISECTIONS, MOST_BISECTIONS = 10, 20
# Of a start's distances in units of the way to its noise.
FIRST_RADIUS = 0.1
# The least change of a pixel by which the side of the boundary is asked for, in units of the box: 16 roundings.
LEAST_CHANGE = 1e-6


class State(NamedTuple):
    """The state between two steps; all arrays [B, ...].

    Attributes:
        count: steps begun.
        points: the nearest misclassified points so far; the images where there are none.
        distance: from the images; infinite where there are none.
    """

    count: Array
    points: Array
    distance: Array


def hopskipjump(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    norm: str = "linf",
    num_steps: int = 20,
    num_queries: int = 5000,
    start: Array | None = None,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
) -> Array:
    r"""HopSkipJump (Chen, Jordan and Wainwright 2020, arXiv 1904.02144): the nearest misclassified image, by labels.

    Logits serve for nothing but the predicted class. A misclassified point x_t is brought onto the decision boundary by
    bisection of its way to the image, the normal of the boundary is estimated there from the sides on which random
    points nearby fall,

    .. math:: v = \frac{1}{n} \sum_i (\phi_i - \bar\phi) u_i, \quad
              \phi_i = \begin{cases} 1 & x_t + \delta u_i \text{ is misclassified} \\ -1 & \text{otherwise} \end{cases}

    and a step along it (in linf, along its signs), halved until it stays misclassified, gives the next point.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, or outputs that carry them as ``.logits``; with ``eot_samples >=
            1``, (images, key) -> those. Never differentiated.
        key: a typed key; or one for each example [B], which makes an example's draws independent of its batch.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works). The network is called in the
            dtype given; the attack computes in float32.
        labels: integers [B].
        epsilon: radius of the ball, a number or one for each example [B]. An example's search ends when a point inside
            is found; ``inf`` asks for the nearest that all queries find.
        norm: "linf" or "l2".
        num_steps: estimates of the normal.
        num_queries: forward passes in all, at most. The t-th estimate gets a share in proportion to sqrt(t) of what
            starts, bisections and halvings leave.
        start: points to start from where they are misclassified, like images, such as images of other classes; None:
            random ones alone.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 decides each query by the majority of n fresh keys; 0 for deterministic networks.

    Returns:
        The nearest misclassified image that was found, where it is inside the ball; elsewhere, and where it is
        misclassified already, exactly the image itself. In the dtype given. An empty batch is returned as it is.

    Raises:
        InputError: for another norm, counts below 1, fewer queries than the steps need, or arguments of the wrong
            shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> nearest = hopskipjump(linear, jax.random.key(0), images, labels, epsilon=jnp.inf, num_queries=1000)
        >>> nearest.ravel().round(2)
        Array([0.45, 0.45], dtype=float32)
    """
    inputs.static(1, num_steps=num_steps, num_queries=num_queries)
    geometry.get(norm)
    if norm not in NORMS:
        raise InputError(f"norm must be linf or l2, got {norm!r}; use square in l1")
    given = inputs.check(
        logits_fn, key, images, labels, norm=norm, bounds=bounds, radii={"epsilon": epsilon}, eot_samples=eot_samples,
        keys_per_example=True, allow_infinite=True,
    )  # fmt: skip
    first = None if start is None else inputs.as_array("start", start)
    if first is not None and not (first.shape == given.images.shape and jnp.issubdtype(first.dtype, jnp.floating)):
        raise InputError(
            f"start must be float points {list(given.images.shape)} like the images, got {first.dtype} "
            f"{list(first.shape)}; give one point for each image, or None"
        )
    size = max(1, math.prod(given.images.shape[1:]))
    num_starts, samples = _budget(norm, num_steps, num_queries, size)
    if given.is_empty:
        return given.given
    search = _Search(
        given, norm, example_keys(key, given.images), network_key(key), size, samples, eot_samples,
        geometry.per_example(epsilon, given.images).reshape(-1),
    )  # fmt: skip
    clean = search.misclassified(given.images, 0)
    state = search.begin(num_starts, first)
    state = jax.lax.while_loop(
        lambda state: jnp.any(search.goes_on(state) & ~clean), lambda state: search.step(state), state
    )
    found = (state.distance <= search.epsilon) & jnp.isfinite(state.distance) & ~clean
    return given.returned(_where(found, state.points, given.images))


def _budget(norm: str, num_steps: int, num_queries: int, size: int) -> tuple[int, np.ndarray]:
    """Queries for a start, and samples of each estimate [T], which together with all else are ``num_queries``."""
    num_starts = min(NUM_STARTS, max(1, num_queries // 10))
    fixed = 1 + num_starts + 1 + (1 + num_steps) * _bisections(norm, size) + num_steps * NUM_HALVINGS
    roots = np.sqrt(np.arange(1, num_steps + 1))
    samples = np.floor((num_queries - fixed) * roots / roots.sum()).astype(np.int32)
    if samples.min() < 2:
        rest = fixed - num_starts + 2 * roots.sum()
        least = math.ceil(min(rest + NUM_STARTS, rest * 10 / 9))
        raise InputError(
            f"num_queries must be at least {least} for {num_steps} steps on {size} numbers, got {num_queries}; give "
            "more queries or fewer steps"
        )
    return num_starts, samples


def _bisections(norm: str, size: int) -> int:
    """Halvings after which a point is nearer to the boundary than the points by which the normal is estimated."""
    wanted = math.ceil((1.5 if norm == "l2" else 2.0) * math.log2(max(size, 2)))
    return min(max(wanted, LEAST_BISECTIONS), MOST_BISECTIONS)


class _Search(NamedTuple):
    """What does not change while a batch is attacked, and what is done with it."""

    given: inputs.Inputs
    norm: str
    keys: Key
    network_key: Key
    size: int
    samples: np.ndarray
    eot_samples: int
    epsilon: Array

    def misclassified(self, points: Array, *places: Array | int) -> Array:
        """Where points are misclassified, bool [B]; ``places`` say which draws of a stochastic network are taken."""
        key = self.network_key
        for place in places:
            key = jax.random.fold_in(key, place)
        share, _ = expected_outcome(
            self.given.logits_fn, key, points, self.given.labels, loss=_nothing, num_samples=self.eot_samples
        )
        return is_misclassified(share)

    def drawn(self, place: Array | int, draw: Any) -> Array:
        """``draw(key)`` for each example, with other keys at each place."""
        return jax.vmap(lambda key: draw(jax.random.fold_in(key, place)))(self.keys)

    def distance(self, points: Array) -> Array:
        return geometry.get(self.norm).norm(points - self.given.images)

    def goes_on(self, state: State) -> Array:
        """Where a search is not over, bool [B]: a start was found, and no point inside the ball."""
        over = (state.distance <= self.epsilon) & jnp.isfinite(self.epsilon)
        return jnp.isfinite(state.distance) & ~over & (state.count < len(self.samples))

    def begin(self, num_starts: int, start: AnyArray | None) -> State:
        """The boundary on the way to the nearest misclassified one of random points, and of those given."""
        images, bounds = self.given.images, self.given.bounds
        low, high = geometry.walls(bounds, images)

        def point(key: Key) -> Array:
            """One colour, noise, or a mixture of both, inside the box or at its corners; and how far to go there."""
            colour, noise = (
                jax.random.uniform(jax.random.fold_in(key, i), shape, images.dtype)
                for i, shape in enumerate(((1,) * (images.ndim - 2) + images.shape[-1:], images.shape[1:]))
            )
            mixture, corner, radius = jax.random.uniform(jax.random.fold_in(key, 2), (3,), images.dtype)
            share = jnp.clip(1.5 * mixture - 0.25, 0.0, 1.0)
            mixed = share * colour + (1.0 - share) * noise
            mixed = jnp.where(corner < 0.5, mixed, (mixed > 0.5).astype(mixed.dtype))
            return jnp.concatenate([mixed.ravel(), jnp.maximum(radius, FIRST_RADIUS)[None]])

        def keep(best: Best, points: Array, place: Array | int) -> Best:
            distance = self.distance(points)
            # A point that is not a number counts as misclassified, and is none to start from.
            hit = self.misclassified(points, 1, place) & jnp.isfinite(distance)
            return best.or_better(points, hit.astype(jnp.float32), -distance)

        def trial(i: Array, best: Best) -> Best:
            drawn = self.drawn(i, point)
            pixels, radius = drawn[:, :-1].reshape(images.shape), geometry.per_example(drawn[:, -1], images)
            target = low + (high - low) * pixels
            return keep(best, jnp.clip(images + radius * (target - images), low, high), i)

        best = Best.none(images)
        if start is not None:
            best = keep(best, jnp.clip(jnp.asarray(start, images.dtype), low, high), num_starts)
        best = jax.lax.fori_loop(0, num_starts, trial, best)
        found = best.share > 0
        points, distance = self.to_boundary(best.images, found, 2, 0)
        count = jnp.zeros_like(self.given.labels, dtype=jnp.int32)
        return State(count, points, jnp.where(found, distance, jnp.inf))

    def step(self, state: State) -> State:
        """Estimates the normal at the boundary, leaps along it, and returns to the boundary if that is nearer."""
        running = self.goes_on(state)
        at = jnp.max(state.count)  # the same wherever the search goes on
        normal = self.normal(state, at)
        moved, hit = self.leap(state, normal, at)
        points, distance = self.to_boundary(moved, hit, 3, at)
        nearer = running & hit & (distance < state.distance)
        return State(
            state.count + 1,
            _where(nearer, points, state.points),
            jnp.where(nearer, distance, state.distance),
        )

    def to_boundary(self, points: Array, found: Array, *place: Array | int) -> tuple[Array, Array]:
        """The nearest point that bisection finds misclassified between images and misclassified points."""
        images, project = self.given.images, geometry.get(self.norm).project

        def halve(i: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            low, high, kept = state
            middle = 0.5 * (low + high)
            nearer = project(images, points, middle, self.given.bounds)
            hit = self.misclassified(nearer, *place, i) & found
            return jnp.where(hit, low, middle), jnp.where(hit, middle, high), _where(hit, nearer, kept)

        distance = self.distance(points)
        interval = (jnp.zeros_like(distance), distance, points)
        _, _, kept = jax.lax.fori_loop(0, _bisections(self.norm, self.size), halve, interval)
        return kept, self.distance(kept)

    def normal(self, state: State, at: Array) -> Array:
        """The direction into the misclassified side, of any length."""
        points = state.points
        low, high = geometry.walls(self.given.bounds, points)
        width = jnp.zeros_like(state.distance) + jnp.mean(jnp.asarray(high - low, points.dtype))
        least = LEAST_CHANGE * math.sqrt(self.size) * width
        near = jnp.maximum(jnp.where(jnp.isfinite(state.distance), state.distance, 0.0) / self.size, least)
        radius = geometry.per_example(jnp.where(at == 0, FIRST_RADIUS * width, near), points)

        def direction(key: Key) -> Array:
            shape = points.shape[1:]
            if self.norm == "linf":
                return jax.random.uniform(key, shape, points.dtype, -1.0, 1.0)
            return jax.random.normal(key, shape, points.dtype)

        def sample(i: Array, sums: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            place = (at + 1) * jnp.int32(2**16) + i
            unit = geometry.get("l2").steepest(self.drawn(place, direction), points, self.given.bounds)
            nearby = jnp.clip(points + radius * unit, low, high)
            change = (nearby - points) / radius
            side = jnp.where(self.misclassified(nearby, 4, at, i), 1.0, -1.0)
            signed, plain, sides = sums
            return signed + geometry.per_example(side, points) * change, plain + change, sides + side

        zeros = jnp.zeros_like(points)
        count = jnp.asarray(self.samples)[at]
        signed, plain, sides = jax.lax.fori_loop(0, count, sample, (zeros, zeros, jnp.zeros_like(state.distance)))
        count = count.astype(sides.dtype)
        # Where all points fall on one side, the mean of them all is taken, into that side or away from it. A sum of
        # ones says so exactly: compiled, n / n may be n times the rounded 1 / n.
        mean = jnp.where(jnp.abs(sides) == count, 0.0, sides / count)
        return signed - geometry.per_example(mean, points) * plain

    def leap(self, state: State, normal: Array, at: Array) -> tuple[Array, Array]:
        """A step along the normal as long as stays misclassified, and whether one did."""
        points, (low, high) = state.points, geometry.walls(self.given.bounds, state.points)
        unit = geometry.get(self.norm).steepest(normal, points, self.given.bounds)
        longest = jnp.where(jnp.isfinite(state.distance), state.distance, 0.0) / jnp.sqrt(at.astype(jnp.float32) + 1.0)
        running = self.goes_on(state)

        def seeks(carry: tuple[Array, Array, Array]) -> Array:
            i, _, hit = carry
            return (i < NUM_HALVINGS) & jnp.any(running & ~hit)

        def halve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            i, kept, hit = carry
            length = geometry.per_example(longest * 0.5 ** i.astype(jnp.float32), points)
            moved = jnp.clip(points + length * unit, low, high)
            now = self.misclassified(moved, 5, at, i) & ~hit
            return i + 1, _where(now, moved, kept), hit | now

        _, moved, hit = jax.lax.while_loop(seeks, halve, (jnp.int32(0), points, jnp.zeros_like(running)))
        return moved, hit


def _nothing(outputs: Any, labels: Array) -> Array:
    return jnp.zeros_like(labels, dtype=jnp.float32)


def _where(rows: Array, chosen: Array, other: Array) -> Array:
    return jnp.where(rows.reshape(rows.shape + (1,) * (chosen.ndim - 1)), chosen, other)
