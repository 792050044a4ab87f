"""What the derivative of each kind of equation becomes where it is relaxed.

The value stays that of the equation. Its derivative is taken of a differentiable function of the same operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from robustjax.ops import in_dtypes_of, straight_through
from robustjax.transforms import _indices, _kinds, _program, _source
from robustjax.transforms._soft import Bits, Choice, Real, Soft, is_float, over, spread, value_of
from robustjax.transforms._source import Place
from robustjax.types import Array

# (kind, primitive, where): what is relaxed together.
SiteKey = tuple[str, str, str]
# None: not relaxed; True; or how much of the relaxed derivative takes the place of the program's own, in [0, 1].
Strength = Any
# How many turns of a loop without a fixed number of them are differentiated.
MAX_TURNS = 64


class Evaluator(Protocol):
    """What these ask of the evaluation of a program, :class:`._interpreter.Interpreter`, which documents them."""

    strength_of: Callable[[SiteKey], Strength]
    temperature: Any
    loops: str

    def replaced(self, value: Array, surrogate: Array, strength: Strength) -> Array: ...

    def plain(self, program: ClosedJaxpr, *operands: Any, place: Place | None = None) -> list[Any]: ...

    def touches(self, jaxpr: Jaxpr, place: Place | None) -> bool: ...

    def carried(self, equation: JaxprEqn, operands: list[Any], results: Any) -> Any: ...


@jax.custom_jvp
def blended(value: Array, surrogate: Array, strength: Array) -> Array:
    """The value of the one, and the derivatives of both in the shares ``1 - strength`` and ``strength``."""
    del surrogate, strength
    return value


@blended.defjvp
def _blended_jvp(primals, tangents):
    value, surrogate, strength = primals
    own, other, _ = tangents
    mixed = [jnp.where(share > 0, share.astype(slope.dtype) * slope, jnp.zeros_like(slope))
             for share, slope in ((1.0 - strength, own), (strength, other))]  # fmt: skip
    return blended(value, surrogate, strength), sum(mixed[1:], mixed[0])


def with_derivative_of(value: Array, surrogate: Any, strength: Strength) -> Array:
    """A value whose derivative is that of a surrogate, as far as the strength says."""
    surrogate = jnp.broadcast_to(jnp.asarray(surrogate).astype(value.dtype), value.shape)
    if strength is True:
        return straight_through(value, surrogate)
    return blended(value, surrogate, jnp.asarray(strength, jnp.float32))


# Loops and branches; of (equation, operands, the first of them as it may be soft, place).


def _scan(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], first: Any, place: Place | None) -> list[Any]:
    del first
    params, place = equation.params, _source.within(equation, place)
    consts, carry = _program.scan_counts(params)
    strength = evaluator.strength_of(("inner_optimisation", "scan", place.line))
    if strength is not None and evaluator.loops != "through":
        results = _program.bind(equation, *operands)
        return _beginning(evaluator, results, operands[consts : consts + carry], strength)
    if not evaluator.touches(params["jaxpr"].jaxpr, place):
        return _program.bind(equation, *operands)

    def turn(state: list[Any], inputs: list[Any]) -> tuple[list[Any], list[Any]]:
        results = evaluator.plain(params["jaxpr"], *operands[:consts], *state, *inputs, place=place)
        return in_dtypes_of(state, results[:carry]), results[carry:]

    state, outputs = jax.lax.scan(
        turn, operands[consts : consts + carry], operands[consts + carry :], length=params["length"],
        reverse=params["reverse"], unroll=params["unroll"],
    )  # fmt: skip
    return [*state, *outputs]


def _while(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], first: Any, place: Place | None) -> list[Any]:
    del first
    params, place = equation.params, _source.within(equation, place)
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    of_cond, of_body, start = operands[: split[0]], operands[split[0] : split[1]], operands[split[1] :]
    strength = evaluator.strength_of(("inner_optimisation", "while", place.line))
    if strength is None:
        return _program.bind(equation, *operands)
    results = _program.bind(equation, *map(_stopped, operands))
    if evaluator.loops != "through":
        return _beginning(evaluator, results, start, strength)

    def turn(state: list[Any], _: None) -> tuple[list[Any], None]:
        goes_on = evaluator.plain(params["cond_jaxpr"], *of_cond, *state, place=place)[0]
        moved = in_dtypes_of(state, evaluator.plain(params["body_jaxpr"], *of_body, *state, place=place))
        # Under vmap each example goes on for itself.
        lasting = [jax.lax.broadcast_in_dim(goes_on, new.shape, range(goes_on.ndim)) for new in moved]
        return [jnp.where(*each) for each in zip(lasting, moved, state, strict=True)], None

    # Reverse differentiation needs a fixed number of turns: those after the loop's end change nothing.
    again, _ = jax.lax.scan(jax.checkpoint(turn), list(start), None, length=MAX_TURNS)
    return [with_derivative_of(one, other, strength) if is_float(one) else one
            for one, other in zip(results, again, strict=True)]  # fmt: skip


def _beginning(evaluator: Evaluator, results: list[Any], start: list[Any], strength: Strength) -> list[Any]:
    """A loop's results, its carry with the derivative of what it began with, or that itself."""
    if evaluator.loops == "without":
        return [*start, *results[len(start) :]]
    carry = [with_derivative_of(one, first, strength) if is_float(one) else one
             for one, first in zip(results[: len(start)], start, strict=True)]  # fmt: skip
    return [*carry, *results[len(start) :]]


