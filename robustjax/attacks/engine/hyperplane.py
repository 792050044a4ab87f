"""Decision boundaries as hyperplanes, and projection onto them inside a box."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax.attacks.engine.search import likeliest_wrong
from robustjax.attacks.geometry import Bounds, walls
from robustjax.types import Array

# MALT looks at so many of the likeliest wrong classes, as published: of a thousand, most are out of reach.
NUM_LINEARISED = 100


def shortest_way(points: Array, normals: Array, gain: Array, *, norm: str, bounds: Bounds) -> Array:
    r"""The delta of least norm with ``<normals, delta> = gain`` that keeps points in the box.

    .. math:: \min \|\delta\|_p \quad \text{s.t.} \quad \langle w, \delta \rangle = g, \; x + \delta \in [lo, hi]^n

    Exact, not searched for: with ``room`` the way of a pixel to the wall that it moves towards, the solution is
    ``min(t, room)`` (linf) or ``min(t |w|, room)`` (l2) for one t, where the gain is a concave piecewise linear
    function of t, so that Newton's method from 0 ends after finitely many (in practice few) steps; in l1 pixels go to
    their walls in falling order of |w|.

    Args:
        points: [B, ...] inside the box.
        normals: w, like points.
        gain: g [B], of either sign.
        norm: "linf", "l2" or "l1".
        bounds: the box.

    Returns:
        delta like points. Where the box does not reach the hyperplane, every pixel goes to its wall: the nearest there
        is. 0 where w or g is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> points, normals = jnp.array([[0.5, 0.9]]), jnp.array([[1.0, 1.0]])
        >>> shortest_way(points, normals, jnp.array([0.4]), norm="linf", bounds=(0.0, 1.0)).round(3)
        Array([[0.3, 0.1]], dtype=float32)
    """
    shape = points.shape
    flat = points.reshape(shape[0], -1)
    direction = jnp.sign(normals.reshape(flat.shape)) * jnp.sign(gain)[:, None]
    low, high = walls(bounds, points)
    to_high, to_low = ((wall - points).reshape(flat.shape) for wall in (high, low))
    room = jnp.where(direction > 0, to_high, jnp.where(direction < 0, -to_low, 0.0))
    steepness = jnp.abs(normals.reshape(flat.shape))
    # The largest slope becomes 1, so that squares cannot underflow.
    largest = jnp.max(steepness, axis=1)
    scale = jnp.where(largest > 0, largest, 1.0)
    steepness = steepness / scale[:, None]
    wanted = jnp.abs(gain) / scale
    way = _greedy(steepness, room, wanted) if norm == "l1" else _balanced(steepness, room, wanted, norm)
    reachable = wanted < jnp.sum(steepness * room, axis=1)
    return (direction * jnp.where(reachable[:, None], way, room)).reshape(shape)


def boundary(logits_fn: Callable[[Array], Array], points: Array, labels: Array, targets: Array) -> tuple[Array, Array]:
    """The decision boundary towards a class, linearised.

    Args:
        logits_fn: images -> logits [B, K].
        points: where, [B, ...].
        labels, targets: integers [B].

    Returns:
        What the target must gain on the label, ``z_y - z_t`` [B], and the gradient of ``z_t - z_y``, like points, its
        non-finite entries as 0. Both are 0 where that gain is not finite, as of a class that the network masks by a
        logit of -inf: there is no boundary to go to.
    """
    values, pullback = jax.vjp(logits_fn, points)
    return _plane(values, pullback, labels, targets)


def nearest_boundary(
    logits_fn: Callable[[Array], Array], points: Array, labels: Array, *, norm: str
) -> tuple[Array, Array]:
    """:func:`boundary` towards the class whose linearised boundary is nearest in the norm, the box left aside.

    Classes whose logit is not finite are left out.
    """
    values, pullback = jax.vjp(logits_fn, points)

    def nearer(k: Array, nearest: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        target = jnp.zeros_like(labels) + k
        lead, normals = _plane(values, pullback, labels, target)
        distance = jnp.abs(lead) / (dual_norm(normals, norm=norm) + 1e-12)
        better = (distance < nearest[0]) & (labels != k) & jnp.isfinite(_gain(values, labels, target))
        return (
            jnp.where(better, distance, nearest[0]),
            jnp.where(better, lead, nearest[1]),
            jnp.where(better.reshape(better.shape + (1,) * (points.ndim - 1)), normals, nearest[2]),
        )

    zeros = jnp.zeros_like(values[:, 0])
    none = (zeros + jnp.inf, zeros, jnp.zeros_like(points))
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(values.shape[-1]), nearer, none)[1:]


def nearest_wrong(logits_fn: Callable[[Array], Array], images: Array, labels: Array, count: int, *, norm: str) -> Array:
    r"""The ``count`` wrong classes whose linearised boundaries are nearest, the nearest first: the targets of MALT.

    .. math:: \frac{z_y - z_c}{\|\nabla (z_y - z_c)\|_*}

    with the dual norm of the threat's (Melamed et al. 2024, arXiv 2407.02240). Classes are chosen among the 100 of the
    largest logits, at a backward pass each, one after the other, so that memory does not grow with their number. A
    boundary without a slope is out of reach and comes last; where distances are the same, as where a network hides all
    its gradients, the larger logit is first.

    Args:
        logits_fn: images -> float32 logits [B, K].
        images: [B, ...].
        labels: integers [B].
        count: at most K - 1 are returned.
        norm: "linf", "l2" or "l1", of the ball; the box is left aside.

    Returns:
        Integers [min(count, K - 1), B]. A class that is masked by a logit of -inf is not a target; if fewer classes are
        left than ``count``, the likeliest one is repeated.

    Example:
        >>> import jax.numpy as jnp
        >>> steep = lambda x: jnp.stack([x[:, 0], 0 * x[:, 0], 9 * x[:, 1]], axis=1)  # of 1, 0 and -1.8
        >>> nearest_wrong(steep, jnp.array([[1.0, -0.2]]), jnp.array([0]), 2, norm="l2").ravel()
        Array([2, 1], dtype=int32)
    """
    values, pullback = jax.vjp(logits_fn, images)
    candidates = likeliest_wrong(values, labels, max(count, NUM_LINEARISED))

    def distance(target: Array) -> Array:
        lead, normals = _plane(values, pullback, labels, target)
        slope = dual_norm(normals, norm=norm)
        return jnp.where(slope > 0, lead / jnp.where(slope > 0, slope, 1.0), jnp.inf)

    distances = jax.lax.map(distance, candidates)
    repeated = (candidates == candidates[:1]).at[0].set(False)
    order = jnp.argsort(jnp.where(repeated, jnp.inf, distances), axis=0)
    return jnp.take_along_axis(candidates, order[:count], axis=0)


def dual_norm(normals: Array, *, norm: str) -> Array:
    """The norm by which a hyperplane's distance is measured: ``|gain| / dual_norm(normals)``, [B]."""
    axes = tuple(range(1, normals.ndim))
    return {
        "linf": lambda w: jnp.sum(jnp.abs(w), axis=axes),
        "l2": lambda w: jnp.sqrt(jnp.sum(w**2, axis=axes)),
        "l1": lambda w: jnp.max(jnp.abs(w), axis=axes),
    }[norm](normals)


