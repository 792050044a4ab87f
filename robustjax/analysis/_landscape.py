"""The loss around an image: its surface along two directions, and its gradient at the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.analysis._observe import checked
from robustjax.analysis.estimate import Estimate, bootstrap
from robustjax.attacks import losses
from robustjax.types import AnyArray, Array, InputError, LogitsFn


class Surface(NamedTuple):
    """The loss on a plane through the images.

    Attributes:
        at: coordinates of the grid in units of epsilon, [G].
        loss: mean cross-entropy at at[i] along the adversarial and at[j] along the random direction, [G, G].
        estimates: "linearity_error" and "loss_rise".
    """

    at: np.ndarray
    loss: np.ndarray
    estimates: Mapping[str, Estimate]


def surface(
    logits_fn: LogitsFn,
    images: AnyArray,
    labels: AnyArray,
    adversarial: AnyArray,
    *,
    epsilon: float,
    size: int = 21,
    seed: int = 0,
) -> Surface:
    r"""Mean loss over the plane of an adversarial and a random direction, from -epsilon to epsilon along each.

    The error of the linear approximation inside the ball, along the adversarial direction,

    .. math:: \max_{t \in [0, 1]} |\ell(x + t \delta) - \ell(x) - t \langle\delta, \nabla \ell(x)\rangle|

    (Qin et al. 2019, arXiv 1907.02610) is large where gradients are masked: a single step is then far from the best
    one. Images are not clipped, as that would bend the plane.

    Args:
        logits_fn: images -> logits [B, K], deterministic.
        images, adversarial: float32 [N, H, W, C], of the same examples; N at least 2. delta is their difference; the
            random direction holds epsilon with random signs.
        labels: integers [N].
        epsilon: the extent of the random direction; 1 on the axis of the adversarial one is delta.
        size: G, odd, points along each direction.
        seed: of the random direction.

    Returns:
        A :class:`Surface`.

    Raises:
        InputError: the arrays are not of the same examples, or a value is out of range.

    Example:
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.zeros(len(x))], axis=1)
        >>> images = np.full((2, 2, 2, 1), 0.5, np.float32)
        >>> found = surface(linear, images, np.array([0, 0]), images - 0.1, epsilon=0.1, size=5)
        >>> found.loss.shape, bool(found.loss[4, 2] > found.loss[0, 2])
        ((5, 5), True)
    """
    if not isinstance(size, int) or size < 3 or size % 2 == 0:
        raise InputError(f"size must be an odd number from 3, got {size!r}; the images are in the middle")
    images, labels = checked(logits_fn, images, labels, epsilon, "linf")
    if np.shape(adversarial) != images.shape:
        raise InputError(
            f"adversarial must be an image for each of images {list(images.shape)}, got {list(np.shape(adversarial))}; "
            "give those of the same examples"
        )
    images, adversarial, labels = jnp.asarray(images), jnp.asarray(adversarial, jnp.float32), jnp.asarray(labels)
    signs = jax.random.rademacher(jax.random.key(seed), images.shape, jnp.float32)
    at = np.linspace(-1.0, 1.0, size)
    network = logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)
    delta = adversarial - images
    points = jnp.asarray(at, jnp.float32)
    columns = [np.asarray(_along(network, images, labels, delta, step * epsilon * signs, points)) for step in points]
    values = np.stack(columns, axis=1)  # [G adversarial, G random, N]
    slope = np.asarray(_slope(network, images, labels, delta), np.float64)
    middle = size // 2
    line = values[middle:, middle].astype(np.float64)
    errors = np.abs(line - line[:1] - at[middle:, None] * slope[None, :]).max(axis=0)
    rise = line[-1] - line[0]
    found = bootstrap(
        lambda chosen: {"linearity_error": float(errors[chosen].mean()), "loss_rise": float(rise[chosen].mean())},
        len(rise),
        meanings={
            "linearity_error": "largest error of the loss's linear approximation towards the adversarial image, in "
            "nats; near loss_rise of confident networks, whose loss is flat at the image",
            "loss_rise": "rise of the loss from the image to the adversarial image, in nats",
        },
    )
    return Surface(at, values.mean(axis=2), found)


@jax.jit
def _along(logits_fn: LogitsFn, images: Array, labels: Array, delta: Array, offset: Array, at: Array) -> Array:
    loss = lambda t: losses.cross_entropy(_logits(logits_fn(images + t * delta + offset)), labels)  # noqa: E731
    return jax.lax.map(loss, at)


@jax.jit
def _slope(logits_fn: LogitsFn, images: Array, labels: Array, delta: Array) -> Array:
    loss = lambda points: losses.cross_entropy(_logits(logits_fn(points)), labels)  # noqa: E731
    return jax.jvp(loss, (images,), (delta,))[1]


class InputGradients(NamedTuple):
    """Gradients of the margin at the images.

    Attributes:
        gradients: of the margin, [N, H, W, C].
        estimates: "alignment".
    """

    gradients: np.ndarray
    estimates: Mapping[str, Estimate]


def input_gradients(logits_fn: LogitsFn, images: AnyArray, labels: AnyArray) -> InputGradients:
    r"""The gradient of the margin (the label's logit minus the largest other), and its alignment with the image.

    .. math:: \frac{|\langle x, g \rangle|}{\|x\| \|g\|}

    Robust networks are said to have gradients that are more aligned with the image (Etmann et al. 2019, arXiv
    1905.04172). A gradient of zero is not aligned with anything: 0.

    Args:
        logits_fn: images -> logits [B, K], deterministic.
        images: float32 [N, H, W, C]; N at least 2.
        labels: integers [N].

    Returns:
        An :class:`InputGradients`.

    Raises:
        InputError: images that are not floats in [0, 1], or labels that are none of the network's classes.

    Example:
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.zeros(len(x))], axis=1)
        >>> found = input_gradients(linear, np.full((2, 2, 2, 1), 0.5, np.float32), np.array([0, 0]))
        >>> round(found.estimates["alignment"].value, 6), found.gradients.max()
        (1.0, np.float32(1.0))
    """
    network = logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)
    images, labels = checked(logits_fn, images, labels, 0.0, "linf")
    gradients = np.asarray(_margin_gradient(network, jnp.asarray(images), jnp.asarray(labels)))
    flat, slopes = (array.reshape(len(images), -1).astype(np.float64) for array in (images, gradients))
    norms = np.linalg.norm(flat, axis=1) * np.linalg.norm(slopes, axis=1)
    cosines = np.abs((flat * slopes).sum(axis=1)) / np.where(norms > 0, norms, np.inf)
    found = bootstrap(
        lambda chosen: {"alignment": float(cosines[chosen].mean())},
        len(cosines),
        meanings={"alignment": "mean |cosine| of the image and the gradient of the margin; higher of robust networks"},
    )
    return InputGradients(gradients, found)


@jax.jit
def _margin_gradient(logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    def margins(points: Array) -> Array:
        logits = _logits(logits_fn(points))
        own = jnp.arange(logits.shape[-1])[None, :] == labels[:, None]
        label, other = (jnp.max(jnp.where(mask, logits, -jnp.inf), axis=1) for mask in (own, ~own))
        return jnp.sum(label - other)

    return jax.grad(margins)(images)


def _logits(outputs: Any) -> Array:
    return getattr(outputs, "logits", outputs)
