"""Sensitive-neuron stabilizing in training, SNS (Zhang, Liu et al., IEEE TIP 2021, arXiv 1909.06978).

A neuron is a channel of a feature map, or a unit of a dense layer. The paper's weight, layers and schedule are not
public, so training with ``stabilizing_loss`` is SNS-style. There is no guard: inference is the plain network.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Tracker, Views, own_loss
from robustjax.ops import check_number
from robustjax.types import Array, InputError, Term

Norm = Literal["l1", "l2", "linf"]


def sensitivity(benign: Array, adversarial: Array, *, norm: Norm = "l1") -> Array:
    r"""How much each neuron changes between benign and adversarial examples.

    .. math:: \sigma_c = \frac{1}{BHW} \sum_{i,h,w} |F_{ihwc} - F'_{ihwc}|

    The absolute value is taken at each position, so movements of opposite sign do not cancel. Equal inputs give 0.
    With "l2" the mean over positions becomes the root of the mean square, with "linf" the maximum; the mean over
    examples stays, and for units of dense layers, which have one position, all three are the same.

    Args:
        benign: F, [B, ..., C].
        adversarial: F', the same shape, of the same examples in the same order.
        norm: "l1", "l2" or "linf".

    Returns:
        float32 [C], at least 0; differentiable in both, also where nothing moves.

    Raises:
        InputError: the shapes differ, there is no such norm, or no example.

    Example:
        >>> import jax.numpy as jnp
        >>> sensitivity(jnp.zeros((1, 1, 2, 1)), jnp.array([[[[1.0], [-1.0]]]]))
        Array([1.], dtype=float32)
    """
    if benign.shape != adversarial.shape:
        raise InputError(f"sns: benign and adversarial features differ in shape: {benign.shape}, {adversarial.shape}")
    _check(norm)
    if 0 in benign.shape[:-1]:
        raise InputError(f"sns: features must be of one example at least, got {list(benign.shape)}; leave them out")
    difference = benign.astype(jnp.float32) - adversarial.astype(jnp.float32)
    if norm == "l1":
        return jnp.mean(jnp.abs(difference), axis=tuple(range(benign.ndim - 1)))
    positions = tuple(range(1, benign.ndim - 1))
    largest = jnp.max(jnp.abs(difference), axis=positions)
    if norm == "linf":
        return jnp.mean(largest, axis=0)
    # In units of the largest movement, so that squares neither overflow nor vanish.
    # What is not finite stays so.
    moved = largest != 0
    unit = jax.lax.stop_gradient(jnp.where(moved & jnp.isfinite(largest), largest, 1.0))
    scaled = difference / jnp.expand_dims(unit, positions)
    squares = jnp.mean(scaled**2, axis=positions)
    roots = jnp.sqrt(jnp.where(moved, squares, 1.0))  # of 0 the gradient is not finite
    return jnp.mean(jnp.where(moved, unit * roots, 0.0), axis=0)


def _check(norm: str) -> None:
    if norm not in ("l1", "l2", "linf"):
        raise InputError(f"sns: norm must be 'l1', 'l2' or 'linf', got {norm!r}")


def select_sensitive(sensitivity: Array, *, fraction: float) -> Array:
    """The most sensitive neurons of a layer: exactly round(fraction C) of them, at least one; of equals, the earlier.

    Args:
        sensitivity: [C].
        fraction: in (0, 1]; 1 selects all, which makes ``stabilizing_loss`` the vulnerability suppression of Madaan
            et al. (ICML 2020, arXiv 1908.04355).

    Returns:
        bool [C].

    Raises:
        InputError: ``fraction`` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> select_sensitive(jnp.array([0.1, 0.4, 0.3, 0.2]), fraction=0.5)
        Array([False,  True,  True, False], dtype=bool)
    """
    check_number("sns: fraction", fraction, "(0, 1]")
    count = max(1, round(fraction * sensitivity.shape[0]))
    return jnp.zeros_like(sensitivity, bool).at[jax.lax.top_k(sensitivity, count)[1]].set(True)


def stabilizing_loss(
    benign: Mapping[str, Array], adversarial: Mapping[str, Array], sensitive: Mapping[str, Array], *, norm: Norm = "l1"
) -> Array:
    r"""Mean sensitivity of the selected neurons of each layer, averaged over layers.

    .. math:: \frac{1}{L} \sum_l \frac{1}{|\Omega_l|} \sum_{c \in \Omega_l} \sigma_c

    The gradient flows into both branches. Equal features give 0: the plain objective.

    Args:
        benign, adversarial: site -> features [B, ..., C].
        sensitive: site -> bool [C], constant for the gradient; its sites are the layers.
        norm: as for ``sensitivity``.

    Returns:
        float32 scalar.

    Raises:
        InputError: there is no site, or one of ``sensitive`` has no features.

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
        movement = sensitivity(benign[site], adversarial[site], norm=norm)
        return jnp.sum(movement * chosen) / jnp.maximum(jnp.sum(chosen), 1.0)

    return sum((layer(site) for site in sensitive), jnp.float32(0)) / len(sensitive)