def _plane(values: Array, pullback: Callable, labels: Array, targets: Array) -> tuple[Array, Array]:
    num_classes = values.shape[-1]
    target, label = (jax.nn.one_hot(classes, num_classes, dtype=values.dtype) for classes in (targets, labels))
    # Zeros of the values' own: on explicit axes a cotangent is sharded as these are, whether or not the labels are.
    (normals,) = pullback(jnp.zeros_like(values) + (target - label))
    lead = _gain(values, labels, targets)
    finite = jnp.isfinite(lead)
    usable = jnp.isfinite(normals) & finite.reshape(finite.shape + (1,) * (normals.ndim - 1))
    return jnp.where(finite, lead, 0.0), jnp.where(usable, normals, 0.0)


def _gain(values: Array, labels: Array, targets: Array) -> Array:
    """``z_y - z_t``, [B]: by selection, as 0 * -inf in a product with 0 and 1 would be no number."""
    label, target = (jnp.take_along_axis(values, classes[:, None], axis=1)[:, 0] for classes in (labels, targets))
    return label - target


def _balanced(steepness: Array, room: Array, wanted: Array, norm: str) -> Array:
    """linf and l2: ``min(t * speed, room)`` for the t that gains what is wanted."""
    speed = (steepness > 0).astype(steepness.dtype) if norm == "linf" else steepness

    def newton(t: Array) -> Array:
        free = t[:, None] * speed < room
        gained = jnp.sum(jnp.where(free, 0.0, steepness * room), axis=1)
        slope = jnp.sum(jnp.where(free, steepness * speed, 0.0), axis=1)
        return jnp.where(slope > 0, (wanted - gained) / jnp.where(slope > 0, slope, 1.0), t)

    def improve(state: tuple[Array, Array]) -> tuple[Array, Array]:
        t = jnp.maximum(newton(state[0]), state[0])
        return t, t > state[0]

    start = newton(jnp.zeros_like(wanted))
    t, _ = jax.lax.while_loop(lambda state: jnp.any(state[1]), improve, (start, start > 0))
    return jnp.minimum(t[:, None] * speed, room)


def _greedy(steepness: Array, room: Array, wanted: Array) -> Array:
    """l1: the steepest pixels first, each up to its wall."""
    order = jnp.argsort(-steepness, axis=1)
    gains = jnp.take_along_axis(steepness * room, order, axis=1)
    before = jnp.cumsum(gains, axis=1) - gains
    slope = jnp.take_along_axis(steepness, order, axis=1)
    way = jnp.clip(
        (wanted[:, None] - before) / jnp.where(slope > 0, slope, 1.0), 0.0, jnp.take_along_axis(room, order, axis=1)
    )
    return jnp.take_along_axis(way, jnp.argsort(order, axis=1), axis=1)
