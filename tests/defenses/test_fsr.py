"""FSR against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from robustjax.defenses import fsr
from robustjax.types import InputError, Outputs

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(3, 2, 2, 4)).astype(np.float32) / 5
FEATURES, CORRECTION = RNG.normal(size=(2, 3, 2, 2, 4)).astype(np.float32)


def _mask(scores, temperature):
    return 1 / (1 + np.exp(-scores.astype(np.float64) / temperature))


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_matches_numpy(temperature):
    robust, nonrobust, mask = fsr.separate(jnp.asarray(SCORES), jnp.asarray(FEATURES), temperature=temperature)
    expected = _mask(SCORES, temperature)
    np.testing.assert_allclose(mask, expected, rtol=1e-5)
    np.testing.assert_allclose(robust, expected * FEATURES, rtol=1e-5)
    np.testing.assert_allclose(nonrobust, (1 - expected) * FEATURES, rtol=1e-4, atol=1e-6)
    recalibrated = fsr.recalibrate(nonrobust, jnp.asarray(CORRECTION), mask)
    np.testing.assert_allclose(recalibrated, (1 - expected) * (FEATURES + CORRECTION), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("noisy", [False, True])
def test_robust_and_nonrobust_add_up_to_the_features(key, noisy):
    robust, nonrobust, mask = fsr.separate(
        jnp.asarray(SCORES), jnp.asarray(FEATURES), key=key if noisy else None, temperature=0.3
    )
    np.testing.assert_allclose(robust + nonrobust, FEATURES, rtol=1e-6, atol=1e-7)
    unchanged = robust + fsr.recalibrate(nonrobust, jnp.zeros_like(nonrobust), mask)
    np.testing.assert_allclose(unchanged, FEATURES, rtol=1e-6, atol=1e-7)


def test_noise_has_the_law_of_gumbel_softmax(key):
    """At temperature 1 the mask is above a half with the probability to keep, its quantiles those of two Gumbels."""
    scores = jnp.full((50000,), 0.7)
    mask = np.asarray(fsr.separate(scores, scores, key=key, temperature=1.0)[2])
    keep = _mask(np.float32(0.7), 1.0)
    assert abs((mask > 0.5).mean() - keep) < 4 * np.sqrt(keep * (1 - keep) / mask.size)
    gumbel = RNG.gumbel(size=(2, 50000))
    logits = (np.log(keep) + gumbel[0]) - (np.log(1 - keep) + gumbel[1])
    levels = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(mask, levels), np.quantile(1 / (1 + np.exp(-logits)), levels), atol=0.012)


def test_gradients_match_finite_differences():
    def value(scores, features, correction):
        robust, nonrobust, mask = fsr.separate(scores, features, temperature=1.0)
        return jnp.sum(jnp.sin(robust + 2.0 * fsr.recalibrate(nonrobust, correction, mask)))

    arguments = tuple(jnp.asarray(array) for array in (SCORES, FEATURES, CORRECTION))
    check_grads(value, arguments, order=1, modes=["rev"], eps=1e-2, rtol=1e-2, atol=1e-2)


def test_backward_temperature_changes_the_gradient_alone():
    def value(scores, temperature, backward_temperature):
        options = {"temperature": temperature, "backward_temperature": backward_temperature}
        return jnp.sum(fsr.separate(scores, jnp.asarray(FEATURES), **options)[0])

    scores = jnp.asarray(SCORES) * 100.0  # saturated at 0.1: no gradient at all
    sharp, nothing = jax.value_and_grad(value)(scores, 0.1, None)
    surrogate, gradient = jax.value_and_grad(value)(scores, 0.1, 50.0)
    assert sharp == surrogate
    assert np.mean(np.abs(nothing) < 1e-12) > 0.5
    mask = _mask(np.asarray(scores), 50.0)
    np.testing.assert_allclose(gradient, mask * (1 - mask) / 50.0 * FEATURES, rtol=1e-4, atol=1e-6)


def test_loss_matches_numpy_and_the_wrong_class_is_never_the_label():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, 5))
    heads = {kind: rng.normal(size=(1, 4, 5)) for kind in ("robust", "nonrobust", "recalibrated")}
    labels = np.array([logits[0].argmax(), logits[1].argsort()[-2], 0, 4])
    log_p = {kind: a[0] - np.log(np.exp(a[0]).sum(1, keepdims=True)) for kind, a in heads.items()}
    wrong = np.array([next(k for k in row.argsort()[::-1] if k != y) for row, y in zip(logits, labels, strict=True)])
    rows = np.arange(4)
    separation = -log_p["robust"][rows, labels] - log_p["nonrobust"][rows, wrong]
    expected = 7 + 0.5 * separation - 2.0 * log_p["recalibrated"][rows, labels]

    def outputs(scale):
        arrays = {kind: jnp.asarray(scale * head, jnp.float32) for kind, head in heads.items()}
        return Outputs(jnp.asarray(logits, jnp.float32), arrays, {})

    views = {"natural": outputs(9.0), "adversarial": outputs(1.0)}
    value = fsr.loss(views, jnp.asarray(labels), term=lambda *_: 7.0, separation_weight=0.5, recalibration_weight=2.0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_bfloat16_features_keep_their_dtype_and_the_mask_its_precision(key):
    half = jnp.asarray(FEATURES, jnp.bfloat16)
    robust, nonrobust, mask = fsr.separate(half, half, key=key)
    assert (robust.dtype, nonrobust.dtype, mask.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    assert fsr.recalibrate(nonrobust, half, mask).dtype == jnp.bfloat16


def test_bad_temperatures_are_named():
    for options in ({"temperature": 0.0}, {"backward_temperature": -1.0}):
        with pytest.raises(InputError, match="temperatures must be above 0"):
            fsr.separate(jnp.asarray(SCORES), jnp.asarray(FEATURES), **options)


def test_shapes_that_would_be_broadcast_are_refused():
    features = jnp.ones((2, 3, 3, 4))
    with pytest.raises(InputError, match=r"scores must be \[2, 3, 3, 4\], as features, got \[2, 1, 1, 4\]; give it"):
        fsr.separate(features[:, :1, :1], features)
    for arguments in ((features, features[:1], features), (features, features, features[..., :1])):
        with pytest.raises(InputError, match=r"must be \[2, 3, 3, 4\], as nonrobust, got"):
            fsr.recalibrate(*arguments)
