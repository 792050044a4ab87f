"""What training minimises: one number per example from the logits on natural and adversarial images.

An `Objective` says which images the update needs, what the training attack climbs, and the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax.attacks.losses import cross_entropy, kl
from robustjax.types import Array, Outputs


class Objective(NamedTuple):
    """A training objective as data.

    Attributes:
        views: the images that the update passes through the network, of "natural" and "adversarial", in this order.
        inner: what the training attack climbs: "cross_entropy" against the labels, "kl" against the network's own
            distribution on the natural images, or None without an attack.
        loss: (view -> Outputs, labels [B]) -> [B].
    """

    views: tuple[str, ...]
    inner: str | None
    loss: Callable[[Mapping[str, Outputs], Array], Array]


def smoothed_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    r"""Cross-entropy against labels of which a share s is spread evenly over all classes (Szegedy et al. 2016).

    .. math:: (1 - s)(-\log p_y) + \frac{s}{K} \sum_k -\log p_k

    Args:
        logits: [B, K].
        labels: integers [B].
        label_smoothing: s, in [0, 1).

    Returns:
        float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> smoothed_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]), label_smoothing=0.1).round(4)
        Array([1.3863], dtype=float32)
    """
    hard = cross_entropy(logits, labels)
    if label_smoothing == 0.0:
        return hard
    uniform = -jnp.mean(jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
    return (1.0 - label_smoothing) * hard + label_smoothing * uniform


def trades(
    natural_logits: Array, adversarial_logits: Array, labels: Array, *, beta: float, label_smoothing: float = 0.0
) -> Array:
    r"""TRADES (Zhang et al. 2019, arXiv 1901.08573).

    .. math:: CE(f(x), y) + \beta \, KL(p(x) \,\|\, p(x'))

    The gradient flows into both branches of the divergence.

    Args:
        natural_logits, adversarial_logits: [B, K].
        labels: integers [B].
        beta: at least 0; 6 in the paper's CIFAR-10 figures.
        label_smoothing: share in [0, 1) of the natural term's labels.

    Returns:
        float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> trades(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]]), jnp.array([0]), beta=1.0).round(4)
        Array([1.6501], dtype=float32)
    """
    natural = smoothed_cross_entropy(natural_logits, labels, label_smoothing=label_smoothing)
    return natural + beta * kl(adversarial_logits, jax.nn.softmax(natural_logits.astype(jnp.float32)))


def mart(natural_logits: Array, adversarial_logits: Array, labels: Array, *, beta: float) -> Array:
    r"""MART (Wang et al. 2020), which weighs the divergence by how wrong the natural prediction is.

    .. math:: -\log p_y(x') - \log\bigl(1.0001 - \max_{k \ne y} p_k(x') + 10^{-12}\bigr)
              + \beta \, KL(p(x) \,\|\, p(x')) \, (1 - p_y(x))

    The gradient flows into both branches and into the weight, as in the published code.

    Args:
        natural_logits, adversarial_logits: [B, K].
        labels: integers [B].
        beta: at least 0; 5 in the paper.

    Returns:
        float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> mart(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]]), jnp.array([0]), beta=0.0).round(2)
        Array([4.25], dtype=float32)
    """
    natural = jax.nn.softmax(natural_logits.astype(jnp.float32))
    adversarial = jax.nn.softmax(adversarial_logits.astype(jnp.float32))
    is_true = jnp.arange(natural.shape[-1])[None, :] == labels[:, None]
    strongest_wrong = jnp.max(jnp.where(is_true, 0.0, adversarial), axis=-1)
    boosted = cross_entropy(adversarial_logits, labels) - jnp.log(1.0001 - strongest_wrong + 1e-12)
    true_probability = jnp.sum(jnp.where(is_true, natural, 0.0), axis=-1)
    return boosted + beta * kl(adversarial_logits, natural) * (1.0 - true_probability)


def standard_objective(*, label_smoothing: float) -> Objective:
    """Cross-entropy on natural images."""
    return Objective(
        ("natural",),
        None,
        lambda views, labels: smoothed_cross_entropy(views["natural"].logits, labels, label_smoothing=label_smoothing),
    )


def adversarial_objective(*, label_smoothing: float) -> Objective:
    """Cross-entropy on adversarial images (Madry et al. 2018, arXiv 1706.06083)."""
    return Objective(
        ("adversarial",),
        "cross_entropy",
        lambda views, labels: smoothed_cross_entropy(
            views["adversarial"].logits, labels, label_smoothing=label_smoothing
        ),
    )


def trades_objective(*, beta: float, label_smoothing: float) -> Objective:
    """`trades`, its attack climbing the divergence."""
    return Objective(
        ("natural", "adversarial"),
        "kl",
        lambda views, labels: trades(
            views["natural"].logits, views["adversarial"].logits, labels, beta=beta, label_smoothing=label_smoothing
        ),
    )


def mart_objective(*, beta: float) -> Objective:
    """`mart`, its attack climbing cross-entropy."""
    return Objective(
        ("natural", "adversarial"),
        "cross_entropy",
        lambda views, labels: mart(views["natural"].logits, views["adversarial"].logits, labels, beta=beta),
    )
