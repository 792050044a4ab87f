"""Jitted attacks and gradient probes; what varies between calls is a traced argument.

A :class:`.goals.Goal` says which network's gradient an attack follows and on which loss, as traced numbers: a sweep
over the weight of auxiliary heads compiles APGD once, a grid of radii, step sizes, steps and draws compiles PGD once.
"""

from __future__ import annotations

import functools
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import attacks
from robustjax.attacks import geometry, losses
from robustjax.attacks.engine import verify
from robustjax.attacks.engine.best import Best
from robustjax.evaluation.verdict.goals import Goal, Networks, goal_loss, view_outputs
from robustjax.types import Array, ArrayT, Key

# The most steps of a recorded PGD.
MAX_STEPS = 160


class RecordedPGD(NamedTuple, Generic[ArrayT]):
    """The result of a PGD whose iterates are recorded. T + 1 columns; after the last step they repeat.

    Attributes:
        images: the best iterate by (share of draws misclassified, loss).
        gradient: of the loss where it starts, averaged over draws, as the network has it: perhaps not finite.
        misclassified: bool [B, T + 1], whether an iterate so far was misclassified, by majority of its draws.
        loss, margin: float32 [B, T + 1], of each iterate.
    """

    images: ArrayT
    gradient: ArrayT
    misclassified: ArrayT
    loss: ArrayT
    margin: ArrayT


