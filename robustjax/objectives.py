"""Training objectives: one loss per example from the logits on natural and adversarial images.

An ``Objective`` says which images the update needs, what the training attack maximises, and the loss. Both are
functions of logits, so that a defense can apply them to the logits of its own heads as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from robustjax.attacks.losses import cross_entropy, kl
from robustjax.ops import check_classes, check_number
from robustjax.types import Array, InputError, Outputs, Term

VIEWS = ("natural", "prior", "adversarial")


class Objective(NamedTuple):
    """A training objective as data.

    Attributes:
        views: the images that the update passes through the network, of ``VIEWS`` and in their order: "prior" is where
            an attack started that carries perturbations from epoch to epoch.
        term: (view -> the network's Outputs) -> the term to minimise. Whatever stays that of the network's own logits
            when the term is taken of a defense's heads, such as the weight of MART's divergence, it closes over.
        inner: the term that the training attack maximises, None without an attack.
        inner_views: the views that ``inner`` reads, "natural" being held fixed.
        start: where the training attack starts if the paper says so: "gaussian" is x + 0.001 N(0, 1). None leaves it to
            the attack's own random_start.
    """

    views: tuple[str, ...]
    term: Callable[[Mapping[str, Outputs]], Term]
    inner: Term | None = None
    inner_views: tuple[str, ...] = ("adversarial",)
    start: Literal["gaussian"] | None = None


def climb_cross_entropy(logits: Mapping[str, Array], labels: Array) -> Array:
    """What the attack of most objectives maximises: cross-entropy of the adversarial images."""
    return cross_entropy(logits["adversarial"], labels)


def climb_divergence(logits: Mapping[str, Array], labels: Array) -> Array:
    """What the attack of TRADES maximises: the divergence from the network's distribution on the natural images."""
    return kl(logits["adversarial"], jax.nn.softmax(logits["natural"]))


def smoothed_cross_entropy(logits: Array, labels: Array, *, label_smoothing: float = 0.0) -> Array:
    r"""Cross-entropy against labels of which a share s is spread evenly over all classes (Szegedy et al. 2016).

    .. math:: (1 - s)(-\log p_y) + \frac{s}{K} \sum_k -\log p_k

    Args:
        logits: [B, K].
        labels: integers [B].
        label_smoothing: s, in [0, 1).

    Returns:
        float32 [B].

    Raises:
        InputError: ``label_smoothing`` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> smoothed_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]), label_smoothing=0.1).round(4)
        Array([1.3863], dtype=float32)
    """
    check_number("label_smoothing", label_smoothing, "[0, 1)")
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

    Raises:
        InputError: logits of different shapes, labels that are not classes, or an argument out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> trades(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]]), jnp.array([0]), beta=1.0).round(4)
        Array([1.6501], dtype=float32)
    """
    _check(natural_logits, adversarial_logits, labels, beta)
    natural = smoothed_cross_entropy(natural_logits, labels, label_smoothing=label_smoothing)
    return natural + beta * kl(adversarial_logits, jax.nn.softmax(natural_logits.astype(jnp.float32)))


def mart(
    natural_logits: Array, adversarial_logits: Array, labels: Array, *, beta: float, weight: Array | None = None
) -> Array:
    r"""MART (Wang et al. 2020), which weighs the divergence by how wrong the natural prediction is.

    .. math:: -\log p_y(x') - \log\bigl(1.0001 - \max_{k \ne y} p_k(x') + 10^{-12}\bigr)
              + \beta \, KL(p(x) \,\|\, p(x')) \, (1 - p_y(x))

    The gradient flows into both branches and into the weight, as in the published code.

    Args:
        natural_logits, adversarial_logits: [B, K].
        labels: integers [B].
        beta: at least 0; 5 in the paper.
        weight: of the divergence [B], where it is not to be 1 - p_y(x) of these logits.

    Returns:
        float32 [B].

    Raises:
        InputError: logits of different shapes, labels that are not classes, or an argument out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> mart(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 2.0]]), jnp.array([0]), beta=0.0).round(2)
        Array([4.25], dtype=float32)
    """
    _check(natural_logits, adversarial_logits, labels, beta)
    natural = jax.nn.softmax(natural_logits.astype(jnp.float32))
    adversarial = jax.nn.softmax(adversarial_logits.astype(jnp.float32))
    is_true = jnp.arange(natural.shape[-1])[None, :] == labels[:, None]
    strongest_wrong = jnp.max(jnp.where(is_true, 0.0, adversarial), axis=-1)
    boosted = cross_entropy(adversarial_logits, labels) - jnp.log(1.0001 - strongest_wrong + 1e-12)
    if weight is None:
        weight = mart_weight(natural_logits, labels)
    return boosted + beta * kl(adversarial_logits, natural) * weight


def mart_weight(natural_logits: Array, labels: Array) -> Array:
    """1 - p_y(x), float32 [B], by which MART weighs the divergence.

    Example:
        >>> import jax.numpy as jnp
        >>> mart_weight(jnp.zeros((1, 4)), jnp.array([2]))
        Array([0.75], dtype=float32)
    """
    natural = jax.nn.softmax(natural_logits.astype(jnp.float32))
    return 1.0 - jnp.take_along_axis(natural, labels[:, None], axis=-1)[:, 0]


def nuclear_norm(differences: Array) -> Array:
    """The sum of a matrix's singular values, float32, with the gradient U V^T over those that are not 0.

    Of all subgradients this is the smallest, and 0 for the zero matrix, which NuAT's attack meets where it starts at
    the image itself. Singular vectors of the value 0 are any: they would push examples by their places in the batch.

    Args:
        differences: [B, K].

    Returns:
        float32 scalar.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.value_and_grad(nuclear_norm)(jnp.diag(jnp.array([3.0, -4.0])))[0].round(4)
        Array(7., dtype=float32)
    """
    matrix = differences.astype(jnp.float32)
    left, values, right = jnp.linalg.svd(jax.lax.stop_gradient(matrix), full_matrices=False)
    least = jnp.max(values) * max(matrix.shape) * jnp.finfo(jnp.float32).eps
    return jnp.sum(matrix * (jnp.where(values > least, left, 0.0) @ right))


def nuat(
    natural_logits: Array, adversarial_logits: Array, labels: Array, *, beta: float, label_smoothing: float = 0.0
) -> Array:
    r"""Nuclear-norm adversarial training (NuAT; Sriramanan et al., NeurIPS 2021).

    .. math:: CE(f(x), y) + \frac{\beta}{B} \, \|f(X') - f(X)\|_*

    The nuclear norm is that of the whole batch's differences, and every example carries the same share of it.

    Args:
        natural_logits, adversarial_logits: [B, K].
        labels: integers [B].
        beta: at least 0; up to 4.5 in the published code for ResNet-18.
        label_smoothing: share in [0, 1) of the natural term's labels.

    Returns:
        float32 [B].

    Raises:
        InputError: logits of different shapes, labels that are not classes, or an argument out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> nuat(jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]), jnp.array([0]), beta=1.0).round(4)
        Array([5.6931], dtype=float32)
    """
    _check(natural_logits, adversarial_logits, labels, beta)
    natural = smoothed_cross_entropy(natural_logits, labels, label_smoothing=label_smoothing)
    return natural + beta * nuclear_norm(adversarial_logits - natural_logits) / labels.shape[0]


def pgi(
    prior_logits: Array, adversarial_logits: Array, labels: Array, *, beta: float, label_smoothing: float = 0.0
) -> Array:
    r"""The loss of FGSM-PGI (Jia et al. 2022, arXiv 2207.08859), whose attack starts where the last epoch's ended.

    .. math:: CE(f(x'), y) + \frac{\beta}{K} \, \|f(x') - f(x_{prior})\|_2^2

    Args:
        prior_logits, adversarial_logits: [B, K], of where the attack's step started and where it ended.
        labels: integers [B].
        beta: at least 0; 10 in the published code.
        label_smoothing: share in [0, 1) of the labels.

    Returns:
        float32 [B].

    Raises:
        InputError: logits of different shapes, labels that are not classes, or an argument out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> pgi(jnp.zeros((1, 2)), jnp.array([[1.0, 1.0]]), jnp.array([0]), beta=2.0).round(4)
        Array([2.6931], dtype=float32)
    """
    _check(prior_logits, adversarial_logits, labels, beta)
    gap = jnp.mean((adversarial_logits.astype(jnp.float32) - prior_logits.astype(jnp.float32)) ** 2, axis=-1)
    return smoothed_cross_entropy(adversarial_logits, labels, label_smoothing=label_smoothing) + beta * gap


def _check(first: Array, second: Array, labels: Array, beta: float) -> None:
    """Refuses logits of different shapes, which would be broadcast, labels that are not classes, a weight below 0."""
    check_number("beta", beta, "[0, inf)")
    if first.shape != second.shape:
        raise InputError(f"logits of both images must be of one shape, got {first.shape} and {second.shape}; pair them")
    check_classes("labels", labels, first.shape[0], first.shape[-1])


def standard_objective(*, label_smoothing: float) -> Objective:
    """Cross-entropy on natural images."""

    def term(logits: Mapping[str, Array], labels: Array) -> Array:
        return smoothed_cross_entropy(logits["natural"], labels, label_smoothing=label_smoothing)

    return Objective(("natural",), lambda outputs: term)


def adversarial_objective(*, label_smoothing: float) -> Objective:
    """Cross-entropy on adversarial images (Madry et al. 2018, arXiv 1706.06083)."""

    def term(logits: Mapping[str, Array], labels: Array) -> Array:
        return smoothed_cross_entropy(logits["adversarial"], labels, label_smoothing=label_smoothing)

    return Objective(("adversarial",), lambda outputs: term, climb_cross_entropy)


def trades_objective(*, beta: float, label_smoothing: float) -> Objective:
    """:func:`trades`, its attack climbing the divergence from x + 0.001 N(0, 1).

    At the image itself, where both distributions are equal, the divergence has no gradient.
    """

    def term(logits: Mapping[str, Array], labels: Array) -> Array:
        both = (logits["natural"], logits["adversarial"])
        return trades(*both, labels, beta=beta, label_smoothing=label_smoothing)

    views = ("natural", "adversarial")
    return Objective(views, lambda outputs: term, climb_divergence, inner_views=views, start="gaussian")


def mart_objective(*, beta: float) -> Objective:
    """:func:`mart`, its attack climbing cross-entropy from x + 0.001 N(0, 1), as in the published code.

    Of a defense's heads it keeps the weight of the network's own logits.
    """

    def make_term(outputs: Mapping[str, Outputs]) -> Term:
        def term(logits: Mapping[str, Array], labels: Array) -> Array:
            weight = mart_weight(outputs["natural"].logits, labels)
            return mart(logits["natural"], logits["adversarial"], labels, beta=beta, weight=weight)

        return term

    return Objective(("natural", "adversarial"), make_term, climb_cross_entropy, start="gaussian")


def nuat_objective(*, beta: float, label_smoothing: float) -> Objective:
    """:func:`nuat`, its attack climbing cross-entropy and the same share of the nuclear norm.

    The published code raises beta from 0 to its last value over training, and has the norm in the attack of every other
    update; here beta is constant and the norm in every attack.
    """

    def term(logits: Mapping[str, Array], labels: Array) -> Array:
        both = (logits["natural"], logits["adversarial"])
        return nuat(*both, labels, beta=beta, label_smoothing=label_smoothing)

    def climb(logits: Mapping[str, Array], labels: Array) -> Array:
        apart = nuclear_norm(logits["adversarial"] - logits["natural"]) / labels.shape[0]
        return climb_cross_entropy(logits, labels) + beta * apart

    views = ("natural", "adversarial")
    return Objective(views, lambda outputs: term, climb, inner_views=views)


def pgi_objective(*, beta: float, label_smoothing: float) -> Objective:
    """:func:`pgi`, for an attack that carries perturbations from epoch to epoch, climbing cross-entropy.

    The published code also smooths labels (the true one keeps 0.6), begins perturbations anew every 40 epochs, and
    moves those that it carries by a running mean of gradients (FGSM-MEP).
    """

    def term(logits: Mapping[str, Array], labels: Array) -> Array:
        return pgi(logits["prior"], logits["adversarial"], labels, beta=beta, label_smoothing=label_smoothing)

    return Objective(("prior", "adversarial"), lambda outputs: term, climb_cross_entropy)
