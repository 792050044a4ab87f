"""Networks as functions: averages over draws, and what tells one set of weights from another."""

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.runs import network
from robustjax.types import Outputs


def test_the_average_is_of_probabilities_and_has_their_gradient(key):
    drawn = lambda variables, images, key: variables * images * jax.random.normal(key, images.shape)  # noqa: E731
    images = jnp.array([[1.0, 2.0, 4.0], [0.0, -50.0, 90.0]])
    keys = jax.random.split(key, 7)

    def expected(images):
        return jnp.log(jnp.mean(jnp.stack([jax.nn.softmax(drawn(1.0, images, key)) for key in keys]), axis=0))

    averaged = lambda images: network.softmax_average(drawn, num_draws=7)(1.0, images, key)  # noqa: E731
    np.testing.assert_allclose(averaged(images)[0], expected(images)[0], rtol=1e-5)
    assert np.isfinite(averaged(images)).all()  # where probabilities underflow
    gradient = jax.grad(lambda images: averaged(images)[0, 1])(images)
    np.testing.assert_allclose(gradient, jax.grad(lambda images: expected(images)[0, 1])(images), rtol=1e-4, atol=1e-6)


def test_a_stochastic_network_takes_a_key_and_a_plain_one_none(key):
    class Module:
        def apply(self, variables, images, *, train, rngs=None):
            assert train is False
            noise = 0.0 if rngs is None else jax.random.normal(rngs["defense"], images.shape)
            return Outputs(variables * images + noise, {}, {})

    images = jnp.ones((2, 3))
    np.testing.assert_array_equal(network.logits_fn(Module(), stochastic=False)(2.0, images), 2 * images)
    stochastic = network.logits_fn(Module(), stochastic=True)
    np.testing.assert_array_equal(stochastic(2.0, images, key), 2 * images + jax.random.normal(key, images.shape))
    averaged = network.logits_fn(Module(), stochastic=True, prediction_draws=2)(2.0, images, key)
    draws = [jax.nn.softmax(stochastic(2.0, images, key)) for key in jax.random.split(key)]
    np.testing.assert_allclose(jnp.exp(averaged), (draws[0] + draws[1]) / 2, rtol=1e-5)


def test_digests_tell_values_names_and_shapes_apart():
    base = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2)}
    others = [
        {**base, "b": np.array([1.0, np.nextafter(1.0, 2.0)])},
        {**base, "a": np.zeros((3, 2), np.float32)},
        {**base, "a": np.zeros((2, 3), np.int32)},
        {"a": base["a"], "c": base["b"]},
    ]
    assert network.digest(base) == network.digest(jax.tree.map(np.copy, base))
    assert len({network.digest(tree) for tree in [base, *others]}) == 5
