"""Norm-ball geometry: random start, steepest-ascent direction, projection, norm.

:func:`get` returns them as one :class:`Geometry`, for "linf", "l2" or "l1". ``epsilon`` is a number or one for each
example [B]. Images are [B, ..., C] of any rank. ``bounds`` is the box of valid pixels: two numbers, or two tuples of
one number for each channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax.types import Array, InputError, Key

# Lowest and highest valid pixel: two floats, or two tuples of one float for each channel. Hashable.
Bounds = tuple[Any, Any]

# Share of the coordinates that one l1 step moves. The exact steepest direction moves a single one, which wastes a
# gradient; Tramer and Boneh (2019, arXiv 1904.13000) move the top hundredth.
L1_STEP_FRACTION = 0.01

# Standard deviation of the start that TRADES published instead of a uniform one.
GAUSSIAN_START = 0.001


class Geometry(NamedTuple):
    r"""The operations of a norm that attacks use.

    The steepest direction of a gradient g is :math:`\mathrm{sign}(g)` in linf and :math:`g / \|g\|_2` in l2. In l1,
    where the exact one would move a single coordinate, it is :math:`\mathrm{sign}(g_j) / n` at the n strongest
    coordinates, a hundredth of all, that are not yet at the wall they would be pushed through.

    Attributes:
        random_start: ``(key, images, epsilon) -> delta``, uniform in the ball of radius epsilon around 0.
        steepest: ``(gradient, images, bounds) -> direction`` of unit norm along which a linear loss grows fastest; 0
            where the gradient is 0.
        project: ``(images, points, epsilon, bounds) -> points`` moved into the ball around images and into the box. In
            linf and l1 that is the nearest point of both; in l2 the nearest of the ball, clipped to the box.
        norm: ``(delta) -> [B]``.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient, images = jnp.array([[0.0, -4.0]]), jnp.full((1, 2), 0.5)
        >>> get("l2").steepest(gradient, images, (0.0, 1.0))
        Array([[ 0., -1.]], dtype=float32)
        >>> get("linf").project(images, images + gradient, 0.25, (0.0, 1.0))
        Array([[0.5 , 0.25]], dtype=float32)
    """

    random_start: Callable[[Key, Array, Array | float], Array]
    steepest: Callable[[Array, Array, Bounds], Array]
    project: Callable[[Array, Array, Array | float, Bounds], Array]
    norm: Callable[[Array], Array]


def get(norm: str) -> Geometry:
    """The geometry of a norm by its name.

    Raises:
        InputError: for an unknown name, listing the known ones.

    Example:
        >>> import jax.numpy as jnp
        >>> get("l2").norm(jnp.array([[3.0, 4.0]]))
        Array([5.], dtype=float32)
    """
    if not isinstance(norm, str) or norm not in GEOMETRIES:
        raise InputError(f"norm must be one of {', '.join(GEOMETRIES)}, got {norm!r}; choose one of these")
    return GEOMETRIES[norm]


def start(
    norm: str, key: Key, images: Array, epsilon: Array | float, bounds: Bounds, *, random_start: bool | str
) -> Array:
    """The points at which an attack starts, inside ball and box.

    Args:
        norm: of the ball.
        key: of the draws.
        images: [B, ..., C], the centres.
        epsilon: radius, a number or one for each example [B].
        bounds: the box.
        random_start: True draws uniformly in the ball, False is the image itself, and "gaussian" x + 0.001 N(0, 1), as
            in TRADES (Zhang et al. 2019).

    Example:
        >>> images = jnp.array([[0.5, 0.5]])
        >>> start("linf", jax.random.key(0), images, 0.1, (0.0, 1.0), random_start=False)
        Array([[0.5, 0.5]], dtype=float32)
    """
    if not random_start:
        return images
    ball = get(norm)
    if random_start == "gaussian":
        delta = GAUSSIAN_START * jax.random.normal(key, images.shape, images.dtype)
    else:
        delta = ball.random_start(key, images, epsilon)
    return ball.project(images, images + delta, epsilon, bounds)


def per_example(values: Array | float, images: Array) -> Array:
    """A number, or one per example [B], shaped to broadcast against images.

    Raises:
        InputError: it is neither.

    Example:
        >>> import jax.numpy as jnp
        >>> per_example(jnp.array([0.1, 0.2]), jnp.zeros((2, 4, 4, 3))).shape
        (2, 1, 1, 1)
    """
    values = jnp.asarray(values, images.dtype)
    if values.ndim == 0:
        return values
    if values.shape != images.shape[:1]:
        wanted = f"a number, or one for each of {images.shape[0]} examples"
        raise InputError(f"values must be {wanted}, got shape {list(values.shape)}; give one number for all")
    return values.reshape(values.shape + (1,) * (images.ndim - 1))


def walls(bounds: Bounds, images: Array) -> tuple[Any, Any]:
    """Lowest and highest pixel: numbers as they are, and those of channels shaped to broadcast against images.

    Example:
        >>> import jax.numpy as jnp
        >>> walls(((0.0, 0.0), (1.0, 0.5)), jnp.zeros((3, 2)))[1]
        Array([[1. , 0.5]], dtype=float32)
    """
    if not isinstance(bounds[0], tuple):
        return bounds
    low, high = (jnp.asarray(wall, images.dtype).reshape((1,) * (images.ndim - 1) + (-1,)) for wall in bounds)
    return low, high


def _pixel_axes(delta: Array) -> tuple[int, ...]:
    return tuple(range(1, delta.ndim))


def _linf_random_start(key: Key, images: Array, epsilon: Array | float) -> Array:
    return per_example(epsilon, images) * jax.random.uniform(key, images.shape, images.dtype, -1.0, 1.0)


def _linf_steepest(gradient: Array, images: Array, bounds: Bounds) -> Array:
    del images, bounds
    return jnp.sign(gradient)


def _linf_project(images: Array, points: Array, epsilon: Array | float, bounds: Bounds) -> Array:
    radius, (low, high) = per_example(epsilon, images), walls(bounds, images)
    return jnp.clip(points, jnp.maximum(images - radius, low), jnp.minimum(images + radius, high))


def _linf_norm(delta: Array) -> Array:
    return jnp.max(jnp.abs(delta), axis=_pixel_axes(delta))


def _unit_l2(delta: Array) -> Array:
    """delta / ||delta||_2, and 0 for 0. Scaled by the largest entry first, so that squares cannot underflow."""
    largest = jnp.max(jnp.abs(delta), axis=_pixel_axes(delta), keepdims=True)
    scaled = delta / jnp.where(largest > 0, largest, 1.0)
    squares = jnp.sum(scaled**2, axis=_pixel_axes(delta), keepdims=True)
    return scaled / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))


def _l2_random_start(key: Key, images: Array, epsilon: Array | float) -> Array:
    key_direction, key_radius = jax.random.split(key)
    direction = _unit_l2(jax.random.normal(key_direction, images.shape, images.dtype))
    uniform = jax.random.uniform(key_radius, images.shape[:1], images.dtype)
    radius = uniform ** (1.0 / _dimension(images))
    return per_example(epsilon, images) * per_example(radius, images) * direction


def _l2_steepest(gradient: Array, images: Array, bounds: Bounds) -> Array:
    del images, bounds
    return _unit_l2(gradient)


def _l2_project(images: Array, points: Array, epsilon: Array | float, bounds: Bounds) -> Array:
    # Clipping towards a box that holds the image only shrinks every coordinate of delta, so ball, then box, is in both.
    delta = points - images
    shrink = jnp.minimum(1.0, per_example(epsilon, images) / per_example(_at_least_tiny(_l2_norm(delta)), images))
    return jnp.clip(images + delta * shrink, *walls(bounds, images))


def _l2_norm(delta: Array) -> Array:
    return jnp.sqrt(jnp.sum(delta**2, axis=_pixel_axes(delta)))


def _l1_random_start(key: Key, images: Array, epsilon: Array | float) -> Array:
    # n exponentials divided by the sum of n + 1 are uniform in the simplex with its interior; signs make it the ball.
    key_magnitude, key_sign, key_slack = jax.random.split(key, 3)
    magnitude = jax.random.exponential(key_magnitude, images.shape, images.dtype)
    slack = jax.random.exponential(key_slack, images.shape[:1], images.dtype)
    sign = jax.random.rademacher(key_sign, images.shape, images.dtype)
    total = jnp.sum(magnitude, axis=_pixel_axes(images)) + slack
    return per_example(epsilon, images) * sign * magnitude / per_example(total, images)


def _l1_steepest(gradient: Array, images: Array, bounds: Bounds) -> Array:
    # A coordinate already at the wall it would be pushed through cannot move: leave it out of the choice.
    low, high = walls(bounds, images)
    blocked = ((gradient > 0) & (images >= high)) | ((gradient < 0) & (images <= low))
    strength = jnp.where(blocked, 0.0, jnp.abs(gradient)).reshape(images.shape[0], -1)
    count = max(1, round(L1_STEP_FRACTION * strength.shape[1]))
    weakest = jax.lax.top_k(strength, count)[0][:, -1]
    chosen = (strength >= weakest[:, None]) & (strength > 0)
    total = jnp.maximum(jnp.sum(chosen, axis=1), 1).astype(images.dtype)
    return jnp.sign(gradient) * chosen.reshape(images.shape).astype(images.dtype) / per_example(total, images)


def _l1_project(images: Array, points: Array, epsilon: Array | float, bounds: Bounds) -> Array:
    """The nearest point of ball and box together (Croce and Hein 2021, arXiv 2103.01208).

    It is ``sign(d) * clip(|d| - t, 0, room)`` for the smallest t >= 0 that brings the sum of magnitudes down to
    epsilon, ``room`` being the way from the pixel to its wall. The sum falls with t, so t is found by bisection.
    """
    delta, (low, high) = points - images, walls(bounds, images)
    room = jnp.where(delta > 0, high - images, images - low)
    magnitude = jnp.abs(delta)
    radius = jnp.broadcast_to(per_example(epsilon, images), images.shape[:1] + (1,) * (images.ndim - 1))

    def shrunk(threshold: Array) -> Array:
        return jnp.clip(magnitude - threshold, 0.0, room)

    def halve(_, interval: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = interval
        middle = 0.5 * (low + high)
        too_long = jnp.sum(shrunk(middle), axis=_pixel_axes(images), keepdims=True) > radius
        return jnp.where(too_long, middle, low), jnp.where(too_long, high, middle)

    largest = jnp.max(magnitude, axis=_pixel_axes(images), keepdims=True)
    # 30 halvings leave an interval of one float32 rounding of the largest coordinate.
    _, threshold = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(largest), largest))
    fits = jnp.sum(shrunk(jnp.zeros_like(largest)), axis=_pixel_axes(images), keepdims=True) <= radius
    moved = jnp.sign(delta) * shrunk(jnp.where(fits, 0.0, threshold))
    return jnp.clip(images + moved, low, high)


def _l1_norm(delta: Array) -> Array:
    return jnp.sum(jnp.abs(delta), axis=_pixel_axes(delta))


def _dimension(images: Array) -> int:
    return max(1, math.prod(images.shape[1:]))


def _at_least_tiny(values: Array) -> Array:
    return jnp.maximum(values, jnp.finfo(values.dtype).tiny)


GEOMETRIES = {
    "linf": Geometry(_linf_random_start, _linf_steepest, _linf_project, _linf_norm),
    "l2": Geometry(_l2_random_start, _l2_steepest, _l2_project, _l2_norm),
    "l1": Geometry(_l1_random_start, _l1_steepest, _l1_project, _l1_norm),
}
