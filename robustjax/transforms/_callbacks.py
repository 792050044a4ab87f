"""Derivatives of calls into Python, for which JAX has none: the identity's, or an estimate by differences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from robustjax.ops import chosen, merged
from robustjax.transforms import _program, _soft
from robustjax.types import Array

# Random directions in which a call is asked, on either side, for each gradient.
NUM_DIRECTIONS = 32
# How far, in units of the operands' mean magnitude and of the temperature.
REACH = 0.1


def differentiable(
    equation: JaxprEqn, operands: Sequence[Any], temperature: Any, *, differences: bool,
    with_derivative: Callable[[Array, Array], Array],
) -> list[Any]:  # fmt: skip
    """What Python computes, with a derivative.

    That is the identity's by the operand of the same shape and dtype; where there is none, or with ``differences``, an
    estimate.

    Args:
        equation: the call.
        operands: of the call.
        temperature: of the relaxation.
        differences: estimate in any case.
        with_derivative: (value, surrogate) -> the value with the surrogate's derivative.
    """
    results = _program.bind(equation, *map(_stopped, operands))
    same = [None if differences else _same(one, operands) for one in results]
    if any(_soft.is_float(one) and other is None for one, other in zip(results, same, strict=True)):
        estimated = by_differences(lambda *some: _program.bind(equation, *some), operands, results, temperature)
        same = [other if one is None else one for one, other in zip(same, estimated, strict=True)]
    pairs = zip(results, same, strict=True)
    return [with_derivative(one, other) if _soft.is_float(one) else one for one, other in pairs]


def by_differences(
    function: Callable[..., Sequence[Array]], operands: Sequence[Any], results: Sequence[Array], temperature: Any
) -> list[Array]:
    r"""Results that are known, with derivatives estimated by simultaneous perturbation (Spall 1992).

    .. math:: J t \approx \frac{1}{m} \sum_i \frac{f(x + \sigma u_i) - f(x - \sigma u_i)}{2 \sigma} \, (u_i \cdot t)

    Over random signs u its mean is the derivative, smoothed over the reach :math:`\sigma`: a tenth of the temperature
    and of the operands' mean magnitude. Where all arrays have the same number of rows, each row is an example of its
    own. Each operand has other directions.

    Args:
        function: operands -> results; asked for values alone.
        operands: arrays, of which floats move.
        results: of the function.
        temperature: above 0, may be traced.
    """
    moves, are_floats = ([_soft.is_float(each) for each in some] for some in (operands, results))
    arrays, floats = [jnp.asarray(operand) for operand in chosen(moves, operands)], chosen(are_floats, results)
    if not arrays:
        return list(results)
    sizes = {array.shape[:1] for array in (*arrays, *floats)}
    by_row = len(sizes) == 1 and sizes != {()}

    def dot(one: Array, other: Array) -> Array:
        products = one.astype(jnp.float32) * other.astype(jnp.float32)
        return jnp.sum(products, axis=tuple(range(1, products.ndim)) if by_row else None)

    @jax.custom_jvp
    def known(arrays: list[Array], others: list[Any], results: list[Array], temperature: Array) -> list[Array]:
        return results

    @known.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[list[Array], list[Array]]:
        arrays, others, results, temperature = primals
        reach = [_reach(array, temperature) for array in arrays]

        def ask(key: Any) -> tuple[list[Array], list[Array]]:
            signs = [
                jax.random.rademacher(jax.random.fold_in(key, i), array.shape, array.dtype)
                for i, array in enumerate(arrays)
            ]
            steps = [sign * width for sign, width in zip(signs, reach, strict=True)]
            moved = jax.tree.map(jnp.add, arrays, steps), jax.tree.map(jnp.subtract, arrays, steps)
            ahead, behind = (chosen(are_floats, function(*merged(moves, some, others))) for some in moved)
            return signs, [0.5 * (one - other) for one, other in zip(ahead, behind, strict=True)]

        keys = jax.random.split(_key_of(arrays), NUM_DIRECTIONS)
        signs, changes = jax.lax.map(ask, keys)
        # In units of the reach, which may differ from row to row.
        slopes = [slope / width for slope, width in zip(tangents[0], reach, strict=True)]
        products = [jax.vmap(dot, (0, None))(sign, slope) for sign, slope in zip(signs, slopes, strict=True)]
        along = functools.reduce(jnp.add, products)
        weights = [along.reshape(along.shape + (1,) * (one.ndim - along.ndim)).astype(one.dtype) for one in changes]
        return results, [jnp.mean(weight * one, axis=0) for weight, one in zip(weights, changes, strict=True)]

    still = [None if moving else operand for moving, operand in zip(moves, operands, strict=True)]
    return merged(are_floats, known(arrays, still, floats, jnp.asarray(temperature, jnp.float32)), results)


def _reach(array: Array, temperature: Array) -> Array:
    size = _soft.spread(array) if array.ndim > 1 else jnp.mean(jnp.abs(array))
    return jnp.maximum(REACH * temperature.astype(array.dtype) * size, jnp.asarray(1e-6, array.dtype))


def _key_of(arrays: Sequence[Array]) -> Any:
    """A key that depends on the values, so that no two points are asked in the same directions."""
    key = jax.random.key(0)
    for array in arrays:
        bits = jax.lax.bitcast_convert_type(array.astype(jnp.float32), jnp.uint32)
        key = jax.random.fold_in(key, jnp.sum(bits, dtype=jnp.uint32))
    return key


def _same(one: Any, operands: Sequence[Any]) -> Any:
    """The operand of the same shape and dtype, or None."""
    alike = ((jnp.shape(each), _soft.dtype_of(each)) == (one.shape, one.dtype) for each in operands)
    return next((each for each, fits in zip(operands, alike, strict=True) if fits), None)


def _stopped(operand: Any) -> Any:
    return jax.lax.stop_gradient(operand) if _soft.is_float(operand) else operand
