"""Classifiers within a network are found where it chooses by their scores, and are what they are said to be."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.evaluation import judge
from robustjax.transforms import _heads

KEY = jax.random.key(0)
B, K, D = 6, 4, 12
IMAGES = jax.random.uniform(KEY, (B, 2, 2, 3))
HEAD, FEATURES, LAST = (
    jax.random.normal(jax.random.fold_in(KEY, i), shape) for i, shape in enumerate([(D, K), (D, K * 3), (K * 3, K)])
)


def found_in(network, *operands):
    return _heads.find(jax.tree_util.Partial(network), *operands)


def line_of(network, text):
    """Where the network's own source has the text, as verdicts name it."""
    lines, first = inspect.getsourcelines(network)
    line = first + max(i for i, each in enumerate(lines) if text in each)
    return f"test_heads.py:{line} ({network.__name__})"


def scores_of(images):
    return 1.0 + (images.reshape(-1, D) @ HEAD) ** 2


def masked_by(mask, images):
    """Logits of features of which each class has three, kept where the mask [B, K] says."""
    features = images.reshape(-1, D) @ FEATURES
    return (features * jnp.repeat(mask.astype(jnp.float32), 3, axis=1)) @ LAST


def by_argmax(images):
    return masked_by(jax.nn.one_hot(jnp.argmax(scores_of(images), axis=1), K), images)


def by_top_k(images):
    _, which = jax.lax.top_k(scores_of(images), 2)
    return masked_by(jax.nn.one_hot(which, K).sum(1), images)


def by_sorting(images):
    scores = scores_of(images)
    which = jnp.argsort(scores, axis=1)[:, -2:]
    return 10.0 * scores + masked_by(jax.nn.one_hot(which, K).sum(1), images)


def called(images):
    """The choice is made in a function that is compiled by itself and again for its derivative."""
    return jax.checkpoint(jax.jit(by_argmax))(images)


CHOICES = {"argmax": "jnp.argmax", "top_k": "top_k", "sort": "argsort"}


@pytest.mark.parametrize(
    ("network", "operation"),
    [(by_argmax, "argmax"), (by_top_k, "top_k"), (by_sorting, "sort"), (called, "argmax")],
)
def test_the_scores_and_their_derivative_are_the_heads_own(network, operation):
    heads = found_in(network, IMAGES)
    assert heads is not None
    chosen_in = by_argmax if network is called else network
    (where,) = heads.where
    assert where.startswith(f"{operation} at ")
    assert where.endswith(line_of(chosen_in, CHOICES[operation]))
    np.testing.assert_allclose(heads.scores(IMAGES)[0], scores_of(IMAGES), rtol=1e-6)
    weights = jax.random.normal(jax.random.fold_in(KEY, 9), (B, K))
    own = jax.grad(lambda x: jnp.sum(weights * scores_of(x)))(IMAGES)
    np.testing.assert_allclose(
        jax.grad(lambda x: jnp.sum(weights * heads.scores(x)[0]))(IMAGES), own, rtol=1e-4, atol=1e-6
    )
    assert float(jnp.abs(own).max()) > 0.1


def by_the_smallest(images):
    """As likely a class as its distance is small."""
    logits = images.reshape(-1, D) @ FEATURES @ LAST
    chosen = jax.nn.one_hot(jnp.argmin(1.0 - logits, axis=1), K)
    return logits + 0.1 * chosen


def test_scores_of_which_the_smallest_is_chosen_are_negated():
    heads = found_in(by_the_smallest, IMAGES)
    assert heads is not None
    logits = IMAGES.reshape(-1, D) @ FEATURES @ LAST
    np.testing.assert_allclose(heads.scores(IMAGES)[0], logits - 1.0, rtol=1e-5, atol=1e-5)


def test_of_sorted_scores_the_network_says_which_way_they_go():
    def descending(images):
        scores = scores_of(images)
        which = jnp.argsort(-scores, axis=1)[:, :2]
        return 10.0 * scores + masked_by(jax.nn.one_hot(which, K).sum(1), images)

    heads = found_in(descending, IMAGES)
    assert heads is not None
    np.testing.assert_allclose(heads.scores(IMAGES)[0], scores_of(IMAGES), rtol=1e-6)


def twice(images):
    """Two heads, the second after a detached copy of the features."""
    first = masked_by(jax.nn.one_hot(jnp.argmax(scores_of(images), axis=1), K), images)
    second = jax.lax.stop_gradient(images).reshape(-1, D) @ HEAD[:, ::-1]
    return first * jax.nn.one_hot(jnp.argmax(second, axis=1), K)


