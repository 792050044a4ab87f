"""Square Attack: random search with localised changes, which needs no gradient."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry, losses
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.search import Problem, Search, solve
from robustjax.attacks.eot import expected_outcome
from robustjax.ops import lookup, rowwise
from robustjax.types import Array, Key, LogitsFn

# Share of the pixels that a change covers: SHARE at first, halved after each of these numbers of queries.
SHARE = 0.8
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


class Options(NamedTuple):
    """What an attack depends on besides its problem."""

    norm: str
    num_queries: int
    bounds: geometry.Bounds
    eot_samples: int
    targeted: bool = False


class State(NamedTuple):
    """The state between two queries: queries made [B], and the best point, which is also the one that is changed."""

    count: Array
    best: Best


def search(
    *,
    norm: str,
    num_queries: int,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
) -> Search:
    """Square from one random start, in queries."""
    options = Options(norm, num_queries, bounds, eot_samples, targeted)
    return Search(start, step, num_queries, options, stops_early=True)


def start(options: Options, problem: Problem) -> State:
    """Vertical stripes at the corners of the linf ball; in l2 and l1 a grid of bumps."""
    images = problem.images
    height, width, channels = images.shape[1:]
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 0))(problem.keys)
    if options.norm == "linf":
        sign = jax.vmap(lambda key: jax.random.rademacher(key, (1, width, channels), images.dtype))(keys)
        points = images + geometry.per_example(problem.epsilon, images) * sign
        points = jnp.clip(points, *geometry.walls(options.bounds, images))
    else:
        upright, tile = _grid(height, width, options.norm)
        count = int(tile.max()) + 1
        draw = jax.vmap(lambda key: jax.random.rademacher(key, (count, channels + 1), images.dtype))(keys)[:, tile]
        bump = jnp.where(draw[..., -1:] > 0, upright[0][None, :, :, None], upright[1][None, :, :, None])
        points = _scaled_to_epsilon(options, problem, draw[..., :-1] * bump)
    best = Best.none(images)
    return State(jnp.zeros_like(problem.labels, dtype=jnp.int32), best._replace(images=points))


def step(options: Options, logits_fn: LogitsFn, key: Key, problem: Problem, state: State) -> State:
    """Queries the start, or a change of the best point, and keeps what is better."""
    images = problem.images
    height, width, channels = images.shape[1:]
    sides, which = _sides(options.norm, options.num_queries, height, width)
    row = jnp.clip(state.count - 1, 0, options.num_queries - 1)
    which = lookup(which, row)
    side = lookup(sides, which)
    draw = lambda key, i: jax.random.uniform(jax.random.fold_in(key, i), (5 + channels,), jnp.float32)  # noqa: E731
    uniform = rowwise(draw, problem.keys, state.count)
    sign = jnp.where(uniform[:, None, None, 5:] < 0.5, -1.0, 1.0)
    window = _Window.place(uniform[:, 0], uniform[:, 1], side, height, width)
    if options.norm == "linf":
        change = 2.0 * geometry.per_example(problem.epsilon, images) * sign
        points = jnp.where(window.inside, state.best.images + change, state.best.images)
        points = geometry.get("linf").project(images, points, problem.epsilon, options.bounds)
    else:
        other = _Window.place(uniform[:, 2], uniform[:, 3], side, height, width)
        bump = window.pattern(_bumps(sides, options.norm), which, transposed=uniform[:, 4] < 0.5)
        points = _moved_mass(options, problem, state.best.images - images, window, other, bump * sign)
    points = jnp.where(geometry.per_example(state.count, images) == 0, state.best.images, points)
    share, loss = expected_outcome(
        logits_fn, key, points, problem.labels, loss=_towards if options.targeted else _margin,
        num_samples=options.eot_samples, targeted=options.targeted,
    )  # fmt: skip
    # A misclassified example needs no further query: its point is kept.
    running = (state.count < options.num_queries) & (state.best.share < 1.0)
    best = state.best.or_better(points, jnp.where(running, share, -1.0), jnp.where(running, loss, -jnp.inf))
    return State(state.count + 1, best)


def square(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    norm: str = "linf",
    num_queries: int = 5000,
    num_restarts: int = 1,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
) -> Array:
    """Square Attack (Andriushchenko et al. 2020, arXiv 1912.00049), random search on the margin.

    Each query changes a square of the best image so far, to a corner of the linf ball, or by moving the perturbation of
    another square there (l2, l1), and is kept if the margin grew. The squares shrink as published, at fixed numbers of
    queries. What is misclassified in every draw is changed no more.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, or outputs that carry them as ``.logits``; with ``eot_samples >=
            1``, (images, key) -> those. Never differentiated.
        key: a typed key; or one for each example [B], which makes an example's draws independent of its batch.
        images: float [B, H, W, C] inside bounds. The network is called in the dtype given; the attack computes in
            float32.
        labels: integers [B].
        epsilon: radius of the ball, a number >= 0 or one for each example [B].
        norm: "linf", "l2" or "l1".
        num_queries: forward passes of a restart.
        num_restarts: independent restarts.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 averages every query over n fresh keys; 0 for deterministic networks.
        targeted: labels are targets, to be reached.

    Returns:
        Each example's best point, by (share of draws misclassified, margin), inside ball and box, in the dtype given.
        An empty batch is returned as it is.

    Raises:
        InputError: for an unknown norm, images that are not [B, H, W, C], counts below 1, or arguments of the wrong
            shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> square(linear, jax.random.key(0), images, labels, epsilon=0.1, num_queries=20).ravel().round(3)
        Array([0.4, 0.4], dtype=float32)
    """
    inputs.static(1, num_queries=num_queries)
    inputs.at_least(1, num_restarts=num_restarts)
    inputs.are_flags(targeted=targeted)
    given = inputs.check(
        logits_fn, key, images, labels, norm=norm, bounds=bounds, radii={"epsilon": epsilon}, eot_samples=eot_samples,
        keys_per_example=True, num_axes=4,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    best = solve(
        search(norm=norm, num_queries=num_queries, bounds=given.bounds, eot_samples=eot_samples, targeted=targeted),
        given.logits_fn,
        key,
        given.images,
        given.labels,
        targets=given.labels[None],
        epsilon=epsilon,
        num_restarts=num_restarts,
        run_all=False,
    )
    return given.returned(best.images)


def _margin(outputs: Any, labels: Array) -> Array:
    return losses.margin(getattr(outputs, "logits", outputs), labels)


def _towards(outputs: Any, targets: Array) -> Array:
    return -_margin(outputs, targets)


class _Window(NamedTuple):
    """A square of each image: its upper left corner [B, 1, 1, 1] and where it is, bool [B, H, W, 1]."""

    top: Array
    left: Array
    inside: Array

    @classmethod
    def place(cls, vertical: Array, horizontal: Array, side: Array, height: int, width: int) -> _Window:
        """Uniformly over all places inside the image, from two uniform numbers."""
        rows, columns = (jnp.arange(length, dtype=jnp.int32) for length in (height, width))
        rows, columns = rows[None, :, None, None], columns[None, None, :, None]

        def corner(uniform: Array, length: int) -> Array:
            places = jnp.maximum(length - side, 0) + 1
            return jnp.minimum((uniform * places.astype(jnp.float32)).astype(jnp.int32), places - 1)[
                :, None, None, None
            ]

        top, left = corner(vertical, height), corner(horizontal, width)
        side = side[:, None, None, None]
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        return cls(top, left, inside)

    def pattern(self, patterns: np.ndarray, which: Array, *, transposed: Array) -> Array:
        """The chosen one of patterns [N, S, S] laid into the window, 0 elsewhere, [B, H, W, 1]."""
        height, width = self.inside.shape[1:3]
        size = patterns.shape[1]
        rows, columns = (jnp.arange(length, dtype=jnp.int32) for length in (height, width))
        down = jnp.clip(rows[None, :, None, None] - self.top, 0, size - 1)
        right = jnp.clip(columns[None, None, :, None] - self.left, 0, size - 1)
        turned = transposed[:, None, None, None]
        first, second = jnp.where(turned, right, down), jnp.where(turned, down, right)
        values = lookup(patterns.ravel(), (which[:, None, None, None] * size + first) * size + second)
        return jnp.where(self.inside, values, 0.0)


def _moved_mass(
    options: Options, problem: Problem, delta: Array, window: _Window, other: _Window, bump: Array
) -> Array:
    """The perturbation with the other window emptied, and what was there spent on a new bump in the window."""
    power = 2.0 if options.norm == "l2" else 1.0
    channels = delta.shape[-1]

    def mass(values: Array) -> Array:
        """Of each channel [B, 1, 1, C]: as a product with ones, which a CPU sums far faster than strided pixels."""
        ones = jnp.ones(values.shape[1:3], values.dtype)
        return jnp.einsum("bhwc,hw->bc", jnp.abs(values) ** power, ones, precision="highest")[:, None, None]

    def over_channels(masses: Array) -> Array:
        return jnp.sum(masses, axis=-1, keepdims=True)

    budget = geometry.per_example(problem.epsilon, delta) ** power
    spare = jnp.maximum(budget - over_channels(mass(delta)), 0.0) / channels
    moved = over_channels(mass(jnp.where(window.inside | other.inside, delta, 0.0)))
    here = jnp.where(window.inside, delta, 0.0)
    shaped = bump + here / (mass(here) ** (1.0 / power) + 1e-12)
    shaped = shaped / (mass(shaped) ** (1.0 / power) + 1e-12) * (spare + moved) ** (1.0 / power)
    changed = jnp.where(window.inside, shaped, jnp.where(other.inside, 0.0, delta))
    return _scaled_to_epsilon(options, problem, changed)


def _scaled_to_epsilon(options: Options, problem: Problem, delta: Array) -> Array:
    norm_ball = geometry.get(options.norm)
    # A shade less than epsilon: the rounding of all pixels adds up.
    scale = geometry.per_example((1.0 - 2e-6) * problem.epsilon / (norm_ball.norm(delta) + 1e-12), delta)
    return norm_ball.project(problem.images, problem.images + scale * delta, problem.epsilon, options.bounds)


@functools.cache
def _sides(norm: str, num_queries: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The sides of the squares, largest first, and which of them each query uses."""
    share = SHARE / 2.0 ** np.arange(len(HALVED_AFTER) + 1)
    sides = np.round(np.sqrt(share * height * width)).astype(np.int32)
    if norm == "linf":
        sides = np.maximum(sides, 1)
    else:
        sides = np.maximum(sides, 3)
        sides = np.minimum(sides + (sides % 2 == 0), min(height, width))
    return sides, np.searchsorted(HALVED_AFTER, np.arange(num_queries), side="left").astype(np.int32)


