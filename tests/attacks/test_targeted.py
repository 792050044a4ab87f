"""APGD, Square and FAB towards given classes: labels that are targets, to be reached."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from robustjax.attacks import apgd, fab, geometry, pgd, square
from robustjax.attacks.engine.verify import is_correct, is_valid
from robustjax.types import InputError

ATTACKS = {
    "apgd-ce": partial(apgd, num_steps=30),
    "apgd-dlr": partial(apgd, num_steps=30, loss="dlr"),
    "fab": partial(fab, num_steps=30),
    "fab-nearest": partial(fab, num_steps=30, num_targets=None),
}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ATTACKS)
def test_of_two_classes_the_other_is_reached_exactly_where_it_is_within_reach(name, norm, key):
    distances, labels = toys.binary_distances(norm)
    attack = jax.jit(partial(ATTACKS[name], toys.binary, norm=norm, targeted=True))
    for factor, reached in ((0.99, False), (1.02, True)):
        found = attack(key, toys.IMAGES, 1 - labels, epsilon=jnp.asarray(factor * distances))
        np.testing.assert_array_equal(is_correct(toys.binary(found), 1 - labels), reached)
        assert bool(jnp.all(is_valid(toys.IMAGES, found, epsilon=factor * distances, norm=norm)))


@pytest.mark.parametrize("name", [*ATTACKS, "square"])
def test_of_several_classes_the_target_is_reached_wherever_a_long_pgd_does(name, key):
    """And not another wrong class, which is mostly nearer."""
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)
    targets = (labels + 2) % toys.NUM_CLASSES
    epsilon = jnp.float32(0.07)
    by_pgd = pgd(
        toys.smooth, key, toys.IMAGES, targets, epsilon=epsilon, step_size=0.01, num_steps=60, targeted=True,
        keep_best=True,
    )  # fmt: skip
    reachable = np.asarray(is_correct(toys.smooth(by_pgd), targets))
    assert 4 <= reachable.sum() < 16
    attack = {**ATTACKS, "square": partial(square, num_queries=1500)}[name]
    found = np.asarray(attack(toys.smooth, key, toys.IMAGES, targets, epsilon=epsilon, targeted=True))
    hit = np.asarray(is_correct(toys.smooth(found), targets))
    assert np.sum(reachable & ~hit) <= (2 if name == "square" else 1), (reachable, hit)
    if name.startswith("fab"):  # nothing but what was asked for
        np.testing.assert_array_equal(found[~hit], np.asarray(toys.IMAGES)[~hit])


def test_fab_finds_the_nearest_point_of_the_class(key):
    distances, labels = toys.binary_distances("l2")
    found = fab(toys.binary, key, toys.IMAGES, 1 - labels, epsilon=jnp.inf, norm="l2", targeted=True)
    np.testing.assert_allclose(geometry.get("l2").norm(found - toys.IMAGES), distances, rtol=0.02)
    # An image of the class is the nearest itself.
    np.testing.assert_array_equal(
        fab(toys.binary, key, toys.IMAGES, labels, epsilon=jnp.inf, norm="l2", targeted=True), toys.IMAGES
    )


def test_cross_entropy_towards_a_class_does_not_vanish_where_the_network_is_certain(key):
    """Logits 1e3 apart: the probability of the target is 0 in float32, and its logarithm still has a slope."""
    sure = lambda images: 1e4 * toys.linear(images)  # noqa: E731
    _, labels = toys.linear_distances("linf")
    targets = (labels + 1) % toys.NUM_CLASSES
    found = apgd(sure, key, toys.IMAGES, targets, epsilon=0.4, num_steps=30, targeted=True)
    assert np.mean(is_correct(sure(found), targets)) > 0.8


def test_a_stochastic_network_is_driven_to_the_class_in_most_draws(key):
    noisy = lambda images, key: toys.binary(images) + 0.01 * jax.random.normal(key, (images.shape[0], 2))  # noqa: E731
    distances, labels = toys.binary_distances("linf")
    for attack in (partial(apgd, num_steps=20), partial(square, num_queries=500)):
        found = attack(
            noisy, key, toys.IMAGES, 1 - labels, epsilon=1.5 * distances + 0.05, eot_samples=2, targeted=True
        )
        assert np.all(is_correct(toys.binary(found), 1 - labels))


def test_a_loss_with_targets_of_its_own_is_refused(key):
    with pytest.raises(InputError, match="loss must be ce, dlr or a function where labels are targets"):
        apgd(toys.linear, key, toys.IMAGES, np.zeros(16, int), epsilon=0.1, loss="dlr-targeted", targeted=True)


def test_a_loss_of_ones_own_is_minimised(key):
    score = lambda outputs, weights: jnp.sum(outputs * weights, axis=1)  # noqa: E731
    weights = jnp.ones((16, toys.NUM_CLASSES))
    found = apgd(toys.smooth, key, toys.IMAGES, weights, epsilon=0.1, num_steps=10, loss=score, targeted=True)
    assert np.all(score(toys.smooth(found), weights) < score(toys.smooth(toys.IMAGES), weights))
