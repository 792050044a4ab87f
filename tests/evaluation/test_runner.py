"""The runner on a network whose every answer is known."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.data import Dataset
from robustjax.evaluation.protocol import runner
from robustjax.evaluation.protocol.protocols import CLEAN, Protocol, Threat
from robustjax.runtime import sharding

# Class 1 where the mean pixel exceeds one half.
LEVELS = np.array([20, 90, 120, 140, 200, 250, 130, 100, 10, 255], np.uint8)
DATASET = Dataset("levels", LEVELS.reshape(10, 1, 1, 1), (LEVELS > 127).astype(np.int32), 2, ("dark", "light"))


def logits_fn(variables, images):
    score = variables * (images.mean(axis=(1, 2, 3)) - 0.5)
    return jnp.stack([-score, score], axis=1)


def make(network=logits_fn, dataset=DATASET, **options):
    threat = Threat("linf", options.pop("epsilon", 0.1))
    options = {"threat": threat, "batch_size": 4, "layout": sharding.layout(), **options}
    return runner.Runner(jax.tree_util.Partial(network, jnp.float32(3.0)), dataset.images, dataset.labels, **options)


def shift(logits_fn, key, images, labels, *, epsilon=0.1):
    """Towards the other class, by exactly so much."""
    away = jnp.where(labels == 1, -epsilon, epsilon).reshape(-1, 1, 1, 1)
    return jnp.clip(images + away, 0.0, 1.0)


SHIFT = Protocol(shift)


def test_flags_are_in_order_and_padding_is_left_out(key):
    run = make()
    np.testing.assert_array_equal(run(CLEAN, key).robust, np.ones(10, bool))
    attacked = run(SHIFT, key)
    np.testing.assert_array_equal(attacked.robust, np.abs(LEVELS / 255 - 0.5) > 0.1)
    np.testing.assert_array_equal(attacked.clean_predictions, DATASET.labels)
    np.testing.assert_array_equal(attacked.predictions == DATASET.labels, attacked.robust)
    np.testing.assert_allclose(attacked.adversarial[3].ravel(), 140 / 255 - 0.1, rtol=1e-5)
    assert len(attacked.adversarial) == runner.NUM_KEPT and attacked.num_draws == 1


def test_an_attack_that_leaves_the_ball_is_not_believed(key):
    with pytest.raises(RuntimeError, match=r"outside the linf ball of 0\.05 or the box, first of example 0"):
        make(epsilon=0.05)(SHIFT, key)
    with pytest.raises(RuntimeError, match="outside the linf ball"):  # the attack's own epsilon comes first
        make(epsilon=1.0)(Protocol(lambda *problem, epsilon: shift(*problem), {"epsilon": 0.05}), key)


def test_one_compilation_serves_every_batch_and_every_option(key):
    traces = 0

    def counted(logits_fn, key, images, labels, *, epsilon):
        nonlocal traces
        traces += 1
        return shift(logits_fn, key, images, labels, epsilon=epsilon)

    run = make()
    for epsilon in (0.0, 0.05, 0.4):
        outcome = run(Protocol(counted, {"epsilon": epsilon}), key)
        np.testing.assert_array_equal(outcome.robust, np.abs(LEVELS / 255 - 0.5) > epsilon)
    assert traces == 1


def test_a_driver_takes_several_batches_and_is_not_believed_either(key, monkeypatch):
    monkeypatch.setattr(runner, "BATCHES_PER_CHUNK", 2)
    seen, heard = [], []

    def ensemble(network, key, images, labels, *, batch_size, sharding, progress):
        assert batch_size == 4 and sharding.num_devices == 4
        assert network(images).shape == (len(images), 2)
        progress("first", 0.5, 1)
        seen.append(len(images))
        moved = np.array(shift(network, key, images, labels))
        moved[0] = images[0]
        return SimpleNamespace(images=moved, by_attack={"first": labels == 1, "second": np.zeros(len(images), bool)})

    run, protocol = make(), Protocol(ensemble, whole=True)
    assert run.unit_size(protocol) == 8 and run.unit_size(SHIFT) == 4
    outcome = run(protocol, key)
    assert seen == [8, 2]
    np.testing.assert_array_equal(outcome.robust, run(SHIFT, key).robust)  # whatever it claims
    np.testing.assert_array_equal(outcome.by_attack["first"], DATASET.labels == 1)
    assert list(outcome.by_attack) == ["first", "second"]
    run.run_unit(protocol, key, 0, lambda share, status: heard.append((share, status)))
    assert heard == [(0.5, "first: 1 of 8 images left, accuracy 12.50%")]


def test_the_clean_mistakes_are_not_robust(key):
    run = make(dataset=DATASET._replace(labels=1 - DATASET.labels))
    assert not run(Protocol(lambda logits_fn, key, images, labels: images), key).robust.any()
    assert jax.device_count() == 4


def test_units_do_not_depend_on_how_many_examples_there_are(key):
    drawn = Protocol(
        lambda logits_fn, key, images, labels: jnp.clip(images + jax.random.uniform(key, images.shape) / 10, 0, 1)
    )
    alone = sharding.layout(jax.devices()[:1])
    for count in (3, 6):  # less than a batch, and one and a half
        part = DATASET._replace(images=DATASET.images[:count], labels=DATASET.labels[:count])
        few = make(dataset=part, layout=alone)(drawn, key)
        np.testing.assert_array_equal(few.adversarial, make()(drawn, key).adversarial[:count])


def noisy(variables, images, key):
    """Right about every light image, and about a dark one in half of the draws."""
    score = images.mean(axis=(1, 2, 3)) - 0.5
    flip = jax.random.bernoulli(key, 0.5, score.shape)
    score = jnp.where(flip, score, jnp.abs(score))
    return jnp.stack([-score, score], axis=1)


def test_a_stochastic_network_is_judged_by_fresh_draws_the_same_before_and_after(key):
    run = make(noisy, num_draws=2000)
    clean = run(CLEAN, key)
    assert clean.num_draws == 2000
    light = DATASET.labels == 1
    assert (clean.right[light] == 2000).all() and (np.abs(clean.right[~light] / 2000 - 0.5) < 0.06).all()
    idle = run(Protocol(lambda logits_fn, key, images, labels: images), key)
    np.testing.assert_array_equal(idle.right, run(CLEAN, key).right)
    moved = run(SHIFT, key)
    crossed = np.abs(LEVELS / 255 - 0.5) <= 0.1
    assert (np.abs(moved.right[light & crossed] / 2000 - 0.5) < 0.06).all() and (light & crossed).sum() == 2
    assert (moved.right[~light & crossed] == 0).all() and (~light & crossed).sum() == 1


def test_an_attack_draws_with_its_own_keys(key):
    keys = []

    def attack(network, key, images, labels):
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data))), jax.random.key_data(key))
        return images + 0 * network(images, key).mean()

    def spying(variables, images, key):
        jax.debug.callback(lambda data: keys.append(tuple(np.asarray(data))), jax.random.key_data(key))
        return logits_fn(variables, images)

    make(spying, num_draws=3)(Protocol(attack), key)
    jax.effects_barrier()
    counts = {found: keys.count(found) for found in set(keys)}
    # Per batch: one of the attack, seen by itself and by the network; three of the judge, for images before and after.
    assert sorted(counts.values()) == [2] * (3 * 4)


def test_finished_images_are_verified_like_those_of_an_attack(key):
    run = make()
    images = (DATASET.images / np.float32(255)).astype(np.float32)
    away = np.where(DATASET.labels == 1, -0.1, 0.1).reshape(-1, 1, 1, 1).astype(np.float32)
    moved = np.clip(images + away, 0, 1)
    units = [run.verify_unit(SHIFT, key, i, moved[rows]) for i, rows in enumerate(run.examples(SHIFT))]
    np.testing.assert_array_equal(run.outcome(SHIFT, units).robust, run(SHIFT, key).robust)
    with pytest.raises(RuntimeError, match="outside the linf ball"):
        run.verify_unit(SHIFT, key, 0, images[:4] + 0.2)


def test_float_images_are_taken_as_they_are(key):
    floats = DATASET._replace(images=(DATASET.images / np.float32(255)).astype(np.float32))
    np.testing.assert_array_equal(make(dataset=floats)(SHIFT, key).right, make()(SHIFT, key).right)