@functools.cache
def _bump(height: int, width: int) -> np.ndarray:
    """A pyramid of nested rectangles whose r-th adds 1 / r^2, from the middle outwards."""
    bump = np.zeros((height, width))
    top, left = height // 2, width // 2
    for ring in range(max(top, left) + 1):
        rows = slice(max(top - ring, 0), top + ring + 1)
        columns = slice(max(left - ring, 0), left + ring + 1)
        bump[rows, columns] += 1.0 / (ring + 1) ** 2
    return bump


def _dipole(side: int, norm: str) -> np.ndarray:
    """An upper half of a positive bump and a lower half of a negative one, of norm 1."""
    power = 2.0 if norm == "l2" else 1.0
    halves = []
    for height, sign in ((side // 2, 1.0), (side - side // 2, -1.0)):
        bump = _bump(height, side)
        length = np.sum(bump**power) ** (1 / power)
        halves.append(sign * bump / length if height else bump)
    dipole = np.concatenate(halves)
    return (dipole / np.sum(np.abs(dipole) ** power) ** (1 / power)).astype(np.float32)


def _bumps(sides: np.ndarray, norm: str) -> np.ndarray:
    """The dipole of each side, padded to the largest, [N, S, S]."""
    patterns = np.zeros((len(sides), sides[0], sides[0]), np.float32)
    for pattern, side in zip(patterns, sides, strict=True):
        pattern[:side, :side] = _dipole(int(side), norm)
    return patterns


@functools.cache
def _grid(height: int, width: int, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Dipoles side by side over the image, upright and transposed [2, H, W], and the number of each pixel's [H, W]."""
    side = max(min(height, width) // 5, 1)
    rows, columns = height // side, width // side
    top, left = (height - rows * side) // 2, (width - columns * side) // 2
    dipole = _dipole(side, norm)
    grid = np.zeros((2, height, width), np.float32)
    tile = np.zeros((height, width), np.int32)
    area = np.s_[top : top + rows * side, left : left + columns * side]
    for turned, pattern in enumerate((dipole, dipole.T)):
        grid[turned][area] = np.tile(pattern, (rows, columns))
    tile[area] = np.repeat(np.repeat(np.arange(rows * columns).reshape(rows, columns), side, 0), side, 1)
    return grid, tile
