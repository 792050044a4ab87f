"""The fast gradient sign method, and N-FGSM, its noisy variant for training."""

from __future__ import annotations

import jax.numpy as jnp

from robustjax.attacks import geometry, losses
from robustjax.attacks._pgd import pgd
from robustjax.attacks.engine import inputs
from robustjax.attacks.eot import expected_gradient
from robustjax.types import Array, Key, LogitsFn, LossFn


def fgsm(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    norm: str = "linf",
    loss: LossFn = losses.cross_entropy,
    random_start: bool | str = False,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
) -> Array:
    r"""Fast gradient sign method, FGSM (Goodfellow et al. 2015, arXiv 1412.6572): one step of length epsilon.

    .. math:: x' = \Pi\bigl(x + \epsilon \cdot \mathrm{steepest}(\nabla_x L(f(x), y))\bigr)

    In linf ``steepest`` is the sign of the gradient; see :class:`geometry.Geometry` for l2 and l1. :math:`\Pi` projects
    into ball and box. It is :func:`pgd` with a single step.

    Args:
        logits_fn: images -> outputs; with ``eot_samples >= 1``, (images, key) -> outputs. Outputs are logits [B, K],
            K >= 2, or carry them as ``.logits``, or are any pytree that a ``loss`` of your own accepts.
        key: a typed key, as of ``jax.random.key(seed)``; a random start and EOT draw from it.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works). The network is called in the
            dtype given; the attack computes in float32.
        labels: integers [B]; with ``losses.kl`` also probabilities [B, K]; with a loss of your own whatever it takes.
        epsilon: radius of the ball and length of the step, a number >= 0 or one per example [B].
        norm: "linf", "l2" or "l1".
        loss: (outputs, labels) -> [B], to be maximised.
        random_start: False steps from the image, True from a uniform point of the ball (then the step may end anywhere
            in it), "gaussian" from x + 0.001 N(0, 1).
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 averages the gradient over n fresh keys; 0 for deterministic networks.
        targeted: labels are targets, and the loss is minimised.

    Returns:
        Images of the same shape and dtype, inside ball and box. An empty batch is returned as it is.

    Raises:
        InputError: for an unknown norm or start, or arguments of the wrong shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> fgsm(linear, jax.random.key(0), images, labels, epsilon=0.1).ravel()
        Array([0.4, 0.4], dtype=float32)
    """
    return pgd(
        logits_fn,
        key,
        images,
        labels,
        epsilon=epsilon,
        step_size=epsilon,
        num_steps=1,
        norm=norm,
        random_start=random_start,
        loss=loss,
        bounds=bounds,
        eot_samples=eot_samples,
        targeted=targeted,
    )


def n_fgsm(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    noise: float = 2.0,
    loss: LossFn = losses.cross_entropy,
    bounds: geometry.Bounds = (0.0, 1.0),
) -> Array:
    r"""The training attack of N-FGSM (de Jorge et al. 2022, arXiv 2202.01181), linf.

    .. math:: x' = \mathrm{clip}(x + \eta + \epsilon \cdot \mathrm{sign} \nabla L(x + \eta)), \quad
              \eta \sim U(-k\epsilon, k\epsilon)

    Deliberately *not* projected back: the result may be (k + 1) epsilon away from the image. This attack is for
    training networks, not for evaluating them.

    Args:
        logits_fn, key, images, labels, epsilon, loss, bounds: as in :func:`pgd`.
        noise: k, the half-width of the noise in units of epsilon, a number >= 0.

    Returns:
        Images of the same shape and dtype, inside bounds.

    Raises:
        InputError: for arguments of the wrong shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.zeros(x.shape[0])], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> bool((n_fgsm(linear, jax.random.key(0), images, labels, epsilon=0.1) <= 0.6).all())
        True
    """
    given = inputs.check(
        logits_fn,
        key,
        images,
        labels,
        norm="linf",
        bounds=bounds,
        radii={"epsilon": epsilon, "noise": noise},
        loss=loss,
    )
    if given.is_empty:
        return given.given
    low, high = geometry.walls(given.bounds, given.images)
    radius = geometry.per_example(epsilon, given.images)
    start = geometry.per_example(noise, given.images) * geometry.get("linf").random_start(key, given.images, epsilon)
    noisy = jnp.clip(given.images + start, low, high)
    gradient = expected_gradient(given.logits_fn, key, noisy, given.labels, loss=given.loss, num_samples=0)
    return given.returned(jnp.clip(noisy + radius * jnp.sign(gradient), low, high))
