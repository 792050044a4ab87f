"""The attacks beside AutoAttack: C&W, DeepFool, PGD by optimizers, MultiTargeted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from robustjax.attacks import cw, deepfool, geometry, multi_targeted, optimized_pgd
from robustjax.attacks._cw import Weights
from robustjax.attacks._optimized_pgd import momentum
from robustjax.attacks.engine.verify import is_correct, is_valid
from robustjax.ops import straight_through


def test_cw_finds_the_nearest_image_of_another_class(key):
    distances, labels = toys.linear_distances("l2")
    attack = jax.jit(partial(cw, toys.linear, num_steps=300, num_searches=9, learning_rate=0.002))
    adversarial = attack(key, toys.IMAGES, labels)
    assert not bool(jnp.any(is_correct(toys.linear(adversarial), labels)))
    found = np.linalg.norm((adversarial - toys.IMAGES).reshape(16, -1), axis=1)
    assert np.all(found >= distances * 0.999) and np.all(found <= distances * 1.05 + 2e-3)


def test_cw_keeps_its_confidence_and_reaches_targets(key):
    _, labels = toys.linear_distances("l2")
    target = np.asarray((labels + 1) % toys.NUM_CLASSES)
    adversarial = cw(toys.linear, key, toys.IMAGES, target, num_steps=60, confidence=0.5, targeted=True)
    logits = np.asarray(toys.linear(adversarial))
    others = np.where(np.arange(5) == target[:, None], -np.inf, logits).max(1)
    assert np.all(logits[np.arange(16), target] - others >= 0.5)


def test_cw_steps_by_adam_in_the_variable_whose_tanh_a_pixel_is(key):
    images = jnp.linspace(0.1, 0.9, 12).reshape(3, 2, 2, 1)
    least = jnp.sum(images, axis=(1, 2, 3)) - 1e-4  # whatever step is taken crosses it
    network = lambda points: jnp.stack([jnp.sum(points, axis=(1, 2, 3)), least], axis=1)  # noqa: E731
    adversarial = cw(network, key, images, jnp.zeros(3, jnp.int32), num_steps=2, num_searches=1, learning_rate=0.01)
    expected = 0.5 * np.tanh(np.arctanh(2 * np.asarray(images, np.float64) - 1) - 0.01) + 0.5
    np.testing.assert_allclose(adversarial, expected, atol=2e-5)


def test_cw_counts_a_margin_of_exactly_the_confidence(key):
    # Margins are whole numbers here, with the derivative of what they are cut from; the first one above 0 is enough.
    lead = lambda points: 20.0 * (jnp.sum(points, axis=(1, 2, 3)) - 1.0)  # noqa: E731
    network = lambda points: jnp.stack(  # noqa: E731
        [jnp.zeros(len(points)), straight_through(jnp.floor(lead(points)), lead(points))], axis=1
    )
    images, labels = jnp.full((2, 2, 2, 1), 0.2), jnp.zeros(2, jnp.int32)
    options = {"confidence": 1.0, "num_steps": 150, "num_searches": 1, "initial_weight": 10.0, "learning_rate": 0.002}
    adversarial = cw(network, key, images, labels, **options)
    np.testing.assert_array_equal(network(adversarial)[:, 1], 1.0)


def test_cw_leaves_what_cannot_be_broken(key):
    stubborn = lambda images: jnp.stack([jnp.ones(images.shape[0]), jnp.zeros(images.shape[0])], axis=1)  # noqa: E731
    images = jnp.round(toys.IMAGES)  # at the walls, where tanh is flat
    np.testing.assert_array_equal(cw(stubborn, key, images, jnp.zeros(16, jnp.int32), num_steps=3), images)


def test_the_weight_grows_tenfold_and_is_then_bisected():
    weights = Weights(*(jnp.array([value]) for value in (0.0, 1e10, 1e-3)))
    tried = []
    for succeeded in (False, False, True, False, True):
        tried.append(float(weights.value[0]))
        weights = weights.after(jnp.array([succeeded]))
    np.testing.assert_allclose(tried, [0.001, 0.01, 0.1, 0.055, 0.0775], rtol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_is_near_the_closed_form_where_boundaries_are_planes(norm, key):
    distances, labels = toys.linear_distances(norm)
    adversarial = deepfool(toys.linear, key, toys.IMAGES, labels, norm=norm)
    assert not bool(jnp.any(is_correct(toys.linear(adversarial), labels)))
    found = geometry.get(norm).norm(adversarial - toys.IMAGES)
    np.testing.assert_allclose(found, 1.02 * distances, rtol=0.01, atol=1e-5)


def test_deepfool_crosses_a_boundary_without_overshoot(key):
    network = lambda points: jnp.stack(  # noqa: E731
        [jnp.sum(points, axis=(1, 2, 3)), jnp.full(len(points), 0.75)], axis=1
    )
    images, labels = jnp.full((2, 1, 1, 1), 0.8), jnp.zeros(2, jnp.int32)
    adversarial = deepfool(network, key, images, labels, norm="linf", overshoot=0.0, num_steps=1)
    np.testing.assert_allclose(adversarial, 0.75 - 1e-6, atol=1e-7)


def test_deepfool_leaves_misclassified_images_and_the_box_alone(key):
    _, labels = toys.linear_distances("l2")
    wrong = (labels + 1) % toys.NUM_CLASSES
    np.testing.assert_array_equal(deepfool(toys.linear, key, toys.IMAGES, wrong), toys.IMAGES)
    np.testing.assert_array_equal(deepfool(toys.linear, key, toys.IMAGES, labels, num_steps=0), toys.IMAGES)
    images = jnp.round(toys.IMAGES)
    adversarial = deepfool(toys.smooth, key, images, jnp.argmax(toys.smooth(images), axis=1))
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1


OPTIMIZERS = {"momentum": momentum(0.02), "adam": optax.adam(0.02)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_break_exactly_what_a_linear_network_cannot_hold(optimizer, key):
    distances, labels = toys.binary_distances("linf")
    for factor, robust in ((0.99, True), (1.02, False)):
        adversarial = optimized_pgd(
            toys.binary, key, toys.IMAGES, labels, epsilon=factor * distances, optimizer=OPTIMIZERS[optimizer],
            num_steps=20,
        )  # fmt: skip
        assert bool(jnp.all(is_valid(toys.IMAGES, adversarial, epsilon=factor * distances)))
        np.testing.assert_array_equal(is_correct(toys.binary(adversarial), labels), robust)


def test_momentum_is_the_published_recurrence(key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)
    loss = lambda logits, labels: -logits[jnp.arange(16), labels]  # noqa: E731
    points, velocity = toys.IMAGES, jnp.zeros_like(toys.IMAGES)
    scores = []
    for _ in range(4):
        gradient = jax.grad(lambda points: jnp.sum(loss(toys.smooth(points), labels)))(points)
        velocity = velocity + gradient / jnp.sum(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
        points = jnp.clip(points + 0.01 * jnp.sign(velocity), toys.IMAGES - 0.03, toys.IMAGES + 0.03)
        scores.append(loss(toys.smooth(points), labels))
    ours = optimized_pgd(
        toys.smooth, key, toys.IMAGES, labels, epsilon=0.03, optimizer=momentum(0.01), num_steps=4, loss=loss,
        random_start=False,
    )  # fmt: skip
    right = is_correct(toys.smooth(ours), labels)  # else the best is the most misclassified, not of the highest loss
    np.testing.assert_allclose(loss(toys.smooth(ours), labels)[right], np.max(scores, axis=0)[right], atol=1e-5)


def test_a_step_is_taken_and_what_it_reaches_is_kept(key):
    network = lambda points: jnp.stack([points[:, 0, 0, 0], jnp.full(len(points), 0.6)], axis=1)  # noqa: E731
    images, labels = jnp.full((1, 1, 1, 1), 0.8), jnp.zeros(1, jnp.int32)
    options = {"epsilon": 0.1, "optimizer": optax.sgd(0.03), "random_start": False}
    for num_steps, expected in ((0, 0.8), (1, 0.77), (2, 0.74)):
        adversarial = optimized_pgd(network, key, images, labels, num_steps=num_steps, **options)
        np.testing.assert_allclose(adversarial, expected, atol=1e-6)


def test_momentum_sums_gradients_without_decay_unless_told_otherwise():
    points = jnp.array([[0.5, 0.5]])
    steps = [jnp.array([[3.0, -1.0]]), jnp.array([[-1.0, 2.0]])]
    for decay, second in (({}, [-0.1, -0.1]), ({"decay": 0.0}, [0.1, -0.1])):
        optimizer = momentum(0.1, **decay)
        _, state = optimizer.update(steps[0], optimizer.init(points), points)
        np.testing.assert_allclose(optimizer.update(steps[1], state, points)[0][0], second, atol=1e-6)


def test_multi_targeted_breaks_exactly_what_a_linear_network_cannot_hold(key):
    distances, labels = toys.linear_distances("linf")
    for factor, robust in ((0.99, True), (1.01, False)):
        epsilon = factor * distances
        # From the image two steps are enough, and none may be shorter than it should be.
        for options in ({"num_steps": 6}, {"num_steps": 2, "random_start": False}):
            adversarial = multi_targeted(
                toys.linear, key, toys.IMAGES, labels, epsilon=epsilon, step_size=epsilon / 2, **options
            )
            np.testing.assert_array_equal(is_correct(toys.linear(adversarial), labels), robust)


ATTACKS = {
    "cw": partial(cw, num_steps=5, num_searches=2),
    "deepfool": partial(deepfool, num_steps=3),
    "adam": partial(optimized_pgd, epsilon=0.05, optimizer=OPTIMIZERS["adam"], num_steps=3),
    "multi_targeted": partial(multi_targeted, epsilon=0.05, step_size=0.02, num_steps=3, random_start=False),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_transformation_gives_the_same(name, key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)

    def attack(keys, images, labels):
        return ATTACKS[name](toys.smooth, keys[0] if name == "multi_targeted" else keys, images, labels)

    results = dict(toys.transformed(attack, toys.IMAGES, labels, key=key))
    for way, result in results.items():
        np.testing.assert_allclose(result, results["eager"], atol=2e-6, err_msg=way)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (partial(cw, num_steps=0), "num_steps must be at least 1"),
        (partial(deepfool, norm="l1"), "norm must be l2 or linf"),
        (partial(optimized_pgd, epsilon=0.1, optimizer=optax.adam(0.1), num_steps=-1), "must be at least 0"),
        (partial(multi_targeted, epsilon=0.1, step_size=0.1, num_steps=1, num_targets=0), "num_targets must be"),
        (lambda *_: momentum([0.1]), r"step_size must be a number >= 0, got float64 \[1\]"),
        (lambda *_: momentum(0.1, decay=[0.5]), r"decay must be a number >= 0, got float64 \[1\]"),
    ],
)
def test_wrong_options_are_named(attack, message, key):
    with pytest.raises(ValueError, match=message):
        attack(toys.linear, key, toys.IMAGES, jnp.zeros(16, jnp.int32))
