"""CAS against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from robustjax.defenses import cas
from robustjax.types import InputError

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(5, 3, 2, 4)).astype(np.float32)
WEIGHTS = RNG.normal(size=(4, 6)).astype(np.float32)
BIASES = RNG.normal(size=6).astype(np.float32)
LABELS = RNG.integers(0, 6, 5)


def _suppress(labels=None, **options):
    labels = None if labels is None else jnp.asarray(labels)
    return cas.suppress(jnp.asarray(FEATURES), jnp.asarray(WEIGHTS), jnp.asarray(BIASES), labels, **options)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_matches_numpy(labels):
    features, logits = _suppress(labels)
    expected = FEATURES.astype(np.float64).mean((1, 2)) @ WEIGHTS + BIASES
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    classes = expected.argmax(1) if labels is None else labels
    assert len(set(classes)) > 1
    np.testing.assert_allclose(features, FEATURES * WEIGHTS.T[classes][:, None, None, :], rtol=1e-6)


def test_columns_of_one_number_are_plain_scaling():
    for labels in (None, jnp.asarray(LABELS)):
        features, _ = cas.suppress(jnp.asarray(FEATURES), jnp.ones((4, 6)), jnp.asarray(BIASES), labels)
        np.testing.assert_array_equal(features, FEATURES)
        features, _ = cas.suppress(jnp.asarray(FEATURES), jnp.full((4, 6), -0.5), jnp.asarray(BIASES), labels)
        np.testing.assert_array_equal(features, -0.5 * FEATURES)


def test_gradients_match_finite_differences():
    def value(features, weights, biases):
        suppressed, logits = cas.suppress(features, weights, biases, jnp.asarray(LABELS))
        return jnp.sum(suppressed**2) + jnp.sum(jnp.sin(logits))

    arguments = tuple(jnp.asarray(array) for array in (FEATURES, WEIGHTS, BIASES))
    check_grads(value, arguments, order=1, eps=1e-2, rtol=1e-2, atol=1e-2)


def test_the_selection_has_a_gradient_only_when_asked_and_then_that_of_softmax():
    cotangent = jnp.asarray(RNG.normal(size=FEATURES.shape).astype(np.float32))

    def gradient(**options):
        def value(features):
            return jnp.sum(cotangent * cas.suppress(features, jnp.asarray(WEIGHTS), jnp.asarray(BIASES), **options)[0])

        return jax.value_and_grad(value)(jnp.asarray(FEATURES))

    (hard_value, hard), (soft_value, soft) = gradient(), gradient(differentiate_selection=True)
    assert hard_value == soft_value
    logits = FEATURES.astype(np.float64).mean((1, 2)) @ WEIGHTS + BIASES
    columns = WEIGHTS.T[logits.argmax(1)]
    np.testing.assert_allclose(hard, cotangent * columns[:, None, None, :], rtol=1e-5)

    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    by_column = np.einsum("bhwc,bhwc->bc", np.asarray(cotangent), FEATURES)  # d value / d column weight
    by_class = by_column @ WEIGHTS
    by_logits = p * (by_class - (p * by_class).sum(1, keepdims=True))
    expected = np.asarray(hard) + (by_logits @ WEIGHTS.T)[:, None, None, :] / 6
    np.testing.assert_allclose(soft, expected, rtol=1e-4, atol=1e-5)


def test_of_the_guards_modes_the_surrogate_alone_has_a_gradient_through_the_selection():
    variables = {"params": {"kernel": jnp.asarray(WEIGHTS), "bias": jnp.asarray(BIASES)}}

    def apply(mode, features):
        return cas.CAS(6, mode).apply(variables, features)[0]

    features = jnp.asarray(FEATURES)
    for mode, (output, slope) in {
        mode: jax.value_and_grad(lambda z, mode=mode: jnp.sum(jnp.sin(apply(mode, z))))(features)
        for mode in ("active", "surrogate", "off")
    }.items():
        expected, gradient = jax.value_and_grad(
            lambda z, mode=mode: jnp.sum(
                jnp.sin(z if mode == "off" else _suppress_of(z, differentiate_selection=mode == "surrogate"))
            )
        )(features)
        np.testing.assert_allclose(output, expected, rtol=1e-6)
        np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-7)


def _suppress_of(features, **options):
    return cas.suppress(features, jnp.asarray(WEIGHTS), jnp.asarray(BIASES), **options)[0]


def test_dense_features_and_bfloat16():
    dense, logits = cas.suppress(jnp.asarray(FEATURES[:, 0, 0]), jnp.asarray(WEIGHTS), jnp.asarray(BIASES))
    np.testing.assert_allclose(logits, FEATURES[:, 0, 0] @ WEIGHTS + BIASES, rtol=1e-5, atol=1e-6)
    assert dense.shape == (5, 4)
    half, logits = cas.suppress(jnp.asarray(FEATURES, jnp.bfloat16), jnp.asarray(WEIGHTS), jnp.asarray(BIASES))
    assert (half.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(("weights", "biases"), [((5, 4), (5,)), ((4, 5), (4,)), ((4, 5), (1, 5)), ((4,), (5,))])
def test_weights_that_do_not_fit_are_refused(weights, biases):
    with pytest.raises(InputError, match=r"cas: weights and biases must be \[4, K\] and \[K\], got .*; of PyTorch's"):
        cas.suppress(jnp.ones((2, 3, 3, 4)), jnp.ones(weights), jnp.ones(biases))
