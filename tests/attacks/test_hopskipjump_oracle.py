"""HopSkipJump against the algorithm written out in plain loops: starts, bisection, normals, steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import _hopskipjump
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.search import network_key
from robustjax.types import InputError

SHAPE, SIZE, STARTS = (2, 3, 2), 12, 15
LOW, HIGH = np.array([0.1, -0.3]), np.array([0.9, 1.1])  # of the two channels
SAMPLES = np.array([30, 41, 52], np.int32)
RNG = np.random.default_rng(3)
IMAGES = RNG.uniform(LOW, HIGH, (3, *SHAPE)).astype(np.float32)
WEIGHTS = RNG.normal(size=SHAPE)
CENTRE = np.broadcast_to(0.5 * (LOW + HIGH), SHAPE)
# Class 1 lies between two planes: a step along the normal may go through and out again. The images are outside.
SLAB = 0.4
for image, score in zip(IMAGES, (1.1, -0.8, 0.7), strict=True):
    image += (score - np.sum(WEIGHTS * (image - CENTRE))) * WEIGHTS / np.sum(WEIGHTS**2)
np.clip(IMAGES, LOW, HIGH, out=IMAGES)
BISECTIONS = 10


def network(images):
    centre, weights = (jnp.asarray(array, jnp.float32)[None] for array in (CENTRE, WEIGHTS))
    score = jnp.sum((images - centre) * weights, axis=(1, 2, 3))
    return jnp.stack([jnp.abs(score), jnp.full_like(score, SLAB)], axis=1)


def is_wrong(point):
    return abs(np.sum((point - CENTRE) * WEIGHTS)) <= SLAB


def length(norm, delta):
    return np.abs(delta).max() if norm == "linf" else np.sqrt(np.sum(delta**2))


def boxed(point):
    return np.clip(point, LOW, HIGH)


@pytest.fixture(params=["linf", "l2"])
def search(request, key):
    keys, labels = jax.random.split(key, 3), jnp.zeros(3, jnp.int32)
    given = inputs.check(
        network, keys, jnp.asarray(IMAGES), labels, norm=request.param, bounds=(tuple(LOW), tuple(HIGH)),
        radii={"epsilon": jnp.inf}, keys_per_example=True, allow_infinite=True,
    )  # fmt: skip
    return _hopskipjump._Search(
        given, request.param, keys, network_key(keys), SIZE, SAMPLES, 0, jnp.array([jnp.inf, jnp.inf, 10.0])
    )


# What the tests know of the inside of HopSkipJump.
def start(key, number):
    """Number of a random point of an example, in the unit box, and the share of the way to it."""
    key = jax.random.fold_in(key, number)
    colour = np.asarray(jax.random.uniform(jax.random.fold_in(key, 0), (1, 1, SHAPE[-1])), np.float64)
    noise = np.asarray(jax.random.uniform(jax.random.fold_in(key, 1), SHAPE), np.float64)
    mixture, corner, radius = np.asarray(jax.random.uniform(jax.random.fold_in(key, 2), (3,)), np.float64)
    share = min(max(1.5 * mixture - 0.25, 0.0), 1.0)
    point = share * colour + (1 - share) * noise
    return (point if corner < 0.5 else np.round(point)), max(radius, 0.1)


def direction(key, norm, step, number):
    key = jax.random.fold_in(key, (step + 1) * 2**16 + number)
    drawn = jax.random.normal(key, SHAPE) if norm == "l2" else jax.random.uniform(key, SHAPE, minval=-1.0, maxval=1.0)
    drawn = np.asarray(drawn, np.float64)
    return drawn / np.sqrt(np.sum(drawn**2))


# The algorithm
def bisected(norm, image, point):
    """The nearest misclassified one of the points tried, from the image to a misclassified point."""
    delta = point - image
    low, high = 0.0, length(norm, delta)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        part = np.clip(delta, -middle, middle) if norm == "linf" else delta * (middle / length(norm, delta))
        if is_wrong(image + part):
            high, point = middle, image + part
        else:
            low = middle
    return point


def begun(norm, key, image):
    tried = []
    for number in range(STARTS):
        target, share = start(key, number)
        tried.append(boxed(image + share * (LOW + (HIGH - LOW) * target - image)))
    found = [point for point in tried if is_wrong(point)]
    assert found and len(found) < STARTS and not is_wrong(image)
    return bisected(norm, image, min(found, key=lambda point: length(norm, point - image)))


def normal(norm, key, point, distance, step):
    width = np.mean(HIGH - LOW)
    radius = 0.1 * width if step == 0 else max(distance / SIZE, 1e-6 * math.sqrt(SIZE) * width)
    changes, sides = [], []
    for number in range(SAMPLES[step]):
        near = boxed(point + radius * direction(key, norm, step, number))
        changes.append((near - point) / radius)
        sides.append(1.0 if is_wrong(near) else -1.0)
    mean = np.mean(sides)
    return sum((side - (0.0 if abs(mean) == 1 else mean)) * change for side, change in zip(sides, changes, strict=True))


def leapt(norm, point, along, distance, step):
    """The point of the first step that stays misclassified, and how often it was halved."""
    unit = np.sign(along) if norm == "linf" else along / np.sqrt(np.sum(along**2))
    for halvings in range(12):
        moved = boxed(point + distance / math.sqrt(step + 1) * 0.5**halvings * unit)
        if is_wrong(moved):
            return moved, halvings
    return None, 12


def test_starts_and_bisection(search):
    state = jax.jit(search.begin, static_argnums=0)(STARTS, None)
    np.testing.assert_array_equal(state.count, 0)
    for image, key, point, distance in zip(IMAGES, search.keys, state.points, state.distance, strict=True):
        expected = begun(search.norm, key, image.astype(np.float64))
        np.testing.assert_allclose(point, expected, atol=1e-6)
        np.testing.assert_allclose(distance, length(search.norm, expected - image), rtol=1e-5)


def test_normals_steps_and_what_is_kept(search):
    state = jax.jit(search.begin, static_argnums=0)(STARTS, None)
    step, estimate, leap = jax.jit(search.step), jax.jit(search.normal), jax.jit(search.leap)
    halved, kept = set(), set()
    for number in range(3):
        at = jnp.int32(number)
        estimates = estimate(state, at)
        moved, hits = leap(state, estimates, at)
        after = step(state)
        np.testing.assert_array_equal(after.count, number + 1)
        for i, key in enumerate(search.keys):
            image, point = IMAGES[i].astype(np.float64), np.asarray(state.points[i], np.float64)
            distance = float(state.distance[i])
            along = normal(search.norm, key, point, distance, number)
            np.testing.assert_allclose(estimates[i], along, atol=1e-3 * np.abs(along).max())
            if i == 2:  # a point inside its ball is known: it stays
                np.testing.assert_array_equal(after.points[i], state.points[i])
                continue
            target, halvings = leapt(search.norm, point, np.asarray(estimates[i], np.float64), distance, number)
            halved.add(halvings)
            assert bool(hits[i]) == (target is not None)
            if target is None:
                target = point
            else:
                np.testing.assert_allclose(moved[i], target, atol=1e-5)
                target = bisected(search.norm, image, target)
            nearer = length(search.norm, target - image) < distance
            kept.add(nearer)
            np.testing.assert_allclose(after.points[i], target if nearer else point, atol=1e-5)
            np.testing.assert_allclose(after.distance[i], min(length(search.norm, target - image), distance), rtol=1e-5)
        state = after
    assert len(halved) > 1 and True in kept
    assert not bool(jnp.any(search.goes_on(state)))


def test_normals_where_all_points_fall_on_one_side(search):
    """Far inside and far outside: the direction is the mean of the points, into that side."""
    for points in (np.broadcast_to(CENTRE, IMAGES.shape), IMAGES):
        state = _hopskipjump.State(jnp.ones(3, jnp.int32), jnp.asarray(points, jnp.float32), jnp.full(3, 1e-3))
        found = jax.jit(search.normal)(state, jnp.int32(1))
        for key, point, along in zip(search.keys, points, found, strict=True):
            expected = normal(search.norm, key, point.astype(np.float64), 1e-3, 1)
            np.testing.assert_allclose(along, expected, atol=1e-2 * np.abs(expected).max())


def test_the_budget_is_what_the_documentation_says():
    """Starts, a hundred at most; one query of the image, one that is spared; the samples share the rest as roots."""
    for norm, size, steps, queries, starts, bisections in (
        ("linf", 24, 5, 5000, 100, 10),
        ("linf", 500, 5, 900, 90, 18),
        ("l2", 500, 5, 900, 90, 14),
        ("l2", 3072, 5, 1000, 100, 18),
        ("linf", 3072, 5, 1001, 100, 20),
        ("l2", 1, 1, 60, 6, 10),
    ):
        assert _hopskipjump._bisections(norm, size) == bisections
        number, samples = _hopskipjump._budget(norm, steps, queries, size)
        left = queries - (2 + starts + (1 + steps) * bisections + 12 * steps)
        roots = [math.sqrt(step) for step in range(1, steps + 1)]
        assert number == starts
        np.testing.assert_array_equal(samples, [int(left * root / sum(roots)) for root in roots])


def test_no_step_is_taken_where_none_stays_misclassified(search):
    state = _hopskipjump.State(jnp.zeros(3, jnp.int32), jnp.asarray(IMAGES), jnp.full(3, 1e-2))
    moved, hits = jax.jit(search.leap)(state, jnp.ones_like(state.points), jnp.int32(0))
    np.testing.assert_array_equal(moved, IMAGES)
    np.testing.assert_array_equal(hits, False)


def test_a_step_is_halved_only_until_all_that_are_looked_for_have_one(search):
    asked = []

    def watched(points):
        jax.debug.callback(lambda: asked.append(True))
        return network(points)

    search = search._replace(given=search.given._replace(logits_fn=watched))
    # The first two stay misclassified at once; the third is outside, and inside its ball.
    points = jnp.asarray(np.stack([CENTRE, CENTRE, IMAGES[2]]), jnp.float32)
    state = _hopskipjump.State(jnp.zeros(3, jnp.int32), points, jnp.full(3, 1e-3))
    _, hits = jax.block_until_ready(jax.jit(search.leap)(state, jnp.ones_like(points), jnp.int32(0)))
    jax.effects_barrier()
    np.testing.assert_array_equal(hits, [True, True, False])
    assert len(asked) == 1


@pytest.mark.parametrize("size", [24, 3072])
@pytest.mark.parametrize("steps", [1, 5, 20, 60])
def test_the_least_number_of_queries_that_is_named_is_enough_and_hardly_more(steps, size):
    with pytest.raises(InputError) as refused:
        _hopskipjump._budget("linf", steps, 10, size)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    assert _hopskipjump._budget("linf", steps, least, size)[1].min() >= 2
    with pytest.raises(InputError):
        _hopskipjump._budget("linf", steps, least - 2, size)
