"""The one judge of success: ties, NaN, majority of draws, votes, precision."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import verify
from robustjax.types import InputError, Outputs

IMAGES = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])
LABELS = jnp.array([0, 0, 0, 1])
BALL = {"epsilon": 0.25, "norm": "linf"}


def identity(images):
    return images


def test_a_deterministic_network_is_right_or_wrong_and_ties_go_to_the_first_class(key):
    found = verify.verify(identity, key, IMAGES, IMAGES, LABELS, **BALL)
    np.testing.assert_array_equal(found.share, [0, 1, 0, 1])
    np.testing.assert_array_equal(found.votes, [[1, 0], [0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(found.logits, IMAGES)
    np.testing.assert_array_equal(found.misclassified, [False, True, False, True])


def test_validity_and_class_are_told_apart(key):
    points = jnp.array([[0.1, 0.9], [0.1, 0.9], [0.45, 0.55], [0.5, jnp.nan]])
    found = verify.verify(identity, key, IMAGES, points, LABELS, **BALL)
    np.testing.assert_array_equal(found.misclassified, True)
    np.testing.assert_array_equal(found.valid, [False, True, True, False])


@pytest.mark.parametrize(
    ("wrong", "of", "misclassified"), [(1, 4, False), (2, 4, True), (3, 4, True), (41, 41, True), (41, 82, True)]
)
def test_half_of_the_draws_wrong_is_misclassified(wrong, of, misclassified, key):
    """So many draws are wrong, whichever keys these have; in float32 41 times 1/41 and 41 times 1/82 are too small."""
    keys = jax.random.split(key, of)

    def network(images, key):
        number = jnp.argmax(jax.random.key_data(keys)[:, 1] == jax.random.key_data(key)[1])
        return jnp.where(number < wrong, jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])) + 0 * images

    evaluate = jax.jit(partial(verify.verify, network, **BALL, num_draws=of))
    found = evaluate(key, IMAGES, IMAGES, jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(found.share, np.float32(wrong / of))
    np.testing.assert_array_equal(found.votes, [[of - wrong, wrong]] * 4)
    np.testing.assert_array_equal(found.misclassified, misclassified)
    np.testing.assert_allclose(found.logits, [[1 - wrong / of, wrong / of]] * 4, rtol=1e-6)


def test_the_same_key_asks_the_same_draws(key):
    def deaf(images, key):
        return jax.random.normal(key, (images.shape[0], 3))

    first, again = (verify.verify(deaf, key, IMAGES, p, LABELS, **BALL, num_draws=7) for p in (IMAGES, IMAGES * 0.9))
    other = verify.verify(deaf, jax.random.key(1), IMAGES, IMAGES, LABELS, **BALL, num_draws=7)
    np.testing.assert_array_equal(first.share, again.share)
    assert not np.array_equal(first.logits, other.logits)


def test_it_is_a_pure_function_in_full_precision_and_reads_outputs(key):
    seen = []

    def network(images):
        seen.append(jax.config.jax_default_matmul_precision)
        return Outputs(images, {}, {})

    found = jax.jit(lambda images: verify.verify(network, key, images, images, LABELS, **BALL))(IMAGES)
    np.testing.assert_array_equal(found.share, [0, 1, 0, 1])
    assert seen == ["float32"] and jax.config.jax_default_matmul_precision is None
    with pytest.raises(
        InputError, match=r"logits_fn must return float logits \[4, K\] with K >= 2, got float32 \[4, 1\]"
    ):
        verify.verify(lambda images: images[:, :1], key, IMAGES, IMAGES, LABELS, **BALL)


def test_half_precision_is_measured_in_float32():
    images = jnp.full((2, 3), 0.5, jnp.bfloat16)
    points = images + jnp.array([[0.0625], [0.0664]], jnp.bfloat16)
    np.testing.assert_array_equal(verify.is_valid(images, points, epsilon=0.0625), [True, False])
    assert jnp.max(points[0] - images[0]) == jnp.bfloat16(0.0625)
    # In bfloat16 the difference 0.896 would be 0.8945.
    images, points = jnp.full((1, 3), 0.99609375, jnp.bfloat16), jnp.full((1, 3), 0.1, jnp.bfloat16)
    for epsilon, valid in ((0.895, False), (0.8961, True)):
        np.testing.assert_array_equal(verify.is_valid(images, points, epsilon=epsilon), [valid])


def test_float64_is_measured_in_float64():
    with jax.enable_x64(True):
        images = np.full((2, 3), 0.5)
        points = np.array([[1.0] * 3, [1.0, 1.0, 1.0 + 1e-12]])
        np.testing.assert_array_equal(verify.is_valid(images, points, epsilon=0.75), [True, False])


def test_an_example_is_robust_that_is_right_before_and_after(key):
    def swapped(logits_fn, key, images, labels):
        return images[:, ::-1]

    def still(logits_fn, key, images, labels):
        return images

    labels = jnp.zeros(2, jnp.int32)
    np.testing.assert_array_equal(verify.is_robust(identity, swapped, key, IMAGES[:2], labels), [False, False])
    np.testing.assert_array_equal(verify.is_robust(identity, still, key, IMAGES[:2], labels), [True, False])
    np.testing.assert_array_equal(verify.is_robust(identity, None, key, IMAGES[:2], labels), [True, False])


def test_a_rounding_of_a_pixel_is_allowed_in_the_units_of_the_box_and_no_more():
    """Floats next to 200 are half as far apart as an ulp of 255 is: 2^-16 and eps 255, nearly 2^-15."""
    images = np.full((1, 4, 4, 1), 200.0, np.float32)
    step = np.spacing(images[0, 0, 0, 0])

    def beyond(norm, pixels, steps):
        """Whether images in a ball of radius 1 count whose first few pixels are some floats too far."""
        far = images + np.float32({"linf": 1.0, "l2": 1 / 4, "l1": 1 / 16}[norm])
        far.reshape(-1)[:pixels] += np.float32(steps) * step
        return bool(verify.is_valid(images, far, epsilon=1.0, norm=norm, bounds=(0.0, 255.0))[0])

    # In linf one ulp, so nearly 2 steps; in l1 four, for 16 pixels.
    assert beyond("linf", 16, 0) and beyond("linf", 16, 1) and not beyond("linf", 1, 3)
    assert beyond("l1", 7, 1) and not beyond("l1", 9, 1)
    # In l2 all pixels together move the norm by the mean of their steps times 4: one ulp again.
    assert beyond("l2", 7, 1) and not beyond("l2", 16, 1)
    small = np.full((1, 4, 4, 1), 0.5, np.float32)
    for norm, steps, valid in (("linf", 1, True), ("linf", 30, False)):
        far = small + np.float32(0.25) + np.float32(steps) * np.spacing(np.float32(0.5))
        assert bool(verify.is_valid(small, far, epsilon=0.25, norm=norm)[0]) == valid
