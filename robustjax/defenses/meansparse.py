"""MeanSparse (Amini et al. 2024, arXiv 2406.05927): small deviations from a channel's mean are set to the mean."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import STATISTICS, Defense, Mode
from robustjax.ops import as_floats, check_number, straight_through
from robustjax.types import Array, InputError


def sparsify(activations: Array, mean: Array, deviation: Array, *, alpha: float) -> Array:
    r"""Replaces what lies within :math:`\alpha \sigma_c` of its channel's mean by the mean.

    .. math:: a \mapsto \begin{cases} \mu_c & |a - \mu_c| < \alpha \sigma_c \\ a & \text{otherwise} \end{cases}

    Published for trained networks, before each activation function, with mean and deviation of the training set's
    activations there. Where a channel is constant (:math:`\sigma_c = 0`), and for ``alpha = 0``, nothing changes. The
    gradient is zero inside the band and that of the identity outside, so it hides what moves activations out of the
    band. Under the identity as backward pass the published networks are less robust than without it.

    Args:
        activations: [..., C], of any float dtype; compared in float32 at the least.
        mean: [C].
        deviation: [C], standard deviations, at least 0.
        alpha: half the width of the band in standard deviations, at least 0; the papers' networks use about 0.2.

    Returns:
        An array like activations.

    Raises:
        InputError: ``alpha`` is out of range, activations are not floats, or mean or deviation is not one a channel.

    Example:
        >>> import jax.numpy as jnp
        >>> activations = jnp.array([[1.25, 1.25], [1.75, 1.75], [1.5, 0.0]])
        >>> sparsify(activations, jnp.array([1.0, 1.0]), jnp.array([2.0, 4.0]), alpha=0.25)
        Array([[1.  , 1.  ],
               [1.75, 1.  ],
               [1.5 , 0.  ]], dtype=float32)
    """
    check_number("meansparse: alpha", alpha, "[0, inf)")
    activations = as_floats("meansparse: activations", activations, least_axes=1)
    channels = list(activations.shape[-1:])
    for name, numbers in (("mean", mean), ("deviation", deviation)):
        if list(jnp.shape(numbers)) != channels:
            raise InputError(f"meansparse: {name} must be {channels}, one a channel, got {list(jnp.shape(numbers))}")
    dtype = activations.dtype if jnp.finfo(activations.dtype).bits > 32 else jnp.float32
    values = activations.astype(dtype)
    # Added to zeros like the values, which lie where the values do: a selection on explicit axes asks for it.
    mean, deviation = (
        jnp.zeros_like(values) + jnp.broadcast_to(numbers.astype(dtype), values.shape)
        for numbers in map(jnp.asarray, (mean, deviation))
    )
    inside = jnp.abs(values - mean) < alpha * deviation
    return jnp.where(inside, mean.astype(activations.dtype), activations)


def defense(*, alpha: float = 0.2) -> Defense:
    """``sparsify`` before every activation, at inference only; ``alpha`` is that of ``sparsify``.

    Example:
        >>> defense(alpha=0.1).role
        'preactivation'
    """
    check_number("meansparse: alpha", alpha, "[0, inf)")
    return Defense(
        name="meansparse",
        role="preactivation",
        build=lambda sites, num_classes, mode: {site: MeanSparse(alpha, mode) for site in sites},
        gradient="zero within the band around each channel's mean; the surrogate passes the gradient on as the "
        "identity does",
        inference_only=True,
        statistics=True,
    )


class MeanSparse(nn.Module):
    """A guard with the mean and the variance of each channel in the collection "statistics", and no parameters.

    In training it does nothing: the networks are trained without it. Where "statistics" is mutable, features pass
    unchanged, and their mean and variance over everything but channels are what the collection then holds; see
    :func:`robustjax.defenses.convention.with_statistics`. Before that they are zeros, and nothing is sparse.

    Attributes:
        alpha: half the width of the band in standard deviations, as for :func:`sparsify`.
        mode: "active"; "surrogate", whose gradient is that of the identity; or "off", where all features pass.
    """

    alpha: float
    mode: Mode = "active"

    @nn.compact
    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        channels = features.shape[-1:]
        mean = self.variable(STATISTICS, "mean", jnp.zeros, channels, jnp.float32)
        variance = self.variable(STATISTICS, "variance", jnp.zeros, channels, jnp.float32)
        if self.is_mutable_collection(STATISTICS) and not self.is_initializing():
            values, axes = features.astype(jnp.float32), tuple(range(features.ndim - 1))
            mean.value, variance.value = jnp.mean(values, axis=axes), jnp.var(values, axis=axes)
            return features, {}
        if train or self.mode == "off":
            return features, {}
        sparse = sparsify(
            features, jax.lax.stop_gradient(mean.value), jnp.sqrt(jax.lax.stop_gradient(variance.value)),
            alpha=self.alpha,
        )  # fmt: skip
        return (straight_through(sparse, features) if self.mode == "surrogate" else sparse), {}
