"""An Equinox network: ``--model=docs/examples/equinox_cnn.py:network``."""

import equinox as eqx
import jax
import jax.numpy as jnp


class CNN(eqx.Module):
    """A convolution and a dense layer, for one grey image [1, H, W] and ten classes."""

    convolution: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.convolution = eqx.nn.Conv2d(1, 8, 3, padding=1, key=first)
        self.dense = eqx.nn.Linear(8, 10, key=second)

    def __call__(self, image):
        """Logits [10]."""
        return self.dense(jax.nn.relu(self.convolution(image)).mean((1, 2)))


def network():
    """The network with random weights; Equinox sees one image at a time, with channels first."""
    arrays, static = eqx.partition(CNN(jax.random.key(0)), eqx.is_array)

    def logits(arrays, images):
        return jax.vmap(eqx.combine(arrays, static))(jnp.moveaxis(images, 3, 1))

    return jax.tree_util.Partial(logits, arrays)
