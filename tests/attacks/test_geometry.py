"""Geometry by its defining properties, and against brute force where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from robustjax.attacks import geometry

NORMS = ("linf", "l2", "l1")
ORDERS = {"linf": np.inf, "l2": 2, "l1": 1}
SHAPE = (16, 3, 4, 2)
EPSILON = {"linf": 0.1, "l2": 0.5, "l1": 1.5}


def _images(seed=0):
    images = np.random.default_rng(seed).uniform(0, 1, SHAPE).astype(np.float32)
    images[:4] = np.round(images[:4])  # some pixels at the walls
    return jnp.asarray(images)


def _norms(delta, norm):
    return np.linalg.norm(np.asarray(delta, np.float64).reshape(len(delta), -1), ORDERS[norm], axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_norm_matches_numpy(norm, key):
    delta = jax.random.normal(key, SHAPE)
    np.testing.assert_allclose(geometry.get(norm).norm(delta), _norms(delta, norm), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_fills_the_ball_evenly(norm, key):
    images = jnp.zeros((4000, 2))
    delta = geometry.get(norm).random_start(key, images, 0.7)
    radii = _norms(delta, norm)
    assert radii.max() <= 0.7 * (1 + 1e-6)
    # In two dimensions the radius of a uniform point is distributed as sqrt(u): its square is uniform.
    shares = np.histogram((radii / 0.7) ** 2, bins=10, range=(0, 1))[0] / 4000
    assert np.all(np.abs(shares - 0.1) < 5 * np.sqrt(0.09 / 4000))
    np.testing.assert_allclose(np.mean(delta, 0), 0, atol=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_lands_in_ball_and_box_and_leaves_insiders_alone(norm, key):
    images, epsilon = _images(), EPSILON[norm]
    shape = geometry.get(norm)
    points = images + 0.5 * jax.random.normal(key, SHAPE)
    projected = shape.project(images, points, epsilon, (0.0, 1.0))
    assert float(projected.min()) >= 0 and float(projected.max()) <= 1
    assert np.all(_norms(projected - images, norm) <= epsilon * (1 + 1e-6) + np.finfo(np.float32).eps)
    again = shape.project(images, projected, epsilon, (0.0, 1.0))
    np.testing.assert_allclose(again, projected, atol=2e-7)
    np.testing.assert_array_equal(shape.project(images, images, epsilon, (0.0, 1.0)), images)


def test_l1_projection_is_the_nearest_point(key):
    images, epsilon = np.asarray(_images()[:4, :1, :2, :1], np.float64).reshape(4, 2), 0.3
    points = images + np.asarray(jax.random.normal(key, images.shape), np.float64)
    ours = geometry.get("l1").project(jnp.asarray(images, jnp.float32), jnp.asarray(points, jnp.float32), 0.3, (0, 1))
    for image, point, projected in zip(images, points, np.asarray(ours), strict=True):
        # Positive and negative part make the l1 ball linear, so a quadratic program solver can be the oracle.
        found = optimize.minimize(
            lambda parts, image=image, point=point: np.sum((image + parts[:2] - parts[2:] - point) ** 2),
            np.zeros(4),
            bounds=[(0, 1 - value) for value in image] + [(0, value) for value in image],
            constraints={"type": "ineq", "fun": lambda parts: epsilon - np.sum(parts)},
            tol=1e-12,
        )
        np.testing.assert_allclose(projected, image + found.x[:2] - found.x[2:], atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_has_unit_norm_and_no_random_direction_beats_it(norm, key):
    images = jnp.full(SHAPE, 0.5)
    gradient = jax.random.normal(key, SHAPE)
    direction = geometry.get(norm).steepest(gradient, images, (0.0, 1.0))
    np.testing.assert_allclose(_norms(direction, norm), 1.0, rtol=1e-5)
    gain = np.sum(np.asarray(direction * gradient).reshape(len(direction), -1), 1)
    others = jax.random.normal(jax.random.key(1), (500, *SHAPE))
    lengths = jax.vmap(geometry.get(norm).norm)(others)
    gains = jnp.sum((others * gradient[None]).reshape(500, SHAPE[0], -1), -1) / lengths
    assert np.all(gain >= np.max(gains, 0) * (1 - 1e-6))


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_of_zero_is_zero_and_of_tiny_gradients_is_not(norm):
    images = jnp.full(SHAPE, 0.5)
    steepest = geometry.get(norm).steepest
    np.testing.assert_array_equal(steepest(jnp.zeros(SHAPE), images, (0.0, 1.0)), 0.0)
    # Squares of these underflow in float32.
    np.testing.assert_allclose(_norms(steepest(jnp.full(SHAPE, 1e-30), images, (0.0, 1.0)), norm), 1.0, rtol=1e-5)


def test_l1_steepest_skips_pixels_that_cannot_move():
    images = jnp.array([[[[1.0]], [[0.5]]]])
    direction = geometry.get("l1").steepest(jnp.array([[[[9.0]], [[1.0]]]]), images, (0.0, 1.0))
    np.testing.assert_array_equal(direction.ravel(), [0.0, 1.0])


@pytest.mark.parametrize("norm", NORMS)
def test_one_epsilon_per_example(norm, key):
    images = jnp.full((3, 4, 4, 1), 0.5)
    epsilon = jnp.array([0.0, 0.1, 0.2])
    points = images + jax.random.normal(key, images.shape)
    projected = geometry.get(norm).project(images, points, epsilon, (0.0, 1.0))
    np.testing.assert_allclose(_norms(projected - images, norm), epsilon, atol=1e-6)
    with pytest.raises(ValueError, match="3 examples"):
        geometry.get(norm).project(images, points, jnp.zeros(2), (0.0, 1.0))


def test_unknown_norm_lists_the_known():
    with pytest.raises(ValueError, match=r"linf, l2, l1, got 'l3'"):
        geometry.get("l3")


def test_l1_steps_leave_out_only_pixels_that_would_be_pushed_through_their_wall():
    images = jnp.array([[0.0, 0.0, 1.0, 1.0]])
    gradient = jnp.array([[3.0, -4.0, 5.0, -2.0]])  # free, blocked, blocked, free
    direction = geometry.get("l1").steepest(gradient, images, (0.0, 1.0))
    np.testing.assert_array_equal(direction, [[1.0, 0.0, 0.0, 0.0]])
    direction = geometry.get("l1").steepest(-gradient, images, (0.0, 1.0))
    np.testing.assert_array_equal(direction, [[0.0, 0.0, -1.0, 0.0]])


def test_an_l1_step_moves_a_hundredth_of_the_pixels():
    gradient = jnp.arange(1.0, 301.0)[None]
    direction = geometry.get("l1").steepest(gradient, jnp.full((1, 300), 0.5), (0.0, 1.0))
    np.testing.assert_allclose(direction[0, -3:], 1 / 3, rtol=1e-6)
    assert not direction[0, :-3].any()


def test_the_l1_projection_knows_where_the_box_begins():
    images, points = jnp.array([[-0.8, 0.0]]), jnp.array([[-3.0, 0.1]])
    moved = geometry.get("l1").project(images, points, 0.25, (-1.0, 1.0))
    # The first pixel has a way of 0.2 to its wall; the rest of the radius is the second's.
    np.testing.assert_allclose(moved, [[-1.0, 0.05]], atol=1e-6)
