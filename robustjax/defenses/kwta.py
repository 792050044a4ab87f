"""k-winners-take-all, kWTA (Xiao et al., ICLR 2020, arXiv 1905.10510)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode
from robustjax.ops import as_floats, check_number, straight_through
from robustjax.types import Array


def k_winners(activations: Array, *, fraction: float, by_magnitude: bool = False) -> Array:
    """Keeps the k = round(fraction n) largest of the n entries of each example's map, exactly k; zeroes the rest.

    Of equal entries the earlier ones win. The gradient reaches the winners only and jumps with every change of winners:
    attacks on surrogate or estimated gradients defeat it (Tramer et al. 2020, arXiv 2002.08347). The same in training
    and inference. ``fraction = 1`` is the plain network; after a ReLU, so is any fraction of at least the share of
    positive entries.

    Args:
        activations: float [B, ...], one map per example.
        fraction: in (0, 1]; at least one entry is kept.
        by_magnitude: the winners are the largest in absolute value, as in pruning the weights of a layer.

    Returns:
        An array like activations.

    Raises:
        InputError: ``fraction`` is out of range, or activations are not floats.

    Example:
        >>> import jax.numpy as jnp
        >>> k_winners(jnp.array([[1.0, 4.0, 3.0, 2.0]]), fraction=0.5)
        Array([[0., 4., 3., 0.]], dtype=float32)
    """
    check_number("kwta: fraction", fraction, "(0, 1]")
    activations = as_floats("kwta: activations", activations, least_axes=1)
    if not activations.size:
        return activations
    maps = activations.reshape(activations.shape[0], -1)
    num_winners = max(1, round(fraction * maps.shape[1]))
    ranked = jax.lax.stop_gradient(jnp.abs(maps) if by_magnitude else maps)
    kept = _largest(ranked, num_winners).reshape(activations.shape)
    return jnp.where(kept, activations, jnp.zeros_like(activations))


def _largest(rows: Array, count: int) -> Array:
    """Which entries of each row [B, n] are its ``count`` largest, of equal ones the earlier: bool [B, n].

    The smallest of them is found bit by bit, from the highest down, in 32 counts over the row: sorting it is slower.
    """
    bits = jax.lax.bitcast_convert_type(rows.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    # As unsigned integers in the order of the floats; -0, whose bits are the sign alone, is 0.
    order = jnp.where(bits > sign, ~bits, bits | sign)

    def add_bit(i: Array, least: Array) -> Array:
        raised = least | (sign >> i.astype(jnp.uint32))
        enough = jnp.sum(order >= raised, axis=1, keepdims=True) >= count
        return jnp.where(enough, raised, least)

    least = jax.lax.fori_loop(0, 32, add_bit, jnp.zeros_like(order[:, :1]))
    above, ties = order > least, order == least
    vacant = count - jnp.sum(above, axis=1, keepdims=True)
    return above | (ties & (jnp.cumsum(ties, axis=1) <= vacant))


def defense(*, fraction: float = 0.2, by_magnitude: bool = False) -> Defense:
    """``k_winners`` after every activation; the options are those of ``k_winners``.

    Example:
        >>> defense(fraction=0.1).role
        'activation'
    """
    check_number("kwta: fraction", fraction, "(0, 1]")
    return Defense(
        name="kwta",
        role="activation",
        build=lambda sites, num_classes, mode: {site: KWTA(fraction, by_magnitude, mode) for site in sites},
        gradient="discontinuous wherever the winners change; the surrogate passes the gradient on as the identity does",
    )


class KWTA(nn.Module):
    """A guard that lets the winners of each map through, the same in training and in inference; it holds nothing.

    Attributes:
        fraction, by_magnitude: as for :func:`k_winners`.
        mode: "active"; "surrogate", whose gradient is that of the identity; or "off", where all entries pass.
    """

    fraction: float
    by_magnitude: bool = False
    mode: Mode = "active"

    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        if self.mode == "off":
            return features, {}
        winners = k_winners(features, fraction=self.fraction, by_magnitude=self.by_magnitude)
        return (straight_through(winners, features) if self.mode == "surrogate" else winners), {}
