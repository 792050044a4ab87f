"""Feature separation and recalibration, FSR (Kim et al., CVPR 2023, arXiv 2303.13846)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense, Mode, Views, own_loss
from robustjax.layers import BatchNorm, conv2d
from robustjax.ops import as_floats, check_number, global_average_pool, straight_through
from robustjax.types import Array, InputError, Key, Term

Parts = Literal["both", "separation", "recalibration"]

# What goes on -> the kinds of features whose logits a guard returns.
HEADS: dict[str, tuple[str, ...]] = {
    "both": ("robust", "nonrobust", "recalibrated"),
    "separation": ("robust", "nonrobust"),
    "recalibration": ("recalibrated",),
}


def separate(
    scores: Array,
    features: Array,
    *,
    key: Key | None = None,
    temperature: float = 0.1,
    backward_temperature: float | None = None,
    hard: bool = False,
) -> tuple[Array, Array, Array]:
    r"""Splits features into a robust and a non-robust part by a soft mask.

    .. math:: z^+ = m \odot z, \quad z^- = (1 - m) \odot z, \quad m = \sigma\bigl((s + g_1 - g_2) / \tau\bigr)

    which is the Gumbel-softmax over (keep, drop) with probabilities :math:`\sigma(s), 1 - \sigma(s)`. Training adds the
    Gumbel noise g; inference has none. The two parts add up to the features. As all scores grow, every feature is
    robust: the plain network.

    Args:
        scores: s, like features.
        features: z, of any shape.
        key: for the noise, in training; None in inference.
        temperature: tau, above 0.
        backward_temperature: the gradient takes the mask at this temperature (an attacker's choice, as 0.1
            saturates); the value stays. None: ``temperature``.
        hard: the mask is 1 where m is at least a half and 0 elsewhere; its gradient stays that of m.

    Returns:
        Robust and non-robust part, like features, and the mask m, float32.

    Raises:
        InputError: a temperature is not above 0, the shapes differ, or features are not floats.

    Example:
        >>> import jax.numpy as jnp
        >>> robust, nonrobust, mask = separate(jnp.array([[9.0, 0.0]]), jnp.array([[2.0, 2.0]]))
        >>> robust, nonrobust
        (Array([[2., 1.]], dtype=float32), Array([[0., 1.]], dtype=float32))
    """
    for value in (temperature, backward_temperature):
        if value is not None:
            check_number("fsr: temperature", value, "(0, inf]")
    features = as_floats("fsr: features", features)
    _like("scores", scores, "features", features)
    logits = scores.astype(jnp.float32)
    if key is not None:
        logits = logits + jax.random.logistic(key, scores.shape, jnp.float32)  # the law of a difference of two Gumbels
    mask = jax.nn.sigmoid(logits / temperature)
    if backward_temperature is not None:
        mask = straight_through(mask, jax.nn.sigmoid(logits / backward_temperature))
    if hard:
        mask = straight_through((logits >= 0).astype(jnp.float32), mask)
    values = features.astype(jnp.float32)
    return (mask * values).astype(features.dtype), ((1.0 - mask) * values).astype(features.dtype), mask


def recalibrate(nonrobust: Array, correction: Array, mask: Array) -> Array:
    r"""Adds a correction to the non-robust features where the mask dropped them.

    .. math:: \tilde z^- = z^- + (1 - m) \odot r(z^-)

    A correction of zero is the plain network: robust and recalibrated features then add up to the features.

    Args:
        nonrobust: :math:`z^-`, of any shape.
        correction: :math:`r(z^-)`, like nonrobust.
        mask: m, in [0, 1], of the same shape.

    Returns:
        An array like nonrobust.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> recalibrate(jnp.array([1.0, 1.0]), jnp.array([4.0, 4.0]), jnp.array([1.0, 0.5]))
        Array([1., 3.], dtype=float32)
    """
    nonrobust = as_floats("fsr: nonrobust", nonrobust)
    _like("correction", correction, "nonrobust", nonrobust)
    _like("mask", mask, "nonrobust", nonrobust)
    added = (1.0 - mask.astype(jnp.float32)) * correction.astype(jnp.float32)
    return (nonrobust.astype(jnp.float32) + added).astype(nonrobust.dtype)


def _like(name: str, array: Array, other: str, wanted: Array) -> None:
    """Refuses an array of another shape, which would be broadcast."""
    if array.shape != wanted.shape:
        raise InputError(
            f"fsr: {name} must be {list(wanted.shape)}, as {other}, got {list(array.shape)}; give it that shape"
        )


def loss(
    views: Views, labels: Array, *, term: Term, separation_weight: float = 1.0, recalibration_weight: float = 1.0
) -> Array:
    r"""The objective's own term, and cross-entropy of the three heads on the images that the update trains on.

    .. math:: J + \lambda_{sep} [CE(a^+, y) + CE(a^-, y')] + \lambda_{rec} CE(\tilde a^-, y)

    where y' is the most confident wrong class of the network's own logits. The heads are trained on the adversarial
    images if the objective has any, else on the natural ones. A term whose heads are missing, as in a guard with one of
    its ``parts`` only, is left out.

    Args:
        views: view -> outputs with the heads "robust", "nonrobust" and "recalibrated".
        labels: integers [B].
        term: J.
        separation_weight, recalibration_weight: the two lambdas.

    Returns:
        float32 [B].

    Example:
        >>> import jax.numpy as jnp
        >>> from robustjax.types import Outputs
        >>> head = jnp.zeros((1, 1, 2))
        >>> heads = {"robust": head, "nonrobust": head, "recalibrated": head}
        >>> loss({"natural": Outputs(jnp.zeros((1, 2)), heads, {})}, jnp.array([0]), term=lambda *_: 0.0).round(4)
        Array([2.0794], dtype=float32)
    """
    outputs = views["adversarial"] if "adversarial" in views else views["natural"]
    is_true = jnp.arange(outputs.logits.shape[-1])[None, :] == labels[:, None]
    strongest_wrong = jnp.argmax(jnp.where(is_true, -jnp.inf, outputs.logits.astype(jnp.float32)), axis=-1)

    def cross_entropy(kind: str, classes: Array) -> Array:
        log_probabilities = jax.nn.log_softmax(outputs.auxiliary[kind].astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, classes[None, :, None], axis=-1)[..., 0], axis=0)

    total = own_loss(views, labels, term=term)
    if "robust" in outputs.auxiliary:
        separation = cross_entropy("robust", labels) + cross_entropy("nonrobust", strongest_wrong)
        total = total + separation_weight * separation
    if "recalibrated" in outputs.auxiliary:
        total = total + recalibration_weight * cross_entropy("recalibrated", labels)
    return total


def defense(
    *,
    temperature: float = 0.1,
    gumbel_noise: bool = True,
    hard_mask: bool = False,
    parts: Parts = "both",
    separation_weight: float = 1.0,
    recalibration_weight: float = 1.0,
    width: int = 64,
) -> Defense:
    """Separation and recalibration of the last feature map.

    Args:
        temperature: as for ``separate``.
        gumbel_noise: whether training adds noise to the mask.
        hard_mask: the mask is 0 or 1, in training and in inference, as ``separate(hard=True)`` makes it.
        parts: "both"; "separation", where the robust features alone go on and the non-robust are dropped; or
            "recalibration", where the whole feature map is taken for non-robust and corrected.
        separation_weight, recalibration_weight: as for ``loss``.
        width: channels inside the two networks.

    Example:
        >>> defense().heads
        ('robust', 'nonrobust', 'recalibrated')
    """
    check_number("fsr: temperature", temperature, "(0, inf)")
    check_number("fsr: separation_weight", separation_weight, "[0, inf)")
    check_number("fsr: recalibration_weight", recalibration_weight, "[0, inf)")
    check_number("fsr: width", width, "[1, inf)", whole=True)
    if parts not in HEADS:
        raise InputError(f"fsr: parts must be one of {', '.join(HEADS)}, got {parts!r}")
    mask = {"gumbel_noise": gumbel_noise, "hard_mask": hard_mask, "parts": parts}
    return Defense(
        name="fsr",
        role="final",
        build=lambda sites, num_classes, mode: {
            site: FSR(num_classes, temperature, width, mode=mode, **mask) for site in sites
        },
        gradient="the mask saturates at a low temperature; the surrogate has temperature 1 in the backward pass",
        loss=partial(loss, separation_weight=separation_weight, recalibration_weight=recalibration_weight),
        heads=HEADS[parts],
    )


class FSR(nn.Module):
    """A guard that separates the last feature map by a mask and recalibrates what the mask drops.

    It holds two networks of three convolutions, "separation" (the mask's scores) and "recalibration" (the correction),
    and the linear head "auxiliary" that the three kinds of features share; with one of the ``parts`` only, that part's
    network and kinds.

    In training, Gumbel noise from the rng stream "defense" is added to the scores, and the networks' BatchNorm uses and
    updates the batch's statistics; in inference there is no noise, and the running statistics are used. The labels are
    not used.

    Attributes:
        num_classes: K, of the head.
        temperature: of the mask, as for :func:`separate`.
        width: channels inside the two networks.
        gumbel_noise, hard_mask, parts: as for :func:`defense`.
        mode: "active"; "surrogate", where the gradient takes the mask at temperature 1; or "off", where the features
            pass unchanged and the head still answers.
    """

    num_classes: int
    temperature: float = 0.1
    width: int = 64
    gumbel_noise: bool = True
    hard_mask: bool = False
    parts: Parts = "both"
    mode: Mode = "active"

    @nn.compact
    def __call__(self, features: Array, labels: Array | None = None, train: bool = False):
        if features.ndim != 4:
            raise InputError(f"fsr: features must be [B, H, W, C], got {features.shape}; choose another site")
        kinds: dict[str, Array] = {}
        passed, nonrobust, mask = jnp.zeros_like(features), features, jnp.zeros(features.shape, jnp.float32)
        if self.parts != "recalibration":
            passed, nonrobust, mask = separate(
                _ConvNet(self.width, name="separation")(features, train),
                features,
                key=self.make_rng("defense") if train and self.gumbel_noise else None,
                temperature=self.temperature,
                backward_temperature=1.0 if self.mode == "surrogate" else None,
                hard=self.hard_mask,
            )
            kinds |= {"robust": passed, "nonrobust": nonrobust}
        if self.parts != "separation":
            correction = _ConvNet(self.width, name="recalibration")(nonrobust, train)
            kinds["recalibrated"] = recalibrate(nonrobust, correction, mask)
            passed = passed + kinds["recalibrated"]
        head = nn.Dense(self.num_classes, name="auxiliary")
        logits = {kind: head(global_average_pool(part)) for kind, part in kinds.items()}
        return (features if self.mode == "off" else passed), logits


class _ConvNet(nn.Module):
    """Two hidden convolutions with batch normalisation and a linear third, back to the channels of the input."""

    width: int

    @nn.compact
    def __call__(self, features: Array, train: bool) -> Array:
        conv = partial(
            nn.Conv, kernel_size=(3, 3), use_bias=False, dtype=features.dtype, conv_general_dilated=_convolve
        )
        hidden = features
        for i in range(2):
            hidden = conv(self.width, name=f"conv_{i}")(hidden)
            norm = BatchNorm(train, name=f"norm_{i}")
            hidden = nn.relu(norm(hidden.astype(jnp.float32))).astype(features.dtype)
        return conv(features.shape[-1], name="conv_2")(hidden)


def _convolve(images: Array, kernel: Array, *_, **__) -> Array:
    """What Flax's layer asks of XLA here, in the form that is quick on every backend."""
    return conv2d(images, kernel, padding=1)
