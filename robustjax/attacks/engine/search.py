"""Attacks as loops over steps, which run as a whole inside ``jit`` or are interrupted between steps by a driver.

A :class:`Search` holds what is particular to an attack; :func:`solve` runs it from start to end. Every row of a batch
has a state of its own, including the count of its steps, so a driver may replace a row between steps by the next
example, and the batch stays full. :func:`likeliest_wrong` orders the classes that targeted attacks aim at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from robustjax.attacks.engine.best import Best, zeros
from robustjax.ops import is_explicit, rowwise
from robustjax.types import Array, Key, LogitsFn


class Problem(NamedTuple):
    """What does not change while a batch is attacked.

    Attributes:
        keys: one typed key per example [B].
        images: [B, ...].
        labels: integers [B].
        targets: integers [B], the wrong class to aim at; ignored by untargeted attacks.
        epsilon: float32 [B].
        restart: integers [B], how many runs at the same target there were before.
    """

    keys: Key
    images: Array
    labels: Array
    targets: Array
    epsilon: Array
    restart: Array


class Search(NamedTuple):
    """An attack, by functions of a module and options that compare by value: the same options compile once.

    Attributes:
        start: ``(options, problem) -> state``, without calling the network. A state is a NamedTuple of arrays [B, ...]
            with ``count``, the steps taken, and ``best``, a :class:`Best`; the attack succeeded where ``best.share`` is
            1.
        step: ``(options, logits_fn, key, problem, state) -> state``. Steps beyond the last change no ``best``.
        num_steps: calls of ``step`` that make the attack.
        options: a hashable value.
        stops_early: whether steps change nothing once an example is misclassified, so that a batch in which all are
            needs no more of them.
    """

    start: Callable[[Any, Problem], Any]
    step: Callable[[Any, LogitsFn, Key, Problem, Any], Any]
    num_steps: int
    options: Any
    stops_early: bool = False


def problem(
    key: Key, images: Array, labels: Array, targets: Array, epsilon: Array | float, restart: Array | int = 0
) -> Problem:
    """A problem from what attacks are given: key, epsilon and restart are one for all, or one for each example."""
    epsilon = jnp.asarray(epsilon).astype(images.dtype)
    return Problem(
        example_keys(key, images),
        images,
        labels,
        targets,
        zeros(images, images.dtype) + epsilon,
        zeros(images, jnp.int32) + jnp.asarray(restart).astype(jnp.int32),
    )


def example_keys(key: Key, images: Array) -> Key:
    """One key for each example: the given ones, or the given one folded with the place in the batch."""
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(images.shape[0], dtype=jnp.int32))
    return key


def network_key(key: Key) -> Key:
    """The one key for a network's own randomness, which is drawn for a batch as a whole."""
    return jax.random.fold_in(first_key(key), 0x6E6574)


def first_key(key: Key) -> Key:
    """The given key; the first one of a key for each example."""
    if key.ndim == 0:
        return key
    if is_explicit(key):  # JAX takes no row of what is sharded over explicit axes
        key = jax.sharding.reshard(key, NamedSharding(jax.typeof(key).sharding.mesh, PartitionSpec()))
    return key[0]


def advance(search: Search, logits_fn: LogitsFn, key: Key, problem: Problem, state: Any, num_steps: int | Array) -> Any:
    """The state after so many further steps."""

    def unfinished(carry: tuple[Array, Any]) -> Array:
        i, state = carry
        return (i < num_steps) & ~(search.stops_early & jnp.all(state.best.share >= 1.0))

    def step(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        i, state = carry
        return i + 1, search.step(search.options, logits_fn, jax.random.fold_in(key, i), problem, state)

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]


def solve(
    search: Search,
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    targets: Array,
    epsilon: Array | float,
    num_restarts: int,
    run_all: bool,
) -> Best:
    """The best of all runs: every target [R, B] after the other, each ``num_restarts`` times from its own start.

    Args:
        search: the attack.
        logits_fn, key, images, labels, epsilon: as in any attack; ``key`` may be one for each example.
        targets: integers [R, B], compiled as one loop.
        num_restarts: runs of each target.
        run_all: perform every restart and keep the best, as minimum-norm attacks do; otherwise stop once all examples
            are misclassified.
    """
    keys = example_keys(key, images)
    key_network = network_key(key)
    num_runs = targets.shape[0] * num_restarts

    def unfinished(carry: tuple[Array, Best]) -> Array:
        i, best = carry
        return (i < num_runs) & (run_all | ~jnp.all(best.share >= 1.0))

    def run(carry: tuple[Array, Best]) -> tuple[Array, Best]:
        i, best = carry
        posed = problem(run_keys(keys, i), images, labels, targets[i // num_restarts], epsilon, i % num_restarts)
        state = search.start(search.options, posed)
        state = advance(search, logits_fn, jax.random.fold_in(key_network, i), posed, state, search.num_steps)
        points, share, loss = state.best
        # A success is kept as it is, so that it does not depend on when the rest of the batch is misclassified.
        final = (best.share >= 1.0) & (not run_all)
        return i + 1, best.or_better(points, jnp.where(final, -1.0, share), loss)

    return jax.lax.while_loop(unfinished, run, (jnp.int32(0), Best.none(images)))[1]


def run_keys(keys: Key, run: Array) -> Key:
    """The keys of a run: of examples [B], for a run's number or one per example."""
    return rowwise(jax.random.fold_in, keys, jnp.broadcast_to(run, keys.shape))


@functools.partial(jax.jit, static_argnums=2)
def likeliest_wrong(logits: Array, labels: Array, count: int) -> Array:
    """The ``count`` wrong classes with the largest logits, [min(count, K - 1), B], the likeliest first.

    Classes that the network masks by a logit of -inf are not targets: where fewer classes are left than are asked for,
    the likeliest one is repeated.

    Example:
        >>> import jax.numpy as jnp
        >>> likeliest_wrong(jnp.array([[3.0, 1.0, 2.0, 0.0]]), jnp.array([0]), 2).ravel()
        Array([2, 1], dtype=int32)
    """
    is_label = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None, :] == labels[:, None]
    others = jnp.where(is_label | jnp.isnan(logits), -jnp.inf, logits.astype(jnp.float32))
    values, classes = jax.lax.top_k(others, min(count, logits.shape[-1] - 1))
    return jnp.where(values > -jnp.inf, classes, classes[:, :1]).T
