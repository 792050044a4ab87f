"""Booleans and integers that carry a differentiable counterpart of their value.

A comparison or a cast to integers ends every derivative. Beside its value each such array keeps a float: of a boolean
the share of True, of an integer the real number that it was cut from, of the index of a largest entry the probability
of every index. Where it becomes a float again, the derivative goes on through that.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from robustjax.ops import straight_through
from robustjax.types import Array

# The most numbers that are spent on the probabilities of indices.
LARGEST = 1 << 24
_STRUCTURAL = (
    "broadcast_in_dim", "reshape", "squeeze", "transpose", "rev", "slice", "copy", "copy_p", "concatenate", "stack",
    "pad",
)  # fmt: skip
# Of several arrays these make one.
_JOINS = ("concatenate", "stack", "pad")
# Entries of the first operand, at places that the others say.
_LOOKUPS = ("gather", "dynamic_slice")
_PRODUCTS = ("dot_general", "conv_general_dilated")
_ARITHMETIC = (
    "add", "sub", "mul", "neg", "abs", "square", "integer_pow", "max", "min", "clamp", "div", "reduce_sum",
    "reduce_max", "reduce_min", "cumsum",
)  # fmt: skip
# Bits that are cut off are rounded away -> by how many powers of two the second operand moves the first.
_BITWISE = {"and": 0.0, "or": 0.0, "shift_left": 1.0, "shift_right_logical": -1.0, "shift_right_arithmetic": -1.0}
# With those that order all floats, as searches do.
COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne", "lt_to", "le_to", "eq_to")


class Soft(NamedTuple):
    """A boolean array, and the share of True in [0, 1]; ``margin``: how far it is from the other value."""

    value: Array
    share: Array
    margin: Array


class Real(NamedTuple):
    """An integer array, and the real numbers that it was cut from."""

    value: Array
    real: Array


class Bits(NamedTuple):
    """An integer array of the bits of floats, and the floats, whose derivative goes on where bits become floats again.

    As numbers they move nothing: their order is that of floats, and what is counted or selected by it has no margin.
    """

    value: Array
    floats: Array


class Choice(NamedTuple):
    """An array that depends on one index: the probability of each of n indices, and what it would be under it.

    Attributes:
        value: any shape.
        weights: [n, ...] float, they sum up to one.
        options: [n, ...], of the dtype of the value.
    """

    value: Array
    weights: Array
    options: Array


def value_of(operand: Any) -> Any:
    """The array itself."""
    return operand.value if is_soft(operand) else operand


def is_soft(operand: Any) -> bool:
    return isinstance(operand, Soft | Real | Choice | Bits)


def spread(values: Array) -> Array:
    """Mean magnitude of finite entries, of each row where there are several axes, of each entry otherwise."""
    size = jnp.abs(jax.lax.stop_gradient(values))
    size = jnp.where(jnp.isfinite(size), size, 0.0)
    return jnp.mean(size, axis=tuple(range(1, size.ndim)), keepdims=True) if size.ndim > 1 else size


def over(values: Array, width: Array) -> Array:
    """Values in units of a width; zero where there is no width, and where a value is not finite."""
    positive = width > 0
    inverse = jnp.where(positive, 1.0 / jnp.where(positive, width, 1.0), 0.0)
    return jnp.where(jnp.isfinite(values), values, 0.0) * inverse


def compare(name: str, operands: list[Any], value: Array, temperature: Any) -> Any:
    """A comparison as a sigmoid of its margin."""
    name = name.removesuffix("_to")
    if any(isinstance(each, Choice) for each in operands):
        return None
    whole = all(isinstance(each, Real) or not is_float(each) for each in operands)
    first, second = (jnp.asarray(as_float(each), jnp.float32) for each in operands)
    difference = first - second
    # Of whole numbers the step lies between two of them.
    half = 0.5 if whole else 0.0
    margin = {
        "gt": lambda: difference - half, "ge": lambda: difference + half,
        "lt": lambda: -difference - half, "le": lambda: -difference + half,
    }.get(name, lambda: jnp.abs(difference))()  # fmt: skip
    scaled = over(margin, temperature * spread(margin))
    share = jax.nn.sigmoid(scaled)
    if name in ("eq", "ne"):
        equal = 2.0 * jax.nn.sigmoid(-scaled)
        share = equal if name == "eq" else 1.0 - equal
    # Nothing is near infinity.
    share = jnp.where(jnp.isfinite(margin), share, value.astype(jnp.float32))
    return Soft(value, share, jnp.where(jnp.isfinite(margin), jnp.abs(margin), jnp.inf))


def certain(value: Array) -> Soft:
    """A boolean that does not move, such as whether a value is a number."""
    return Soft(value, value.astype(jnp.float32), jnp.full(value.shape, jnp.inf, jnp.float32))


def carried(equation: JaxprEqn, operands: list[Any], value: Array) -> Any:
    """What the result of an equation on such arrays carries, or None: then it is an array like any other.

    A float is returned as the soft float itself.
    """
    name = equation.primitive.name
    bind = lambda *some: equation.primitive.bind(*some, **equation.params)  # noqa: E731
    is_structural = name in _STRUCTURAL
    if name in _LOOKUPS and not any(map(is_soft, operands[1:])):
        is_structural, places, operands = True, operands[1:], operands[:1]
        bind = lambda table: equation.primitive.bind(table, *places, **equation.params)  # noqa: E731
    bits = next((each for each in operands if isinstance(each, Bits)), None)
    if bits is not None:
        if sum(isinstance(each, Bits) for each in operands) > 1:
            return None
        return _of_bits(name, bits, value, bind, is_structural)
    choice = next((each for each in operands if isinstance(each, Choice)), None)
    if choice is not None:
        found = _of_choice(equation, operands, value, choice, bind, is_structural)
        if found is not None:
            return found
        # What depends on several indices is followed by their means.
        operands = [_mean(each) if isinstance(each, Choice) else each for each in operands]
    if value.dtype == jnp.bool_:
        return _of_booleans(name, operands, value, bind, equation.params, is_structural)
    if name == "select_n":
        is_number = jnp.issubdtype(value.dtype, jnp.floating)  # it moves as what is selected does
        if is_number or any(isinstance(each, Soft) for each in operands[1:]) or len(operands) != 3:
            return None
        return Real(value, jnp.where(value_of(operands[0]), as_float(operands[2]), as_float(operands[1])))
    if any(isinstance(each, Soft) for each in operands) or jnp.issubdtype(value.dtype, jnp.floating):
        return None
    if is_structural or name in _ARITHMETIC:
        return Real(value, bind(*map(as_float, operands)))
    if name in _PRODUCTS:
        params = {**equation.params, "preferred_element_type": jnp.dtype(jnp.float32)}
        return Real(value, equation.primitive.bind(*map(_straight_through, operands), **params))
    if name in _BITWISE and not all(isinstance(each, Real) for each in operands):
        moved = next(each.real for each in operands if isinstance(each, Real))
        return Real(value, moved * jnp.exp2(_BITWISE[name] * as_float(operands[1])))
    if name == "convert_element_type":
        return Real(value, operands[0].real)
    return None


def _of_bits(name: str, bits: Bits, value: Array, bind: Callable, is_structural: bool) -> Bits | None:
    if name in _BITWISE or name in ("not", "xor", "add", "sub"):
        return Bits(value, jnp.broadcast_to(bits.floats, value.shape))
    return Bits(value, bind(bits.floats)) if is_structural and name not in _JOINS else None


def of_bits(bits: Bits, value: Array) -> Array | None:
    """What moves as the floats that some bits come from, in proportion: low bits that are cut off are rounded away, and
    another sign or exponent scales. None where each float is made of the bits of several."""
    if bits.floats.shape != value.shape:
        return None
    ratio = value.astype(jnp.float32) / jax.lax.stop_gradient(bits.floats).astype(jnp.float32)
    return jnp.where(jnp.isfinite(ratio), ratio, 1.0) * bits.floats.astype(jnp.float32)


def _of_booleans(
    name: str, operands: list[Any], value: Array, bind: Callable, params: dict, is_structural: bool
) -> Soft | None:
    if any(isinstance(each, Real) for each in operands):
        return None
    shares, margins = zip(*(_share_of(each) for each in operands), strict=True)
    if is_structural:
        return Soft(value, bind(*shares), bind(*margins))
    if name == "not":
        return Soft(value, 1.0 - shares[0], margins[0])
    if name in ("reduce_and", "reduce_or"):
        best = jnp.min if name == "reduce_and" else jnp.max
        return Soft(value, best(shares[0], axis=params["axes"]), jnp.min(margins[0], axis=params["axes"]))
    joined = {
        "and": lambda a, b: a * b,
        "or": lambda a, b: a + b - a * b,
        "xor": lambda a, b: a + b - 2.0 * a * b,
        "select_n": lambda which, a, b: (1.0 - which) * a + which * b,
    }.get(name)
    if joined is None:
        return None
    return Soft(value, joined(*shares), functools.reduce(jnp.minimum, margins))


def _of_choice(
    equation: JaxprEqn, operands: list[Any], value: Array, choice: Choice, bind: Callable, is_structural: bool
) -> Any:
    """An equation for every index: what it gives on average where it is a float, else a choice again."""
    name = equation.primitive.name
    if name == "select_n" and not isinstance(operands[0], Choice):
        operands = [value_of(operands[0]), *operands[1:]]
    if any(is_soft(each) and not _same(each, choice) for each in operands):
        return None
    number = len(choice.weights)
    if number * value.size > LARGEST:
        return None
    places = [0 if isinstance(each, Choice) else None for each in operands]
    given = [each.options if isinstance(each, Choice) else each for each in operands]
    results = jax.vmap(bind, in_axes=places, axis_size=number)(*given)
    weights = choice.weights
    if is_structural:
        parts = [
            each.weights if isinstance(each, Choice) else jnp.zeros((number, *jnp.shape(each))) for each in operands
        ]
        weights = jax.vmap(bind)(*parts)
    elif name == "gather" and operands[1] is choice:
        numbers = equation.params["dimension_numbers"]
        weights = spread_over_slices(jnp.max(weights, axis=-1), value, numbers.offset_dims)
    places = zip(weights.shape[1:], value.shape, strict=False)
    fits = weights.ndim == 1 + value.ndim and all(size in (1, whole) for size, whole in places)
    if not fits and weights.ndim != 1:
        return None
    weights = weights if fits else weights.reshape((number,) + (1,) * value.ndim)
    weights = jnp.broadcast_to(weights, (number, *value.shape))
    if value.dtype == jnp.bool_:
        share = jnp.sum(weights * results.astype(jnp.float32), axis=0)
        return Soft(value, share, jnp.abs(share - 0.5))
    if jnp.issubdtype(value.dtype, jnp.floating):
        return jnp.sum(weights * jnp.where(jnp.isfinite(results), results, 0.0), axis=0)
    return Choice(value, weights, results)


def _mean(choice: Choice) -> Real:
    return Real(choice.value, jnp.sum(choice.weights * choice.options.astype(jnp.float32), axis=0))


def spread_over_slices(values: Array, result: Array, offset_dims: tuple[int, ...]) -> Array:
    """Values [n, *batch] of a gather's indices at every entry of its result: [n, *result.shape]."""
    axes = [axis for axis in range(result.ndim) if axis not in offset_dims]
    shape = (len(values), *result.shape)
    return jax.lax.broadcast_in_dim(values, shape, (0, *(1 + axis for axis in axes)))


def _share_of(operand: Any) -> tuple[Array, Array]:
    if isinstance(operand, Soft):
        return operand.share, operand.margin
    value = jnp.asarray(operand)
    return value.astype(jnp.float32), jnp.full(value.shape, jnp.inf, jnp.float32)


def as_float(operand: Any) -> Any:
    if isinstance(operand, Real):
        return operand.real
    return jnp.asarray(value_of(operand)).astype(jnp.float32)


def _straight_through(operand: Any) -> Array:
    """The number itself, as a factor is, with the derivative of the real one."""
    number = jnp.asarray(value_of(operand)).astype(jnp.float32)
    return straight_through(number, operand.real) if isinstance(operand, Real) else number


def dtype_of(value: Any) -> Any:
    return value.dtype if hasattr(value, "dtype") else np.result_type(value)


def is_float(operand: Any) -> bool:
    return jnp.issubdtype(dtype_of(value_of(operand)), jnp.floating)


def _same(operand: Any, choice: Choice) -> bool:
    return isinstance(operand, Choice) and operand.weights is choice.weights
