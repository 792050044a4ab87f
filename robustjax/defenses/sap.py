"""Stochastic activation pruning, SAP (Dhillon et al., ICLR 2018, arXiv 1803.01442)."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode
from robustjax.ops import as_floats, check_number, rowwise, straight_through
from robustjax.types import Array, InputError, Key

Sampler = Literal["multinomial", "bernoulli"]


def prune(key: Key, activations: Array, *, fraction: float = 1.0, sampler: Sampler = "multinomial") -> Array:
    r"""Stochastic activation pruning (Dhillon et al. 2018, arXiv 1803.01442): keeps large activations at random.

    Of one example's map of n entries h, r = round(``fraction`` n) are drawn with replacement, in proportion to their
    magnitudes, :math:`p_j = |h_j| / \sum_k |h_k|`. What is drawn at least once is kept and scaled up, the rest is 0:

    .. math:: \mathrm{prune}(h)_j = \begin{cases} h_j / \bigl(1 - (1 - p_j)^r\bigr) & j \text{ is drawn} \\
              0 & \text{otherwise} \end{cases}

    so that the expectation is h. With a larger ``fraction`` more is kept, and in the limit everything. It is for
    inference with a network that was trained without it. For the gradient, what is drawn and its scale are constants.

    Dhillon and Carlini's erratum (arXiv 2010.00071) defeats it with the identity as backward pass
    (:func:`robustjax.ops.bpda`), so its own gradient is not enough to evaluate it.

    Args:
        key: a typed key; each example draws independently.
        activations: float [B, ...], one map per example, of any rank and sign. A map of zeros stays zero.
        fraction: draws for each entry of the map, above 0; 1 is the paper's SAP-100.
        sampler: "multinomial" draws as published. "bernoulli" keeps each entry with the same probability but
            independently of the others, which is cheaper; the number of entries kept varies more.

    Returns:
        An array like ``activations``, of which draws with another key are different.

    Raises:
        InputError: ``fraction`` or ``sampler`` is out of range, or activations are not floats.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> prune(jax.random.key(0), jnp.array([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]))
        Array([[0., 3., 0.],
               [0., 0., 0.]], dtype=float32)
    """
    _check(fraction, sampler)
    activations = as_floats("sap: activations", activations, least_axes=1)
    if not activations.size:
        return activations
    # Kept in its shape, but for multinomial draws: on a CPU XLA does not vectorise flat maps fused with shaped ones.
    maps = jax.lax.stop_gradient(activations).astype(jnp.float32)
    size = math.prod(maps.shape[1:])
    num_draws = max(1, round(fraction * size))
    magnitudes = jnp.abs(maps)
    totals = jnp.sum(magnitudes, axis=tuple(range(1, maps.ndim)), keepdims=True)
    probabilities = magnitudes / jnp.where(totals > 0, totals, 1.0)
    kept_probability = -jnp.expm1(num_draws * jnp.log1p(-probabilities))
    if sampler == "multinomial":
        keys = jax.random.split(key, len(maps))
        kept = rowwise(partial(_drawn, num_draws=num_draws), keys, probabilities.reshape(-1, size))
        kept = kept.reshape(maps.shape)
    else:
        kept = jax.random.uniform(key, maps.shape, jnp.float32) < kept_probability
    # Rounding may draw an entry of probability 0: its scale is 0, as is the entry.
    scale = jnp.where(kept & (kept_probability > 0), 1.0 / kept_probability, 0.0)
    return (activations.astype(jnp.float32) * scale).astype(activations.dtype)


def _drawn(key: Key, probabilities: Array, num_draws: int) -> Array:
    """Which entries [n] come up in so many draws with replacement, exact in law, in a few passes over the map.

    Let the draws arrive as a Poisson process of unit rate. Entry j first comes up at time E_j / p_j, the E_j being
    independent standard exponentials: one comparison each says who has come up by a time t. Running to a t a little
    short of ``num_draws`` leaves only some sqrt(num_draws) draws to be made one by one: ``num_draws`` less the arrivals
    by t, which are first ones and repeats.
    """
    key_first, key_gaps, key_missing = jax.random.split(key, 3)
    # Eight standard deviations: arrivals by t exceed num_draws, or fall 2 slack short of it, in 1 of 10^13 maps.
    slack = 8 * math.sqrt(num_draws)
    due = max(num_draws - slack, 0.0) * probabilities
    first = jax.random.exponential(key_first, probabilities.shape, jnp.float32)
    drawn = first < due

    # Once entry j has come up it repeats at rate p_j, so all repeats by t are Poisson with this mean given the first
    # arrivals. They are counted as the arrivals of a unit-rate process by that time. Its gaps come for free: what an
    # entry not yet drawn has left to wait is again a standard exponential, and there are enough unless num_draws > n.
    mean_repeats = jnp.sum(jnp.maximum(due - first, 0.0))
    waits = jnp.where(drawn, 0.0, first - due)
    more = jax.random.exponential(key_gaps, (max(num_draws - waits.size, 0),), jnp.float32)
    gaps = jnp.concatenate([waits, more])
    repeats = jnp.sum((gaps > 0) & (jnp.arange(gaps.size, dtype=jnp.int32) < _first_beyond(gaps, mean_repeats)))

    missing = num_draws - jnp.sum(drawn) - repeats
    most = min(num_draws, math.ceil(2 * slack))
    points = jax.random.uniform(key_missing, (most,), jnp.float32) * jnp.sum(probabilities)
    return drawn.at[_first_beyond(probabilities, points)].max(jnp.arange(most) < missing, mode="drop")


def _first_beyond(lengths: Array, points: Array) -> Array:
    """With the lengths laid end to end from 0, the index of the one in which each point lies."""
    return jnp.searchsorted(jnp.cumsum(lengths), points, side="right")


def _check(fraction: float, sampler: str) -> None:
    check_number("sap: fraction", fraction, "(0, inf)")
    if sampler not in ("multinomial", "bernoulli"):
        raise InputError(f"sap: sampler must be 'multinomial' or 'bernoulli', got {sampler!r}")


def defense(*, fraction: float = 1.0, sampler: Sampler = "multinomial") -> Defense:
    """``prune`` after every activation, at inference only; the options are those of ``prune``.

    Example:
        >>> defense(fraction=0.5).stochastic
        True
    """
    _check(fraction, sampler)
    return Defense(
        name="sap",
        role="activation",
        build=lambda sites, num_classes, mode: {site: SAP(fraction, sampler, mode) for site in sites},
        gradient="mask and scale are random constants; the surrogate passes the gradient on as the identity does",
        inference_only=True,
        stochastic=True,
    )


class SAP(nn.Module):
    """A guard that prunes at inference and does nothing in training: the paper's networks are trained dense.

    It holds nothing. In inference it draws from the rng stream "defense", anew in every call.

    Attributes:
        fraction: draws for each entry of the map, as for :func:`prune`.
        sampler: "multinomial" or "bernoulli", as for :func:`prune`.
        mode: "active"; "surrogate", whose gradient is that of the identity; or "off", where all entries pass.
    """

    fraction: float
    sampler: Sampler
    mode: Mode = "active"

    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        if train or self.mode == "off":
            return features, {}
        pruned = prune(self.make_rng("defense"), features, fraction=self.fraction, sampler=self.sampler)
        return (straight_through(pruned, features) if self.mode == "surrogate" else pruned), {}
