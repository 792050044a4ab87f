"""APGD against the algorithm written out in NumPy's float64: every point, step size, loss and checkpoint of a run."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import _apgd
from robustjax.attacks.engine.search import problem

SHAPE, NUM_CLASSES = (4, 6, 5, 2), 5
SIZE = 60
RNG = np.random.default_rng(11)
IMAGES = RNG.uniform(0.0, 1.0, SHAPE).astype(np.float32)
# Curved enough that no run settles down.
FIRST, SECOND = RNG.normal(size=(SIZE, 20)) / 2, RNG.normal(size=(20, NUM_CLASSES)) / 2
SHIFT = RNG.normal(size=20)
EPSILON = {"linf": 0.15, "l2": 1.2, "l1": 6.0}
# Epsilons of their own; the last example is in a ball so large that the box matters as well.
SCALES = np.array([0.4, 0.7, 1.0, 2.0])


# What the tests know of the inside of APGD.
def draws(posed, norm):
    """The random numbers from which the examples start."""
    draw = partial(jax.random.uniform, minval=-1.0, maxval=1.0) if norm == "linf" else jax.random.normal
    return np.stack([np.asarray(draw(key, SHAPE[1:], jnp.float32), np.float64) for key in posed.keys])


NAMES = ("next point", "step size", "highest loss", "point of the highest loss", "strongest point inside the ball")


def seen(state):
    return state.points, state.step_size, state.top_loss, state.top_points, state.best.images


def losses_of(state):
    """Of the points that were evaluated last."""
    return state.last_loss


def checkpoints(norm, num_steps):
    """The numbers of the evaluations at which step sizes are revised."""
    return np.flatnonzero(_apgd.schedule(norm, num_steps).interval).tolist()


def network(images):
    hidden = jnp.tanh(
        images.reshape(-1, SIZE) @ jnp.asarray(FIRST, jnp.float32) + jnp.asarray(SHIFT[None], jnp.float32)
    )
    return hidden @ jnp.asarray(SECOND, jnp.float32)


def evaluated(point, label):
    """Cross-entropy, its gradient by hand, and whether the point is misclassified."""
    hidden = np.tanh(point.ravel() @ FIRST + SHIFT)
    logits = hidden @ SECOND
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    error = probabilities - np.eye(NUM_CLASSES)[label]
    gradient = FIRST @ ((1 - hidden**2) * (SECOND @ error))
    return -math.log(probabilities[label]), gradient.reshape(point.shape), logits.argmax() != label


def projected(point, image, epsilon, norm):
    """Into ball and box: for linf and l1 the nearest point of both, for l2 into one and then the other."""
    delta = point - image
    if norm == "linf":
        return np.clip(np.clip(point, image - epsilon, image + epsilon), 0, 1)
    if norm == "l2":
        length = math.sqrt((delta**2).sum())
        return np.clip(image + delta * (epsilon / length if length > epsilon else 1), 0, 1)
    # sign(d) min(max(|d| - t, 0), room) with the least t >= 0 of which the magnitudes add up to epsilon at most. The
    # sum is linear in t between the places at which one of the pixels changes its rule.
    room = np.where(delta > 0, 1 - image, image)
    total = lambda t: np.clip(np.abs(delta) - t, 0, room).sum()  # noqa: E731
    t = 0.0
    if total(0.0) > epsilon:
        places = sorted({0.0, *np.abs(delta).ravel(), *np.maximum(np.abs(delta) - room, 0).ravel()})
        for low, high in itertools.pairwise(places):
            if total(low) > epsilon >= total(high):
                t = low + (total(low) - epsilon) / (total(low) - total(high)) * (high - low)
    return image + np.sign(delta) * np.clip(np.abs(delta) - t, 0, room)


class Oracle:
    """One example's run, which iterates over what `seen` says of the state after each evaluation.

    `point` and `reported`, the loss of the present point, are set to what APGD found once it has been compared: what
    float32 rounds would grow from step to step, and decide between losses that are nearly the same. `events` says at
    which evaluation of a phase what happened.
    """

    def __init__(self, image, label, epsilon, norm, num_steps, noise):
        self.image, self.label, self.epsilon, self.norm, self.num_steps = image, label, epsilon, norm, num_steps
        self.events = []
        if norm == "l1":
            first, second = math.ceil(0.3 * num_steps), math.ceil(0.3 * num_steps)
            self.phases = [(3, first), (2, second), (1, num_steps - first - second)]
            start = image + noise
        else:
            self.phases = [(1, num_steps)]
            start = image + epsilon * noise / (np.abs(noise).max() if norm == "linf" else np.linalg.norm(noise))
        self.point = projected(start, image, self.phases[0][0] * epsilon, norm)
        self.strongest, self.strength = image, (-1, -np.inf)

    def __iter__(self):
        for number, (factor, length) in enumerate(self.phases):
            self.radius = factor * self.epsilon
            if number:  # from the best point of the phase before
                self.point = projected(self.top_point, self.image, self.radius, self.norm)
            yield from self.phase(length, first=number == 0, asked=factor == 1)

    def phase(self, length, *, first, asked):
        size = self.image.size
        self.top_loss, previous, step = -np.inf, self.point, self.radius * (1 if self.norm == "l1" else 2)
        losses, since, rises = [], 0, 0
        interval = max(int((0.04 if self.norm == "l1" else 0.22) * length), 1)
        for i in range(length + 1):
            loss, gradient, wrong = evaluated(self.point, self.label)
            np.testing.assert_allclose(self.reported, loss, rtol=2e-5, atol=2e-6, err_msg=f"loss of evaluation {i}")
            loss = self.reported
            losses.append(loss)
            if asked and (wrong, loss) > self.strength:
                self.strongest, self.strength = self.point, (wrong, loss)
            if loss > self.top_loss:
                self.top_loss, self.top_point, self.top_gradient = loss, self.point, gradient
            differing = np.float32((np.abs(self.top_point - self.image) > 1e-7).sum())
            if i == 0:  # nothing to compare with yet
                reduced, checked = True, self.top_loss
                density = np.float32(0.2) if first else differing / np.float32(1.5 * size)
                before = np.float32(size) if first else differing
            else:
                rises += losses[-1] > losses[-2]
                since += 1
            if since == interval:
                self.events.append((i, "checkpoint"))
                if self.norm == "l1":
                    back = differing < 0.95 * before
                    self.events.append((i, "sparser" if back else "shrunk"))
                    step = self.radius if back else max(step / 1.5, self.radius / 10)
                    if step == self.radius / 10:
                        self.events.append((i, "least step"))
                    density, before = differing / np.float32(1.5 * size), differing
                else:
                    few, still = rises <= 0.75 * interval, not reduced and self.top_loss == checked
                    back = few or still
                    if rises == 0.75 * interval:  # not enough: the published code asks for more
                        self.events.append((i, "three quarters"))
                    self.events.append((i, "few rises" if few else "no progress" if still else "kept"))
                    step = step / 2 if back else step
                    reduced, checked = back, self.top_loss
                    interval = max(interval - max(int(0.03 * length), 1), max(int(0.06 * length), 1))
                if back:
                    self.point, gradient = self.top_point, self.top_gradient
                since = rises = 0
            self.point, previous = self.moved(gradient, step, density, previous, momentum=i > 0), self.point
            yield self.point, step, self.top_loss, self.top_point, self.strongest

    def moved(self, gradient, step, density, previous, *, momentum):
        """The next point."""
        point, image, norm = self.point, self.image, self.norm
        if norm == "l1":
            # In float32, where a rounding decides on a whole pixel.
            place = int(np.clip((np.float32(1) - density) * np.float32(image.size), 0, image.size - 1))
            sign = np.sign(gradient) * (np.abs(gradient) >= np.sort(np.abs(gradient), axis=None)[place])
            return projected(point + step * sign / np.abs(sign).sum(), image, self.radius, norm)
        direction = np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        uphill = projected(point + step * direction, image, self.radius, norm)
        if not momentum:
            return uphill
        return projected(point + 0.75 * (uphill - point) + 0.25 * (point - previous), image, self.radius, norm)


def compared(norm, num_steps, seeds):
    """Runs side by side with their oracles; what happened in each of them."""
    labels = np.asarray(network(IMAGES)).argmax(1)
    epsilon = (EPSILON[norm] * SCALES).astype(np.float32)
    search = _apgd.search(norm=norm, loss="ce", num_steps=num_steps)
    step = jax.jit(partial(search.step, search.options, network, jax.random.key(1)))
    events = []
    for seed in range(seeds):
        posed = problem(jax.random.key(seed), jnp.asarray(IMAGES), jnp.asarray(labels), jnp.asarray(labels), epsilon)
        each = zip(IMAGES.astype(np.float64), labels, epsilon.astype(np.float64), draws(posed, norm), strict=True)
        oracles = [Oracle(image, label, radius, norm, num_steps, noise) for image, label, radius, noise in each]
        state = search.start(search.options, posed)
        np.testing.assert_allclose(state.points, [oracle.point for oracle in oracles], atol=1e-6)
        runs = [iter(oracle) for oracle in oracles]
        for i in range(search.num_steps):
            state = step(posed, state)
            points, *rest = (np.asarray(array, np.float64) for array in seen(state))
            losses = np.asarray(losses_of(state), np.float64)
            for oracle, loss in zip(oracles, losses, strict=True):
                oracle.reported = loss
            wanted = [np.stack(arrays) for arrays in zip(*map(next, runs), strict=True)]
            for name, one, other in zip(NAMES, (points, *rest), wanted, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5, err_msg=f"{name} after evaluation {i}")
            for oracle, point in zip(oracles, points, strict=True):
                oracle.point = point
        assert all(next(run, None) is None for run in runs)
        events += [oracle.events for oracle in oracles]
    return events


def kinds(events):
    return {what for one in events for _, what in one}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("num_steps", "seeds"), [(100, 2), (37, 6), (18, 12)])
def test_every_step_is_that_of_the_paper(norm, num_steps, seeds):
    events = compared(norm, num_steps, seeds)
    assert kinds(events) >= {"checkpoint", "few rises", "kept"}
    assert num_steps != 18 or "no progress" in kinds(events)
    assert num_steps != 37 or "three quarters" in kinds(events)
    for one in events:
        assert [at for at, what in one if what == "checkpoint"] == checkpoints(norm, num_steps)


def test_every_step_in_l1_is_that_of_the_paper():
    assert kinds(compared("l1", 130, 1)) == {"checkpoint", "sparser", "shrunk", "least step"}


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 10, 20, 33, 34, 50, 67, 100, 250, 1000])
def test_checkpoints_are_the_published_fractions(num_steps):
    due, interval = [], max(int(0.22 * num_steps), 1)
    at = interval
    while at <= num_steps:
        due.append(at)
        interval = max(interval - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1))
        at += interval
    assert checkpoints("linf", num_steps) == checkpoints("l2", num_steps) == due


@pytest.mark.parametrize("num_steps", [1, 5, 10, 75, 100, 130, 333])
def test_in_l1_the_ball_shrinks_in_three_phases_each_with_checkpoints_of_its_own(num_steps):
    table = _apgd.schedule("l1", num_steps)
    third = math.ceil(0.3 * num_steps)
    lengths = [third, third, num_steps - 2 * third]
    if min(lengths) < 0:
        return
    due, radii, begins = [], [], []
    for radius, length in zip((3, 2, 1), lengths, strict=True):
        begins.append(len(radii))
        every = max(int(0.04 * length), 1)
        due += [len(radii) + i for i in range(every, length + 1, every)]
        radii += [radius] * (length + 1)
    np.testing.assert_array_equal(table.radius[:-1], radii)
    np.testing.assert_array_equal(np.flatnonzero(table.phase_start), begins)
    assert checkpoints("l1", num_steps) == due


def test_the_direction_in_l1_has_the_signs_of_the_strongest_entries_and_length_1():
    gradient = RNG.permutation(np.arange(1.0, 11.0))[None] * RNG.choice([-1, 1], (3, 10))
    for density, count in ((0.0, 1), (0.25, 3), (0.5, 5), (1.0, 10)):
        found = _apgd._sparse_sign(jnp.asarray(gradient, jnp.float32), jnp.full(3, density, jnp.float32))
        expected = np.where(np.abs(gradient) > 10 - count, np.sign(gradient) / count, 0.0)
        np.testing.assert_allclose(found, expected, atol=1e-6)
