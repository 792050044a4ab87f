"""Projected gradient descent with any optax optimizer, such as momentum or Adam."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from robustjax.attacks import geometry, losses
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.search import example_keys, network_key
from robustjax.attacks.eot import expected_gradient_and_outcome
from robustjax.ops import in_dtypes_of, rowwise
from robustjax.types import Array, InputError, Key, LogitsFn, LossFn


def momentum(
    step_size: float, *, norm: str = "linf", decay: float = 1.0, bounds: geometry.Bounds = (0.0, 1.0)
) -> optax.GradientTransformation:
    r"""The optimizer of MI-FGSM (Dong et al. 2018, arXiv 1710.06081): steps of a fixed length along the summed
    gradient.

    .. math:: v_t = \mu v_{t-1} + g_t, \quad x_{t+1} = x_t - \alpha \cdot \mathrm{steepest}(v_t)

    Args:
        step_size: :math:`\alpha`, length of a step in the norm, at least 0.
        norm: "linf", "l2" or "l1".
        decay: :math:`\mu`, at least 0.
        bounds: box of valid pixels, which steps in l1 depend on; two numbers.

    Returns:
        An optax optimizer for :func:`optimized_pgd`.

    Raises:
        InputError: for an unknown norm, or a number or bounds out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = momentum(0.1)
        >>> points = jnp.array([[0.5, 0.5]])
        >>> optimizer.update(jnp.array([[3.0, -1.0]]), optimizer.init(points), points)[0]
        Array([[-0.1,  0.1]], dtype=float32)
    """
    direction = geometry.get(norm).steepest
    inputs.check_radius("step_size", step_size, None, allow_infinite=False)
    inputs.check_radius("decay", decay, None, allow_infinite=False)
    bounds = inputs.box(bounds, 1)

    def steepest(gradient: Any, points: Any) -> Any:  # to optax they are pytrees, here arrays
        return -direction(-gradient, points, bounds)

    return optax.chain(optax.trace(decay), optax.stateless(steepest), optax.scale(-step_size))


def optimized_pgd(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    norm: str = "linf",
    random_start: bool = True,
    loss: LossFn = losses.cross_entropy,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
) -> Array:
    r"""Projected gradient ascent whose steps an optimizer chooses.

    .. math:: x_{t+1} = \Pi\bigl(x_t - \mathrm{update}(-\nabla L / \overline{|\nabla L|})\bigr)

    Each example's gradient is divided by the mean of its magnitudes first, so that an optimizer's own constants do not
    stop it where gradients are small. ``optimizer=momentum(step_size)`` is MI-FGSM (see :func:`momentum`);
    ``optax.adam(step_size)`` the Adam variant.

    Args:
        logits_fn, key, images, labels, epsilon, norm, loss, bounds, eot_samples: as in :func:`pgd`; ``key`` may be one
            for each example [B].
        optimizer: an optax optimizer; it minimises minus the loss, and sees the points as parameters.
        num_steps: updates; there is one more evaluation.
        random_start: start uniformly in the ball rather than at the image.

    Returns:
        Each example's best point, by (share of draws misclassified, loss), inside ball and box, in the dtype given. An
        empty batch is returned as it is.

    Raises:
        InputError: for an unknown norm, negative counts, or arguments of the wrong shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> optimized_pgd(linear, jax.random.key(0), images, labels, epsilon=0.1, optimizer=optax.adam(0.05),
        ...               num_steps=10).ravel().round(3)
        Array([0.4, 0.4], dtype=float32)
    """
    inputs.at_least(0, num_steps=num_steps)
    inputs.are_flags(random_start=random_start)
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise InputError(f"optimizer must be one of optax, got {optimizer!r}; give for example optax.adam(0.05)")
    given = inputs.check(
        logits_fn, key, images, labels, norm=norm, bounds=bounds, radii={"epsilon": epsilon}, loss=loss,
        eot_samples=eot_samples, keys_per_example=True,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    images, labels, bounds = given.images, given.labels, given.bounds
    norm_ball = geometry.get(norm)
    keys, draws = example_keys(key, images), network_key(key)
    points = images
    if random_start:
        radius = jnp.zeros(images.shape[:1], images.dtype) + jnp.asarray(epsilon).astype(images.dtype)
        draw = lambda key, image, radius: norm_ball.random_start(key, image[None], radius)[0]  # noqa: E731
        points = norm_ball.project(images, images + rowwise(draw, keys, images, radius), epsilon, bounds)

    def step(i: Array, carry: tuple) -> tuple:
        points, state, best = carry
        gradient, share, value = expected_gradient_and_outcome(
            given.logits_fn, jax.random.fold_in(draws, i), points, labels, loss=given.loss, num_samples=eot_samples
        )
        best = best.or_better(points, share, value)
        magnitude = jnp.mean(jnp.abs(gradient), axis=tuple(range(1, images.ndim)), keepdims=True)
        descent = -gradient / jnp.where(magnitude > 0, magnitude, 1.0)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes dtypes
            updates, moved = optimizer.update(descent, state, points)
            updated, state = in_dtypes_of((points, state), (optax.apply_updates(points, updates), moved))
        return norm_ball.project(images, updated, epsilon, bounds), state, best

    start = (points, optimizer.init(points), Best.none(images))
    return given.returned(jax.lax.fori_loop(0, num_steps + 1, step, start)[2].images)
