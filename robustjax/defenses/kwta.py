"""k-winners-take-all, kWTA (Xiao et al., ICLR 2020, arXiv 1905.10510), the baseline among deactivations."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode
from robustjax.ops import straight_through
from robustjax.types import Array, InputError


def k_winners(activations: Array, *, fraction: float) -> Array:
    """Keeps the k = round(fraction n) largest of the n entries of each example's map, exactly k; zeroes the rest.

    Of equal entries the earlier ones win. The gradient reaches the winners only and jumps with every change of winners:
    attacks on surrogate or estimated gradients break it (Tramer et al. 2020, arXiv 2002.08347). The same in training
    and inference. `fraction = 1` is the plain network; after a ReLU, so is any fraction of at least the share of
    positive entries.

    Args:
        activations: [B, ...], one map per example.
        fraction: in (0, 1]; at least one entry is kept.

    Returns:
        An array like activations.

    Raises:
        InputError: `fraction` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> k_winners(jnp.array([[1.0, 4.0, 3.0, 2.0]]), fraction=0.5)
        Array([[0., 4., 3., 0.]], dtype=float32)
    """
    _check(fraction)
    maps = activations.reshape(activations.shape[0], -1)
    num_winners = max(1, round(fraction * maps.shape[1]))
    winners = jax.lax.top_k(jax.lax.stop_gradient(maps), num_winners)[1]
    kept = jax.vmap(lambda row, at: jnp.zeros_like(row, bool).at[at].set(True))(maps, winners)
    return jnp.where(kept.reshape(activations.shape), activations, jnp.zeros_like(activations))


def _check(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise InputError(f"kwta: fraction must be in (0, 1], got {fraction}")


def defense(*, fraction: float = 0.2) -> Defense:
    """`k_winners` after every activation; `fraction` is that of `k_winners`.

    Example:
        >>> defense(fraction=0.1).role
        'activation'
    """
    _check(fraction)
    return Defense(
        name="kwta",
        role="activation",
        build=lambda sites, num_classes, mode: {site: KWTA(fraction, mode) for site in sites},
        gradient="discontinuous wherever the winners change; the surrogate passes the gradient on as the identity does",
    )


class KWTA(nn.Module):
    """A guard that lets the winners of each map through."""

    fraction: float
    mode: Mode = "active"

    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        if self.mode == "off":
            return features, {}
        winners = k_winners(features, fraction=self.fraction)
        return (straight_through(winners, features) if self.mode == "surrogate" else winners), {}
