"""A Flax NNX network: ``--model=docs/examples/nnx_cnn.py:network --weights=nnx_cnn.npz``."""

from pathlib import Path

import flax.traverse_util
import jax
import numpy as np
from flax import nnx


class CNN(nnx.Module):
    """Two convolutions with strides, BatchNorm and a dense layer, for coloured images and ten classes."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, 16, (5, 5), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.second = nnx.Conv(16, 32, (5, 5), strides=2, rngs=rngs)
        self.dense = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images):
        """Logits [B, 10] of images [B, H, W, 3]."""
        hidden = nnx.relu(self.norm(self.first(images)))
        return self.dense(nnx.relu(self.second(hidden)).mean((1, 2)))


def network(weights: str | Path | None = None):
    """The network of the arrays in an .npz named like "first/kernel", or with random ones, in inference mode."""
    model = CNN(nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    if weights is not None:
        with np.load(weights) as arrays:
            nnx.replace_by_pure_dict(state, flax.traverse_util.unflatten_dict(dict(arrays), sep="/"))
    return jax.tree_util.Partial(lambda state, images: nnx.merge(graph, state)(images), state)
