"""The compiled questions that a verdict asks of a network, each one program for all that varies between two askings.

A `Goal` says which function is climbed and by which loss, as traced numbers: the whole sweep of an attacker's weights
runs in one compiled APGD, the grids of epsilon, step sizes, steps and draws in one compiled PGD.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import attacks
from robustjax.attacks import geometry, losses
from robustjax.attacks.engine import verify
from robustjax.attacks.engine.best import Best
from robustjax.types import Array, InputError, Key

LOSSES = ("ce", "margin", "dlr", "targeted")
# Steps that a recorded ascent has room for.
MAX_STEPS = 160
# Random directions along which derivatives are compared with differences.
NUM_DIRECTIONS = 16


class Networks(NamedTuple):
    """What may be climbed, each images -> logits [B, K], or (images, key) -> logits: `jax.tree_util.Partial` or None.

    Attributes:
        direct: the network that is judged.
        surrogate: its outputs with a useful gradient.
        auxiliary: the heads, images -> [S, B, K]; climbed jointly with the surrogate, or the network without one.
        undefended: the twin with the defense switched off.
        trained: another network, to transfer from.
    """

    direct: Any
    surrogate: Any = None
    auxiliary: Any = None
    undefended: Any = None
    trained: Any = None

    def views(self) -> tuple[str, ...]:
        """The names of what can be climbed, in the order of `Goal.view`; "auxiliary" is the joint one."""
        return tuple(name for name, network in self._asdict().items() if network is not None)


class Goal(NamedTuple):
    """What an attack climbs: `own` times the loss of the logits plus `heads` times the mean loss of the heads.

    Attributes:
        view: int32, index into `Networks.views()`.
        loss: int32, index into `LOSSES`.
        own, heads: float32.
        targets: integers [B], the wrong class of the targeted loss.
    """

    view: Array
    loss: Array
    own: Array
    heads: Array
    targets: Array


class Answer(NamedTuple):
    """Logits [B, K] and heads [S, B, K] of a view, both float32, with the goal they are for."""

    logits: Array
    heads: Array
    goal: Goal


class Ascent(NamedTuple):
    """What an ascent came to.

    Attributes:
        images: the best iterate by (misclassified share, loss).
        broken: bool [B, T + 1], whether it was misclassified by then in most draws.
        loss, margin: float32 [B, T + 1], of each iterate. All three repeat themselves after the last step.
    """

    images: Array
    broken: Array
    loss: Array
    margin: Array


def answer(networks: Networks, goal: Goal, images: Array, *key: Key) -> Answer:
    """The chosen view's logits and heads; heads are zeros in every view but the joint one."""
    shape = (0, 0, 0) if networks.auxiliary is None else jax.eval_shape(networks.auxiliary, images, *key).shape

    def alone(network: Any) -> Callable[[Array], tuple[Array, Array]]:
        return lambda points: (float_logits(network(points, *key)), jnp.zeros(shape, jnp.float32))

    def joint(points: Array) -> tuple[Array, Array]:
        own = networks.direct if networks.surrogate is None else networks.surrogate
        return float_logits(own(points, *key)), networks.auxiliary(points, *key).astype(jnp.float32)

    branches = [joint if name == "auxiliary" else alone(getattr(networks, name)) for name in networks.views()]
    logits, heads = branches[0](images) if len(branches) == 1 else jax.lax.switch(goal.view, branches, images)
    return Answer(logits, heads, goal)


def climbed(outputs: Answer, labels: Array) -> Array:
    """The loss of a goal, [B]. Where there are too few classes for a ratio the margin takes its place."""
    logits, heads, goal = outputs
    num_heads = heads.shape[0]
    every = jnp.concatenate([logits, *heads]) if num_heads else logits
    repeated = [jnp.tile(classes, 1 + num_heads) for classes in (labels, goal.targets)]
    dlr = losses.dlr if logits.shape[1] >= 3 else losses.margin
    targeted = losses.targeted_dlr if logits.shape[1] >= 4 else losses.targeted_margin
    branches = [
        lambda z, y, t: losses.cross_entropy(z, y),
        lambda z, y, t: losses.margin(z, y),
        lambda z, y, t: dlr(z, y),
        targeted,
    ]
    values = jax.lax.switch(goal.loss, branches, every, *repeated).reshape(1 + num_heads, -1)
    total = goal.own * values[0]
    return total + goal.heads * jnp.mean(values[1:], axis=0) if num_heads else total


