"""An Equinox network: ``--model=docs/examples/equinox_cnn.py:network --weights=equinox_cnn.eqx``."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp


class CNN(eqx.Module):
    """Two convolutions with strides and a dense layer, for one coloured image [3, H, W] and ten classes."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(3, 16, 5, stride=2, padding=2, key=keys[0])
        self.second = eqx.nn.Conv2d(16, 32, 5, stride=2, padding=2, key=keys[1])
        self.dense = eqx.nn.Linear(32, 10, key=keys[2])

    def __call__(self, image):
        """Logits [10]."""
        hidden = jax.nn.relu(self.second(jax.nn.relu(self.first(image))))
        return self.dense(hidden.mean((1, 2)))


def network(weights: str | Path | None = None):
    """The network of a file of ``eqx.tree_serialise_leaves``, or with random weights."""
    model = CNN(jax.random.key(0))
    if weights is not None:
        model = eqx.tree_deserialise_leaves(weights, model)
    arrays, static = eqx.partition(model, eqx.is_array)

    def logits(arrays, images):  # Equinox sees one image at a time, with channels first
        return jax.vmap(eqx.combine(arrays, static))(jnp.moveaxis(images, 3, 1))

    return jax.tree_util.Partial(logits, arrays)
