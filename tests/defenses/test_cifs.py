"""CIFS against NumPy in float64, with the probe's first and second derivatives written out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from robustjax.defenses import cifs
from robustjax.types import InputError

RNG = np.random.default_rng(0)
B, C, HIDDEN, K = 4, 5, 3, 4
FEATURES = RNG.normal(size=(B, 2, 3, C)).astype(np.float32)
LAYERS = [
    (RNG.normal(size=(C, HIDDEN)).astype(np.float32), RNG.normal(size=HIDDEN).astype(np.float32)),
    (RNG.normal(size=(HIDDEN, K)).astype(np.float32), RNG.normal(size=K).astype(np.float32)),
]
RANKS = np.array([0, 1, 2, 3])  # the labels: one ranked first, one second, one third, one last


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _oracle(labels=None, features=FEATURES, top_k=2):
    """Logits, relevance and what they are made of."""
    (kernel_0, bias_0), (kernel_1, bias_1) = [(k.astype(np.float64), b.astype(np.float64)) for k, b in LAYERS]
    pooled = features.astype(np.float64).mean((1, 2))
    before = pooled @ kernel_0 + bias_0
    logits = np.log1p(np.exp(5 * before)) / 5 @ kernel_1 + bias_1
    order = np.argsort(-logits, axis=1)[:, :top_k]
    if labels is not None:
        order[:, 0] = labels
    chosen = np.zeros_like(logits)
    for row, classes in enumerate(order):
        for k in classes:
            chosen[row, k] += 1
    relevance = (_sigmoid(5 * before) * (chosen @ kernel_1.T)) @ kernel_0.T
    return logits, relevance, pooled, before, chosen


LABELS = np.argsort(-_oracle()[0], axis=1)[np.arange(B), RANKS]


def _probe():
    return partial(cifs.probe, [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in LAYERS])


def _given(labels):
    return None if labels is None else jnp.asarray(labels)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_importance_matches_numpy(labels, top_k):
    relevance = cifs.importance(_probe(), jnp.asarray(FEATURES), _given(labels), top_k=top_k)
    np.testing.assert_allclose(relevance, _oracle(labels, top_k=top_k)[1], rtol=1e-4, atol=1e-5)


def test_the_true_label_stands_for_the_first_and_counts_twice_where_it_is_second():
    chosen = _oracle(LABELS)[4]
    np.testing.assert_array_equal(chosen[np.arange(B), LABELS], [1, 2, 1, 1])
    second = np.argsort(-_oracle()[0], axis=1)[:, 1]
    np.testing.assert_array_equal(chosen[np.arange(B), second], [1, 2, 1, 1])


@pytest.mark.parametrize("name", ["softmax", "sigmoid", "softplus"])
def test_selection_matches_numpy(name):
    logits, relevance, *_ = _oracle(LABELS)
    mask = {
        "softmax": np.exp(relevance) / np.exp(relevance).sum(1, keepdims=True),
        "sigmoid": _sigmoid(relevance),
        "softplus": np.log1p(np.exp(relevance)),
    }[name]
    for detached in (True, False):
        features, given = cifs.select(
            _probe(), jnp.asarray(FEATURES), jnp.asarray(LABELS), importance=name, differentiate_mask=not detached
        )
        np.testing.assert_allclose(given, logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(features, FEATURES * mask[:, None, None, :], rtol=1e-4, atol=1e-6)


def _softmax(values):
    return np.exp(values) / np.exp(values).sum(1, keepdims=True)


@pytest.mark.parametrize(("scale", "temperature"), [(2.0, 0.25), (0.5, 2.0)])
def test_scale_and_temperature_match_numpy(scale, temperature):
    options = {"scale": scale, "temperature": temperature}
    features, _ = cifs.select(_probe(), jnp.asarray(FEATURES), jnp.asarray(LABELS), **options)
    expected = scale * _softmax(_oracle(LABELS)[1] / temperature)
    np.testing.assert_allclose(features, FEATURES * expected[:, None, None, :], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_masks_by_class_are_mixed_as_numpy_does(labels):
    """Three classes: the first has 0.6, the other two 0.2 each, each with a mask of its own logit's gradient."""
    order = np.argsort(-_oracle()[0], axis=1)[:, :3]
    if labels is not None:
        order[:, 0] = labels
    masks = [_softmax(_oracle(classes, top_k=1)[1]) for classes in order.T]
    expected = 0.6 * masks[0] + 0.2 * masks[1] + 0.2 * masks[2]
    features, _ = cifs.select(_probe(), jnp.asarray(FEATURES), _given(labels), top_k=3, class_mix=0.6)
    np.testing.assert_allclose(features, FEATURES * expected[:, None, None, :], rtol=1e-4, atol=1e-6)

    def value(layers, z):
        return jnp.sum(cifs.select(partial(cifs.probe, layers), z, _given(labels), class_mix=0.95)[0] ** 2)

    # Detached from the features but for the product, and training the probe, as the mask of the sum is.
    layers = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in LAYERS]
    by_probe, by_features = jax.grad(value, argnums=(0, 1))(layers, jnp.asarray(FEATURES))
    mixed = 0.95 * masks[0] + 0.05 * masks[1]
    np.testing.assert_allclose(by_features, 2 * FEATURES * mixed[:, None, None, :] ** 2, rtol=1e-4, atol=1e-6)
    assert float(jnp.max(jnp.abs(by_probe[0][0]))) > 1e-4


