"""Losses that attacks maximise: one number for each example, larger is worse for the network.

Every loss takes logits [B, K] and labels, either integers [B] or, where said, a distribution [B, K], and returns
float32 [B]. Logits of any float dtype are computed on in float32. Labels that are not classes of the logits raise
:class:`robustjax.types.InputError`; of traced ones only shape and dtype are known.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.ops import check_classes
from robustjax.types import Array, InputError


def cross_entropy(logits: Array, labels: Array) -> Array:
    r"""Cross-entropy, exact where the usual form has long saturated.

    .. math:: -\log p_y = \log\Bigl(1 + \sum_{k \ne y} e^{z_k - z_y}\Bigr)

    The usual ``logsumexp(z) - z_y`` is exactly 0, and so is its gradient, once the network is sure by some 17 nats in
    float32: an attack then stands still and the network looks robust. The form above keeps value and gradient down to
    gaps of about 87.

    Args:
        logits: [B, K].
        labels: integers [B].

    Returns:
        float32 [B], in [0, inf).

    Example:
        >>> import jax.numpy as jnp
        >>> cross_entropy(jnp.array([[0.0, 0.0], [50.0, 0.0]]), jnp.array([0, 0]))
        Array([6.9314718e-01, 1.9287499e-22], dtype=float32)
    """
    _check(logits, labels=labels)
    return jax.nn.softplus(jax.nn.logsumexp(_without_true(logits, labels), axis=-1) - _true(logits, labels))


def margin(logits: Array, labels: Array, *, confidence: float = float("inf")) -> Array:
    r"""The margin loss of Carlini and Wagner (2017, arXiv 1608.04644), with the sign of an ascent.

    .. math:: \min\bigl(\max_{k \ne y} z_k - z_y,\; \kappa\bigr)

    Positive where the example is misclassified; at ``confidence`` the gradient stops.

    Args:
        logits: [B, K].
        labels: integers [B].
        confidence: :math:`\kappa`, at least 0.

    Returns:
        float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]))
        Array([-1.], dtype=float32)
    """
    _check(logits, labels=labels)
    gap = jnp.max(_without_true(logits, labels), axis=-1) - _true(logits, labels)
    return jnp.minimum(gap, confidence)


def dlr(logits: Array, labels: Array) -> Array:
    r"""Difference-of-logits ratio of Croce and Hein (2020, arXiv 2003.01690): invariant to shift and scale of logits.

    .. math:: -\frac{z_y - \max_{k \ne y} z_k}{z_{\pi_1} - z_{\pi_3}}

    where :math:`\pi` sorts the logits in falling order. Needs three classes. Where fewer than three logits are finite,
    as of a network that masks classes by -inf, it is the margin.

    Args:
        logits: [B, K], K >= 3.
        labels: integers [B].

    Returns:
        float32 [B]: in [-1, 0] where the label is ranked first, in (0, inf) where another class is.

    Raises:
        InputError: for fewer than three classes, where the ratio is undefined; use :func:`margin`.

    Example:
        >>> import jax.numpy as jnp
        >>> dlr(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0])).round(3)
        Array([-0.5], dtype=float32)
    """
    num_classes = logits.shape[-1]
    if num_classes < 3:
        raise InputError(f"logits must be of at least 3 classes, got {num_classes}; use losses.margin instead of dlr")
    top = jax.lax.top_k(logits.astype(jnp.float32), 3)[0]
    return _ratio(margin(logits, labels), top[:, 0] - top[:, 2])


def targeted_margin(logits: Array, labels: Array, targets: Array) -> Array:
    """How far a chosen wrong class is ahead of the label: ``z_t - z_y``, float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> targeted_margin(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]), jnp.array([1]))
        Array([-2.], dtype=float32)
    """
    _check(logits, labels=labels, targets=targets)
    return _true(logits, targets) - _true(logits, labels)


def targeted_dlr(logits: Array, labels: Array, targets: Array) -> Array:
    r"""Targeted difference-of-logits ratio of Croce and Hein (2020, arXiv 2003.01690).

    .. math:: -\frac{z_y - z_t}{z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2}

    where :math:`\pi` sorts the logits in falling order. Needs four classes. Where fewer than four logits are finite, it
    is the targeted margin.

    Args:
        logits: [B, K], K >= 4.
        labels: integers [B].
        targets: integers [B], the wrong class t.

    Returns:
        float32 [B], positive exactly where the target is ahead of the label.

    Raises:
        InputError: for fewer than four classes, where the ratio is undefined; use :func:`targeted_margin`.

    Example:
        >>> import jax.numpy as jnp
        >>> targeted_dlr(jnp.array([[4.0, 3.0, 1.0, 1.0]]), jnp.array([0]), jnp.array([1])).round(3)
        Array([-0.333], dtype=float32)
    """
    num_classes = logits.shape[-1]
    if num_classes < 4:
        raise InputError(
            f"logits must be of at least 4 classes, got {num_classes}; use targeted_margin instead of targeted_dlr"
        )
    top = jax.lax.top_k(logits.astype(jnp.float32), 4)[0]
    return _ratio(targeted_margin(logits, labels, targets), top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]))


def kl(logits: Array, labels: Array) -> Array:
    r"""Kullback-Leibler divergence from a target distribution to the network's, the inner loss of TRADES.

    .. math:: \sum_k q_k (\log q_k - \log p_k), \quad p = \mathrm{softmax}(z)

    Args:
        logits: [B, K].
        labels: the target distribution q as probabilities [B, K]; or integers [B], whose one-hot distribution makes
            this the cross-entropy.

    Returns:
        float32 [B], in [0, inf).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> logits = jnp.array([[1.0, -1.0]])
        >>> bool(abs(kl(logits, jax.nn.softmax(logits))[0]) < 1e-6)
        True
    """
    if jnp.ndim(labels) != 2:
        return cross_entropy(logits, labels)
    _check(logits)
    if labels.shape != logits.shape:
        raise InputError(
            f"labels must be probabilities {list(logits.shape)}, got {list(labels.shape)}; give one of each class"
        )
    target = labels.astype(jnp.float32)
    # The ``where`` keep value and gradient finite at a target of probability 0, whose class a network may mask by a
    # logit of -inf: TRADES differentiates both sides.
    possible = target > 0
    log_target = jnp.log(jnp.where(possible, target, 1.0))
    log_probabilities = jnp.where(possible, jax.nn.log_softmax(logits.astype(jnp.float32)), 0.0)
    return jnp.sum(target * (log_target - log_probabilities), axis=-1)


def _check(logits: Array, **classes: Array) -> None:
    """Refuses logits that are not [B, K], and classes [B] that are none of theirs, which indexing would wrap."""
    if not hasattr(logits, "dtype") or logits.ndim != 2:
        raise InputError(f"logits must be an array [B, K], got shape {list(jnp.shape(logits))}; give a row an example")
    for name, values in classes.items():
        check_classes(name, values, *logits.shape)


def _ratio(gap: Array, scale: Array) -> Array:
    """gap / scale, and gap where the scale is not finite."""
    finite = jnp.isfinite(scale)
    # The constant is the reference's guard against equal logits.
    return jnp.where(finite, gap / (jnp.where(finite, scale, 1.0) + 1e-12), gap)


def _true(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits.astype(jnp.float32), labels[:, None], axis=-1)[:, 0]


def _without_true(logits: Array, labels: Array) -> Array:
    classes = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    is_true = classes[None, :] == jnp.asarray(labels).astype(jnp.int32)[:, None]
    return jnp.where(is_true, -jnp.inf, logits.astype(jnp.float32))