def test_heads_of_detached_features_have_a_derivative():
    heads = found_in(twice, IMAGES)
    assert heads is not None
    assert heads.scores(IMAGES).shape == (2, B, K)
    gradient = jax.grad(lambda x: jnp.sum(heads.scores(x)[1, :, 0]))(IMAGES)
    np.testing.assert_allclose(gradient.reshape(B, D), jnp.broadcast_to(HEAD[:, -1], (B, D)), rtol=1e-5)


def its_own_logits(images):
    logits = images.reshape(-1, D) @ FEATURES @ LAST
    return jnp.where(jax.nn.one_hot(jnp.argmax(logits, axis=1), K) > 0, logits, logits)


def of_another_number(images):
    features = images.reshape(-1, D) @ FEATURES
    return (features * jax.nn.one_hot(jnp.argmax(features, axis=1), 3 * K)) @ LAST


def over_the_batch(images):
    scores = scores_of(images)
    return masked_by(jax.nn.one_hot(jnp.argmax(scores, axis=0), len(images)).T, images)


def in_a_loop(images):
    def turn(images, _):
        return images, by_argmax(images)

    return jax.lax.scan(turn, images, length=2)[1][-1]


def by_a_table(images):
    """As many rows as there are images, which do not depend on them."""
    return masked_by(jax.nn.one_hot(jnp.argmax(HEAD[:B], axis=1), K)[:1], images)


def with_masked_classes(images):
    return jnp.where(jnp.arange(K)[None] < 2, its_own_logits(images), -jnp.inf)


@pytest.mark.parametrize(
    "network", [its_own_logits, of_another_number, over_the_batch, in_a_loop, by_a_table, with_masked_classes]
)
def test_what_is_no_classifier_within_is_not_found(network):
    assert found_in(network, IMAGES) is None


def test_a_head_of_a_network_that_masks_classes_serves_batches_of_every_size():
    def network(images):
        return jnp.where(jnp.arange(K)[None] < 2, by_argmax(images) + by_a_table(images), -jnp.inf)

    heads = found_in(network, IMAGES)
    assert heads is not None
    for images in (IMAGES, IMAGES[:2]):
        np.testing.assert_allclose(heads.scores(images), scores_of(images)[None], rtol=1e-6)


def test_heads_of_a_stochastic_network_take_its_key():
    def network(images, key):
        noisy = images + 0.1 * jax.random.normal(key, images.shape)
        return masked_by(jax.nn.one_hot(jnp.argmax(scores_of(noisy), axis=1), K), images)

    heads = found_in(network, IMAGES, KEY)
    assert heads is not None
    noisy = IMAGES + 0.1 * jax.random.normal(KEY, IMAGES.shape)
    np.testing.assert_allclose(heads.scores(IMAGES, KEY)[0], scores_of(noisy), rtol=1e-5)


def test_a_head_that_cannot_be_differentiated_is_left():
    def network(images):
        scores = jax.lax.linalg.hessenberg(images.reshape(-1, D)[:, :9].reshape(-1, 3, 3))[0].reshape(-1, 9)[:, :K]
        return masked_by(jax.nn.one_hot(jnp.argmax(scores, axis=1), K), images)

    with pytest.raises(NotImplementedError):
        jax.grad(lambda x: jnp.sum(jax.lax.linalg.hessenberg(x)[0]))(jnp.eye(3))
    assert found_in(network, IMAGES) is None


def betrayed(images):
    """Class 0 is ahead whatever the pixels, but for the mask of a head that any image of the ball can turn."""
    mean = jnp.mean(images, axis=(1, 2, 3))
    scores = jnp.stack([jnp.zeros_like(mean), 60.0 * (mean - 0.55)], axis=1)
    keeps = jax.nn.one_hot(jnp.argmax(scores, axis=1), 2)
    # The gradient of the logits leads away from where the head turns.
    return keeps * jnp.stack([2.0 + mean, 1.0 + mean], axis=1)


def test_judge_attacks_the_head_that_nobody_declared_and_names_its_line():
    images = np.full((40, 2, 2, 1), 0.5, np.float32)
    verdict = judge(betrayed, KEY, images, np.zeros(40, np.int32), epsilon=0.1)
    flag = verdict.flags["auxiliary_attack_helps"]
    assert verdict.worst_case == 0.0
    assert flag.status == "fail"
    assert line_of(betrayed, "argmax") in flag.explanation
