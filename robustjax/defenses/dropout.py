"""Dropout at inference (Srivastava et al., JMLR 2014), a baseline of stochastic activation pruning."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode
from robustjax.ops import as_floats, check_number, straight_through
from robustjax.types import Array, Key


def drop(key: Key, activations: Array, *, rate: float) -> Array:
    r"""Zeroes each activation with the same probability, whatever its magnitude, and rescales the others.

    .. math:: h_j \mapsto \frac{h_j}{1 - p} \text{ with probability } 1 - p, \text{ else } 0

    so the expectation is h. ``rate = 0`` is the plain network.

    Args:
        key: of the draws.
        activations: float [B, ...], of any rank and sign.
        rate: p, in [0, 1).

    Returns:
        An array like activations.

    Raises:
        InputError: ``rate`` is out of range, or activations are not floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> dropped = drop(jax.random.key(0), jnp.ones((1, 1000)), rate=0.75)
        >>> sorted({float(value) for value in dropped[0]})
        [0.0, 4.0]
    """
    check_number("dropout: rate", rate, "[0, 1)")
    activations = as_floats("dropout: activations", activations)
    kept = jax.random.bernoulli(key, 1.0 - rate, activations.shape)
    scaled = activations.astype(jnp.float32) / (1.0 - rate)
    return jnp.where(kept, scaled, 0.0).astype(activations.dtype)


def defense(*, rate: float = 0.1, in_training: bool = False) -> Defense:
    """``drop`` after every activation, at inference and, where it is asked for, in training.

    Args:
        rate: as for ``drop``.
        in_training: whether the network is trained with it as well.

    Example:
        >>> defense().inference_only, defense(in_training=True).inference_only
        (True, False)
    """
    check_number("dropout: rate", rate, "[0, 1)")
    return Defense(
        name="dropout",
        role="activation",
        build=lambda sites, num_classes, mode: {site: Dropout(rate, in_training, mode) for site in sites},
        gradient="the mask is random; the surrogate passes the gradient on as the identity does",
        inference_only=not in_training,
        stochastic=True,
    )


class Dropout(nn.Module):
    """A guard that holds nothing and draws from the rng stream "defense", anew in every call.

    Attributes:
        rate: as for :func:`drop`.
        in_training: whether it drops in training too.
        mode: "active"; "surrogate", whose gradient is that of the identity; or "off", where all entries pass.
    """

    rate: float
    in_training: bool = False
    mode: Mode = "active"

    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        if self.mode == "off" or (train and not self.in_training):
            return features, {}
        dropped = drop(self.make_rng("defense"), features, rate=self.rate)
        return (straight_through(dropped, features) if self.mode == "surrogate" else dropped), {}
