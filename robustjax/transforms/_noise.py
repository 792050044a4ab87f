"""Random factors and masks: which of a program's operands come from its random bits alone, and their mean.

Under dropout, pruning at random and multiplicative noise a gradient passes through the few entries that one draw keeps.
The gradient of the mean of many draws is more useful, and the mean of a factor is simple: what an image's entries are
multiplied by on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxprs_in_params

from robustjax.transforms import _kinds, _source
from robustjax.transforms._source import Place
from robustjax.types import Array

# What a value comes from: None, of which nothing follows; MOVES, where a derivative by the arguments goes through it;
# or the key (kind, primitive, where) of the draw that it was made from without one.
Origin = Any
MOVES = "moves"


def of_arguments(variables: Sequence[Any]) -> list[Origin]:
    """Where the arguments of a program come from, if all that can have a derivative has one."""
    return [MOVES if jnp.issubdtype(var.aval.dtype, jnp.floating) else None for var in variables]


class Origins:
    """The origins of a program's values, followed as it is evaluated.

    Args:
        jaxpr: of the program.
        given: of its arguments.
    """

    def __init__(self, jaxpr: Jaxpr, given: Sequence[Origin]):
        self._known: dict[Var, Origin] = dict(zip(jaxpr.invars, given, strict=True))

    def of(self, atoms: Sequence[Any]) -> list[Origin]:
        return [None if isinstance(atom, Literal) else self._known.get(atom) for atom in atoms]

    def follow(self, equation: JaxprEqn, place: Place | None) -> None:
        """Learns where the results of an equation come from."""
        found = _results(equation, self.of(equation.invars), place)
        self._known.update(zip(equation.outvars, found, strict=True))


def _results(equation: JaxprEqn, given: list[Origin], place: Place | None) -> list[Origin]:
    name = equation.primitive.name
    if name in _kinds.DRAWS:
        return [("random", name, _source.line_of(equation, place))] * len(equation.outvars)
    called = _called(equation)
    if called is not None:
        held, jaxpr = called
        inner, origins = _source.within(equation, place, held), Origins(jaxpr, given)
        for each in jaxpr.eqns:
            origins.follow(each, inner)
        return origins.of(jaxpr.outvars)
    draw = next((origin for origin in given if origin not in (None, MOVES)), None)
    moves = MOVES in given and name != "stop_gradient"
    avals: list[Any] = [var.aval for var in equation.outvars]
    return [MOVES if moves and jnp.issubdtype(aval.dtype, jnp.floating) else draw for aval in avals]


def factor(equation: JaxprEqn, given: Sequence[Origin]) -> tuple[int, Origin] | None:
    """Which operand of a product or a selection is random, and where it comes from; None where none is.

    The other operand, or one of what is selected, has a derivative.
    """
    name = equation.primitive.name
    if name == "mul" and MOVES in given:
        place = 1 - given.index(MOVES)
    elif name == "select_n" and MOVES in given[1:] and len(given) == 3:
        place = 0
    else:
        return None
    return None if given[place] in (None, MOVES) else (place, given[place])


def draws_in_factors(jaxpr: Jaxpr, given: Sequence[Origin], place: Place | None = None) -> set[Origin]:
    """The draws of a program, and of those within it, that a product or a selection is random by."""
    found, origins = set(), Origins(jaxpr, given)
    for equation in jaxpr.eqns:
        operands = origins.of(equation.invars)
        random = factor(equation, operands)
        if random is not None:
            found.add(random[1])
        called = _called(equation)
        if called is not None:
            found |= draws_in_factors(called[1], operands, _source.within(equation, place, called[0]))
        else:
            for within in jaxprs_in_params(equation.params):
                found |= draws_in_factors(within, of_arguments(within.invars), _source.within(equation, place))
        origins.follow(equation, place)
    return found


def _called(equation: JaxprEqn) -> tuple[str, Jaxpr] | None:
    """The program that an equation calls as it is, and the parameter that holds it; None where it calls none."""
    held = next((each for each in ("jaxpr", "call_jaxpr") if each in equation.params), None)
    if equation.primitive.name not in _kinds.CALLS or held is None:
        return None
    within = equation.params[held]
    return held, within.jaxpr if isinstance(within, ClosedJaxpr) else within


def averaged(equation: JaxprEqn, operands: Sequence[Any], random: int) -> Array:
    r"""A product or a selection with its random operand's mean in that operand's place.

    Of s x the mean of s that fits best, for each example,

    .. math:: c = \sum_i s_i x_i^2 / \sum_i x_i^2

    so that a mask that is scaled to keep the expectation counts as the identity. A selection between a and b is a plus
    a mask times b - a.

    Args:
        equation: of :func:`factor`.
        operands: of it.
        random: which operand is random.
    """
    if equation.primitive.name == "mul":
        values = operands[1 - random]
        return values * _fit(operands[random], values)
    mask, zero, one = operands
    return zero + _fit(jnp.broadcast_to(mask, one.shape), one - zero) * (one - zero)


def _fit(factor: Array, values: Array) -> Array:
    dtype = values.dtype
    factor, values = (jax.lax.stop_gradient(each).astype(jnp.float32) for each in (factor, values))
    weights = jnp.where(jnp.isfinite(values) & jnp.isfinite(factor), values, 0.0)
    largest = jnp.max(jnp.abs(weights), axis=_axes(weights), keepdims=True)
    weights = jnp.square(weights / jnp.where(largest > 0, largest, 1.0))
    total = jnp.sum(weights, axis=_axes(weights), keepdims=True)
    product = jnp.sum(jnp.where(weights > 0, factor * weights, 0.0), axis=_axes(weights), keepdims=True)
    return (product / jnp.where(total > 0, total, 1.0)).astype(dtype)


def _axes(values: Array) -> tuple[int, ...]:
    return tuple(range(1, values.ndim)) if values.ndim > 1 else tuple(range(values.ndim))