def _cond(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], index: Any, place: Place | None) -> list[Any]:
    branches, place = equation.params["branches"], _source.within(equation, place)
    strength = evaluator.strength_of(("selection", "cond", place.line))
    run = lambda branch: lambda *some: evaluator.plain(branch, *some, place=place)  # noqa: E731
    touched = any(evaluator.touches(branch.jaxpr, place) for branch in branches)
    if not touched:
        results = _program.bind(equation, *operands)
    else:
        results = jax.lax.switch(operands[0], [run(branch) for branch in branches], *operands[1:])
    if strength is None or not isinstance(index, Choice) or index.value.ndim:
        return results
    weights = _indices.by_option(index, len(branches))
    every = zip(*(run(branch)(*operands[1:]) for branch in branches), strict=True)
    return [
        with_derivative_of(one, _mixed(weights, some), strength) if is_float(one) else one
        for one, some in zip(results, every, strict=True)
    ]


# What each kind's derivative becomes; of (equation, operands, results, strength).


def _step(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
    values = operands[0]
    if not is_float(values):
        return result
    if equation.primitive.name == "rem":
        # By its own, the identity, the rounded number that it is subtracted from would stand still: half for either.
        values = 0.5 * values + _program.bind(equation, jax.lax.stop_gradient(values), operands[1])
    if equation.primitive.name == "sign":
        values = jnp.tanh(over(values, (evaluator.temperature * spread(values)).astype(values.dtype)))
    return with_derivative_of(result, values, strength)


def _detached(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
    del equation
    return with_derivative_of(result, value_of(operands[0]), strength) if is_float(result) else operands[0]


def _integer(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
    if equation.primitive.name == "bitcast_convert_type":
        return _bits(evaluator, equation, operands[0], result, strength)
    if not is_float(operands[0]):
        return result
    values = operands[0].astype(jnp.float32)
    return Real(result, with_derivative_of(jax.lax.stop_gradient(values), values, strength))


def _bits(evaluator: Evaluator, equation: JaxprEqn, operand: Any, result: Array, strength: Strength) -> Any:
    """To the bits of a float, or back; bits that several numbers share say nothing."""
    if not is_float(operand):
        return evaluator.carried(equation, [operand], result)
    if is_float(result) or result.shape != operand.shape:
        return result
    return Bits(result, with_derivative_of(jax.lax.stop_gradient(operand), operand, strength))


def _selection(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], results: Any, strength: Strength) -> Any:
    name, params = equation.primitive.name, equation.params
    if name == "clamp":
        values = value_of(operands[1])
        return with_derivative_of(results, values, strength) if is_float(results) else results
    if name == "convert_element_type":
        return _cast(evaluator, equation, operands, results, strength)
    if name == "select_n":
        return _select(evaluator, equation, operands, results, strength)
    temperature = evaluator.temperature
    if name == "argmax" and isinstance(operands[0], Soft):
        return _gated(_indices.first(operands[0], params["axes"][0], results), strength)
    if name in _kinds.INDEX_OF_LARGEST:
        found = is_float(value_of(operands[0])) and _indices.largest(
            value_of(operands[0]), params["axes"][0], results, temperature, lowest=name == "argmin"
        )
        return _gated(found, strength) if found else results
    if name == _kinds.CLASS:
        searched = _indices.searched(operands[0], operands[1], results[0], temperature)
        return results if searched is None else [counting(searched, strength)]
    if name == "top_k":
        values, indices = results
        axis = values.ndim - 1
        if params.get("axis", axis) not in (axis, -1) or not is_float(values):
            return results
        found = _indices.ranked(value_of(operands[0]), values, indices, temperature, axis)
        return [values, _gated(found, strength) if found else indices]
    if name == "sort" and params["num_keys"] == 1 and is_float(value_of(operands[0])):
        return [results[0], *(
            _sorted(evaluator, operands, results, i, params["dimension"], strength) for i in range(1, len(results))
        )]  # fmt: skip
    return results


def _sorted(
    evaluator: Evaluator, operands: list[Any], results: list[Any], i: int, axis: int, strength: Strength
) -> Any:
    if not jnp.issubdtype(results[i].dtype, jnp.integer):
        return results[i]
    scores, payload = value_of(operands[0]), value_of(operands[i])
    found = _indices.ranked(scores, results[0], results[i], evaluator.temperature, axis, payload)
    return _gated(found, strength) if found else results[i]


def _cast(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
    """Of a boolean, to a float or an integer."""
    if not isinstance(operands[0], Soft):
        return evaluator.carried(equation, operands, result)
    share = operands[0].share
    if is_float(result):
        return with_derivative_of(result, share, strength)
    return _gated(as_choice(operands[0], result), strength)


def _select(evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
    predicate, *cases = operands
    if not is_float(result):
        # Two indices that move both are one and the same, counted from either end.
        alike = any(isinstance(case, Real) for case in cases) or all(isinstance(case, Choice) for case in cases)
        if len(cases) == 2 and isinstance(predicate, Soft) and not alike:
            return _gated(_indices.either(predicate, cases, result), strength)
        return evaluator.carried(equation, operands, result)
    if isinstance(predicate, Choice):
        return with_derivative_of(result, _mixed(_indices.by_option(predicate, len(cases)), cases), strength)
    if len(cases) != 2 or not isinstance(predicate, Soft):
        # What is selected by says nothing of how near the other case is: all of them count.
        every = _mixed([jnp.ones((), result.dtype)] * len(cases), cases)
        return with_derivative_of(evaluator.replaced(result, every, strength), every, strength)
    share = predicate.share.astype(result.dtype)
    return with_derivative_of(result, _mixed([1 - share, share], cases), strength)


def _saturation(
    evaluator: Evaluator, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength
) -> Any:
    """The same function of smaller numbers: their mean magnitude is at most the temperature."""
    values = operands[0]
    width = (spread(values) / evaluator.temperature).astype(values.dtype)
    return with_derivative_of(result, _program.bind(equation, values / jnp.maximum(width, 1)), strength)


def as_choice(boolean: Soft, result: Array) -> Choice:
    """A boolean as the integer 0 or 1."""
    return _indices.either(boolean, [jnp.zeros_like(result), jnp.ones_like(result)], result)


def counting(place: Real, strength: Strength) -> Real:
    return place._replace(real=with_derivative_of(jax.lax.stop_gradient(place.real), place.real, strength))


def _gated(choice: Choice, strength: Strength) -> Choice:
    weights = with_derivative_of(jax.lax.stop_gradient(choice.weights), choice.weights, strength)
    return choice._replace(weights=weights)


def _mixed(weights: Iterable[Array], cases: Sequence[Any]) -> Array:
    """A weighted sum; what is not finite counts as zero."""
    terms = [weight.astype(case.dtype) * case for weight, case in zip(weights, map(_finite, cases), strict=True)]
    return sum(terms[1:], terms[0])


def _finite(values: Any) -> Array:
    values = jnp.asarray(value_of(values))
    return jnp.where(jnp.isfinite(values), values, jnp.zeros_like(values))


def _stopped(operand: Any) -> Any:
    return jax.lax.stop_gradient(operand) if is_float(operand) else operand


RELAXED: dict[str, Callable[..., Any]] = {
    "step": _step,
    "detached": _detached,
    "integer": _integer,
    "selection": _selection,
    "saturation": _saturation,
}
LOOPS: dict[str, Callable[..., Any]] = {"scan": _scan, "while": _while, "cond": _cond}
