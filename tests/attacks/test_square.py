"""Square: the published sizes and shapes, validity everywhere, and what random search can and cannot break."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from robustjax.attacks import geometry, losses, square
from robustjax.attacks._square import _bump, _dipole, _sides, search
from robustjax.attacks.engine.search import problem
from robustjax.attacks.engine.verify import is_correct, is_valid

SHAPE = (6, 11, 14, 3)
IMAGES = jnp.asarray(np.random.default_rng(3).uniform(0.0, 1.0, SHAPE), jnp.float32)
LABELS = jnp.zeros(6, jnp.int32)


def stubborn(images):
    """Two classes that nothing in the box can exchange."""
    level = jnp.mean(images, axis=(1, 2, 3))
    return jnp.stack([level + 2.0, -level], axis=1)


def test_squares_shrink_at_the_published_queries():
    sides, which = _sides("linf", 5000, 32, 32)
    changes = np.flatnonzero(np.diff(which)) + 1
    np.testing.assert_array_equal(changes, [11, 51, 201, 501, 1001, 2001, 4001])
    np.testing.assert_array_equal(sides[:8], np.round(np.sqrt(0.8 / 2.0 ** np.arange(8) * 1024)))
    assert set(_sides("l2", 10, 32, 32)[0] % 2) == {1} and min(_sides("l2", 10, 32, 32)[0]) == 3


def test_bumps_are_nested_rectangles_in_two_halves():
    np.testing.assert_allclose(_bump(3, 3), [[0.25, 0.25, 0.25], [0.25, 1.25, 0.25], [0.25, 0.25, 0.25]], atol=0.26)
    dipole = _dipole(7, "l2")
    assert np.all(dipole[:3] > 0) and np.all(dipole[3:] < 0)
    np.testing.assert_allclose([np.sum(dipole**2), np.sum(np.abs(_dipole(7, "l1")))], 1.0, rtol=1e-6)


def test_the_start_is_stripes_at_the_corners_of_the_ball(key):
    attack = search(norm="linf", num_queries=10)
    state = attack.start(attack.options, problem(key, IMAGES, LABELS, LABELS, 0.1))
    change = np.sign(np.round(np.asarray(state.best.images - IMAGES), 5))
    for stripe in np.moveaxis(change, 1, 0):  # a pixel at a wall may not move, none moves against its stripe
        assert np.all(stripe * change.sum(1) >= 0)
    np.testing.assert_array_equal(state.best.images, np.clip(IMAGES + 0.1 * np.sign(change.sum(1))[:, None], 0, 1))


@pytest.mark.parametrize("norm", toys.NORMS)
def test_every_query_is_inside_ball_and_box_and_uses_the_ball(norm, key):
    epsilon = {"linf": 0.1, "l2": 0.8, "l1": 4.0}[norm] * jnp.linspace(0.5, 1.0, 6)
    middle = 0.4 + 0.2 * IMAGES
    asked = []

    def watching(images):
        jax.debug.callback(lambda images: asked.append(np.asarray(images)), images)
        return stubborn(images)

    square(watching, key, middle, LABELS, epsilon=epsilon, norm=norm, num_queries=150)
    jax.effects_barrier()
    assert len(asked) == 150
    for images in asked:
        assert bool(jnp.all(is_valid(middle, images, epsilon=epsilon, norm=norm)))
    lengths = np.stack([geometry.get(norm).norm(images - middle) for images in asked])
    np.testing.assert_allclose(lengths, np.broadcast_to(epsilon, lengths.shape), rtol=0.02)
    # Changes are local once squares are small, and never the same twice.
    assert len(np.unique([images[0].tobytes() for images in asked])) > 100


def test_the_margin_never_falls(key):
    margins = [
        losses.margin(toys.smooth(square(toys.smooth, key, toys.IMAGES, labels, epsilon=0.02, num_queries=n)), labels)
        for labels in [jnp.argmax(toys.smooth(toys.IMAGES), axis=1)]
        for n in (1, 10, 100)
    ]
    assert np.all(margins[1] >= margins[0]) and np.all(margins[2] >= margins[1]) and np.any(margins[2] > margins[1])


@pytest.mark.parametrize(("norm", "enough"), [("linf", 1.02), ("l2", 2.0), ("l1", 4.0)])
def test_on_a_linear_network_it_breaks_what_can_be_broken(norm, enough, key):
    distances, labels = toys.binary_distances(norm)
    attack = jax.jit(
        lambda epsilon: square(toys.binary, key, toys.IMAGES, labels, epsilon=epsilon, norm=norm, num_queries=3000)
    )
    np.testing.assert_array_equal(is_correct(toys.binary(attack(0.99 * distances)), labels), True)
    np.testing.assert_array_equal(is_correct(toys.binary(attack(enough * distances)), labels), False)


def test_it_stops_asking_once_all_are_broken(key):
    queries = []

    def counting(images):
        jax.debug.callback(lambda: queries.append(1))
        return toys.binary(images)

    distances, labels = toys.binary_distances("linf")
    square(counting, key, toys.IMAGES, labels, epsilon=2 * distances, num_queries=5000)
    jax.effects_barrier()
    assert 0 < len(queries) < 500


def test_every_transformation_gives_the_same(key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)

    def attack(keys, images, labels):
        return square(toys.smooth, keys, images, labels, epsilon=0.05, norm="l2", num_queries=30)

    results = dict(toys.transformed(attack, toys.IMAGES, labels, key=key))
    for name, result in results.items():
        np.testing.assert_allclose(result, results["eager"], atol=2e-6, err_msg=name)


def test_eot_asks_for_the_mean(key):
    noisy = lambda images, key: toys.binary(images) + 0.1 * jax.random.normal(key, (images.shape[0], 2))  # noqa: E731
    distances, labels = toys.binary_distances("linf")
    adversarial = square(noisy, key, toys.IMAGES, labels, epsilon=3 * distances + 0.05, num_queries=300, eot_samples=8)
    assert not bool(jnp.any(is_correct(toys.binary(adversarial), labels)))


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (IMAGES, {"norm": "l7"}, "norm must be one of"),
        (IMAGES, {"num_queries": 0}, "num_queries must be at least 1"),
        (IMAGES[:, :, :, 0], {}, r"images must be floats \[B, H, W, C\]"),
    ],
)
def test_wrong_options_are_named(images, options, message, key):
    with pytest.raises(ValueError, match=message):
        square(stubborn, key, images, LABELS, **{"epsilon": 0.1, **options})
