"""A Flax Linen network: ``--model=docs/examples/linen_mlp.py:network --weights=linen_mlp.npz``."""

from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np


class MLP(nn.Module):
    """Two dense layers, for ten classes."""

    @nn.compact
    def __call__(self, images):
        """Logits [B, 10] of images [B, H, W, C]."""
        hidden = nn.relu(nn.Dense(32)(images.reshape(len(images), -1)))
        return nn.Dense(10)(hidden)


def network(weights: str | Path | None = None):
    """The network of the arrays in an .npz named like "Dense_0/kernel", or with random ones for 32 x 32 x 3."""
    if weights is None:
        params = MLP().init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    else:
        with np.load(weights) as arrays:
            params = flax.traverse_util.unflatten_dict(dict(arrays), sep="/")
    # A Partial: what is compiled with the network takes its parameters as arguments.
    return jax.tree_util.Partial(MLP().apply, {"params": params})
