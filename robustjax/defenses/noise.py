"""Gaussian noise on activations at inference, a baseline of stochastic activation pruning."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode
from robustjax.ops import as_floats, check_number, straight_through
from robustjax.types import Array, Key


def perturb(key: Key, activations: Array, *, deviation: float, relative: bool = False) -> Array:
    r"""Adds independent Gaussian noise to each activation.

    .. math:: h_j \mapsto h_j + s \, n_j, \qquad \text{or } h_j + s \, h_j \, n_j \text{ where it is relative}

    with :math:`n_j \sim N(0, 1)`, so the expectation is h. The noise is constant for the gradient but for the factor
    :math:`1 + s \, n_j` of relative noise. ``deviation = 0`` is the plain network.

    Args:
        key: of the draws.
        activations: float [B, ...], of any rank and sign.
        deviation: s, at least 0.
        relative: whether the noise is as large as the activation, times s.

    Returns:
        An array like activations.

    Raises:
        InputError: ``deviation`` is out of range, or activations are not floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> perturb(jax.random.key(0), jnp.zeros((1, 3)), deviation=1.0, relative=True)
        Array([[0., 0., 0.]], dtype=float32)
    """
    check_number("noise: deviation", deviation, "[0, inf)")
    activations = as_floats("noise: activations", activations)
    values = activations.astype(jnp.float32)
    noise = deviation * jax.random.normal(key, activations.shape, jnp.float32)
    return (values + (noise * values if relative else noise)).astype(activations.dtype)


def defense(*, deviation: float = 0.1, relative: bool = False, in_training: bool = False) -> Defense:
    """``perturb`` after every activation, at inference and, where it is asked for, in training.

    Args:
        deviation, relative: as for ``perturb``.
        in_training: whether the network is trained with it as well.

    Example:
        >>> defense(relative=True).stochastic
        True
    """
    check_number("noise: deviation", deviation, "[0, inf)")
    return Defense(
        name="noise",
        role="activation",
        build=lambda sites, num_classes, mode: {site: Noise(deviation, relative, in_training, mode) for site in sites},
        gradient="of relative noise it is random; the surrogate passes the gradient on as the identity does",
        inference_only=not in_training,
        stochastic=True,
    )


class Noise(nn.Module):
    """A guard that holds nothing and draws from the rng stream "defense", anew in every call.

    Attributes:
        deviation, relative: as for :func:`perturb`.
        in_training: whether there is noise in training too.
        mode: "active"; "surrogate", whose gradient is that of the identity; or "off", where features pass unchanged.
    """

    deviation: float
    relative: bool = False
    in_training: bool = False
    mode: Mode = "active"

    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        if self.mode == "off" or (train and not self.in_training):
            return features, {}
        noisy = perturb(self.make_rng("defense"), features, deviation=self.deviation, relative=self.relative)
        return (straight_through(noisy, features) if self.mode == "surrogate" else noisy), {}
