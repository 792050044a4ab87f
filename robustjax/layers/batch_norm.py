"""Batch normalisation, the one that every network and every defense uses."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.types import Array


class BatchNorm(nn.Module):
    """Ioffe and Szegedy 2015, arXiv 1502.03167, as one multiplication and one addition for each channel.

    The factors are float32 whatever the features are. Running statistics move by a tenth towards the batch's, whose
    variance is the biased one.
    """

    train: bool
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, features: Array) -> Array:
        channels = (features.shape[-1],)
        scale = self.param("scale", nn.initializers.ones_init(), channels, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if self.train:
            axes = tuple(range(features.ndim - 1))
            values = features.astype(jnp.float32)
            mean, var = jnp.mean(values, axes), jnp.var(values, axes)
            if not self.is_initializing():
                running_mean.value = self.momentum * running_mean.value + (1.0 - self.momentum) * mean
                running_var.value = self.momentum * running_var.value + (1.0 - self.momentum) * var
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shape = (1,) * (features.ndim - 1) + channels
        shift = (bias - mean * factor).reshape(shape)
        return (features.astype(jnp.float32) * factor.reshape(shape) + shift).astype(features.dtype)
