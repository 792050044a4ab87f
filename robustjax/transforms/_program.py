"""Evaluates the program of a function with some of its equations computed another way.

A rule says how: ``rule(equation, *operands)`` returns what JAX's primitive would, an array, or a list of arrays where
the primitive has several results. Every equation without a rule is bound again as it is. Programs within the program
(of ``jit``, ``scan``, ``while_loop``, ``cond`` and ``checkpoint``, and of functions with a derivative rule of their
own) are entered where an equation in them has a rule, and else bound as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, jaxprs_in_params, primitives

from robustjax.ops import chosen, merged
from robustjax.types import InputError

# (equation, *operands) -> its result or results.
Rule = Callable[..., Any]
# The rule of an equation, or None.
RuleOf = Callable[[JaxprEqn], Rule | None]


def check_function(function: Any) -> None:
    """Refuses what cannot be called.

    Raises:
        InputError: it is no function.
    """
    if not callable(function):
        raise InputError(f"function must be one that JAX can trace, got {type(function).__name__}; give a function")


def rewritten(function: Callable[..., Any], rule_of: RuleOf) -> Callable[..., Any]:
    """The function with the equations of its program that have a rule computed by it.

    It is traced anew in each call, for it may depend on what changes between calls, such as a network's weights. Arrays
    among the arguments are traced, in any pytree; everything else is given to the function as it is.
    """

    def call(*arguments: Any, **keywords: Any) -> Any:
        leaves, tree = jax.tree.flatten((arguments, keywords))
        are_arrays = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]

        def of_arrays(*arrays: Any) -> Any:
            arguments, keywords = jax.tree.unflatten(tree, merged(are_arrays, arrays, leaves))
            return function(*arguments, **keywords)

        arrays = chosen(are_arrays, leaves)
        program, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
        return jax.tree.unflatten(jax.tree.structure(shape), evaluate(program, rule_of, *arrays))

    return call


def scan_counts(params: Any) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are its carry; what is left is scanned over."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # as jax 0.12 has it
    return len(constants), len(carry)


def evaluate(program: ClosedJaxpr, rule_of: RuleOf, *arguments: Any) -> list[Any]:
    """What a program returns."""
    jaxpr = program.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *arguments), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        compute = rule_of(equation) or _within(equation, rule_of) or bind
        results = compute(equation, *map(read, equation.invars))
        several = equation.primitive.multiple_results
        values.update(zip(equation.outvars, results if several else [results], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(equation: JaxprEqn, *operands: Any) -> Any:
    """What an equation computes of these operands, in its own context and with its own place in the source."""
    pairs = zip(equation.invars, operands, strict=True)
    given = {atom: operand for atom, operand in pairs if not isinstance(atom, Literal)}
    about = DebugInfo("bind", equation.primitive.name, None, None)
    alone = Jaxpr((), list(given), equation.outvars, [equation], equation.effects, about)
    results = core.eval_jaxpr(alone, (), *given.values())
    return results if equation.primitive.multiple_results else results[0]


def _within(equation: JaxprEqn, rule_of: RuleOf) -> Rule | None:
    """How an equation whose programs hold others with a rule is computed; None where there are none."""
    enter = _ENTERED.get(equation.primitive)
    if enter is None or not any(_has_rules(program, rule_of) for program in jaxprs_in_params(equation.params)):
        return None
    return partial(enter, rule_of)


def _has_rules(jaxpr: Jaxpr, rule_of: RuleOf) -> bool:
    return any(rule_of(equation) or _within(equation, rule_of) for equation in jaxpr.eqns)


def _enter(rule_of: RuleOf, equation: JaxprEqn, *operands: Any) -> Any:
    """The same equation on programs that are evaluated by the rules."""

    def entered(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return jax.make_jaxpr(partial(evaluate, value, rule_of))(*value.in_avals)
        if isinstance(value, Jaxpr):  # one that cannot hold constants
            program = entered(ClosedJaxpr(value, ()))
            if program.consts:
                raise NotImplementedError(f"a rule adds constants within {equation.primitive}, which cannot hold any")
            return program.jaxpr
        if isinstance(value, tuple) and any(isinstance(each, ClosedJaxpr) for each in value):
            return tuple(map(entered, value))
        return value

    params = {name: entered(value) for name, value in equation.params.items()}
    return bind(equation.replace(params=params), *operands)


def _enter_custom_jvp(rule_of: RuleOf, equation: JaxprEqn, *operands: Any) -> Any:
    """The function by the rules, and so its own derivative rule, which is asked for by differentiating the equation."""

    @jax.custom_jvp
    def function(*operands: Any) -> Any:
        return evaluate(equation.params["call_jaxpr"], rule_of, *operands)

    @partial(function.defjvp, symbolic_zeros=True)
    def derivative(primals: tuple, tangents: tuple) -> tuple[Any, Any]:
        moving = [not isinstance(tangent, SymbolicZero) for tangent in tangents]

        def along(primals: tuple, slopes: list[Any]) -> tuple[Any, Any]:
            apply = lambda *some: bind(equation, *merged(moving, some, primals))  # noqa: E731
            return jax.jvp(apply, tuple(chosen(moving, primals)), tuple(slopes))

        return rewritten(along, rule_of)(primals, chosen(moving, tangents))

    return function(*operands)


def _enter_custom_vjp(rule_of: RuleOf, equation: JaxprEqn, *operands: Any) -> Any:
    """Likewise, for a function with a rule for the reverse derivative."""

    @jax.custom_vjp
    def function(*operands: Any) -> Any:
        return evaluate(equation.params["call_jaxpr"], rule_of, *operands)

    def forward(*operands: Any) -> tuple[Any, Any]:
        values, moving = [operand.value for operand in operands], [operand.perturbed for operand in operands]

        def along(values: list[Any]) -> tuple[Any, Any]:
            apply = lambda *some: bind(equation, *merged(moving, some, values))  # noqa: E731
            return jax.vjp(apply, *chosen(moving, values))

        outputs, pull = rewritten(along, rule_of)(values)
        return outputs, jax.tree_util.Partial(partial(_pulled, rule_of, tuple(moving)), pull)

    function.defvjp(forward, lambda pull, slopes: pull(slopes), symbolic_zeros=True)
    return function(*operands)


def _pulled(rule_of: RuleOf, moving: tuple[bool, ...], pull: Callable[..., tuple], slopes: list[Any]) -> tuple:
    """The derivatives by all operands, None by those that do not move."""
    avals: list[Any] = [each.aval if isinstance(each, SymbolicZero) else None for each in slopes]
    slopes = [each if aval is None else jnp.zeros_like(aval) for each, aval in zip(slopes, avals, strict=True)]
    return tuple(merged(moving, rewritten(pull, rule_of)(slopes), [None] * len(moving)))


# Primitives that hold programs -> how they are entered. Whatever else holds some is bound as it is.
_ENTERED: dict[Any, Callable[..., Any]] = {
    primitives.jit_p: _enter,
    primitives.closed_call_p: _enter,
    primitives.remat_p: _enter,
    primitives.scan_p: _enter,
    primitives.while_p: _enter,
    primitives.cond_p: _enter,
    primitives.custom_jvp_call_p: _enter_custom_jvp,
    primitives.custom_vjp_call_p: _enter_custom_vjp,
}
