"""APGD: the published schedule, an independent walk through the algorithm, closed forms, every way of calling it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from robustjax.attacks import apgd, losses
from robustjax.attacks._apgd import schedule, search
from robustjax.attacks.engine.search import problem
from robustjax.attacks.engine.verify import is_correct, is_valid


def test_checkpoints_are_the_published_ones():
    # 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 of 100 steps.
    np.testing.assert_array_equal(np.flatnonzero(schedule("linf", 100).interval), [22, 41, 57, 70, 80, 87, 93, 99])
    radius = schedule("l1", 100).radius
    assert [int((radius[:-1] == factor).sum()) for factor in (3.0, 2.0, 1.0)] == [31, 31, 41]


def _published(image, start, label, epsilon, norm, num_steps):
    """The algorithm of the paper for one image, in float64 and with Python's own control flow."""
    loss = lambda x: float(losses.cross_entropy(toys.smooth(jnp.asarray(x, jnp.float32)[None]), label)[0])  # noqa: E731
    gradient = jax.jit(jax.grad(lambda x: losses.cross_entropy(toys.smooth(x[None]), label)[0]))

    def project(x):
        if norm == "linf":
            x = np.clip(x, image - epsilon, image + epsilon)
        else:
            delta = x - image
            x = image + delta * min(1.0, epsilon / max(np.linalg.norm(delta), 1e-30))
        return np.clip(x, 0, 1)

    def ascend(x, step):
        g = np.asarray(gradient(jnp.asarray(x, jnp.float32)), np.float64)
        return project(x + step * (np.sign(g) if norm == "linf" else g / np.linalg.norm(g)))

    step, checkpoints, width = 2 * epsilon, {}, int(0.22 * num_steps)
    at = width
    while at <= num_steps:
        checkpoints[at] = width
        width = max(width - int(0.03 * num_steps), int(0.06 * num_steps))
        at += width
    points, values = [start], [loss(start)]
    best = 0
    reduced, best_before = True, values[0]
    top = start
    for i in range(1, num_steps + 1):
        x = points[-1]
        z = ascend(x, step)
        points.append(z if i == 1 else project(x + 0.75 * (z - x) + 0.25 * (x - points[-2])))
        values.append(loss(points[-1]))
        if values[-1] > values[best]:
            best, top = i, points[-1]
        if i in checkpoints:
            width = checkpoints[i]
            rises = sum(values[j] > values[j - 1] for j in range(i - width + 1, i + 1))
            reduce = rises <= 0.75 * width or (not reduced and values[best] == best_before)
            if reduce:  # back to the best point; what came before it stays the point before
                step, points[-1] = step / 2, top
            reduced, best_before = reduce, values[best]
    return values[best]


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.3)])
def test_it_is_the_published_algorithm_step_by_step(norm, epsilon, key):
    images, labels = toys.IMAGES[:3], jnp.argmax(toys.smooth(toys.IMAGES[:3]), axis=1)
    attack = search(norm=norm, loss="ce", num_steps=34)
    posed = problem(key, images, labels, labels, epsilon)
    state = attack.start(attack.options, posed)
    starts = np.asarray(state.points, np.float64)
    step = jax.jit(partial(attack.step, attack.options, toys.smooth, key, posed))
    for _ in range(attack.num_steps):
        state = step(state)
    expected = [
        _published(np.asarray(image, np.float64), first, label[None], epsilon, norm, 34)
        for image, first, label in zip(images, starts, labels, strict=True)
    ]
    np.testing.assert_allclose(state.top_loss, expected, rtol=1e-3)