def example_keys(key: Key, rows: Array) -> Key:
    """A key for each example by its index among all: an attack's draws do not depend on batches."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


@functools.partial(jax.jit, static_argnames=("num_draws", "norm", "bounds"))
def classify(
    network: Any, key: Key, images: Array, points: Array, labels: Array, epsilon: Array,
    *, num_draws: int, norm: str, bounds: geometry.Bounds,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """By :func:`robustjax.attacks.engine.verify.verify`: valid [B], share of draws misclassified [B], mean logits."""
    verified = verify.verify(
        network, key, images, points, labels, epsilon=epsilon, norm=norm, bounds=bounds, num_draws=num_draws
    )
    return verified.valid, verified.share, verified.logits


@functools.partial(jax.jit, static_argnames=("num_steps", "eot_samples", "norm", "bounds"))
def apgd(
    networks: Networks, key: Key, rows: Array, images: Array, labels: Array, goal: Goal, epsilon: Array,
    *, num_steps: int, eot_samples: int, norm: str, bounds: geometry.Bounds,
) -> Array:  # fmt: skip
    """:func:`robustjax.attacks.apgd` on a goal."""
    network = jax.tree_util.Partial(view_outputs, networks, goal)
    return attacks.apgd(
        network, example_keys(key, rows), images, labels, epsilon=epsilon, norm=norm, num_steps=num_steps,
        loss=goal_loss, bounds=bounds, eot_samples=eot_samples,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("num_queries", "eot_samples", "norm", "bounds"))
def square(
    network: Any, key: Key, rows: Array, images: Array, labels: Array, epsilon: Array,
    *, num_queries: int, eot_samples: int, norm: str, bounds: geometry.Bounds,
) -> Array:  # fmt: skip
    """:func:`robustjax.attacks.square`; of a stochastic network on the mean margin of ``eot_samples`` draws."""
    return attacks.square(
        network, example_keys(key, rows), images, labels, epsilon=epsilon, norm=norm, num_queries=num_queries,
        bounds=bounds, eot_samples=eot_samples,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("num_queries", "norm", "bounds"))
def hopskipjump(
    network: Any, key: Key, rows: Array, images: Array, start: Array, labels: Array, epsilon: Array,
    *, num_queries: int, norm: str, bounds: geometry.Bounds,
) -> Array:  # fmt: skip
    """:func:`robustjax.attacks.hopskipjump`, of a deterministic network."""
    return attacks.hopskipjump(
        network, example_keys(key, rows), images, labels, epsilon=epsilon, norm=norm, num_queries=num_queries,
        start=start, bounds=bounds,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("stochastic", "norm", "bounds"))
def recorded_pgd(
    networks: Networks, key: Key, images: Array, labels: Array, goal: Goal, epsilon: Array, step_size: Array,
    num_steps: Array, num_draws: Array, frozen: Array, *, stochastic: bool, norm: str, bounds: geometry.Bounds,
) -> RecordedPGD[Array]:  # fmt: skip
    """PGD that starts at the image, recorded, in full float32; everything but the norm is traced.

    Args:
        num_steps: at most ``MAX_STEPS``.
        num_draws: draws in each gradient, of a stochastic network.
        frozen: use the same key throughout, which makes a stochastic network deterministic.
    """
    ball = geometry.get(norm)

    def evaluate(points: Array, *key: Key) -> tuple[Array, ...]:
        def total(points: Array) -> tuple[Array, tuple[Array, ...]]:
            outputs = view_outputs(networks, goal, points, *key)
            loss, margin = goal_loss(outputs, labels), losses.margin(outputs.logits, labels)
            wrong = ~verify.is_correct(outputs.logits, labels)
            return jnp.sum(loss), (wrong.astype(jnp.float32), loss, margin)

        with jax.default_matmul_precision("float32"):
            gradient, rest = jax.grad(total, has_aux=True)(points)
        return gradient, jnp.where(jnp.isfinite(gradient), gradient, 0.0), *rest

    def expected(points: Array, step: Array) -> tuple[Array, ...]:
        if not stochastic:
            return evaluate(points)

        def draw(i: Array) -> tuple[Array, ...]:
            fresh = jax.random.fold_in(jax.random.fold_in(key, step), i)
            return evaluate(points, jax.random.wrap_key_data(
                jnp.where(frozen, jax.random.key_data(key), jax.random.key_data(fresh)), impl=jax.random.key_impl(key)
            ))  # fmt: skip

        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw, jnp.int32(0)))
        sums = jax.lax.fori_loop(0, num_draws, lambda i, sums: jax.tree.map(jnp.add, sums, draw(i)), zeros)
        return jax.tree.map(lambda total: total / num_draws.astype(jnp.float32), sums)

    def step(i: Array, state: tuple) -> tuple:
        points, best, first, misclassified, trace_loss, trace_margin = state
        raw, gradient, share, loss, margin = expected(points, i)
        best = best.or_better(points, share, loss)
        moved = ball.project(images, points + step_size * ball.steepest(gradient, points, bounds), epsilon, bounds)
        later = (jnp.arange(MAX_STEPS + 1, dtype=jnp.int32) >= i)[:, None]
        return (
            moved,
            best,
            jnp.where(i == 0, raw, first),
            jnp.where(later, verify.is_misclassified(best.share)[None], misclassified),
            jnp.where(later, loss[None], trace_loss),
            jnp.where(later, margin[None], trace_margin),
        )

    blank = jnp.zeros((MAX_STEPS + 1, images.shape[0]), jnp.float32)
    state = (images, Best.none(images), jnp.zeros_like(images), blank > 0, blank, blank)
    _, best, first, misclassified, loss, margin = jax.lax.fori_loop(0, num_steps + 1, step, state)
    return RecordedPGD(best.images, first, misclassified.T, loss.T, margin.T)


class RandomPoints(NamedTuple):
    r"""What random points of each ball say: three images [B, H, W, C], and a number [B].

    Attributes:
        strongest: the point that is misclassified, by the largest margin.
        highest: the point where the weighted sum of the logits is largest.
        suggested: the point of the ball in the direction that all of them together suggest for that sum.
        change: how much the margin changes at them, relative to the image's own,
            :math:`\frac{1}{n} \sum_i \min\bigl(1, |m(x + u_i) - m(x)| / |m(x)|\bigr)`.
    """

    strongest: Array
    highest: Array
    suggested: Array
    change: Array


@functools.partial(jax.jit, static_argnames=("stochastic", "norm", "bounds"))
def random_search(
    network: Any, key: Key, images: Array, labels: Array, margins: Array, weights: Array, epsilon: Array, most: Array,
    num_points: Array, *, stochastic: bool, norm: str, bounds: geometry.Bounds,
) -> RandomPoints:  # fmt: skip
    r"""Random points of balls, in turn uniform in the ball and on its surface (in linf: at its corners).

    With values :math:`v_i = w \cdot z(x + u_i)` the suggested direction is the steepest for
    :math:`\sum_i (v_i - \bar v)\, u_i`, which takes no gradient.

    Args:
        margins: of the images, float32 [B].
        weights: w, float32 [B, K].
        most: change of a pixel; where it is finite, all points are from inside of the ball.
        num_points: of each ball, traced.
    """
    ball = geometry.get(norm)

    def draw(i: Array, state: tuple) -> tuple:
        strongest, highest, total, deltas, products, changes = state
        key_delta, key_network = jax.random.split(jax.random.fold_in(key, i))
        inside = ball.random_start(key_delta, images, epsilon)
        if norm == "linf":
            outside = epsilon * jnp.sign(inside)
        else:
            outside = inside * geometry.per_example(epsilon / jnp.maximum(ball.norm(inside), 1e-30), images)
        noise = jnp.where((i % 2 == 0) | jnp.isfinite(most), inside, outside)
        points = ball.project(images, images + jnp.clip(noise, -most, most), epsilon, bounds)
        logits = network(points, key_network) if stochastic else network(points)
        wrong = (~verify.is_correct(logits, labels)).astype(jnp.float32)
        margin = losses.margin(logits, labels)
        moved = jnp.abs(margin - margins)
        relative = jnp.where(moved > 0, moved / jnp.maximum(jnp.abs(margins), 1e-30), 0.0)
        value = jnp.nan_to_num(jnp.sum(weights * logits, axis=1))
        return (
            strongest.or_better(points, wrong, margin),
            highest.or_better(points, jnp.zeros_like(value), value),
            total + value,
            deltas + (points - images),
            products + geometry.per_example(value, images) * (points - images),
            changes + jnp.where(jnp.isfinite(relative), jnp.minimum(relative, 1.0), 1.0),
        )

    none, zeros, of_each = Best.none(images), jnp.zeros_like(images), jnp.zeros(len(images), jnp.float32)
    state = (none, none, of_each, zeros, zeros, of_each)
    strongest, highest, total, deltas, products, changes = jax.lax.fori_loop(0, num_points, draw, state)
    count = num_points.astype(jnp.float32)
    direction = products - geometry.per_example(total / count, images) * deltas
    suggested = ball.project(images, images + epsilon * ball.steepest(direction, images, bounds), epsilon, bounds)
    return RandomPoints(strongest.images, highest.images, suggested, changes / count)


@jax.jit
def compute_logits(network: Any, images: Array, *key: Key) -> Array:
    """Logits float32 [B, K], computed in full float32."""
    with jax.default_matmul_precision("float32"):
        return network(images, *key)
