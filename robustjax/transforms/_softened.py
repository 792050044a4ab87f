"""Evaluates a program with its own values and other derivatives, or with observers of what its equations are given.

Every equation is bound again as it is, so values stay what they are; beside it, where a relaxation is asked for,
stands a differentiable function of the same operands whose derivative is taken in place of the equation's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from robustjax.ops import in_dtypes_of, straight_through
from robustjax.transforms import _callbacks, _program, _reading, _rules, _soft, _source
from robustjax.transforms._soft import Choice, Real, Soft, is_soft, over, spread, value_of
from robustjax.transforms._source import Place
from robustjax.types import Array

# (kind, primitive, where): what is relaxed together.
SiteKey = tuple[str, str, str]
# None: not relaxed; True; or how much of the relaxed derivative takes the place of the program's own, in [0, 1].
Strength = Any
# How many turns of a loop without a fixed number of them are differentiated.
MAX_TURNS = 64


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


class Softened:
    """A program's evaluation with relaxed derivatives.

    Args:
        strength_of: of the sites with a key.
        temperature: width of the sigmoids in units of what they are given; a positive float, may be traced.
        loops: of "inner_optimisation": "through" differentiates them; "around" gives their results the derivative of
            what they begin with; "without" leaves them out, which changes values.
        differences: estimate the derivatives of all calls into Python by differences.
        observe: called with a site's key, its equation, and its operands, of which booleans may be ``Soft``.
        check_rules: replace only those rules of derivatives that disagree with their functions.
    """

    def __init__(
        self,
        strength_of: Callable[[SiteKey], Strength],
        temperature: Any,
        *,
        loops: str = "through",
        differences: bool = False,
        observe: Callable[[SiteKey, JaxprEqn, list[Any]], None] | None = None,
        check_rules: bool = False,
    ):
        self._strength_of, self._temperature = strength_of, temperature
        self._loops, self._differences = loops, differences
        self._observe, self._check_rules = observe, check_rules
        self._disagrees: dict[Any, bool] = {}
        self._touched: dict[tuple[int, Place | None], tuple[Jaxpr, bool]] = {}

    def evaluate(
        self, jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Any], place: Place | None = None
    ) -> list[Any]:
        """The results of a program, of which booleans and integers may be soft."""
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *operands), strict=True))
        read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]  # noqa: E731
        for equation in jaxpr.eqns:
            results = self._results(equation, [read(atom) for atom in equation.invars], place)
            if not equation.primitive.multiple_results:
                results = [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def plain(self, program: ClosedJaxpr, *operands: Any, place: Place | None = None) -> list[Any]:
        """The results of a program as arrays."""
        return [value_of(each) for each in self.evaluate(program.jaxpr, program.consts, operands, place)]

    def _results(self, equation: JaxprEqn, operands: list[Any], place: Place | None) -> Any:
        name = equation.primitive.name
        if name in _reading.CALLS:
            return self._call(equation, operands, place)
        if name in _LOOPS:
            return _LOOPS[name](self, equation, [value_of(each) for each in operands], operands[0], place)
        plain = [value_of(each) for each in operands]
        kind = _reading.kind_of(equation)
        strength = None
        if kind is not None:
            key = (kind, name, _source.line_of(equation, place))
            if self._observe is not None:
                self._observe(key, equation, operands)
            strength = self._strength_of(key)
        if kind == "callback" and strength is not None:
            return _callbacks.differentiable(
                equation, plain, self._temperature, differences=self._differences,
                with_derivative=lambda value, surrogate: with_derivative_of(value, surrogate, strength),
            )  # fmt: skip
        results = _program.bind(equation, *plain)
        if kind in _RELAXED and strength is not None:
            return _RELAXED[kind](self, equation, operands, results, strength)
        return self._carried(equation, operands, results)

    def _carried(self, equation: JaxprEqn, operands: list[Any], results: Any) -> Any:
        """The results, with what soft operands make of them."""
        name = equation.primitive.name
        if name in _soft.COMPARISONS:
            return self._comparison(equation, operands, results)
        if name == "is_finite":
            return _soft.certain(results)
        if equation.primitive.multiple_results or not any(map(is_soft, operands)):
            return results
        if name in ("gather", "dynamic_slice") and any(isinstance(each, Real) for each in operands[1:]):
            moved = _soft.looked_up(equation, operands, results) if _is_float(results) else None
            return results if moved is None else with_derivative_of(results, results + moved, True)
        if name == "convert_element_type":
            if isinstance(operands[0], Soft):  # to a float or an array of integers: a site that is not relaxed
                return _as_choice(operands[0], results) if results.ndim == 0 and not _is_float(results) else results
            if isinstance(operands[0], Real) and _is_float(results):
                return with_derivative_of(results, operands[0].real, True)
        found = _soft.carried(equation, operands, results)
        if found is None:
            return results
        return found if is_soft(found) else with_derivative_of(results, found, True)

    def _comparison(self, equation: JaxprEqn, operands: list[Any], results: Array) -> Any:
        if equation.invars[0] is equation.invars[1]:
            return _soft.certain(results)  # asks whether a value is a number
        if any(isinstance(each, Choice) for each in operands):
            found = _soft.carried(equation, operands, results)
            return results if found is None else found
        if not any(map(_is_float, operands)) and not any(isinstance(each, Real) for each in operands):
            return results
        return _soft.compare(equation.primitive.name, operands, results, self._temperature)

    def _call(self, equation: JaxprEqn, operands: list[Any], place: Place | None) -> list[Any]:
        """A program within the program: evaluated here; one with a derivative rule only where that is relaxed."""
        name = equation.primitive.name
        held = next(each for each in ("jaxpr", "call_jaxpr") if each in equation.params)
        within = equation.params[held]
        jaxpr, consts = (within.jaxpr, within.consts) if isinstance(within, ClosedJaxpr) else (within, ())
        inner = _source.within(equation, place, held)
        line = inner.line
        plain = [value_of(each) for each in operands]
        if name in _reading.CUSTOM:
            key = ("custom_rule", name, line)
            strength = self._strength_of(key)
            if strength is not None and self._check_rules and not self._rule_disagrees(equation):
                strength = None
            if self._observe is not None:
                self.evaluate(jaxpr, consts, operands, inner)
            if strength is None and (self._check_rules or not self._touches(jaxpr, inner)):
                return _program.bind(equation, *plain)
            own = self.evaluate(jaxpr, consts, operands, inner)
            if strength is None or strength is True:
                return own
            ruled = _program.bind(equation, *plain)
            return [with_derivative_of(one, value_of(other), strength) if _is_float(one) else one
                    for one, other in zip(ruled, own, strict=True)]  # fmt: skip
        if name.startswith(("checkpoint", "remat")):
            if not self._touches(jaxpr, inner):
                return _program.bind(equation, *plain)
            again = jax.checkpoint(
                lambda *some: [value_of(each) for each in self.evaluate(jaxpr, consts, some, inner)],
                prevent_cse=equation.params.get("prevent_cse", True), policy=equation.params.get("policy"),
            )  # fmt: skip
            return again(*plain)
        return self.evaluate(jaxpr, consts, operands, inner)

    def _rule_disagrees(self, equation: JaxprEqn) -> bool:
        name = _rules.name_of(equation)
        if name not in self._disagrees:
            self._disagrees[name] = _rules.disagrees(equation)
        return self._disagrees[name]

    def _touches(self, jaxpr: Jaxpr, place: Place | None) -> bool:
        """Whether a program holds something that is relaxed or observed."""
        known = self._touched.get((id(jaxpr), place))
        if known is None:
            known = jaxpr, any(self._touches_one(equation, place) for equation in jaxpr.eqns)
            self._touched[id(jaxpr), place] = known  # which keeps the program, and so its id
        return known[1]

    def _touches_one(self, equation: JaxprEqn, place: Place | None) -> bool:
        kind = _reading.kind_of(equation)
        if kind is not None:
            key = kind, equation.primitive.name, _source.line_of(equation, place)
            if self._strength_of(key) is not None:
                return True
        for param, value in equation.params.items():
            for each in value if isinstance(value, tuple | list) else (value,):
                within = getattr(each, "jaxpr", each)
                if isinstance(within, Jaxpr):
                    held = param if equation.primitive.name in _reading.CALLS else ""
                    if self._touches(within, _source.within(equation, place, held)):
                        return True
        return False

    def _scan(self, equation: JaxprEqn, operands: list[Any], first: Any, place: Place | None) -> list[Any]:
        del first
        params, place = equation.params, _source.within(equation, place)
        consts, carry = params["num_consts"], params["num_carry"]
        strength = self._strength_of(("inner_optimisation", "scan", place.line))
        if strength is not None and self._loops != "through":
            results = _program.bind(equation, *operands)
            return self._beginning(results, operands[consts : consts + carry], strength)
        if not self._touches(params["jaxpr"].jaxpr, place):
            return _program.bind(equation, *operands)

        def turn(state: list[Any], inputs: list[Any]) -> tuple[list[Any], list[Any]]:
            results = self.plain(params["jaxpr"], *operands[:consts], *state, *inputs, place=place)
            return in_dtypes_of(state, results[:carry]), results[carry:]

        state, outputs = jax.lax.scan(
            turn, operands[consts : consts + carry], operands[consts + carry :], length=params["length"],
            reverse=params["reverse"], unroll=params["unroll"],
        )  # fmt: skip
        return [*state, *outputs]

    def _while(self, equation: JaxprEqn, operands: list[Any], first: Any, place: Place | None) -> list[Any]:
        del first
        params, place = equation.params, _source.within(equation, place)
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        of_cond, of_body, start = operands[: split[0]], operands[split[0] : split[1]], operands[split[1] :]
        strength = self._strength_of(("inner_optimisation", "while", place.line))
        if strength is None:
            return _program.bind(equation, *operands)
        results = _program.bind(equation, *map(_stopped, operands))
        if self._loops != "through":
            return self._beginning(results, start, strength)

        def turn(state: list[Any], _: None) -> tuple[list[Any], None]:
            goes_on = self.plain(params["cond_jaxpr"], *of_cond, *state, place=place)[0]
            moved = in_dtypes_of(state, self.plain(params["body_jaxpr"], *of_body, *state, place=place))
            return [jnp.where(goes_on, new, old) for new, old in zip(moved, state, strict=True)], None

        # Reverse differentiation needs a fixed number of turns: those after the loop's end change nothing.
        again, _ = jax.lax.scan(jax.checkpoint(turn), list(start), None, length=MAX_TURNS)
        return [with_derivative_of(one, other, strength) if _is_float(one) else one
                for one, other in zip(results, again, strict=True)]  # fmt: skip

    def _beginning(self, results: list[Any], start: list[Any], strength: Strength) -> list[Any]:
        """A loop's results, its carry with the derivative of what it began with, or that itself."""
        if self._loops == "without":
            return [*start, *results[len(start) :]]
        carry = [with_derivative_of(one, first, strength) if _is_float(one) else one
                 for one, first in zip(results[: len(start)], start, strict=True)]  # fmt: skip
        return [*carry, *results[len(start) :]]

    def _cond(self, equation: JaxprEqn, operands: list[Any], index: Any, place: Place | None) -> list[Any]:
        branches, place = equation.params["branches"], _source.within(equation, place)
        strength = self._strength_of(("selection", "cond", place.line))
        run = lambda branch: lambda *some: self.plain(branch, *some, place=place)  # noqa: E731
        touched = any(self._touches(branch.jaxpr, place) for branch in branches)
        if not touched:
            results = _program.bind(equation, *operands)
        else:
            results = jax.lax.switch(operands[0], [run(branch) for branch in branches], *operands[1:])
        if strength is None or not isinstance(index, Choice) or index.value.ndim or len(index.weights) != len(branches):
            return results
        every = zip(*(run(branch)(*operands[1:]) for branch in branches), strict=True)
        return [
            with_derivative_of(one, _mixed(index.weights, some), strength) if _is_float(one) else one
            for one, some in zip(results, every, strict=True)
        ]

    # What each kind's derivative becomes; of (equation, operands, results, strength).

    def _step(self, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
        values = operands[0]
        if not _is_float(values):
            return result
        if equation.primitive.name == "sign":
            values = jnp.tanh(over(values, (self._temperature * spread(values)).astype(values.dtype)))
        return with_derivative_of(result, values, strength)

    def _detached(self, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
        del equation
        return with_derivative_of(result, value_of(operands[0]), strength) if _is_float(result) else operands[0]

    def _integer(self, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
        if equation.primitive.name == "bitcast_convert_type" or not _is_float(operands[0]):
            return result
        values = operands[0].astype(jnp.float32)
        return Real(result, with_derivative_of(jax.lax.stop_gradient(values), values, strength))

    def _selection(self, equation: JaxprEqn, operands: list[Any], results: Any, strength: Strength) -> Any:
        name, params = equation.primitive.name, equation.params
        if name == "clamp":
            values = value_of(operands[1])
            return with_derivative_of(results, values, strength) if _is_float(results) else results
        if name == "convert_element_type":
            return self._cast(equation, operands, results, strength)
        if name == "select_n":
            return self._select(equation, operands, results, strength)
        temperature = self._temperature
        if name in _reading.INDEX_OF_LARGEST:
            found = _is_float(value_of(operands[0])) and _soft.largest(
                value_of(operands[0]), params["axes"][0], results, temperature, lowest=name == "argmin"
            )
            return _gated(found, strength) if found else results
        if name == "top_k":
            values, indices = results
            axis = values.ndim - 1
            if params.get("axis", axis) not in (axis, -1) or not _is_float(values):
                return results
            found = _soft.ranked(value_of(operands[0]), values, indices, temperature, axis)
            return [values, _gated(found, strength) if found else indices]
        if name == "sort" and params["num_keys"] == 1 and _is_float(value_of(operands[0])):
            return [results[0], *(
                self._sorted(operands, results, i, params["dimension"], strength) for i in range(1, len(results))
            )]  # fmt: skip
        return results

    def _sorted(self, operands: list[Any], results: list[Any], i: int, axis: int, strength: Strength) -> Any:
        if not jnp.issubdtype(results[i].dtype, jnp.integer):
            return results[i]
        scores, payload = value_of(operands[0]), value_of(operands[i])
        found = _soft.ranked(scores, results[0], results[i], self._temperature, axis, payload)
        return _gated(found, strength) if found else results[i]

    def _cast(self, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
        """Of a boolean, to a float or an integer."""
        if not isinstance(operands[0], Soft):
            return self._carried(equation, operands, result)
        share = operands[0].share
        if _is_float(result):
            return with_derivative_of(result, share, strength)
        return _gated(_as_choice(operands[0], result), strength)

    def _select(self, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
        predicate, *cases = operands
        if not _is_float(result):
            return self._carried(equation, operands, result)
        if len(cases) != 2 or not isinstance(predicate, Soft):
            # What is selected by says nothing of how near the other case is: all of them count.
            return with_derivative_of(result, _mixed([jnp.ones((), result.dtype)] * len(cases), cases), strength)
        share = predicate.share.astype(result.dtype)
        return with_derivative_of(result, _mixed([1 - share, share], cases), strength)

    def _saturation(self, equation: JaxprEqn, operands: list[Any], result: Array, strength: Strength) -> Any:
        """The same function of smaller numbers: their mean magnitude is at most the temperature."""
        values = operands[0]
        width = (spread(values) / self._temperature).astype(values.dtype)
        return with_derivative_of(result, _program.bind(equation, values / jnp.maximum(width, 1)), strength)


_RELAXED: dict[str, Callable[..., Any]] = {
    "step": Softened._step,
    "detached": Softened._detached,
    "integer": Softened._integer,
    "selection": Softened._selection,
    "saturation": Softened._saturation,
}
_LOOPS: dict[str, Callable[..., Any]] = {
    "scan": Softened._scan,
    "while": Softened._while,
    "cond": Softened._cond,
}


def _as_choice(boolean: Soft, result: Array) -> Choice:
    """A boolean as the integer 0 or 1."""
    options = jnp.stack([jnp.zeros_like(result), jnp.ones_like(result)])
    return Choice(result, jnp.stack([1.0 - boolean.share, boolean.share]), options)


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
    return jax.lax.stop_gradient(operand) if _is_float(operand) else operand


def _is_float(value: Any) -> bool:
    return _soft.is_float(value_of(value))
