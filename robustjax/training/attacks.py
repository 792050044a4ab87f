"""Attacks that only training uses: they stop early, start where the last epoch ended, or take one step from noise.

Each is ``(outputs_fn, key, images, labels, *, loss, ...) -> images``, where ``outputs_fn`` returns a network's
``Outputs``; :func:`fgsm_from` has the points to start from in place of the key. Arguments are not checked: the training
step has made them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry
from robustjax.types import Array, Key, LogitsFn, LossFn

BOUNDS = (0.0, 1.0)


def friendly_pgd(
    outputs_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    loss: LossFn,
    epsilon: Array | float,
    step_size: Array | float,
    num_steps: int,
    tau: int,
    random_start: bool | str = True,
    norm: str = "linf",
) -> Array:
    """PGD that stops an example ``tau`` steps after it is first misclassified (friendly adversarial training, Zhang et
    al. 2020, arXiv 2002.11242).

    Args:
        outputs_fn: images -> outputs with ``logits`` [B, K].
        key: of the start.
        images: [B, H, W, C] in [0, 1].
        labels: integers [B].
        loss: to climb.
        epsilon, step_size: radius, and length of a step, in units of pixels in [0, 1].
        num_steps: at most; every step costs the same, whoever has stopped.
        tau: steps after the first misclassification, from 0; ``num_steps`` makes it PGD.
        random_start: True, False, or "gaussian", as for :func:`robustjax.attacks.geometry.start`.
        norm: "linf", "l2" or "l1".

    Returns:
        Images of the same shape, inside ball and box.

    Example:
        >>> from robustjax.types import Outputs
        >>> from robustjax.attacks.losses import cross_entropy
        >>> linear = lambda x: Outputs(jnp.stack([x.sum((1, 2, 3)), jnp.full(x.shape[0], 0.45)], axis=1), {}, {})
        >>> climb = lambda outputs, labels: cross_entropy(outputs.logits, labels)
        >>> images, labels = jnp.full((1, 1, 1, 1), 0.5), jnp.array([0])
        >>> options = {"loss": climb, "epsilon": 0.3, "step_size": 0.04, "num_steps": 10, "random_start": False}
        >>> [friendly_pgd(linear, jax.random.key(0), images, labels, tau=tau, **options).item() for tau in (0, 1)]
        [0.42..., 0.38...]
    """
    ball = geometry.get(norm)
    length = geometry.per_example(step_size, images)
    start = geometry.start(norm, key, images, epsilon, BOUNDS, random_start=random_start)

    def value(points: Array) -> tuple[Array, Array]:
        outputs = outputs_fn(points)
        return jnp.sum(loss(outputs, labels)), outputs.logits

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        points, left = state
        gradient, logits = jax.grad(value, has_aux=True)(points)
        left = left - (jnp.argmax(logits, axis=-1) != labels).astype(left.dtype)
        moved = ball.project(images, points + length * ball.steepest(gradient, points, BOUNDS), epsilon, BOUNDS)
        return jnp.where((left >= 0)[:, None, None, None], moved, points), left

    return jax.lax.fori_loop(0, num_steps, step, (start, jnp.full(labels.shape, tau, jnp.int32)))[0]


def fgsm_from(
    outputs_fn: LogitsFn,
    start: Array,
    images: Array,
    labels: Array,
    *,
    loss: LossFn,
    epsilon: Array | float,
    step_size: Array | float,
) -> Array:
    """One step of FGSM in linf from given points (Jia et al. 2022, arXiv 2207.08859, from those of the last epoch).

    Args:
        outputs_fn, images, labels, loss, epsilon, step_size: as for :func:`friendly_pgd`.
        start: [B, H, W, C]; what lies outside ball and box is projected first.

    Returns:
        Images of the same shape, inside ball and box.

    Example:
        >>> images, start = jnp.full((1, 1, 1, 1), 0.5), jnp.full((1, 1, 1, 1), 0.4)
        >>> options = {"loss": lambda outputs, labels: outputs, "epsilon": 0.2, "step_size": 0.25}
        >>> fgsm_from(lambda x: x.sum((1, 2, 3)), start, images, jnp.array([0]), **options).ravel()
        Array([0.65], dtype=float32)
    """
    ball = geometry.get("linf")
    start = ball.project(images, start, epsilon, BOUNDS)
    gradient = jax.grad(lambda points: jnp.sum(loss(outputs_fn(points), labels)))(start)
    return ball.project(images, start + step_size * jnp.sign(gradient), epsilon, BOUNDS)


def bernoulli_fgsm(
    outputs_fn: LogitsFn, key: Key, images: Array, labels: Array, *, loss: LossFn, epsilon: Array | float
) -> Array:
    """FGSM of step epsilon from x + epsilon / 2 times a random sign at each pixel (NuAT, Sriramanan et al. 2021).

    Args:
        outputs_fn, key, images, labels, loss, epsilon: as for :func:`friendly_pgd`.

    Returns:
        Images of the same shape, inside the linf ball and the box.

    Example:
        >>> images, options = jnp.full((1, 1, 1, 1), 0.5), {"loss": lambda outputs, labels: outputs, "epsilon": 0.2}
        >>> bernoulli_fgsm(lambda x: x.sum((1, 2, 3)), jax.random.key(0), images, jnp.array([0]), **options).ravel()
        Array([0.6], dtype=float32)
    """
    signs = jax.random.rademacher(key, images.shape, images.dtype)
    start = images + 0.5 * epsilon * signs
    return fgsm_from(outputs_fn, start, images, labels, loss=loss, epsilon=epsilon, step_size=epsilon)
