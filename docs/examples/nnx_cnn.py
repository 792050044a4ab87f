"""A Flax NNX network: ``--model=docs/examples/nnx_cnn.py:network``."""

import jax
from flax import nnx


class CNN(nnx.Module):
    """A convolution, BatchNorm and a dense layer, for grey images and ten classes."""

    def __init__(self, rngs: nnx.Rngs):
        self.convolution = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dense = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, images):
        """Logits [B, 10] of images [B, H, W, 1]."""
        return self.dense(nnx.relu(self.norm(self.convolution(images))).mean((1, 2)))


def network():
    """The network with random weights, in inference mode."""
    model = CNN(nnx.Rngs(0))
    model.eval()
    graph, state = nnx.split(model)
    return jax.tree_util.Partial(lambda state, images: nnx.merge(graph, state)(images), state)
