"""Channel-wise activation suppressing, CAS (Bai et al., ICLR 2021, arXiv 2103.08307)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode, joint_loss
from robustjax.ops import (
    as_floats,
    check_classes,
    check_number,
    global_average_pool,
    lookup,
    scale_channels,
    straight_through,
)
from robustjax.types import Array, InputError


def suppress(
    features: Array,
    weights: Array,
    biases: Array,
    labels: Array | None = None,
    *,
    differentiate_selection: bool = False,
) -> tuple[Array, Array]:
    r"""Multiplies each channel by its weight for one class in an auxiliary linear classifier.

    .. math:: a = \mathrm{GAP}(z) M + b, \qquad \tilde z_{hwc} = z_{hwc} M_{c,k}

    with k the true label in training, and :math:`\arg\max a` in inference. Weights are used raw: neither normalised nor
    clipped, and the gradient flows into them on both ways. Columns of ones leave the features as they are.

    Args:
        features: z, float [B, ..., C].
        weights: M, [C, K].
        biases: b, [K].
        labels: integers [B] in training, None in inference.
        differentiate_selection: the gradient takes the columns' mean under softmax(a) for the column of the largest
            (an attacker's choice); the value stays. Without effect when labels are given.

    Returns:
        Features like those given, and the logits a, float32 [B, K].

    Raises:
        InputError: weights and biases do not fit the features or each other, features are not floats, or labels not
            classes.

    Example:
        >>> import jax.numpy as jnp
        >>> weights = jnp.array([[2.0, 0.0], [0.0, 3.0]])
        >>> suppress(jnp.ones((1, 1, 1, 2)), weights, jnp.zeros(2))
        (Array([[[[0., 3.]]]], dtype=float32), Array([[2., 3.]], dtype=float32))
    """
    features = as_floats("cas: features", features, least_axes=2)
    channels = features.shape[-1]
    if weights.ndim != 2 or weights.shape[0] != channels or biases.shape != weights.shape[1:]:
        raise InputError(
            f"cas: weights and biases must be [{channels}, K] and [K], got {list(weights.shape)} and "
            f"{list(biases.shape)}; of PyTorch's weights [K, C] give the transpose"
        )
    if labels is not None:
        check_classes("cas: labels", labels, features.shape[0], weights.shape[1])
    weights = jnp.asarray(weights).astype(jnp.float32)
    logits = global_average_pool(features) @ weights + biases.astype(jnp.float32)[None, :]
    classes = jnp.argmax(logits, axis=-1) if labels is None else labels
    columns = lookup(weights.T, classes)
    if differentiate_selection and labels is None:
        columns = straight_through(columns, jax.nn.softmax(logits) @ weights.T)
    return scale_channels(features, columns), logits


def defense(*, beta: float = 2.0, attack_beta: float | None = None) -> Defense:
    """``suppress`` at the sites of the last stage, each with a classifier of its own.

    Args:
        beta: weight of the classifiers' mean loss, in training and in its attack.
        attack_beta: that of the attack in training where it differs: 0 attacks the network's own logits alone. None:
            ``beta``.

    Example:
        >>> defense().heads
        ('probe',)
    """
    check_number("cas: beta", beta, "[0, inf)")
    if attack_beta is None:
        attack_beta = beta
    check_number("cas: attack_beta", attack_beta, "[0, inf)")
    return Defense(
        name="cas",
        role="late",
        build=lambda sites, num_classes, mode: {site: CAS(num_classes, mode) for site in sites},
        gradient="none through the argmax that selects a column; the surrogate selects by softmax in the backward pass",
        loss=partial(joint_loss, kind="probe", beta=beta),
        inner_loss=partial(joint_loss, kind="probe", beta=attack_beta),
        heads=("probe",),
    )


class CAS(nn.Module):
    """A guard that scales each channel by its weight for one class in a linear classifier that it holds.

    In training the class is the true label; in inference, where labels are None, it is the classifier's own prediction.
    The classifier's logits are returned as the head "probe" in both.

    Attributes:
        num_classes: K, of the classifier.
        mode: "active"; "surrogate", where the gradient takes the column by softmax instead of argmax; or "off", where
            the features pass unchanged and the classifier still answers.
    """

    num_classes: int
    mode: Mode = "active"

    @nn.compact
    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        # Uniform within 1 / sqrt(C), as published: the weights are also the first factors of the channels.
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        weights = self.param("kernel", uniform, (features.shape[-1], self.num_classes), jnp.float32)
        biases = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,), jnp.float32)
        suppressed, logits = suppress(
            features, weights, biases, labels, differentiate_selection=self.mode == "surrogate"
        )
        return (features if self.mode == "off" else suppressed), {"probe": logits}
