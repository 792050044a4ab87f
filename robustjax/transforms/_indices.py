"""Indices that move: of the first, the largest or the sorted entries, among sorted numbers, and into tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from robustjax.transforms._soft import LARGEST, Choice, Real, Soft, as_float, over, spread_over_slices, value_of
from robustjax.types import Array


def either(boolean: Soft, cases: Sequence[Any], value: Array) -> Choice:
    """An integer that a boolean selects: what it is if that is False, and if it is True."""
    share = jnp.broadcast_to(boolean.share, value.shape)[None]
    cases = [case if isinstance(case, Choice) else value_of(case) for case in cases]
    parts = [
        (weight * case.weights, case.options) if isinstance(case, Choice) else (weight, jnp.asarray(case)[None])
        for weight, case in zip((1.0 - share, share), cases, strict=True)
    ]
    weights, options = (jnp.concatenate(some) for some in zip(*parts, strict=True))
    return Choice(value, weights, options)


def by_option(choice: Choice, count: int) -> Array:
    """The probability of each of so many values, 0 to ``count - 1``: [count, ...]."""
    values = jnp.arange(count, dtype=choice.options.dtype).reshape((count,) + (1,) * choice.options.ndim)
    return jnp.sum(jnp.where(choice.options[None] == values, choice.weights[None], 0.0), axis=1)


def first(booleans: Soft, axis: int, value: Array) -> Choice:
    """The index of the first True, 0 where there is none: the chance that it is True and all before it are not."""
    share = jnp.moveaxis(booleans.share, axis, 0)
    still = jnp.cumprod(1.0 - share, axis=0)
    weights = jnp.concatenate([share[:1] + still[-1:], share[1:] * still[:-1]])
    options = jnp.arange(len(share), dtype=value.dtype).reshape((len(share),) + (1,) * value.ndim)
    return Choice(value, weights, jnp.broadcast_to(options, weights.shape))


def searched(table: Any, values: Any, result: Array, temperature: Any) -> Real | None:
    """Places among sorted numbers as how many of them are below, each by a sigmoid of its margin.

    Args:
        table: float [n], sorted.
        values: float, any shape: those that are looked for.
        result: int, as values: their places.
        temperature: in units of the margins' mean magnitude.
    """
    table, values = jnp.asarray(value_of(table), jnp.float32), jnp.asarray(value_of(values), jnp.float32)
    if table.ndim != 1 or values.shape != result.shape or table.size * values.size > LARGEST:
        return None
    margin = values[..., None] - table.reshape((1,) * values.ndim + (-1,))
    margin = jnp.where(jnp.isfinite(margin), margin, 0.0)
    width = temperature * jnp.mean(jnp.abs(jax.lax.stop_gradient(margin)))
    return Real(result, jnp.sum(jax.nn.sigmoid(over(margin, width)), axis=-1))


def largest(scores: Array, axis: int, value: Array, temperature: Any, *, lowest: bool = False) -> Choice | None:
    """The index of the largest entry as a softmax of the same scores."""
    count = scores.shape[axis]
    if count * value.size > LARGEST:
        return None
    scores = jnp.moveaxis(-scores if lowest else scores, axis, 0).astype(jnp.float32)
    below = scores - jnp.max(scores, axis=0, keepdims=True)
    finite = jnp.where(jnp.isfinite(below), below, 0.0)
    width = temperature * jnp.mean(jnp.abs(jax.lax.stop_gradient(finite)), axis=0, keepdims=True)
    weights = jax.nn.softmax(jnp.where(jnp.isfinite(below), over(below, width), -1e9), axis=0)
    options = jnp.arange(count, dtype=value.dtype).reshape((count,) + (1,) * value.ndim)
    return Choice(value, weights.reshape(count, *value.shape), jnp.broadcast_to(options, (count, *value.shape)))


def ranked(
    scores: Array, ranks: Array, value: Array, temperature: Any, axis: int, payload: Array | None = None
) -> Choice | None:
    """The indices of sorted entries: of each place the softmax of how near each score is to the one that is there.

    Args:
        scores: the entries.
        ranks: some of them in order, along the same axis.
        value: int, as ranks: their indices, or what lies at them of ``payload``.
        temperature: in units of the scores' spread.
        axis: of the order.
        payload: int, as scores.
    """
    count = scores.shape[axis]
    if count * value.size > LARGEST:
        return None
    scores, ranks = (jnp.moveaxis(each.astype(jnp.float32), axis, 0) for each in (scores, ranks))
    distance = -jnp.abs(scores[:, None] - ranks[None])
    width = temperature * jnp.mean(jnp.abs(jax.lax.stop_gradient(distance)), axis=0, keepdims=True)
    weights = jnp.moveaxis(jax.nn.softmax(over(distance, width), axis=0), 1, 1 + axis)
    indices = jnp.arange(count, dtype=value.dtype).reshape((count,) + (1,) * value.ndim)
    if payload is not None:
        indices = jnp.expand_dims(jnp.moveaxis(payload, axis, 0), 1 + axis)
    return Choice(value, weights, jnp.broadcast_to(indices, (count, *value.shape)))


def looked_up(equation: JaxprEqn, operands: list[Any], result: Array) -> Array | None:
    """Zero, with the derivative of a table of numbers at real positions: the slope between an entry's neighbours.

    Args:
        equation: a gather, or a dynamic slice.
        operands: a table, and indices of which some are real.
        result: what is found there.

    Returns:
        None where several indices are looked up at the same time.
    """
    table, *indices = operands
    params = equation.params
    bind = lambda *at: equation.primitive.bind(value_of(table), *at, **params)  # noqa: E731
    plain = [value_of(each) for each in indices]
    gathers = equation.primitive.name == "gather"
    if gathers and plain[0].shape[-1] != 1:
        return None
    total = jnp.zeros_like(result)
    for i, index in enumerate(indices):
        if not isinstance(index, Real):
            continue
        axis = params["dimension_numbers"].start_index_map[0] if gathers else i
        last = value_of(table).shape[axis] - params["slice_sizes"][axis]
        one = jnp.ones_like(index.value)
        ahead, behind = jnp.minimum(index.value + one, last), jnp.maximum(index.value - one, 0)
        ends = [bind(*plain[:i], at, *plain[i + 1 :]) for at in (ahead, behind)]
        moved = (index.real - jax.lax.stop_gradient(index.real)) / jnp.maximum(ahead - behind, 1).astype(jnp.float32)
        if gathers:
            moved = spread_over_slices(moved[None, ..., 0], result, params["dimension_numbers"].offset_dims)[0]
        slope = ends[0] - ends[1]
        total += moved.astype(result.dtype) * jnp.where(jnp.isfinite(slope), slope, jnp.zeros_like(slope))
    return total


def scattered(equation: JaxprEqn, operands: list[Any]) -> Array | None:
    """Zero, with the derivative of what is added at real positions: of each update, half the difference of what it
    would add at the next place and at the one before.

    Args:
        equation: a sum by indices, of single entries along one axis.
        operands: what is added to, indices that are real, and updates.
    """
    target, index, updates = operands
    numbers = equation.params["dimension_numbers"]
    if index.value.shape[-1] != 1 or numbers.update_window_dims:
        return None
    last = value_of(target).shape[numbers.scatter_dims_to_operand_dims[0]] - 1
    one, nothing = jnp.ones_like(index.value), jnp.zeros_like(value_of(target), jnp.float32)
    moved = (index.real - jax.lax.stop_gradient(index.real))[..., 0] * as_float(updates)
    ends = (jnp.minimum(index.value + one, last), jnp.maximum(index.value - one, 0))
    ahead, behind = (jax.lax.scatter_add(nothing, at, moved, numbers, mode=equation.params["mode"]) for at in ends)
    return 0.5 * (ahead - behind)
