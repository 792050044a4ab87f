"""Losses against NumPy in float64, and where float32 usually gives up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax.attacks import losses
from robustjax.types import InputError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (64, 7)).astype(np.float32)
LABELS = RNG.integers(0, 7, 64)


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    return (
        logits
        - np.log(np.sum(np.exp(logits - logits.max(1, keepdims=True)), 1, keepdims=True))
        - logits.max(1, keepdims=True)
    )


def _others(logits, labels):
    return np.stack([np.delete(row, label) for row, label in zip(logits, labels, strict=True)])


def test_cross_entropy_matches_numpy():
    expected = -_log_softmax(LOGITS)[np.arange(64), LABELS]
    np.testing.assert_allclose(losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS)), expected, rtol=2e-6)


@pytest.mark.parametrize("gap", [20.0, 50.0, 80.0])
def test_cross_entropy_has_value_and_gradient_where_softmax_saturates(gap):
    logits, labels = jnp.array([[gap, 0.0, 0.0]]), jnp.array([0])
    value, gradient = jax.value_and_grad(lambda z: losses.cross_entropy(z, labels)[0])(logits)
    np.testing.assert_allclose(value, 2 * np.exp(-gap), rtol=1e-5)
    np.testing.assert_allclose(gradient[0], np.exp(-gap) * np.array([-2.0, 1.0, 1.0]), rtol=1e-5)
    usual = jax.grad(lambda z: -jax.nn.log_softmax(z)[0, 0])(logits)
    assert float(jnp.abs(usual[0, 0])) == 0.0  # what this form is for


def test_cross_entropy_of_a_hopeless_example_is_the_gap():
    value, gradient = jax.value_and_grad(lambda z: losses.cross_entropy(z, jnp.array([1]))[0])(
        jnp.array([[1000.0, 0.0]])
    )
    assert value == 1000.0
    np.testing.assert_array_equal(gradient, [[1.0, -1.0]])


def test_margin_matches_numpy_and_stops_at_its_confidence():
    expected = _others(LOGITS, LABELS).max(1) - LOGITS[np.arange(64), LABELS]
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    np.testing.assert_array_equal(losses.margin(logits, labels), expected)
    np.testing.assert_array_equal(losses.margin(logits, labels) > 0, LOGITS.argmax(1) != LABELS)
    np.testing.assert_array_equal(losses.margin(logits, labels, confidence=1.0), np.minimum(expected, 1.0))
    gradient = jax.grad(lambda z: losses.margin(z, labels, confidence=1.0).sum())(logits)
    np.testing.assert_array_equal(np.any(gradient, axis=1), expected < 1.0)


def test_dlr_matches_numpy_and_ignores_shift_and_scale():
    ordered = np.sort(LOGITS.astype(np.float64), 1)
    gap = LOGITS[np.arange(64), LABELS] - _others(LOGITS, LABELS).max(1)
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    np.testing.assert_allclose(losses.dlr(logits, labels), -gap / (ordered[:, -1] - ordered[:, -3]), rtol=1e-5)
    np.testing.assert_allclose(losses.dlr(logits * 8 + 2, labels), losses.dlr(logits, labels), rtol=1e-4)


def test_dlr_of_equal_logits_is_finite_and_of_two_classes_an_error():
    assert losses.dlr(jnp.zeros((1, 4)), jnp.array([1])) == 0.0
    with pytest.raises(ValueError, match="at least 3 classes, got 2"):
        losses.dlr(jnp.zeros((1, 2)), jnp.array([1]))


def test_kl_matches_numpy_and_its_gradients_stay_finite_at_probability_zero():
    other = RNG.normal(0, 3, LOGITS.shape).astype(np.float32)
    q = np.exp(_log_softmax(other))
    expected = np.sum(q * (_log_softmax(other) - _log_softmax(LOGITS)), 1)
    np.testing.assert_allclose(losses.kl(jnp.asarray(LOGITS), jax.nn.softmax(jnp.asarray(other))), expected, rtol=1e-4)

    extreme = jnp.array([[300.0, 0.0, -300.0]])
    both = jax.grad(lambda a, b: losses.kl(a, jax.nn.softmax(b))[0], argnums=(0, 1))(extreme, extreme[:, ::-1])
    assert all(bool(jnp.all(jnp.isfinite(gradient))) for gradient in both)


def test_kl_from_integer_labels_is_cross_entropy():
    logits, labels = jnp.asarray(LOGITS), jnp.asarray(LABELS)
    np.testing.assert_array_equal(losses.kl(logits, labels), losses.cross_entropy(logits, labels))
    np.testing.assert_allclose(
        losses.kl(logits, jax.nn.one_hot(labels, 7)), losses.cross_entropy(logits, labels), rtol=1e-5
    )


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_bfloat16_logits_are_computed_on_in_float32(loss):
    logits = jnp.asarray(LOGITS).astype(jnp.bfloat16)
    value = loss(logits, jnp.asarray(LABELS))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(logits.astype(jnp.float32), jnp.asarray(LABELS)), rtol=1e-6)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr, losses.kl])
@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ([-1, 0, 1, 2], "got -1 to 2"),  # indexing would take the last class
        ([7, 0, 1, 2], "got 0 to 7"),
        ([0], r"got int32 \[1\]"),  # and give all the same label
        ([0.0, 1.0, 2.0, 3.0], r"got float32 \[4\]"),
    ],
)
def test_labels_that_are_no_classes_are_refused(loss, labels, got):
    with pytest.raises(InputError, match=f"labels must be integers .*{got}"):
        loss(jnp.asarray(LOGITS[:4]), jnp.asarray(labels))


def test_shapes_that_would_be_broadcast_are_refused():
    logits, labels = jnp.asarray(LOGITS[:4]), jnp.asarray(LABELS[:4])
    for loss in (losses.cross_entropy, losses.margin, losses.dlr):
        with pytest.raises(InputError, match=r"labels must be integers \[4\] .*got int32 \[4, 7\]"):
            loss(logits, jax.nn.one_hot(labels, 7, dtype=jnp.int32))
        with pytest.raises(InputError, match=r"logits must be an array \[B, K\], got shape \[7\]"):
            loss(logits[0], labels)
    with pytest.raises(InputError, match=r"labels must be probabilities \[4, 7\], got \[1, 7\]"):
        losses.kl(logits, jnp.full((1, 7), 1 / 7))
    for wrong in (jnp.full(4, 7), labels[:1]):
        with pytest.raises(InputError, match=r"targets must be integers \[4\] of classes 0 to 6"):
            losses.targeted_margin(logits, labels, wrong)
        with pytest.raises(InputError, match=r"targets must be integers \[4\] of classes 0 to 6"):
            losses.targeted_dlr(logits, labels, wrong)
