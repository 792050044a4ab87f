"""Vision transformers (Dosovitskiy et al. 2021, arXiv 2010.11929) in the plain form of Beyer et al. (2022, arXiv
2205.01580)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robustjax.models.layers import Network, Pass, Sites, average_pool, with_inputs
from robustjax.types import Array, InputError, Outputs

# As Beyer et al. have it: tokens have the variance of the pixels, and positions have one half. He's initialiser by
# fan-out supposes kernels that overlap, and would make tokens of 16 x 16 pixels an eighth as large (ViT-S).
PATCHES = nn.initializers.lecun_normal()


class VisionTransformer(Network):
    """Vision transformer without a class token: fixed positions, and the mean of all tokens is classified.

    The tokens are kept as a map [B, H / patch, W / patch, width], so that defenses of feature maps guard its blocks.

    Attributes:
        patch: side of the squares of pixels that become one token.
        depth: number of blocks.
        width: channels of a token, a multiple of 4 and of ``heads``; the perceptrons in the blocks have four times as
            many.
        heads: of the attention.
    """

    activation: str = "gelu"
    patch: int = 16
    depth: int = 12
    width: int = 384
    heads: int = 6

    def sites(self) -> Sites:
        blocks = tuple(f"block{number}" for number in range(1, self.depth + 1))
        activations = tuple(f"{block}_act" for block in blocks)
        return with_inputs(activations, late=(blocks[-1], "final"), final=("final",), block=blocks)

    def least_side(self) -> int:
        return self.patch

    @nn.compact
    def __call__(self, images: Array, labels: Array | None = None, train: bool = False) -> Outputs:
        if self.width % 4 or self.width % self.heads:
            raise InputError(f"width must be a multiple of 4 and of the {self.heads} heads, got {self.width}")
        net = Pass(self, images, labels, train)
        if any(side % self.patch for side in images.shape[1:3]):
            raise InputError(f"images must have sides divisible by {self.patch}, got {images.shape[1:3]}; scale them")
        window = {"stride": self.patch, "padding": 0, "initializer": PATCHES}
        x = net.biased_conv("patches", net.images, self.width, self.patch, **window)
        x = x + jnp.asarray(_positions(*x.shape[1:]), x.dtype)[None]
        for number in range(1, self.depth + 1):
            x = net.block(partial(self._block, f"block{number}"), x)
        return net.outputs(average_pool(net.site("final", net.layer_norm("final_norm", x))))

    @staticmethod
    def _block(name: str, net: Pass, x: Array) -> Array:
        batch, height, width, channels = x.shape
        # One axis is merged or split at a time: of two JAX does not know where rows on explicit axes are to lie.
        line = batch, height * width, channels
        tokens = batch, height * width, net.network.heads, channels // net.network.heads
        normed = net.layer_norm(f"{name}_norm1", x)
        query, key, value = (net.dense(f"{name}_{part}", normed, channels) for part in ("query", "key", "value"))
        query, key, value = (part.reshape(line).reshape(tokens) for part in (query, key, value))
        # In float32, as jax.nn.dot_product_attention has it, which mixes types that strict promotion keeps apart.
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key, preferred_element_type=jnp.float32) * tokens[-1] ** -0.5
        mixed = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores).astype(value.dtype), value)
        x = x + net.dense(f"{name}_mix", mixed.reshape(line).reshape(x.shape), channels)
        hidden = net.dense(f"{name}_dense1", net.layer_norm(f"{name}_norm2", x), 4 * channels)
        return net.site(name, x + net.dense(f"{name}_dense2", net.act(f"{name}_act", hidden), channels))


def _positions(height: int, width: int, channels: int) -> np.ndarray:
    """Sines and cosines of column and row at wavelengths from 2 pi to 20,000 pi tokens, [height, width, channels]."""
    quarter = channels // 4
    frequencies = 10_000.0 ** -(np.arange(quarter) / max(quarter - 1, 1))
    rows, columns = np.mgrid[:height, :width]
    angles = [place[..., None] * frequencies for place in (columns, rows)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1)
