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


def test_a_hard_mask_keeps_or_drops_and_trains_as_the_soft_one(key):
    scores, features = jnp.asarray(SCORES).at[0, 0, 0, 0].set(0.0), jnp.asarray(FEATURES)

    def value(scores, hard, key=None):
        robust, nonrobust, mask = fsr.separate(scores, features, key=key, temperature=0.5, hard=hard)
        return jnp.sum(jnp.asarray(CORRECTION) * robust), (robust, nonrobust, mask)

    (_, (robust, nonrobust, mask)), gradient = jax.value_and_grad(value, has_aux=True)(scores, True)
    np.testing.assert_array_equal(mask, np.asarray(scores) >= 0)
    np.testing.assert_array_equal(robust, np.where(np.asarray(scores) >= 0, FEATURES, 0))
    np.testing.assert_array_equal(robust + nonrobust, FEATURES)
    np.testing.assert_allclose(gradient, jax.grad(value, has_aux=True)(scores, False)[0], rtol=1e-6)
    (_, (_, _, noisy)) = value(scores, True, key)
    assert set(np.unique(noisy)) == {0.0, 1.0} and np.any(noisy != mask)


def _guard(**options):
    (guard,) = fsr.defense(width=2, **options).guards({"final": ("site",)}, 3).values()
    keys = {"params": jax.random.key(0), "defense": jax.random.key(1)}
    return guard, guard.init(keys, jnp.asarray(FEATURES))


@pytest.mark.parametrize("parts", ["both", "separation", "recalibration"])
def test_parts_alone_hold_and_pass_on_what_is_theirs(parts):
    guard, variables = _guard(parts=parts)
    # Running statistics at 0 and 1, and scales at 1, make the inner networks what `capture_intermediates` shows.
    (passed, heads), kept = guard.apply(
        variables, jnp.asarray(FEATURES), capture_intermediates=True, mutable=["intermediates"]
    )
    inner = {name: np.asarray(tree["__call__"][0]) for name, tree in kept["intermediates"].items() if name[0] in "sr"}
    nets = {"both": {"separation", "recalibration"}}.get(parts, {parts})
    assert set(inner) == nets and set(variables["params"]) == {*nets, "auxiliary"}
    assert set(heads) == set(fsr.defense(parts=parts).heads) == set(fsr.HEADS[parts])
    mask = _mask(inner["separation"], 0.1) if "separation" in nets else 0.0
    expected = mask * FEATURES
    if "recalibration" in nets:
        expected = expected + (1 - mask) * (FEATURES + inner["recalibration"])
    np.testing.assert_allclose(passed, expected, rtol=1e-4, atol=1e-5)
    off, _ = guard.clone(mode="off").apply(variables, jnp.asarray(FEATURES))
    np.testing.assert_array_equal(off, FEATURES)


def test_training_draws_noise_unless_it_is_switched_off():
    for noisy in (True, False):
        guard, variables = _guard(gumbel_noise=noisy)
        first, second = (
            guard.apply(
                variables,
                jnp.asarray(FEATURES),
                None,
                True,
                rngs={"defense": jax.random.key(i)},
                mutable=["batch_stats"],
            )[0][0]
            for i in range(2)
        )
        assert bool(jnp.any(first != second)) == noisy


def test_the_loss_leaves_out_what_a_guard_does_not_have():
    head, labels = {kind: jnp.zeros((1, 1, 2)) for kind in fsr.HEADS["both"]}, jnp.array([0])
    for parts, terms in (("both", 3), ("separation", 2), ("recalibration", 1)):
        outputs = Outputs(jnp.zeros((1, 2)), {kind: head[kind] for kind in fsr.HEADS[parts]}, {})
        value = fsr.defense(parts=parts).loss({"natural": outputs}, labels, term=lambda *_: 0.0)
        np.testing.assert_allclose(value, [terms * np.log(2)], rtol=1e-6)
    with pytest.raises(InputError, match="fsr: parts must be one of both, separation, recalibration, got 'none'"):
        fsr.defense(parts="none")


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
        with pytest.raises(InputError, match=r"fsr: temperature must be in \(0, inf\], got"):
            fsr.separate(jnp.asarray(SCORES), jnp.asarray(FEATURES), **options)


def test_shapes_that_would_be_broadcast_are_refused():
    features = jnp.ones((2, 3, 3, 4))
    with pytest.raises(InputError, match=r"scores must be \[2, 3, 3, 4\], as features, got \[2, 1, 1, 4\]; give it"):
        fsr.separate(features[:, :1, :1], features)
    for arguments in ((features, features[:1], features), (features, features, features[..., :1])):
        with pytest.raises(InputError, match=r"must be \[2, 3, 3, 4\], as nonrobust, got"):
            fsr.recalibrate(*arguments)