def example_keys(key: Key, rows: Array) -> Key:
    """A key for each example by its place among all, so that draws do not depend on batches."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


@functools.partial(jax.jit, static_argnames=("num_draws", "norm", "bounds"))
def classify(
    network: Any, key: Key, images: Array, points: Array, labels: Array, epsilon: Array,
    *, num_draws: int, norm: str, bounds: geometry.Bounds,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The judgement apart from any attack, in full float32: valid [B], share of draws misclassified [B], mean logits.

    `num_draws = 0` is a deterministic network.
    """

    def draw(key: tuple) -> tuple[Array, Array]:
        logits = float_logits(network(points, *key))
        return (~verify.is_correct(logits, labels)).astype(jnp.float32), logits

    valid = verify.is_valid(images, points, epsilon=epsilon, norm=norm, bounds=bounds)
    with jax.default_matmul_precision("float32"):
        if num_draws == 0:
            return valid, *draw(())
        wrong, logits = jax.lax.map(lambda key: draw((key,)), jax.random.split(key, num_draws))
    return valid, jnp.mean(wrong, axis=0), jnp.mean(logits, axis=0)


@functools.partial(jax.jit, static_argnames=("num_steps", "eot_samples", "norm", "bounds"))
def apgd(
    networks: Networks, key: Key, rows: Array, images: Array, labels: Array, goal: Goal, epsilon: Array,
    *, num_steps: int, eot_samples: int, norm: str, bounds: geometry.Bounds,
) -> Array:  # fmt: skip
    """`attacks.apgd` towards a goal."""
    network = jax.tree_util.Partial(answer, networks, goal)
    return attacks.apgd(
        network, example_keys(key, rows), images, labels, epsilon=epsilon, norm=norm, num_steps=num_steps,
        loss=climbed, bounds=bounds, eot_samples=eot_samples,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("num_queries", "eot_samples", "norm", "bounds"))
def square(
    network: Any, key: Key, rows: Array, images: Array, labels: Array, epsilon: Array,
    *, num_queries: int, eot_samples: int, norm: str, bounds: geometry.Bounds,
) -> Array:  # fmt: skip
    """`attacks.square`, on the averaged margin where the network is stochastic."""
    return attacks.square(
        network, example_keys(key, rows), images, labels, epsilon=epsilon, norm=norm, num_queries=num_queries,
        bounds=bounds, eot_samples=eot_samples,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=("stochastic", "norm", "bounds"))
def ascend(
    networks: Networks, key: Key, images: Array, labels: Array, goal: Goal, epsilon: Array, step_size: Array,
    num_steps: Array, num_draws: Array, frozen: Array, *, stochastic: bool, norm: str, bounds: geometry.Bounds,
) -> Ascent:  # fmt: skip
    """PGD from the image itself, recorded, in full float32; everything but the norm is traced.

    Args:
        num_steps: at most `MAX_STEPS`.
        num_draws: fresh keys that each gradient averages over, of a stochastic network.
        frozen: the same key throughout, so that a stochastic network is a deterministic one.
    """
    shape = geometry.get(norm)

    def evaluate(points: Array, *key: Key) -> tuple[Array, ...]:
        def total(points: Array) -> tuple[Array, tuple[Array, ...]]:
            outputs = answer(networks, goal, points, *key)
            loss, margin = climbed(outputs, labels), losses.margin(outputs.logits, labels)
            wrong = ~verify.is_correct(outputs.logits, labels)
            return jnp.sum(loss), (wrong.astype(jnp.float32), loss, margin)

        with jax.default_matmul_precision("float32"):
            gradient, rest = jax.grad(total, has_aux=True)(points)
        return jnp.where(jnp.isfinite(gradient), gradient, 0.0), *rest

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
        points, best, broken, trace_loss, trace_margin = state
        gradient, share, loss, margin = expected(points, i)
        best = best.or_better(points, share, loss)
        moved = shape.project(images, points + step_size * shape.steepest(gradient, points, bounds), epsilon, bounds)
        later = (jnp.arange(MAX_STEPS + 1) >= i)[:, None]
        return (
            moved,
            best,
            jnp.where(later, (best.share >= 0.5)[None], broken),
            jnp.where(later, loss[None], trace_loss),
            jnp.where(later, margin[None], trace_margin),
        )

    blank = jnp.zeros((MAX_STEPS + 1, images.shape[0]), jnp.float32)
    state = (images, Best.none(images), blank > 0, blank, blank)
    _, best, broken, loss, margin = jax.lax.fori_loop(0, num_steps + 1, step, state)
    return Ascent(best.images, broken.T, loss.T, margin.T)


