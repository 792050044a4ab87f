"""HopSkipJump: near the closed form by labels alone, and what it must not use or change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from robustjax.attacks import geometry, hopskipjump
from robustjax.attacks._hopskipjump import NUM_HALVINGS, _bisections, _budget
from robustjax.attacks.engine.verify import is_correct
from robustjax.types import InputError


def labels_only(network):
    """The network's decisions as logits that say nothing else, and that cannot be differentiated."""

    def decided(images):
        return jax.nn.one_hot(jnp.argmax(network(images), axis=-1), toys.NUM_CLASSES, dtype=jnp.float32)

    return decided


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_is_near_the_closed_form_where_boundaries_are_planes(norm, key):
    attack = jax.jit(partial(hopskipjump, labels_only(toys.binary), norm=norm))
    distances, labels = toys.binary_distances(norm)
    nearest = attack(key, toys.IMAGES, labels, epsilon=jnp.full(16, jnp.inf))
    assert not bool(jnp.any(is_correct(toys.binary(nearest), labels)))
    ratio = np.asarray(geometry.get(norm).norm(nearest - toys.IMAGES)) / distances
    assert np.all(ratio > 0.999) and np.median(ratio) < 1.02 and np.max(ratio) < 1.05
    # A ball a little smaller than the distance holds nothing, and then the image itself comes back.
    near = attack(key, toys.IMAGES, labels, epsilon=jnp.asarray(0.99 * distances))
    np.testing.assert_array_equal(near, toys.IMAGES)
    found = attack(key, toys.IMAGES, labels, epsilon=jnp.asarray(1.2 * distances))
    assert not bool(jnp.any(is_correct(toys.binary(found), labels)))
    assert np.all(np.asarray(geometry.get(norm).norm(found - toys.IMAGES)) <= 1.2 * distances)


def test_of_several_classes_one_is_near_by(key):
    """The boundary that is found is that of one wrong class, mostly the nearest."""
    distances, labels = toys.linear_distances("l2")
    found = jax.jit(partial(hopskipjump, labels_only(toys.linear), norm="l2", epsilon=jnp.inf))(
        key, toys.IMAGES, labels
    )
    assert not bool(jnp.any(is_correct(toys.linear(found), labels)))
    ratio = np.asarray(geometry.get("l2").norm(found - toys.IMAGES)) / distances
    assert np.all(ratio > 0.999) and np.mean(ratio < 1.03) > 0.7


def test_examples_do_not_depend_on_their_batch(key):
    _, labels = toys.linear_distances("l2")
    keys = jax.random.split(key, 16)
    attack = jax.jit(partial(hopskipjump, toys.linear, norm="l2", num_steps=4, num_queries=400, epsilon=0.05))
    together = attack(keys, toys.IMAGES, labels)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_allclose(attack(keys[order], toys.IMAGES[order], labels[order]), together[order], atol=1e-6)


def test_every_transformation_gives_the_same(key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)

    def attack(keys, images, labels):
        return hopskipjump(toys.smooth, keys, images, labels, epsilon=0.3, num_steps=2, num_queries=150)

    results = dict(toys.transformed(attack, toys.IMAGES, labels, key=key))
    for way, result in results.items():
        np.testing.assert_allclose(result, results["eager"], atol=2e-6, err_msg=way)
    assert np.any(results["eager"] != toys.IMAGES)


def test_a_start_that_is_given_is_used_where_it_is_misclassified(key):
    """A class that no random point has: a small island around one point, in a sea of another class."""
    centre = jnp.full((1, 4, 3, 2), 0.5).at[0, 0].set(0.9)

    def island(images):
        far = jnp.max(jnp.abs(images - centre), axis=(1, 2, 3)) - 0.05
        return jnp.stack([far, -far], axis=1)

    labels = jnp.zeros(16, jnp.int32)
    attack = jax.jit(partial(hopskipjump, island, epsilon=jnp.inf, num_steps=4, num_queries=400))
    np.testing.assert_array_equal(attack(key, toys.IMAGES, labels), toys.IMAGES)
    start = jnp.broadcast_to(centre, toys.SHAPE).at[8:].set(toys.IMAGES[8:])
    found = attack(key, toys.IMAGES, labels, start=start)
    np.testing.assert_array_equal(is_correct(island(found), labels), np.arange(16) >= 8)


def test_a_start_that_is_not_a_number_is_none(key):
    labels = jnp.argmax(toys.smooth(toys.IMAGES), axis=1)
    attack = jax.jit(partial(hopskipjump, toys.smooth, epsilon=jnp.inf, num_steps=2, num_queries=150))
    start = jnp.full(toys.SHAPE, jnp.nan)
    np.testing.assert_array_equal(
        attack(key, toys.IMAGES, labels, start=start), attack(key, toys.IMAGES, labels, start=toys.IMAGES)
    )
    assert not np.any(is_correct(toys.smooth(attack(key, toys.IMAGES, labels, start=start)), labels))


def test_a_stochastic_network_is_asked_by_majority(key):
    """A tenth of the draws say the other class, everywhere: asked once, they would look like a boundary."""

    def noisy(images, key):
        flipped = jax.random.bernoulli(key, 0.1, (images.shape[0], 1))
        logits = toys.binary(images)
        return jnp.where(flipped, -logits, logits)

    distances, labels = toys.binary_distances("l2")
    options = {"norm": "l2", "epsilon": jnp.inf, "eot_samples": 15, "num_steps": 5, "num_queries": 600}
    attack = jax.jit(partial(hopskipjump, noisy, **options))
    found = attack(key, toys.IMAGES, labels)
    moved = np.asarray(geometry.get("l2").norm(found - toys.IMAGES))
    assert np.sum(moved > 0.99 * distances) >= 14
    assert np.sum(~np.asarray(is_correct(toys.binary(found), labels))) >= 14


def test_no_more_queries_are_made_than_were_given():
    for norm, size, steps, queries in (("linf", 24, 20, 5000), ("l2", 3072, 20, 5000), ("linf", 3072, 3, 400)):
        starts, samples = _budget(norm, steps, queries, size)
        spent = 2 + starts + (1 + steps) * _bisections(norm, size) + steps * NUM_HALVINGS + samples.sum()
        assert queries - steps <= spent <= queries and np.all(np.diff(samples) >= 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "l1"}, "norm must be linf or l2, got 'l1'; use square in l1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"num_queries": 100}, r"num_queries must be at least \d+ for 20 steps on 24 numbers, got 100"),
    ],
)
def test_wrong_options_are_named(options, message, key):
    with pytest.raises(InputError, match=message):
        hopskipjump(toys.linear, key, toys.IMAGES, jnp.zeros(16, jnp.int32), epsilon=0.1, **options)
