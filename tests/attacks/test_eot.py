"""Averages over a network's own randomness: gradients, shares and logits against sums over the same keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import eot, losses

IMAGES = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])
LABELS = jnp.array([0, 0, 0, 1])
NUM_SAMPLES = 7


def noisy(images, key):
    return images * (1.0 + jax.random.normal(key, (2,))[None])


def draws(key):
    """The factors of the logits in each draw, [n, 2]."""
    return np.stack([1.0 + np.asarray(jax.random.normal(jax.random.fold_in(key, i), (2,))) for i in range(NUM_SAMPLES)])


def test_outcomes_and_gradients_are_the_means_over_the_draws(key):
    factors = draws(key)
    logits = np.asarray(IMAGES)[None] * factors[:, None]  # [n, B, 2]
    rows, labels = np.arange(4), np.asarray(LABELS)
    margins = logits[:, rows, 1 - labels] - logits[:, rows, labels]
    signs = np.where(np.arange(2) == labels[:, None], -1.0, 1.0)
    # Of equal logits the first one's class is predicted.
    wrong = np.argmax(logits, axis=-1) != labels
    options = {"loss": losses.margin, "num_samples": NUM_SAMPLES}
    gradient = eot.expected_gradient(noisy, key, IMAGES, LABELS, **options)
    np.testing.assert_allclose(gradient, signs * factors.mean(0), rtol=1e-5)
    for targeted, share in ((False, wrong.mean(0)), (True, 1.0 - wrong.mean(0))):
        both = eot.expected_gradient_and_outcome(noisy, key, IMAGES, LABELS, targeted=targeted, **options)
        found = eot.expected_outcome(noisy, key, IMAGES, LABELS, targeted=targeted, **options)
        np.testing.assert_allclose(both[0], gradient, rtol=1e-6)
        for outcome in (both[1:], found):
            np.testing.assert_allclose(outcome[0], share, rtol=1e-6)
            np.testing.assert_allclose(outcome[1], margins.mean(0), rtol=1e-5, atol=1e-6)
    mean = eot.expected_logits_fn(noisy, key, num_samples=NUM_SAMPLES)
    np.testing.assert_allclose(mean(IMAGES), logits.mean(0), rtol=1e-5)


def test_entries_of_a_gradient_that_are_not_finite_count_as_0():
    def rooted(images):
        return jnp.sqrt(images)

    def total(outputs, labels):
        return jnp.sum(outputs, axis=1)

    points = jnp.array([[0.0, 0.25]])
    expected = [[0.0, 1.0]]
    options = {"loss": total, "num_samples": 0}
    key = jax.random.key(0)
    np.testing.assert_allclose(eot.expected_gradient(rooted, key, points, None, **options), expected)
    labels = jnp.zeros(1, jnp.int32)
    np.testing.assert_allclose(eot.expected_gradient_and_outcome(rooted, key, points, labels, **options)[0], expected)


@pytest.mark.parametrize("num_samples", [0, 1])
def test_one_draw_is_that_of_the_first_key_and_none_has_no_key(num_samples, key):
    def network(images, *keys):
        assert len(keys) == num_samples
        return noisy(images, *keys) if keys else images

    expected = np.asarray(IMAGES) * (draws(key)[0] if num_samples else 1.0)
    options = {"loss": losses.margin, "num_samples": num_samples}
    share, _ = eot.expected_outcome(network, key, IMAGES, LABELS, **options)
    np.testing.assert_array_equal(share, np.argmax(expected, axis=-1) != np.asarray(LABELS))
    mean = eot.expected_logits_fn(network, key, num_samples=num_samples)
    np.testing.assert_allclose(mean(IMAGES), expected, rtol=1e-6)


def test_of_all_draws_an_attack_averages_over_none_is_missing(key):
    """What is misclassified in every draw needs no further step: a share of exactly 1."""

    def network(images, key):
        del key
        return images

    @jax.jit
    def shares(images, labels):
        options = {"loss": losses.margin, "num_samples": 41}
        share, _ = eot.expected_outcome(network, key, images, labels, **options)
        return share, eot.expected_gradient_and_outcome(network, key, images, labels, **options)[1]

    for share in shares(IMAGES, LABELS):
        np.testing.assert_array_equal(share, [0, 1, 0, 1])