@pytest.mark.parametrize("norm", toys.NORMS)
@pytest.mark.parametrize(
    ("network", "distances", "loss"),
    [(toys.binary, toys.binary_distances, "ce"), (toys.linear, toys.linear_distances, "dlr-targeted")],
)
def test_it_breaks_exactly_what_a_linear_network_cannot_hold(network, distances, loss, norm, key):
    distances, labels = distances(norm)
    attack = jax.jit(lambda epsilon: apgd(network, key, toys.IMAGES, labels, epsilon=epsilon, norm=norm, loss=loss))
    # The optimum in l1 moves a single pixel; the published attack moves two of 24 at least.
    for factor, robust in ((0.99, True), (1.25 if norm == "l1" else 1.01, False)):
        adversarial = attack(factor * distances)
        assert bool(jnp.all(is_valid(toys.IMAGES, adversarial, epsilon=factor * distances, norm=norm)))
        np.testing.assert_array_equal(is_correct(network(adversarial), labels), robust)


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_every_transformation_gives_the_same(norm, key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)

    def attack(keys, images, labels):
        return apgd(toys.smooth, keys, images, labels, epsilon=0.1, norm=norm, num_steps=8, loss="dlr-targeted")

    results = dict(toys.transformed(attack, toys.IMAGES, labels, key=key))
    for name, result in results.items():
        np.testing.assert_allclose(result, results["eager"], atol=2e-6, err_msg=name)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_fall_back_to_the_margin(num_classes, key):
    few = lambda images: toys.linear(images)[:, :num_classes]  # noqa: E731
    labels = jnp.argmax(few(toys.IMAGES), axis=1)
    for loss in ("dlr", "dlr-targeted"):
        adversarial = apgd(few, key, toys.IMAGES, labels, epsilon=0.3, loss=loss, num_steps=10)
        assert not bool(jnp.any(is_correct(few(adversarial), labels)))


def test_restarts_only_add(key):
    distances, labels = toys.linear_distances("linf")
    attack = partial(apgd, toys.linear, key, toys.IMAGES, labels, epsilon=1.2 * distances, num_steps=2)
    once, often = (~np.asarray(is_correct(toys.linear(attack(num_restarts=n)), labels)) for n in (1, 4))
    assert np.all(often >= once) and often.sum() > once.sum()


def test_eot_averages_loss_gradient_and_acceptance(key):
    # Half of the draws hide the images: a single one has no gradient half of the time, and fools half of the time.
    def hiding(images, key):
        shown = jax.random.bernoulli(key, 0.5, (images.shape[0],))
        return jnp.where(shown[:, None], toys.linear(images), toys.linear(toys.IMAGES))

    distances, labels = toys.linear_distances("linf")
    adversarial = apgd(
        hiding, key, toys.IMAGES, labels, epsilon=1.3 * distances, num_steps=20, eot_samples=8, loss="dlr-targeted"
    )
    assert not bool(jnp.any(is_correct(toys.linear(adversarial), labels)))


def test_a_loss_of_ones_own_sees_any_outputs(key):
    pair = lambda images: (toys.smooth(images), images)  # noqa: E731
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)
    loss = lambda outputs, labels: losses.margin(outputs[0], labels)  # noqa: E731
    adversarial = apgd(pair, key, toys.IMAGES, labels, epsilon=0.05, loss=loss, num_steps=10)
    assert bool(
        jnp.all(losses.margin(toys.smooth(adversarial), labels) > losses.margin(toys.smooth(toys.IMAGES), labels))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l7"}, "norm must be one of"),
        ({"loss": "hinge"}, "loss must be one of ce, dlr, dlr-targeted"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_targets": 0}, "num_targets must be at least 1"),
        ({"epsilon": jnp.zeros(3)}, "epsilon must be a number >= 0, or one for each of 16 examples"),
    ],
)
def test_wrong_options_are_named(options, message, key):
    with pytest.raises(ValueError, match=message):
        apgd(toys.linear, key, toys.IMAGES, jnp.zeros(16, jnp.int32), **{"epsilon": 0.1, **options})


def test_nine_targets_unless_told_otherwise(key):
    # Only the tenth likeliest wrong class moves with the image, and is reached next to the edge of the ball.
    still = jnp.array([0.0, *(-0.1 * i for i in range(1, 10)), -2.0])

    def network(images):
        moving = 10.0 * (jnp.mean(images, axis=(1, 2)) - 0.65)
        return jnp.concatenate([jnp.broadcast_to(still, (len(images), 11)), moving], axis=1)

    images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.zeros(1, jnp.int32)
    for options, robust in (({}, True), ({"num_targets": 10}, False)):
        adversarial = apgd(network, key, images, labels, epsilon=0.155, num_steps=10, loss="dlr-targeted", **options)
        assert bool(is_correct(network(adversarial), labels)[0]) == robust
