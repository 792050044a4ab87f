"""Neuron sensitivity, and its stabilizing in training, SNS (Zhang, Liu et al., IEEE TIP 2021, arXiv 1909.06978).

A neuron is a channel of a feature map, or a unit of a dense layer. The paper's weight, layers and schedule are not
public, so training with `stabilizing_loss` is SNS in style. There is no guard: inference is the plain network.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from robustjax.types import Array, InputError


def sensitivity(benign: Array, adversarial: Array) -> Array:
    r"""How far each neuron moves between benign and adversarial examples.

    .. math:: \sigma_c = \frac{1}{BHW} \sum_{i,h,w} |F_{ihwc} - F'_{ihwc}|

    The absolute value is taken at each position, so movements of opposite sign do not cancel. Equal inputs give 0.

    Args:
        benign: F, [B, ..., C].
        adversarial: F', the same shape, of the same examples in the same order.

    Returns:
        float32 [C], at least 0; differentiable in both.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> sensitivity(jnp.zeros((1, 1, 2, 1)), jnp.array([[[[1.0], [-1.0]]]]))
        Array([1.], dtype=float32)
    """
    if benign.shape != adversarial.shape:
        raise InputError(f"sns: benign and adversarial features differ in shape: {benign.shape}, {adversarial.shape}")
    difference = benign.astype(jnp.float32) - adversarial.astype(jnp.float32)
    return jnp.mean(jnp.abs(difference), axis=tuple(range(benign.ndim - 1)))


def select_sensitive(sensitivity: Array, *, fraction: float) -> Array:
    """The most sensitive neurons of a layer: exactly round(fraction C) of them, at least one; of equals, the earlier.

    Args:
        sensitivity: [C].
        fraction: in (0, 1]; 1 selects all, which makes `stabilizing_loss` the vulnerability suppression of Madaan
            et al. (ICML 2020, arXiv 1908.04355).

    Returns:
        bool [C].

    Raises:
        InputError: `fraction` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> select_sensitive(jnp.array([0.1, 0.4, 0.3, 0.2]), fraction=0.5)
        Array([False,  True,  True, False], dtype=bool)
    """
    if not 0 < fraction <= 1:
        raise InputError(f"sns: fraction must be in (0, 1], got {fraction}")
    count = max(1, round(fraction * sensitivity.shape[0]))
    return jnp.zeros_like(sensitivity, bool).at[jax.lax.top_k(sensitivity, count)[1]].set(True)


def stabilizing_loss(
    benign: Mapping[str, Array], adversarial: Mapping[str, Array], sensitive: Mapping[str, Array]
) -> Array:
    r"""Mean sensitivity of the selected neurons of each layer, averaged over layers.

    .. math:: \frac{1}{L} \sum_l \frac{1}{|\Omega_l|} \sum_{c \in \Omega_l} \sigma_c

    The gradient flows into both branches. Equal features give 0: the plain objective.

    Args:
        benign, adversarial: site -> features [B, ..., C].
        sensitive: site -> bool [C], constant for the gradient; its sites are the layers.

    Returns:
        float32 scalar.

    Raises:
        InputError: there is no site, or one of `sensitive` has no features.

    Example:
        >>> import jax.numpy as jnp
        >>> zeros, ones, first = jnp.zeros((1, 2)), jnp.array([[3.0, 1.0]]), jnp.array([True, False])
        >>> stabilizing_loss({"dense": zeros}, {"dense": ones}, {"dense": first})
        Array(3., dtype=float32)
    """
    missing = sorted(set(sensitive) - (set(benign) & set(adversarial)))
    if missing or not sensitive:
        raise InputError(f"sns: expected features of every selected site, missing {', '.join(missing) or 'any site'}")

    def layer(site: str) -> Array:
        chosen = sensitive[site].astype(jnp.float32)
        return jnp.sum(sensitivity(benign[site], adversarial[site]) * chosen) / jnp.maximum(jnp.sum(chosen), 1.0)

    return sum(layer(site) for site in sensitive) / len(sensitive)
