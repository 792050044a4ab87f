"""The pure functions inside a Flax NNX, an Equinox and a plain JAX network of the same weights: one result."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from robustjax.defenses import cas, cifs, fsr, kwta, sap, sns

CHANNELS, HIDDEN, CLASSES = 3, 6, 4
RNG = np.random.default_rng(0)
KERNEL = jnp.asarray(RNG.normal(size=(CHANNELS, HIDDEN)), jnp.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=(HIDDEN, CLASSES)), jnp.float32)
BIASES = jnp.asarray(RNG.normal(size=CLASSES), jnp.float32)
IMAGES = jnp.asarray(RNG.uniform(size=(2, 4, 4, CHANNELS)), jnp.float32)
LABELS = jnp.array([1, 3])
KEY = jax.random.key(0)


def _defended(features, classify):
    """Every defense on features [B, H, W, C]; `classify` is the library's own linear layer."""
    features = kwta.k_winners(sap.prune(KEY, features), fraction=0.5)
    features, suppressed = cas.suppress(features, WEIGHTS, BIASES, LABELS)
    features, selected = cifs.select(lambda z: classify(z.mean((1, 2))), features, differentiate_mask=True)
    robust, nonrobust, mask = fsr.separate(features, features)
    features = robust + fsr.recalibrate(nonrobust, features, mask)
    stabilizing = jnp.sum(sns.sensitivity(features, jnp.zeros_like(features)))
    return classify(features.mean((1, 2))), suppressed + selected, stabilizing


def _plain(parameters, images):
    def classify(pooled):
        return pooled @ parameters["weights"] + parameters["biases"][None, :]

    return _defended(jax.nn.relu(images @ parameters["kernel"]), classify)


class _Nnx(nnx.Module):
    def __init__(self):
        self.kernel = nnx.Param(KERNEL)
        self.linear = nnx.Linear(HIDDEN, CLASSES, rngs=nnx.Rngs(0))
        self.linear.kernel[...] = WEIGHTS
        self.linear.bias[...] = BIASES

    def __call__(self, images):
        return _defended(jax.nn.relu(images @ self.kernel[...]), self.linear)


class _Equinox(eqx.Module):
    kernel: jax.Array
    linear: eqx.nn.Linear

    def __init__(self):
        self.kernel = KERNEL
        linear = eqx.nn.Linear(HIDDEN, CLASSES, key=KEY)
        self.linear = eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, (WEIGHTS.T, BIASES))

    def __call__(self, images):
        return _defended(jax.nn.relu(images @ self.kernel), jax.vmap(self.linear))


def _loss(outputs):
    logits, auxiliary, stabilizing = outputs
    return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.cos(auxiliary)) + stabilizing


def test_three_libraries_agree_in_values_and_gradients():
    parameters = {"kernel": KERNEL, "weights": WEIGHTS, "biases": BIASES}
    value, gradient = jax.jit(jax.value_and_grad(lambda p: _loss(_plain(p, IMAGES))))(parameters)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)

    by_nnx, of_nnx = nnx.jit(nnx.value_and_grad(lambda network: _loss(network(IMAGES))))(_Nnx())
    close(by_nnx, value)
    close(of_nnx.kernel[...], gradient["kernel"])
    close(of_nnx.linear.kernel[...], gradient["weights"])
    close(of_nnx.linear.bias[...], gradient["biases"])

    by_equinox, of_equinox = eqx.filter_jit(eqx.filter_value_and_grad(lambda network: _loss(network(IMAGES))))(
        _Equinox()
    )
    close(by_equinox, value)
    close(of_equinox.kernel, gradient["kernel"])
    close(of_equinox.linear.weight.T, gradient["weights"])
    close(of_equinox.linear.bias, gradient["biases"])
