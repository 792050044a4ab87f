"""Projected gradient descent: steps along the sign or direction of the gradient."""

from __future__ import annotations

import math
import numbers

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import geometry, losses
from robustjax.attacks.engine import inputs
from robustjax.attacks.engine.best import Best
from robustjax.attacks.engine.inputs import Inputs
from robustjax.attacks.eot import expected_gradient, expected_outcome
from robustjax.types import Array, InputError, Key, LogitsFn, LossFn

# Share of the steps in which a widened ball comes down to its radius.
SHRINKING = 0.8


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
    widened: float = 1.0,
) -> Array:
    r"""Projected gradient descent (Madry et al. 2018, arXiv 1706.06083).

    .. math:: x_{t+1} = \Pi\bigl(x_t + \alpha \cdot \mathrm{steepest}(\nabla_x L(f(x_t), y))\bigr)

    where ``steepest`` is the direction of unit norm along which a linear loss grows fastest (in linf the sign of the
    gradient; see :class:`geometry.Geometry`), and :math:`\Pi` projects into the ball of radius epsilon around the image
    and into the box. All steps run in one compiled loop, all restarts in one around it. Non-finite entries of a
    gradient count as 0, so that a network that yields them cannot stop the attack; with ``num_steps=0`` the (random)
    start is returned.

    Args:
        logits_fn: images -> outputs; with ``eot_samples >= 1``, (images, key) -> outputs. Outputs are logits [B, K],
            K >= 2, or carry them as ``.logits``, or are any pytree that a ``loss`` of your own accepts.
        key: a typed key, as of ``jax.random.key(seed)``.
        images: float [B, H, W, C] inside bounds (any rank with a leading batch works). The network is called in the
            dtype given; the attack computes in float32.
        labels: integers [B]; with ``losses.kl`` also probabilities [B, K]; with a loss of your own whatever it takes.
        epsilon: radius of the ball, a number >= 0 or one per example [B].
        step_size: length of a step in the same norm, a number or one per example.
        num_steps: gradient steps of a restart; may be traced, which compiles once for all numbers.
        norm: "linf", "l2" or "l1".
        random_start: True starts uniformly in the ball, False at the image, "gaussian" at x + 0.001 N(0, 1) as TRADES.
        num_restarts: independent starts. Each example keeps the restart with the highest (misclassified share, loss).
            With one restart nothing is compared and no forward pass spent.
        loss: (outputs, labels) -> [B], to be maximised.
        bounds: box of valid pixels: two numbers, or two arrays of one number for each channel.
        eot_samples: n >= 1 averages every gradient and comparison over n fresh keys; 0 for deterministic networks.
        targeted: labels are targets, and the loss is minimised.
        keep_best: return the best iterate instead of the last (the published figures use the last).
        widened: w >= 1 starts in the ball of w epsilon, which shrinks to epsilon by the same factor a step, in the
            first four fifths of the steps; steps shrink with it. For losses that are flat in most of the ball, where an
            adversarial point further away leads to one inside. ``benchmarks/verified.py`` has a network whose only
            adversarial points no other attack here finds, with w = 6 and a hundred restarts.

    Returns:
        Images of the same shape and dtype, inside ball and box. An empty batch is returned as it is.

    Raises:
        InputError: for an unknown norm or start, negative counts, or arguments of the wrong shape, dtype or value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.array([0])
        >>> adversarial = pgd(linear, jax.random.key(0), images, labels, epsilon=0.1, step_size=0.05, num_steps=5)
        >>> adversarial.ravel()
        Array([0.4, 0.4], dtype=float32)
    """
    inputs.at_least(0, num_steps=num_steps)
    inputs.at_least(1, num_restarts=num_restarts)
    inputs.are_flags(targeted=targeted, keep_best=keep_best)
    check_random_start(random_start)
    if not (isinstance(widened, numbers.Real) and 1.0 <= widened < math.inf):
        raise InputError(f"widened must be a number from 1, got {widened!r}; leave it out for the ball itself")
    given = inputs.check(
        logits_fn, key, images, labels, norm=norm, bounds=bounds, radii={"epsilon": epsilon, "step_size": step_size},
        loss=loss, eot_samples=eot_samples,
    )  # fmt: skip
    if given.is_empty:
        return given.given
    points = ascend(
        given, key, epsilon=epsilon, step_size=step_size, num_steps=num_steps, norm=norm, random_start=random_start,
        num_restarts=num_restarts, eot_samples=eot_samples, targeted=targeted, keep_best=keep_best, widened=widened,
    )  # fmt: skip
    return given.returned(points)


