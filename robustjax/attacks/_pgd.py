"""Attacks that follow the sign or direction of the gradient: FGSM, N-FGSM and PGD."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from robustjax.attacks import geometry, losses
from robustjax.attacks.engine.best import Best
from robustjax.attacks.eot import expected_gradient, expected_outcome
from robustjax.types import Array, Key, LogitsFn, LossFn

# Standard deviation of the start that TRADES published instead of a uniform one: x + 0.001 N(0, 1).
GAUSSIAN_START = 0.001


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
    r"""Fast gradient sign method (Goodfellow et al. 2015, arXiv 1412.6572): one step of length epsilon.

    .. math:: x' = \Pi(x + \epsilon \cdot \mathrm{steepest}(\nabla_x L))

    It is `pgd` with one step; see there for the arguments.

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

    Deliberately *not* projected back: the result may be (k + 1) epsilon away from the image, so this trains networks
    and judges none.

    Args:
        logits_fn, key, images, labels, epsilon, loss, bounds: as in `pgd`.
        noise: k, the half-width of the noise in units of epsilon.

    Returns:
        Images of the same shape, inside bounds.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.zeros(x.shape[0])], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> bool((n_fgsm(linear, jax.random.key(0), images, labels, epsilon=0.1) <= 0.6).all())
        True
    """
    radius = geometry.per_example(epsilon, images)
    noisy = images + noise * geometry.get("linf").random_start(key, images, epsilon)
    noisy = jnp.clip(noisy, *bounds)
    gradient = expected_gradient(logits_fn, key, noisy, labels, loss=loss, num_samples=0)
    return jnp.clip(noisy + radius * jnp.sign(gradient), *bounds)


def pgd(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    step_size: Array | float,
    num_steps: int,
    norm: str = "linf",
    random_start: bool | str = True,
    num_restarts: int = 1,
    loss: LossFn = losses.cross_entropy,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
    targeted: bool = False,
    keep_best: bool = False,
) -> Array:
    r"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083).

    .. math:: x_{t+1} = \Pi\bigl(x_t + \alpha \cdot \mathrm{steepest}(\nabla_x L(f(x_t), y))\bigr)

    where :math:`\Pi` projects into the ball of radius epsilon around the image and into the box. All steps run in one
    compiled loop, all restarts in one around it. Non-finite entries of a gradient count as 0, so that a
    network that yields them cannot stop the attack; with `num_steps=0` the (random) start is returned.

    Args:
        logits_fn: images -> outputs; with `eot_samples >= 1`, (images, key) -> outputs. Outputs are logits [B, K], or
            any pytree that `loss` accepts.
        key: a typed key.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works).
        labels: integers [B], or whatever `loss` takes.
        epsilon: radius of the ball, a number >= 0 or one per example [B].
        step_size: length of a step in the same norm, a number or one per example.
        num_steps: gradient steps of a restart; may be traced, which compiles once for all numbers.
        norm: "linf", "l2" or "l1".
        random_start: True starts uniformly in the ball, False at the image, "gaussian" at x + 0.001 N(0, 1) as TRADES.
        num_restarts: independent starts. Each example keeps the restart with the highest (misclassified share, loss).
            With one restart nothing is compared and no forward pass spent.
        loss: (outputs, labels) -> [B], climbed.
        bounds: box of valid pixels.
        eot_samples: n >= 1 averages every gradient and comparison over n fresh keys; 0 for deterministic networks.
        targeted: labels are targets, and the loss is descended.
        keep_best: return the best iterate instead of the last (the published figures use the last).

    Returns:
        Images of the same shape and dtype, inside ball and box.

    Raises:
        ValueError: for an unknown norm or start, negative counts, or epsilon of the wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> adversarial = pgd(linear, jax.random.key(0), images, labels, epsilon=0.1, step_size=0.05, num_steps=5)
        >>> adversarial.ravel()
        Array([0.4, 0.4], dtype=float32)
    """
    for name, value, least in (
        ("num_steps", num_steps, 0),
        ("num_restarts", num_restarts, 1),
        ("eot_samples", eot_samples, 0),
    ):
        if not isinstance(value, jax.core.Tracer) and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if random_start not in (True, False, "gaussian"):
        raise ValueError(f"random_start must be True, False or 'gaussian', got {random_start!r}")
    shape = geometry.get(norm)
    images = jnp.asarray(images)
    labels = jnp.asarray(labels)
    climbed = (lambda outputs, targets: -loss(outputs, targets)) if targeted else loss
    length = geometry.per_example(step_size, images)

    def outcome(key: Key, points: Array) -> tuple[Array, Array]:
        return expected_outcome(
            logits_fn, key, points, labels, loss=climbed, num_samples=eot_samples, targeted=targeted
        )

    def start(key: Key) -> Array:
        if not random_start:
            return images
        if random_start == "gaussian":
            delta = GAUSSIAN_START * jax.random.normal(key, images.shape, images.dtype)
        else:
            delta = shape.random_start(key, images, epsilon)
        return shape.project(images, images + delta, epsilon, bounds)

    def climb(key: Key) -> Array:
        def step(i: Array, points: Array) -> Array:
            gradient = expected_gradient(
                logits_fn, jax.random.fold_in(key, i), points, labels, loss=climbed, num_samples=eot_samples
            )
            moved = points + length * shape.steepest(gradient, points, bounds)
            return shape.project(images, moved, epsilon, bounds)

        def step_and_compare(i: Array, state: tuple[Array, Best]) -> tuple[Array, Best]:
            points = step(i, state[0])
            return points, state[1].or_better(points, *outcome(jax.random.fold_in(key, num_steps + i), points))

        key, key_start = jax.random.split(key)
        first = start(key_start)
        if not keep_best:
            return jax.lax.fori_loop(0, num_steps, step, first)
        return jax.lax.fori_loop(0, num_steps, step_and_compare, (first, Best.none(first)))[1].images

    if num_restarts == 1:
        return climb(key)

    def restart(i: Array, best: Best) -> Best:
        key_climb, key_outcome = jax.random.split(jax.random.fold_in(key, i))
        points = climb(key_climb)
        return best.or_better(points, *outcome(key_outcome, points))

    return jax.lax.fori_loop(0, num_restarts, restart, Best.none(images)).images