@jax.jit
def gradients(networks: Networks, images: Array, labels: Array, goal: Goal, *key: Key) -> tuple[Array, Array]:
    """Where the gradient of a goal is exactly zero, and where it is not finite, each bool [B]."""
    total = lambda points: jnp.sum(climbed(answer(networks, goal, points, *key), labels))  # noqa: E731
    with jax.default_matmul_precision("float32"):
        gradient = jax.grad(total)(images)
    axes = tuple(range(1, images.ndim))
    return jnp.all(gradient == 0, axis=axes), ~jnp.all(jnp.isfinite(gradient), axis=axes)


@functools.partial(jax.jit, static_argnames=("norm",))
def directional_agreement(
    networks: Networks, key: Key, images: Array, labels: Array, goal: Goal, length: Array, *network_key: Key, norm: str
) -> Array:
    r"""Cosine [B], over random directions d, of the derivatives with central differences of the same length.

    .. math:: \nabla L(x) \cdot d \quad\text{against}\quad \frac{L(x + h d) - L(x - h d)}{2 h}

    1 where both vanish everywhere, and 0 where one of them does, or is not finite.
    """
    shape = geometry.get(norm)
    value = lambda points: climbed(answer(networks, goal, points, *network_key), labels)  # noqa: E731

    def along(key: Key) -> tuple[Array, Array]:
        delta = shape.random_start(key, images, length)
        delta = delta * geometry.per_example(length / jnp.maximum(shape.norm(delta), 1e-30), images)
        derivative = jax.jvp(value, (images,), (delta,))[1]
        ahead, behind = jax.lax.map(value, jnp.stack([images + delta, images - delta]))
        return derivative, 0.5 * (ahead - behind)

    with jax.default_matmul_precision("float32"):  # in less, differences drown in rounding
        derivatives, differences = jax.lax.map(along, jax.random.split(key, NUM_DIRECTIONS))
    product = jnp.sum(derivatives * differences, axis=0)
    lengths = [jnp.sqrt(jnp.sum(values**2, axis=0)) for values in (derivatives, differences)]
    cosine = product / (lengths[0] * lengths[1])
    cosine = jnp.where(jnp.isfinite(cosine), cosine, 0.0)
    return jnp.where((lengths[0] == 0) & (lengths[1] == 0), 1.0, cosine)


@functools.partial(jax.jit, static_argnames=("stochastic", "norm", "bounds"))
def random_search(
    network: Any, key: Key, images: Array, labels: Array, epsilon: Array, num_draws: Array,
    *, stochastic: bool, norm: str, bounds: geometry.Bounds,
) -> Array:  # fmt: skip
    """The worst of random points, in turn uniform in the ball and on its surface (in linf: at its corners)."""
    shape = geometry.get(norm)

    def draw(i: Array, best: Best) -> Best:
        key_delta, key_network = jax.random.split(jax.random.fold_in(key, i))
        inside = shape.random_start(key_delta, images, epsilon)
        if norm == "linf":
            outside = epsilon * jnp.sign(inside)
        else:
            outside = inside * geometry.per_example(epsilon / jnp.maximum(shape.norm(inside), 1e-30), images)
        points = shape.project(images, images + jnp.where(i % 2 == 0, inside, outside), epsilon, bounds)
        logits = float_logits(network(points, key_network) if stochastic else network(points))
        wrong = ~verify.is_correct(logits, labels)
        return best.or_better(points, wrong.astype(jnp.float32), losses.margin(logits, labels))

    return jax.lax.fori_loop(0, num_draws, draw, Best.none(images)).images


def partial(network: Any) -> Any:
    """A function as an argument of what is compiled; None, and what is one already, stay as they are."""
    if network is None or isinstance(network, jax.tree_util.Partial):
        return network
    # A callable object may hold arrays and have no hash, by which a compiled program would know it.
    return jax.tree_util.Partial(network if inspect.isfunction(network) else lambda *arguments: network(*arguments))


def float_logits(outputs: Any) -> Array:
    """Logits of an answer, float32 [B, K].

    Raises:
        InputError: they are not logits of at least two classes.
    """
    logits = getattr(outputs, "logits", outputs)
    if not hasattr(logits, "ndim") or logits.ndim != 2 or logits.shape[1] < 2:
        given = f"shape {list(logits.shape)}" if hasattr(logits, "shape") else type(logits).__name__
        raise InputError(f"logits_fn: expected logits [B, K] with K >= 2, got {given}")
    return logits.astype(jnp.float32)