def ascend(
    given: Inputs,
    key: Key,
    *,
    epsilon: Array | float,
    step_size: Array | float,
    num_steps: int,
    norm: str,
    random_start: bool | str,
    num_restarts: int = 1,
    eot_samples: int = 0,
    targeted: bool = False,
    keep_best: bool = False,
    widened: float = 1.0,
) -> Array:
    """:func:`pgd` on checked inputs; returns float32 points."""
    logits_fn, images, labels, bounds = given.logits_fn, given.images, given.labels, given.bounds
    norm_ball = geometry.get(norm)
    loss = (lambda outputs, targets: -given.loss(outputs, targets)) if targeted else given.loss
    epsilon, step_size = jnp.asarray(epsilon, images.dtype), jnp.asarray(step_size, images.dtype)

    def factor(i: Array) -> Array | float:
        """The radius after a step, in units of epsilon."""
        if widened == 1.0:
            return 1.0
        done = (i + 1).astype(images.dtype) / (SHRINKING * jnp.asarray(num_steps, images.dtype))
        return widened ** jnp.maximum(1.0 - done, 0.0)

    def in_ball(points: Array) -> Array:
        return points if widened == 1.0 else norm_ball.project(images, points, epsilon, bounds)

    def outcome(key: Key, points: Array) -> tuple[Array, Array]:
        return expected_outcome(logits_fn, key, points, labels, loss=loss, num_samples=eot_samples, targeted=targeted)

    def one_restart(key: Key) -> Array:
        def step(i: Array, points: Array) -> Array:
            gradient = expected_gradient(
                logits_fn, jax.random.fold_in(key, i), points, labels, loss=loss, num_samples=eot_samples
            )
            length = geometry.per_example(factor(i) * step_size, images)
            moved = points + length * norm_ball.steepest(gradient, points, bounds)
            return norm_ball.project(images, moved, factor(i) * epsilon, bounds)

        def step_and_compare(i: Array, state: tuple[Array, Best]) -> tuple[Array, Best]:
            points = step(i, state[0])
            inside = in_ball(points)
            return points, state[1].or_better(inside, *outcome(jax.random.fold_in(key, num_steps + i), inside))

        key, key_start = jax.random.split(key)
        first = geometry.start(norm, key_start, images, widened * epsilon, bounds, random_start=random_start)
        if not keep_best:
            return in_ball(jax.lax.fori_loop(0, num_steps, step, first))
        return jax.lax.fori_loop(0, num_steps, step_and_compare, (first, Best.none(first)))[1].images

    if num_restarts == 1:
        return one_restart(key)

    def restart(i: Array, best: Best) -> Best:
        key_points, key_outcome = jax.random.split(jax.random.fold_in(key, i))
        points = one_restart(key_points)
        return best.or_better(points, *outcome(key_outcome, points))

    return jax.lax.fori_loop(0, num_restarts, restart, Best.none(images)).images


def check_random_start(random_start: bool | str) -> None:
    """Refuses an unknown start."""
    if not isinstance(random_start, bool | np.bool_ | str | int) or random_start not in (True, False, "gaussian"):
        wanted = "True, False or 'gaussian'"
        raise InputError(f"random_start must be {wanted}, got {random_start!r}; choose one of these")
