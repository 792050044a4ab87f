"""FAB and the projections under it: linear programs and closed forms as oracles, every way of calling it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from scipy import optimize

from robustjax.attacks import _fab, fab, geometry
from robustjax.attacks.engine.hyperplane import nearest_boundary, shortest_way
from robustjax.attacks.engine.search import problem
from robustjax.attacks.engine.verify import is_correct, is_valid

RNG = np.random.default_rng(1)
BOUNDS = (-0.5, 1.0)


def _least_norm(point, normal, gain, norm):
    """The optimum by a general solver, in float64."""
    low, high = BOUNDS[0] - point, BOUNDS[1] - point
    n = len(point)
    if norm == "l2":
        multiplier = optimize.brentq(lambda t: normal @ np.clip(t * normal, low, high) - gain, -1e6, 1e6)
        return np.linalg.norm(np.clip(multiplier * normal, low, high))
    # |delta| <= magnitude, minimise its maximum or its sum.
    size = np.ones((n, 1)) if norm == "linf" else np.eye(n)
    eye = np.eye(n)
    solution = optimize.linprog(
        np.r_[np.zeros(n), np.ones(size.shape[1])],
        A_ub=np.block([[eye, -size], [-eye, -size]]),
        b_ub=np.zeros(2 * n),
        A_eq=np.r_[normal, np.zeros(size.shape[1])][None],
        b_eq=[gain],
        bounds=[*zip(low, high, strict=True), *[(0, None)] * size.shape[1]],
    )
    return solution.fun


@pytest.mark.parametrize("norm", toys.NORMS)
def test_the_way_onto_a_hyperplane_is_the_shortest_in_the_box(norm):
    points = RNG.uniform(*BOUNDS, (24, 6))
    points[:4] = np.where(RNG.random((4, 6)) < 0.5, *BOUNDS)  # pixels at their walls
    normals = RNG.normal(size=(24, 6))
    normals[4:8, :3] = 0.0
    reach = np.maximum(normals * (BOUNDS[0] - points), normals * (BOUNDS[1] - points)).sum(1)
    fall = np.minimum(normals * (BOUNDS[0] - points), normals * (BOUNDS[1] - points)).sum(1)
    share = RNG.uniform(0.05, 0.95, 24)
    gain = np.where(np.arange(24) % 2 == 0, share * reach, share * fall)
    delta = shortest_way(*(jnp.asarray(x, jnp.float32) for x in (points, normals, gain)), norm=norm, bounds=BOUNDS)
    np.testing.assert_allclose(np.sum(normals * delta, axis=1), gain, atol=2e-5)
    assert np.all(points + delta >= BOUNDS[0] - 1e-6) and np.all(points + delta <= BOUNDS[1] + 1e-6)
    expected = [_least_norm(*row, norm) for row in zip(points, normals, gain, strict=True)]
    np.testing.assert_allclose(geometry.get(norm).norm(delta), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", toys.NORMS)
def test_out_of_reach_every_pixel_goes_to_its_wall(norm):
    points, normals = jnp.array([[0.5, 0.0, 0.3]]), jnp.array([[1.0, -2.0, 0.0]])
    delta = shortest_way(points, normals, jnp.array([100.0]), norm=norm, bounds=BOUNDS)
    np.testing.assert_allclose(delta, [[0.5, -0.5, 0.0]], atol=1e-6)
    still = shortest_way(points, normals * 0, jnp.array([1.0]), norm=norm, bounds=BOUNDS)
    np.testing.assert_array_equal(still, jnp.zeros_like(points))


@pytest.mark.parametrize("norm", toys.NORMS)
def test_the_nearest_boundary_is_the_closed_forms(norm):
    distances, labels = toys.linear_distances(norm)

    @jax.jit
    def nearest(place):
        turned = lambda images: jnp.roll(toys.linear(images), place, axis=1)  # noqa: E731
        return nearest_boundary(turned, toys.IMAGES, (jnp.asarray(labels) + place) % toys.NUM_CLASSES, norm=norm)

    for place in range(toys.NUM_CLASSES):  # wherever among the classes the nearest one is
        lead, normals = nearest(place)
        dual = np.linalg.norm(normals.reshape(16, -1), toys.DUAL[norm], axis=1)
        np.testing.assert_allclose(lead / dual, distances, rtol=1e-4)


def _onto(normal, gain, norm):
    """The shortest way onto a plane without a box."""
    if norm == "l2":
        return gain * normal / np.sum(normal**2)
    if norm == "linf":
        return gain * np.sign(normal) / np.sum(np.abs(normal))
    way, largest = np.zeros(len(normal)), np.argmax(np.abs(normal))
    way[largest] = gain / normal[largest]
    return way


@pytest.mark.parametrize("norm", toys.NORMS)
def test_every_step_is_the_published_one(norm, key):
    images = np.asarray(toys.IMAGES, np.float64).reshape(16, -1)
    hidden, readout = np.asarray(toys.HIDDEN, np.float64), np.asarray(toys.READOUT, np.float64)
    labels = np.argmax(np.tanh(images @ hidden) @ readout, axis=1)
    targets, epsilon = (labels + 1) % toys.NUM_CLASSES, np.full(16, 0.5)
    posed = problem(
        jax.random.split(key, 16), toys.IMAGES, labels, targets, epsilon.astype(np.float32), np.ones(16, np.int32)
    )
    attack = _fab.search(norm=norm, targeted=True, num_steps=6, bounds=(-50.0, 50.0))
    state = attack.start(attack.options, posed)
    points = np.asarray(state.points, np.float64).reshape(16, -1)
    away = np.linalg.norm(points - images, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    np.testing.assert_allclose(away, 0.25, rtol=1e-5)
    nearest, found = np.full(16, np.inf), images.copy()
    for _ in range(6):
        state = attack.step(attack.options, toys.smooth, key, posed, state)
        for i, (image, point, label, target) in enumerate(zip(images, points.copy(), labels, targets, strict=True)):
            active = np.tanh(point @ hidden)
            slopes = (hidden * (1 - active**2)) @ readout
            normal = slopes[:, target] - slopes[:, label]
            lead = active @ readout[:, label] - active @ readout[:, target]
            from_point = _onto(normal, lead, norm)
            from_image = _onto(normal, lead + normal @ (point - image), norm)
            of = lambda way: np.linalg.norm(way, {"linf": np.inf, "l2": 2, "l1": 1}[norm])  # noqa: E731
            share = min(of(from_point) / (of(from_point) + of(from_image)), 0.1)
            moved = (1 - share) * (point + 1.05 * from_point) + share * (image + 1.05 * from_image)
            fooled = np.argmax(np.tanh(moved @ hidden) @ readout) != label
            if fooled and of(moved - image) < nearest[i]:
                nearest[i], found[i] = of(moved - image), moved
            points[i] = image + 0.9 * (moved - image) if fooled else moved
        np.testing.assert_allclose(state.points.reshape(16, -1), points, rtol=1e-3, atol=1e-3)
        points = np.asarray(state.points, np.float64).reshape(16, -1)  # rounding does not add up over steps
    assert np.isfinite(nearest).sum() >= 8
    np.testing.assert_allclose(state.best.images.reshape(16, -1), found, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(state.best.share == 1.0, nearest <= 0.5)


def test_the_first_run_begins_at_the_image_and_is_that_unless_another_is_asked_for(key):
    search = _fab.search(norm="l2", targeted=False, num_steps=1)
    first, second = (
        problem(key, toys.IMAGES, jnp.zeros(16, jnp.int32), jnp.zeros(16, jnp.int32), 0.5, *restart)
        for restart in ((), (1,))
    )
    np.testing.assert_array_equal(search.start(search.options, first).points, toys.IMAGES)
    assert bool(jnp.all(jnp.any(search.start(search.options, second).points != toys.IMAGES, axis=(1, 2, 3))))


@pytest.mark.parametrize("norm", toys.NORMS)
@pytest.mark.parametrize("num_targets", [9, None])
def test_it_finds_the_nearest_image_of_another_class(norm, num_targets, key):
    distances, labels = toys.linear_distances(norm)
    options = {"norm": norm, "num_targets": num_targets, "num_steps": 30}
    adversarial = fab(toys.linear, key, toys.IMAGES, labels, epsilon=jnp.inf, **options)
    assert not bool(jnp.any(is_correct(toys.linear(adversarial), labels)))
    np.testing.assert_allclose(geometry.get(norm).norm(adversarial - toys.IMAGES), distances, rtol=0.01)


def test_curved_boundaries_are_found_too(key):
    distances, labels = toys.voronoi_distances()
    adversarial = fab(toys.nearest_centre, key, toys.IMAGES, labels, epsilon=1.02 * distances, norm="l2", num_steps=40)
    assert not bool(jnp.any(is_correct(toys.nearest_centre(adversarial), labels)))
    assert bool(jnp.all(is_valid(toys.IMAGES, adversarial, epsilon=1.02 * distances, norm="l2")))


def test_what_is_beyond_epsilon_stays_as_it_is(key):
    distances, labels = toys.linear_distances("linf")
    epsilon = jnp.where(jnp.arange(16) % 2 == 0, 1.05, 0.95) * distances
    adversarial = fab(toys.linear, key, toys.IMAGES, labels, epsilon=epsilon, num_steps=20)
    np.testing.assert_array_equal(is_correct(toys.linear(adversarial), labels), jnp.arange(16) % 2 == 1)
    np.testing.assert_array_equal(adversarial[1::2], toys.IMAGES[1::2])


def test_every_transformation_gives_the_same(key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)

    def attack(keys, images, labels):
        return fab(toys.smooth, keys, images, labels, epsilon=0.5, num_steps=5, num_targets=None, num_restarts=2)

    results = dict(toys.transformed(attack, toys.IMAGES, labels, key=key))
    for name, result in results.items():
        np.testing.assert_allclose(result, results["eager"], atol=2e-6, err_msg=name)


def test_eot_and_two_classes(key):
    # Single draws see no gradient half of the time.
    def hiding(images, key):
        return toys.binary(images) * jax.random.bernoulli(key, 0.5, (images.shape[0], 1)).astype(jnp.float32)

    distances, labels = toys.binary_distances("linf")
    adversarial = fab(hiding, key, toys.IMAGES, labels, epsilon=1.02 * distances, num_steps=10, eot_samples=16)
    assert not bool(jnp.any(is_correct(toys.binary(adversarial), labels)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l7"}, "norm must be one of"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_targets": 0}, "num_targets must be at least 1"),
        ({"num_restarts": 0}, "num_restarts must be at least 1"),
    ],
)
def test_wrong_options_are_named(options, message, key):
    with pytest.raises(ValueError, match=message):
        fab(toys.linear, key, toys.IMAGES, jnp.zeros(16, jnp.int32), **{"epsilon": 0.1, **options})
