"""Square against the algorithm written out in plain loops: every query, the point that is kept, windows and masses."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import _square
from robustjax.attacks.engine.search import problem

HEIGHT, WIDTH, CHANNELS, COUNT = 11, 14, 3, 4
RNG = np.random.default_rng(5)
# The last two examples are near the walls of the box, where part of epsilon is left to be spent.
IMAGES = np.concatenate(
    [RNG.uniform(0.3, 0.7, (2, HEIGHT, WIDTH, CHANNELS)), RNG.uniform(0.0, 1.0, (2, HEIGHT, WIDTH, CHANNELS))]
).astype(np.float32)
WEIGHTS = RNG.normal(size=(HEIGHT * WIDTH * CHANNELS, 3)).astype(np.float32)
EPSILON = {"linf": 0.1, "l2": 1.5, "l1": 12.0}
SCALES = np.array([0.5, 1.0, 0.8, 2.0])


# What the tests know of the inside of Square.
def draws(key, number):
    """Of query `number` of an example: where its windows are, four numbers, whether the bump is transposed, signs."""
    uniform = np.asarray(jax.random.uniform(jax.random.fold_in(key, number), (5 + CHANNELS,)), np.float64)
    return uniform[:4], uniform[4] < 0.5, np.where(uniform[5:] < 0.5, -1.0, 1.0)


def first_signs(key, *shape):
    return np.asarray(jax.random.rademacher(jax.random.fold_in(key, 0), shape, jnp.float32), np.float64)


def at(state, number, best=None):
    """The state before query `number`."""
    count = jnp.full_like(state.count, number)
    return state._replace(count=count, best=state.best if best is None else state.best._replace(images=best))


def network(images):
    """Three classes; the first one, which is the label, is far ahead."""
    logits = 0.1 * (images.reshape(-1, HEIGHT * WIDTH * CHANNELS) @ jnp.asarray(WEIGHTS))
    return jnp.sin(logits) + jnp.asarray([[5.0, 0.0, 0.0]])


def margin(point):
    first, second, third = np.sin(0.1 * (point.ravel() @ WEIGHTS.astype(np.float64)))
    return max(second, third) - (first + 5.0)


def share(number):
    """Of the pixels that change number 0, 1, ... covers."""
    halved_after = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    return 0.8 / 2 ** sum(number > queries for queries in halved_after)


def side(number, norm, height=HEIGHT, width=WIDTH):
    length = round(math.sqrt(share(number) * height * width))
    if norm == "linf":
        return max(length, 1)
    length = max(length, 3)
    return min(length + 1 - length % 2, height, width)  # odd, for a bump to have a middle


def power(norm):
    return 2 if norm == "l2" else 1


def length_of(values, norm):
    return (np.abs(values) ** power(norm)).sum() ** (1 / power(norm))


def hill(rows, columns, norm):
    """Nested squares around the middle, the r-th of them 1 / r^2 higher; of norm 1."""
    values = np.zeros((rows, columns))
    for r in range(max(rows // 2, columns // 2) + 1):
        for i in range(rows):
            for j in range(columns):
                if abs(i - rows // 2) <= r and abs(j - columns // 2) <= r:
                    values[i, j] += 1 / (r + 1) ** 2
    return values / length_of(values, norm) if values.size else values


def bump(size, norm, transposed):
    """A hill above and a valley below, of norm 1."""
    values = np.concatenate([hill(size // 2, size, norm), -hill(size - size // 2, size, norm)])
    values /= length_of(values, norm)
    return values.T if transposed else values


def corner(uniform, length, size):
    """Of a window, uniformly over the length - size + 1 places that it has."""
    return min(int(uniform * (length - size + 1)), length - size)


def spent(delta, image, epsilon, norm):
    """The whole of epsilon in the direction of delta, as far as the box lets it."""
    return np.clip(image + delta * epsilon / length_of(delta, norm), 0, 1)


def start(image, key, epsilon, norm):
    if norm == "linf":
        signs = first_signs(key, 1, WIDTH, CHANNELS)
        return np.clip(image + epsilon * np.repeat(signs, HEIGHT, axis=0), 0, 1)
    # A grid of bumps in the middle of the image, whose sides are a fifth of it.
    size = min(HEIGHT, WIDTH) // 5
    rows, columns = HEIGHT // size, WIDTH // size
    top, left = (HEIGHT - rows * size) // 2, (WIDTH - columns * size) // 2
    signs = first_signs(key, rows * columns, CHANNELS + 1)
    delta = np.zeros_like(image)
    for i in range(rows):
        for j in range(columns):
            *channels, upright = signs[i * columns + j]
            tile = delta[top + i * size : top + (i + 1) * size, left + j * size : left + (j + 1) * size]
            tile[:] = bump(size, norm, upright < 0)[..., None] * np.array(channels)
    return spent(delta, image, epsilon, norm)


def query(best, image, key, number, epsilon, norm):
    """The point of query `number` = 1, 2, ..., a change of the best point."""
    size = side(number - 1, norm)
    places, transposed, signs = draws(key, number)
    top, left = corner(places[0], HEIGHT, size), corner(places[1], WIDTH, size)
    here = np.s_[top : top + size, left : left + size]
    if norm == "linf":
        point = best.copy()
        point[here] += 2 * epsilon * signs
        return np.clip(np.clip(point, image - epsilon, image + epsilon), 0, 1)
    top, left = corner(places[2], HEIGHT, size), corner(places[3], WIDTH, size)
    there = np.s_[top : top + size, left : left + size]
    delta, p = best - image, power(norm)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[here] = inside[there] = True
    # What both windows held is the window's now, for every channel, and its share of what the image had not spent.
    spare = max(epsilon**p - (np.abs(delta) ** p).sum(), 0)
    mass = (np.abs(delta[inside]) ** p).sum() + spare / CHANNELS
    new = np.zeros((size, size, CHANNELS))
    for c in range(CHANNELS):
        shape = bump(size, norm, transposed) * signs[c]
        old = delta[here][..., c]
        shape = shape + old / (length_of(old, norm) + 1e-12)
        new[..., c] = shape / length_of(shape, norm) * mass ** (1 / p)
    delta[there] = 0
    delta[here] = new
    return spent(delta, image, epsilon, norm)


def begun(norm, num_queries):
    """Square and its oracle at the start: a function for one query, the problem, the state, the keys, epsilon."""
    epsilon = (EPSILON[norm] * SCALES).astype(np.float32)
    labels = jnp.zeros(COUNT, jnp.int32)
    posed = problem(jax.random.key(3), jnp.asarray(IMAGES), labels, labels, epsilon)
    search = _square.search(norm=norm, num_queries=num_queries)

    @jax.jit
    def ask(state):
        """The state after a query, and the points that were asked about."""
        asked = []
        watching = lambda points: (asked.append(points), network(points))[1]  # noqa: E731
        return search.step(search.options, watching, jax.random.key(1), posed, state), asked[0]

    return ask, search.start(search.options, posed), list(posed.keys), epsilon.astype(np.float64)


each = partial(zip, strict=True)
close = partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("norm", EPSILON)
def test_every_query_is_that_of_the_paper(norm):
    images = IMAGES.astype(np.float64)
    ask, state, keys, epsilons = begun(norm, 80)
    best = [start(*example, norm) for example in each(images, keys, epsilons)]
    margins, kept = [-np.inf] * COUNT, np.zeros(COUNT)
    for number in range(80):
        wanted = best
        if number:
            wanted = [query(b, i, k, number, e, norm) for b, i, k, e in each(best, images, keys, epsilons)]
        state, asked = ask(state)
        close(asked, wanted, err_msg=f"query {number}")
        best = [np.asarray(one, np.float64) for one in state.best.images]
        for i, point in enumerate(np.asarray(asked, np.float64)):
            if margin(point) > margins[i] + 1e-5:
                margins[i], kept[i] = margin(point), kept[i] + 1
                close(best[i], point, err_msg=f"query {number} is better and was not kept")
            close(margin(best[i]), margins[i], err_msg=f"query {number} is worse and was kept")
    assert np.all(kept > 3) and np.all(kept < 75)
    if norm != "linf":  # the walls have left something to spend
        lengths = [length_of(b - i, norm) for b, i in each(best, images)]
        assert lengths[0] > 0.9999 * epsilons[0] and lengths[3] < 0.99 * epsilons[3]


@pytest.mark.parametrize("norm", EPSILON)
def test_squares_shrink_by_halves_of_their_area(norm):
    images = IMAGES.astype(np.float64)
    ask, state, keys, epsilons = begun(norm, 10000)
    best = np.asarray(state.best.images, np.float64)
    for number in (1, 11, 12, 51, 52, 201, 202, 501, 502, 1001, 1002, 2001, 2002, 4001, 4002, 6002, 8001, 8002, 9999):
        asked = ask(at(state, number))[1]
        wanted = [query(b, i, k, number, e, norm) for b, i, k, e in each(best, images, keys, epsilons)]
        close(asked, wanted, err_msg=f"query {number}")


@pytest.mark.parametrize("num_queries", [1, 10, 60, 5000, 10000])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (4, 9), (7, 2)])
def test_the_schedule_is_that_of_the_number_of_a_query_however_many_there_are(num_queries, height, width):
    """As AutoAttack runs it, not stretched to the budget; even the last squares are pixels."""
    for norm in EPSILON:
        sides, which = _square._sides(norm, num_queries, height, width)
        wanted = [side(number, norm, height, width) for number in range(num_queries)]
        np.testing.assert_array_equal(sides[which], wanted)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 13])
def test_the_weights_of_a_window(norm, size):
    np.testing.assert_allclose(_square._dipole(size, norm), bump(size, norm, transposed=False), rtol=1e-5, atol=1e-7)


def test_a_broken_example_asks_no_more():
    ask, state, _, _ = begun("linf", 10)
    state = state._replace(best=state.best._replace(share=jnp.ones(COUNT), loss=jnp.full(COUNT, -9.0)))
    after, asked = ask(at(state, 3))
    assert np.any(asked != state.best.images)
    np.testing.assert_array_equal(after.best.images, state.best.images)


def test_queries_beyond_the_last_change_nothing():
    ask, state, _, _ = begun("linf", 10)
    for number, changes in ((9, True), (10, False)):
        after, _ = ask(at(state, number))
        assert bool(jnp.any(after.best.loss != state.best.loss)) is changes
