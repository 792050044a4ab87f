"""Evaluates a program with its own values and other derivatives, or with observers of what its equations are given.

Every equation is bound again as it is, so values stay what they are; beside it, where a relaxation is asked for,
stands a differentiable function of the same operands whose derivative is taken in place of the equation's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from robustjax.transforms import _callbacks, _flat, _indices, _kinds, _noise, _program, _rules, _soft, _source
from robustjax.transforms._derivatives import LOOPS, RELAXED, SiteKey, Strength, as_choice, counting, with_derivative_of
from robustjax.transforms._finite import WITH_A_POLE, finite_cotangent
from robustjax.transforms._noise import Origin
from robustjax.transforms._soft import Bits, Choice, Real, Soft, is_float, is_soft, value_of
from robustjax.transforms._source import Place
from robustjax.types import Array

# Of a site's key, its equation, its operands, and where its result is flat, if that is known.
Observe = Callable[[SiteKey, JaxprEqn, list[Any], _flat.Flat | None], None]


class Interpreter:
    """A program's evaluation with relaxed derivatives.

    Args:
        strength_of: of the sites with a key.
        temperature: width of the sigmoids in units of what they are given; a positive float, may be traced.
        loops: of "inner_optimisation": "through" differentiates them; "around" gives their results the derivative of
            what they begin with; "without" leaves them out, which changes values.
        differences: estimate the derivatives of all calls into Python by differences.
        replace: put the mean in the place of random factors and masks, and keep what a mask drops that says nothing of
            how near it is to keeping it, which changes values.
        observe: called with a site's key, its equation, its operands, of which booleans may be ``Soft``, and where its
            result is flat.
        check_rules: replace only those rules of derivatives that disagree with their functions, and look behind those
            alone that vanish as their functions do.
    """

    def __init__(
        self,
        strength_of: Callable[[SiteKey], Strength],
        temperature: Any,
        *,
        loops: str = "through",
        differences: bool = False,
        replace: bool = False,
        observe: Observe | None = None,
        check_rules: bool = False,
    ):
        self.strength_of, self.temperature = strength_of, temperature
        self.loops, self._differences, self._replace = loops, differences, replace
        self._observe, self._check_rules = observe, check_rules
        self.has_replaced = False
        self._rules: dict[Any, _rules.Comparison] = {}
        self._flat: dict[int, _flat.Flat] = {}
        self._touched: dict[tuple[int, Place | None], tuple[Jaxpr, bool]] = {}

    def evaluate(
        self,
        jaxpr: Jaxpr,
        consts: Sequence[Any],
        operands: Sequence[Any],
        place: Place | None = None,
        given: Sequence[Origin] | None = None,
    ) -> list[Any]:
        """The results of a program, of which booleans and integers may be soft; ``given``: the operands' origins."""
        values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *operands), strict=True))
        read = lambda atom: atom.val if isinstance(atom, Literal) else values[atom]  # noqa: E731
        origins = _noise.Origins(jaxpr, _noise.of_arguments(jaxpr.invars) if given is None else given)
        for equation in jaxpr.eqns:
            results = self._results(
                equation, [read(atom) for atom in equation.invars], place, origins.of(equation.invars)
            )
            origins.follow(equation, place)
            if not equation.primitive.multiple_results:
                results = [results]
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def plain(self, program: ClosedJaxpr, *operands: Any, place: Place | None = None) -> list[Any]:
        """The results of a program as arrays."""
        return [value_of(each) for each in self.evaluate(program.jaxpr, program.consts, operands, place)]

    def _results(self, equation: JaxprEqn, operands: list[Any], place: Place | None, origins: list[Origin]) -> Any:
        name = equation.primitive.name
        if name in _kinds.CALLS:
            return self._call(equation, operands, place, origins)
        if name in LOOPS:
            return LOOPS[name](self, equation, [value_of(each) for each in operands], operands[0], place)
        plain = [value_of(each) for each in operands]
        kind = _kinds.kind_of(equation)
        strength = None
        if kind is not None:
            key = (kind, name, _source.line_of(equation, place))
            strength = self.strength_of(key)
        if kind == "callback" and strength is not None:
            return _callbacks.differentiable(
                equation, plain, self.temperature, differences=self._differences,
                with_derivative=lambda value, surrogate: with_derivative_of(value, surrogate, strength),
            )  # fmt: skip
        given = plain
        if name in WITH_A_POLE:  # perhaps in a branch that is not taken
            given = [finite_cotangent(each) if is_float(each) else each for each in plain]
        results = _program.bind(equation, *given)
        flat = _flat.of_result(equation, plain, origins, self._flat, results)
        if flat is not None:
            self._flat[id(results)] = flat
        if kind is not None and self._observe is not None:
            self._observe(key, equation, operands, flat)
        if flat is not None and name in _kinds.BOUNDS and strength is not None:
            results = with_derivative_of(results, _flat.without_bounds(flat), strength)
            self._flat[id(results)] = flat._replace(value=results)
        elif kind in RELAXED and strength is not None:
            results = RELAXED[kind](self, equation, operands, results, strength)
        else:
            results = self.carried(equation, operands, results)
        random = _noise.factor(equation, origins)
        strength = None if random is None else self.strength_of(random[1])
        if random is None or strength is None:
            return results
        averaged = _noise.averaged(equation, plain, random[0])
        return with_derivative_of(self.replaced(results, averaged, strength), averaged, strength)

    def replaced(self, value: Array, surrogate: Array, strength: Strength) -> Array:
        """The surrogate in place of a value that it may replace, where that is asked for."""
        if not self._replace:
            return value
        self.has_replaced = True
        return jnp.where(jnp.asarray(strength, jnp.float32) > 0, surrogate, value)

    def carried(self, equation: JaxprEqn, operands: list[Any], results: Any) -> Any:
        """The results, with what soft operands make of them."""
        name = equation.primitive.name
        if name in _soft.COMPARISONS:
            return self._comparison(equation, operands, results)
        if name == "is_finite":
            return _soft.certain(results)
        if equation.primitive.multiple_results or not any(map(is_soft, operands)):
            return results
        if name in ("gather", "dynamic_slice") and any(isinstance(each, Real) for each in operands[1:]):
            moved = _indices.looked_up(equation, operands, results) if is_float(results) else None
            return results if moved is None else with_derivative_of(results, results + moved, True)
        if name == "scatter-add" and isinstance(operands[1], Real):
            moved = _indices.scattered(equation, operands)
            if moved is not None:
                real = _soft.as_float(results) + moved
                return with_derivative_of(results, real, True) if is_float(results) else Real(results, real)
        if name == "convert_element_type":
            if isinstance(operands[0], Soft):  # to a float or an array of integers: a site that is not relaxed
                return as_choice(operands[0], results) if results.ndim == 0 and not is_float(results) else results
            if isinstance(operands[0], Real) and is_float(results):
                return with_derivative_of(results, operands[0].real, True)
        if name == "bitcast_convert_type" and isinstance(operands[0], Bits) and is_float(results):
            floats = _soft.of_bits(operands[0], results)
            return results if floats is None else with_derivative_of(results, floats, True)
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
        if not any(map(is_float, operands)) and not any(isinstance(each, Real) for each in operands):
            return results
        return _soft.compare(equation.primitive.name, operands, results, self.temperature)

    def _call(self, equation: JaxprEqn, operands: list[Any], place: Place | None, origins: list[Origin]) -> list[Any]:
        """A program within the program: evaluated here; one with a derivative rule only where that is relaxed."""
        name = equation.primitive.name
        held = next(each for each in ("jaxpr", "call_jaxpr") if each in equation.params)
        within = equation.params[held]
        jaxpr, consts = (within.jaxpr, within.consts) if isinstance(within, ClosedJaxpr) else (within, ())
        inner = _source.within(equation, place, held)
        line = inner.line
        plain = [value_of(each) for each in operands]
        if name in _kinds.CUSTOM:
            key = ("custom_rule", name, line)
            strength = self.strength_of(key)
            touched = self.touches(jaxpr, inner)
            if self._check_rules and (touched or strength is not None):
                rule = self._compared(equation, plain)
                strength, touched = strength if rule.disagrees else None, touched and rule.vanishes
            as_it_is = strength is None and not touched
            if as_it_is and self._observe is None:
                return _program.bind(equation, *plain)
            own = self.evaluate(jaxpr, consts, operands, inner, origins)
            if as_it_is:
                return _program.bind(equation, *plain)
            if strength is None or strength is True:
                return own
            ruled = _program.bind(equation, *plain)
            return [with_derivative_of(one, value_of(other), strength) if is_float(one) else one
                    for one, other in zip(ruled, own, strict=True)]  # fmt: skip
        # What is observed must not belong to a trace within.
        if name.startswith(("checkpoint", "remat")) and self._observe is None:
            if not self.touches(jaxpr, inner):
                return _program.bind(equation, *plain)
            again = jax.checkpoint(
                lambda *some: [value_of(each) for each in self.evaluate(jaxpr, consts, some, inner, origins)],
                prevent_cse=equation.params.get("prevent_cse", True), policy=equation.params.get("policy"),
            )  # fmt: skip
            return again(*plain)
        results = self.evaluate(jaxpr, consts, operands, inner, origins)
        return self._searched(equation, operands, results, line)

    def _searched(self, equation: JaxprEqn, operands: list[Any], results: list[Any], line: str) -> list[Any]:
        """The results of a call; of JAX's binary search, whose turns say little, the places as a soft count."""
        if equation.params.get("name") != _kinds.SEARCH.lower() or is_soft(results[0]) or len(operands) != 2:
            return results
        strength = self.strength_of(("selection", "select_n", line))
        table, values = operands
        found = None if strength is None else _indices.searched(table, values, value_of(results[0]), self.temperature)
        return results if found is None else [counting(found, strength)]

    def _compared(self, equation: JaxprEqn, operands: list[Any]) -> _rules.Comparison:
        name = _rules.name_of(equation)
        if name not in self._rules:
            closed_over = operands[: _rules.num_closed_over(equation)]
            known = [None if isinstance(each, Tracer) else each for each in closed_over]
            self._rules[name] = _rules.compare(equation, known)
        return self._rules[name]

    def touches(self, jaxpr: Jaxpr, place: Place | None) -> bool:
        """Whether a program holds something that is relaxed or observed."""
        known = self._touched.get((id(jaxpr), place))
        if known is None:
            known = jaxpr, any(self._touches_one(equation, place) for equation in jaxpr.eqns)
            self._touched[id(jaxpr), place] = known  # which keeps the program, and so its id
        return known[1]

    def _touches_one(self, equation: JaxprEqn, place: Place | None) -> bool:
        kind = _kinds.kind_of(equation)
        if kind is not None:
            key = kind, equation.primitive.name, _source.line_of(equation, place)
            if self.strength_of(key) is not None:
                return True
        for param, value in equation.params.items():
            for each in value if isinstance(value, tuple | list) else (value,):
                within = getattr(each, "jaxpr", each)
                if isinstance(within, Jaxpr):
                    held = param if equation.primitive.name in _kinds.CALLS else ""
                    if self.touches(within, _source.within(equation, place, held)):
                        return True
        return False
