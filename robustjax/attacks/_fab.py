"""Fast Adaptive Boundary attack: the nearest adversarial image, by projection onto linearised decision boundaries."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.hyperplane import boundary, nearest_boundary, shortest_way
from robustjax.attacks.engine.one_class import one_against_rest
from robustjax.attacks.engine.search import Problem, Search, likeliest_wrong, network_key, solve
from robustjax.attacks.engine.verify import is_correct
from robustjax.attacks.eot import expected_logits_fn
from robustjax.types import Array, Key, LogitsFn

# The paper's: largest pull back towards the image, overshoot of a projection, and shortening of an adversarial delta.
PULL = 0.1
OVERSHOOT = 1.05
BACKWARD = 0.9


class Options(NamedTuple):
    """What an attack depends on besides its problem."""

    norm: str
    targeted: bool
    num_steps: int
    bounds: geometry.Bounds
    eot_samples: int


class State(NamedTuple):
    """The state between two steps; all arrays [B, ...].

    Attributes:
        count: steps taken.
        best: the nearest adversarial points; share 1 inside the ball and 0 outside, loss minus the distance.
        points: where the next linearisation is made.
    """

    count: Array
    best: Best
    points: Array


def search(
    *, norm: str, targeted: bool, num_steps: int, bounds: geometry.Bounds = (0.0, 1.0), eot_samples: int = 0
) -> Search:
    """FAB from one start, in steps: the first from the image, restarts from random points nearby."""
    return Search(start, step, num_steps, Options(norm, targeted, num_steps, bounds, eot_samples))


def start(options: Options, problem: Problem) -> State:
    """The image; in a restart a random point at half of epsilon from it."""
    images = problem.images

    def draw(key: Key) -> Array:
        if options.norm == "linf":
            return jax.random.uniform(key, images.shape[1:], images.dtype, -1.0, 1.0)
        return jax.random.normal(key, images.shape[1:], images.dtype)

    noise = jax.vmap(draw)(problem.keys)
    length = geometry.get(options.norm).norm(noise) + 1e-12
    radius = jnp.where(problem.restart > 0, 0.5 * problem.epsilon, 0.0)
    points = images + geometry.per_example(radius / length, images) * noise
    points = jnp.clip(points, *geometry.walls(options.bounds, images))
    return State(jnp.zeros_like(problem.labels, dtype=jnp.int32), Best.none(images), points)


def step(options: Options, logits_fn: LogitsFn, key: Key, problem: Problem, state: State) -> State:
    """Projects point and image onto the nearest linearised boundary, mixes the two, and steps back if it succeeded."""
    images, labels, points = problem.images, problem.labels, state.points
    norm = geometry.get(options.norm).norm
    logits = expected_logits_fn(logits_fn, key, num_samples=options.eot_samples)

    if options.targeted:
        lead, normals = boundary(logits, points, labels, problem.targets)
    else:
        lead, normals = nearest_boundary(logits, points, labels, norm=options.norm)
    # What the class must gain for the lead to vanish: seen from the point, and from the image.
    from_image = jnp.sum(normals * (points - images), axis=tuple(range(1, points.ndim))) + lead
    way = shortest_way(points, normals, lead, norm=options.norm, bounds=options.bounds)
    way_from_image = shortest_way(images, normals, from_image, norm=options.norm, bounds=options.bounds)
    distance, distance_from_image = (jnp.maximum(norm(delta), 1e-8) for delta in (way, way_from_image))
    pull = geometry.per_example(jnp.minimum(distance / (distance + distance_from_image), PULL), images)
    moved = (points + OVERSHOOT * way) * (1.0 - pull) + (images + OVERSHOOT * way_from_image) * pull
    moved = jnp.clip(moved, *geometry.walls(options.bounds, images))

    length = norm(moved - images)
    adversarial = ~is_correct(logits(moved), labels)
    running = state.count < options.num_steps
    best = state.best.or_better(
        moved,
        jnp.where(adversarial & running, (length <= problem.epsilon).astype(jnp.float32), -1.0),
        jnp.where(adversarial & running, -length, -jnp.inf),
    )
    shorter = geometry.per_example(jnp.where(adversarial, BACKWARD, 1.0), images)
    return State(state.count + 1, best, images + shorter * (moved - images))


def fab(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    norm: str = "linf",
    num_steps: int = 100,
    num_restarts: int = 1,
    num_targets: int | None = 9,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
) -> Array:
    r"""Fast Adaptive Boundary attack (Croce and Hein 2020, arXiv 1907.02044): the nearest adversarial image.

    .. math:: x_{t+1} = \mathrm{clip}\bigl((1 - \alpha)(x_t + 1.05\, \delta_t) + \alpha (x + 1.05\, \delta)\bigr)

    where :math:`\delta_t` and :math:`\delta` lead from the point and from the image the shortest way onto the decision
    boundary, linearised at :math:`x_t`, inside the box (exactly, see ``engine/hyperplane.py``). An adversarial point is
    drawn back to 0.9 of its distance, so that the next can be nearer.

    Args:
        logits_fn: images -> logits [B, K], K >= 2, or outputs that carry them as ``.logits``; with ``eot_samples >=
            1``, (images, key) -> those.
        key: a typed key, or one for each example [B]; only restarts draw from it.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works). The network is called in the
            dtype given; the attack computes in float32.
        labels: integers [B].
        epsilon: radius of the ball, a number or one for each example [B]; ``inf`` asks for the nearest wherever it is.
        norm: "linf", "l2" or "l1".
        num_steps: linearisations of a restart.
        num_restarts: runs, the first from the image, further ones from random points at epsilon / 2.
        num_targets: runs against so many of the likeliest wrong classes, one after the other; None linearises all
            K - 1 boundaries in each step and takes the nearest.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 averages the logits over n fresh keys in each step; 0 for deterministic networks.
        targeted: labels are targets, to be reached: the boundary is that between this class and all others.

    Returns:
        The nearest misclassified image that was found (targeted, the nearest of the class), where it is inside the
        ball; elsewhere, and where the image is one already, exactly the image itself. In the dtype given. An empty
        batch is returned as it is.

    Raises:
        InputError: for an unknown norm, counts below 1, or arguments of the wrong shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> fab(linear, jax.random.key(0), images, labels, epsilon=0.1).ravel().round(2)
        Array([0.45, 0.45], dtype=float32)
    """
    inputs.at_least(1, num_steps=num_steps, num_restarts=num_restarts)
    if num_targets is not None:
        inputs.static(1, num_targets=num_targets)
    inputs.are_flags(targeted=targeted)
    given = inputs.check(
        logits_fn, key, images, labels, norm=norm, bounds=bounds, radii={"epsilon": epsilon}, eot_samples=eot_samples,
        keys_per_example=True, allow_infinite=True,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    if targeted:
        known = one_against_rest(given.logits_fn, given.labels)
        given = given._replace(logits_fn=known, labels=jnp.zeros_like(given.labels))
    logits = expected_logits_fn(given.logits_fn, network_key(key), num_samples=eot_samples)(given.images)
    one_by_one = num_targets is not None
    best = solve(
        search(norm=norm, targeted=one_by_one, num_steps=num_steps, bounds=given.bounds, eot_samples=eot_samples),
        given.logits_fn,
        key,
        given.images,
        given.labels,
        targets=likeliest_wrong(logits, given.labels, num_targets) if one_by_one else given.labels[None],
        epsilon=epsilon,
        num_restarts=num_restarts,
        run_all=True,
    )
    found = (best.share >= 1.0) & is_correct(logits, given.labels)
    found = found.reshape(found.shape + (1,) * (given.images.ndim - 1))
    return given.returned(jnp.where(found, best.images, given.images))
