"""Dropout and noise, SAP's baselines, by their moments and their gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import defenses
from robustjax.defenses import dropout, noise
from robustjax.types import InputError

KEYS = jax.random.split(jax.random.key(0), 4000)
FEATURES = jnp.array([[-2.0, 0.0, 0.5, 4.0]])


def _draws(function, **options):
    return np.asarray(jax.vmap(lambda key: function(key, FEATURES, **options)[0])(KEYS))


def test_dropout_keeps_every_entry_equally_often_and_the_expectation():
    draws = _draws(dropout.drop, rate=0.25)
    error = 5 * np.sqrt(0.25 * 0.75 / len(draws))
    for i, value in enumerate(np.asarray(FEATURES[0])):
        assert set(np.round(draws[:, i], 4)) == {0.0, np.float32(round(value / 0.75, 4))}
        if value:
            assert abs((draws[:, i] != 0).mean() - 0.75) < error
    assert np.abs(np.corrcoef((draws[:, [0, 2, 3]] != 0).T)[0, 1:]).max() < 5 / np.sqrt(len(draws))


@pytest.mark.parametrize(("relative", "deviations"), [(False, [0.5] * 4), (True, [1.0, 0.0, 0.25, 2.0])])
def test_noise_has_its_mean_and_deviation(relative, deviations):
    draws = _draws(noise.perturb, deviation=0.5, relative=relative)
    np.testing.assert_allclose(draws.mean(0), FEATURES[0], atol=5 * 2.0 / np.sqrt(len(draws)))
    np.testing.assert_allclose(draws.std(0), deviations, rtol=0.06)


def test_none_of_it_is_the_plain_network_and_dtypes_stay():
    half, key = FEATURES.astype(jnp.bfloat16), jax.random.key(1)
    for same in (dropout.drop(key, half, rate=0.0), noise.perturb(key, half, deviation=0.0, relative=True)):
        assert same.dtype == jnp.bfloat16
        np.testing.assert_array_equal(same, half)


@pytest.mark.parametrize("name", ["dropout", "noise"])
def test_guards_act_at_inference_and_in_training_where_they_are_told_to(name):
    def apply(guard, **given):
        return guard.apply({}, FEATURES, rngs={"defense": jax.random.key(2)}, **given)[0]

    (plain,), (both,) = (
        defenses.create(name, in_training=told, sites="a").guards({"activation": ("a",)}, 2).values()
        for told in (False, True)
    )
    active = apply(plain)
    assert np.any(active != FEATURES)
    np.testing.assert_array_equal(apply(plain, train=True), FEATURES)
    np.testing.assert_array_equal(apply(both, train=True), active)
    np.testing.assert_array_equal(apply(both.clone(mode="off")), FEATURES)
    gradient = jax.grad(lambda z: jnp.sum(plain.clone(mode="surrogate").apply({}, z, rngs={"defense": KEYS[0]})[0]))
    np.testing.assert_array_equal(gradient(FEATURES), jnp.ones_like(FEATURES))
    np.testing.assert_array_equal(apply(plain.clone(mode="surrogate")), active)


def test_relative_noise_is_a_factor_of_the_gradient_but_of_the_surrogate():
    def draw(mode, features):
        guard = noise.Noise(0.5, relative=True, mode=mode)
        return guard.apply({}, features, rngs={"defense": KEYS[0]})[0]

    active, surrogate = (
        jax.grad(lambda z, mode=mode: jnp.sum(draw(mode, z)))(FEATURES) for mode in ("active", "surrogate")
    )
    np.testing.assert_allclose(active * FEATURES, draw("active", FEATURES), rtol=1e-6)
    assert np.all(np.abs(active - 1.0) > 1e-3)
    np.testing.assert_array_equal(surrogate, jnp.ones_like(FEATURES))


@pytest.mark.parametrize("act", [partial(dropout.drop, rate=0.5), partial(noise.perturb, deviation=0.5)])
def test_integers_which_would_truncate_the_result_are_refused(act):
    with pytest.raises(InputError, match=r"activations must be an array of floats, got int32 \[5\]; convert them"):
        act(jax.random.key(0), jnp.arange(5))


def test_bad_options_are_named():
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(InputError, match=r"dropout: rate must be in \[0, 1\), got"):
            defenses.create("dropout", rate=rate)
    for deviation in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match="noise: deviation must be at least 0 and finite, got"):
            defenses.create("noise", deviation=deviation)