def loss(
    views: Views, labels: Array, *, term: Term, carried: Mapping[str, Array], weight: float, norm: Norm = "l1"
) -> Array:
    r"""The objective's own term, and the stabilizing loss of each example.

    .. math:: J + \lambda \cdot \mathrm{stabilizing\_loss}

    Its mean over the batch is the mean of J and lambda times ``stabilizing_loss`` of the batch.

    Args:
        views: "natural" and "adversarial" -> outputs of the same examples.
        labels: integers [B], handed to the term.
        term: J.
        carried: site -> bool [C], the sensitive neurons.
        weight: lambda.
        norm: as for ``sensitivity``.

    Returns:
        float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> from robustjax.types import Outputs
        >>> outputs = lambda value: Outputs(jnp.zeros((1, 2)), {}, {"dense": jnp.full((1, 3), value)})
        >>> views = {"natural": outputs(0.0), "adversarial": outputs(0.5)}
        >>> loss(views, jnp.array([0]), term=lambda *_: 1.0, carried={"dense": jnp.ones(3, bool)}, weight=2.0)
        Array([2.], dtype=float32)
    """

    def of_one(benign: Mapping[str, Array], adversarial: Mapping[str, Array]) -> Array:
        as_batch = partial(jax.tree.map, lambda features: features[None])
        return stabilizing_loss(as_batch(benign), as_batch(adversarial), carried, norm=norm)

    movements = jax.vmap(of_one)(views["natural"].features, views["adversarial"].features)
    return own_loss(views, labels, term=term) + weight * movements


def defense(*, weight: float = 1.0, fraction: float = 0.1, norm: Norm = "l1", refresh_steps: int = 100) -> Defense:
    """``stabilizing_loss`` over all sites of the network, in training only: inference is the plain network.

    The sensitive neurons are those of the training batch's own pairs, selected anew every ``refresh_steps`` updates.

    Args:
        weight: lambda, at least 0. The paper's is not public; see the configs for what was chosen on validation splits.
        fraction: as for ``select_sensitive``.
        norm: as for ``sensitivity``.
        refresh_steps: at least 1.

    Example:
        >>> defense().views
        ('natural', 'adversarial')
    """
    check_number("sns: weight", weight, "[0, inf)")
    check_number("sns: fraction", fraction, "(0, 1]")
    check_number("sns: refresh_steps", refresh_steps, "[1, inf)", whole=True)
    _check(norm)

    def initial(features: Mapping[str, Any]) -> dict[str, Array]:
        return {site: jnp.zeros(array.shape[-1], bool) for site, array in features.items()}

    def update(views: Views, carried: Mapping[str, Array], step: Array) -> dict[str, Array]:
        benign, adversarial = (jax.lax.stop_gradient(views[view].features) for view in ("natural", "adversarial"))
        due = step % refresh_steps == 0
        movement = {site: sensitivity(benign[site], adversarial[site], norm=norm) for site in carried}
        return {
            site: jnp.where(due, select_sensitive(movement[site], fraction=fraction), chosen)
            for site, chosen in carried.items()
        }

    return Defense(
        name="sns",
        role="activation",
        build=lambda sites, num_classes, mode: {},
        gradient="inference is the plain network's",
        loss=partial(loss, weight=weight, norm=norm),
        views=("natural", "adversarial"),
        tracker=Tracker(initial, update),
    )