@pytest.mark.parametrize(("name", "factor"), [("softmax", 1 / C), ("sigmoid", 0.5), ("softplus", np.log(2))])
def test_equal_importance_is_plain_scaling(name, factor):
    blind = partial(cifs.probe, [(jnp.zeros((C, K)), jnp.arange(float(K)))])
    features, _ = cifs.select(blind, jnp.asarray(FEATURES), importance=name)
    np.testing.assert_allclose(features, FEATURES * factor, rtol=1e-6)


def test_probe_gradient_through_importance_is_the_second_derivative():
    """d (u . g) / d parameters, g the relevance, with every factor written out."""
    cotangent = RNG.normal(size=(B, C))

    def value(layers):
        relevance = cifs.importance(partial(cifs.probe, layers), jnp.asarray(FEATURES), jnp.asarray(LABELS))
        return jnp.sum(jnp.asarray(cotangent, jnp.float32) * relevance)

    layers = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in LAYERS]
    (by_kernel_0, by_bias_0), (by_kernel_1, by_bias_1) = jax.grad(value)(layers)

    _, _, pooled, before, chosen = _oracle(LABELS)
    kernel_0, kernel_1 = LAYERS[0][0].astype(np.float64), LAYERS[1][0].astype(np.float64)
    slope, back, forth = _sigmoid(5 * before), chosen @ kernel_1.T, cotangent @ kernel_0
    bend = 5 * slope * (1 - slope)  # the second derivative of softplus(5t)/5
    np.testing.assert_allclose(
        by_kernel_0, cotangent.T @ (slope * back) + pooled.T @ (bend * back * forth), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(by_bias_0, (bend * back * forth).sum(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(by_kernel_1, (slope * forth).T @ chosen, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(by_bias_1, 0.0)


def test_gradients_match_finite_differences():
    def value(features, layers):
        selected, logits = cifs.select(
            partial(cifs.probe, layers), features, jnp.asarray(LABELS), differentiate_mask=True
        )
        return jnp.sum(selected**2) + jnp.sum(jnp.sin(logits))

    layers = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in LAYERS]
    check_grads(value, (jnp.asarray(FEATURES), layers), order=1, modes=["rev"], eps=3e-3, rtol=2e-2, atol=2e-2)


def test_the_mask_trains_the_probe_but_hides_the_features_unless_asked():
    cotangent = RNG.normal(size=FEATURES.shape).astype(np.float32)

    def value(features, layers, differentiate_mask):
        selected, _ = cifs.select(partial(cifs.probe, layers), features, differentiate_mask=differentiate_mask)
        return jnp.sum(jnp.asarray(cotangent) * selected)

    layers = [(jnp.asarray(kernel), jnp.asarray(bias)) for kernel, bias in LAYERS]
    gradient = jax.grad(value, argnums=(0, 1))
    hidden, trained = gradient(jnp.asarray(FEATURES), layers, False)
    shown, same = gradient(jnp.asarray(FEATURES), layers, True)
    relevance = _oracle()[1]
    mask = np.exp(relevance) / np.exp(relevance).sum(1, keepdims=True)
    np.testing.assert_allclose(hidden, cotangent * mask[:, None, None, :], rtol=1e-4, atol=1e-6)
    assert float(jnp.max(jnp.abs(shown - hidden))) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), trained, same)
    assert float(jnp.max(jnp.abs(trained[0][0]))) > 1e-3

    # The probe's logits, which its loss and the joint attack read, are never hidden.
    by_features = jax.grad(lambda z: jnp.sum(cifs.select(_probe(), z)[1]))(jnp.asarray(FEATURES))
    assert float(jnp.min(jnp.max(jnp.abs(by_features), axis=(1, 2, 3)))) > 1e-3


def test_bfloat16_features_give_the_same_mask():
    half = jnp.asarray(FEATURES, jnp.bfloat16)
    selected, logits = cifs.select(_probe(), half)
    assert (selected.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    exact = cifs.importance(_probe(), half.astype(jnp.float32))
    np.testing.assert_allclose(cifs.importance(_probe(), half), exact, rtol=1e-6)


def test_bad_options_are_named():
    with pytest.raises(InputError, match=r"top_k must be in \[1, 4\], the number of classes, got 5"):
        cifs.importance(_probe(), jnp.asarray(FEATURES), top_k=5)
    with pytest.raises(InputError, match="importance must be one of softmax, sigmoid, softplus, got 'relu'"):
        cifs.select(_probe(), jnp.asarray(FEATURES), importance="relu")
    for options, message in (
        ({"scale": 0.0}, "scale must be above 0 and finite, got 0.0"),
        ({"temperature": float("inf")}, "temperature must be above 0 and finite, got inf"),
        ({"class_mix": 1.5}, r"class_mix must be in \[0, 1\], got 1.5"),
        ({"class_mix": 0.5, "top_k": 1}, "top_k of a class_mix must be at least 2 and finite, got 1"),
    ):
        with pytest.raises(InputError, match=f"cifs: .*{message}"):
            cifs.select(_probe(), jnp.asarray(FEATURES), **options)
        with pytest.raises(InputError, match=f"cifs: .*{message}"):
            cifs.defense(**options)
