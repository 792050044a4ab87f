"""Whether a function's own derivative rule agrees with the function, and says more than it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, jaxpr_as_fun

from robustjax.ops import merged
from robustjax.transforms import _program

# Standard deviations of the random operands, and the largest difference as a share of the derivative's length.
SCALES = (0.3, 3.0)
TOLERANCE = 1e-2


def name_of(equation: JaxprEqn) -> tuple[Any, ...]:
    """What the same function has in common wherever it is called, whatever the shapes."""
    program = equation.params["call_jaxpr"].jaxpr
    dtypes = tuple(str(getattr(atom.aval, "dtype", "")) for atom in equation.invars)
    return program.debug_info.func_src_info, tuple(each.primitive.name for each in program.eqns), dtypes


def num_closed_over(equation: JaxprEqn) -> int:
    """How many of the operands, the first ones, are arrays that a function with a rule closes over."""
    return equation.params.get("num_consts", 0) if "call_jaxpr" in equation.params else 0


class Comparison(NamedTuple):
    """A rule beside its function.

    Attributes:
        disagrees: its derivatives are not those of the function.
        vanishes: both are zero by one of the arguments, of which the rule says no more than the function does.
    """

    disagrees: bool
    vanishes: bool = False


def compare(equation: JaxprEqn, closed_over: Sequence[Any] = ()) -> Comparison:
    """The derivatives of a ``custom_jvp`` or ``custom_vjp`` beside those of its function, at random operands.

    Both are pulled back from random weights, by the function's arguments: a rule says nothing of arrays that the
    function closes over. A function that cannot be differentiated with or without its rule disagrees.

    Args:
        equation: of the program.
        closed_over: the arrays that the function closes over, as the rule does itself; None where they are not known.
    """
    operands = [_operand(np.random.default_rng(0), atom, 1.0) for atom in equation.invars]
    moving = [
        operand is not None and jnp.issubdtype(operand.dtype, jnp.floating) and not isinstance(atom, Literal)
        for operand, atom in zip(operands, equation.invars, strict=True)
    ]
    moving[: num_closed_over(equation)] = [False] * num_closed_over(equation)
    if not any(moving) or any(operand is None for operand in operands):
        return Comparison(disagrees=False)
    own = jaxpr_as_fun(equation.params["call_jaxpr"])
    still = [True] * sum(moving)
    with jax.ensure_compile_time_eval():
        for scale in SCALES:
            generator = np.random.default_rng(1)
            values = [_operand(generator, atom, scale) for atom in equation.invars]
            values[: len(closed_over)] = [
                other if one is None else one for one, other in zip(closed_over, values, strict=False)
            ]
            weights = [_operand(generator, var, 1.0) for var in equation.outvars]
            pull = jax.jit(partial(_pulled, moving=tuple(moving)), static_argnums=0)
            try:
                ruled = pull(lambda *some: _program.bind(equation, *some), values, weights)
                plain = pull(own, values, weights)
                if any(_differ(np.asarray(one), np.asarray(other)) for one, other in zip(ruled, plain, strict=True)):
                    return Comparison(disagrees=True)
            except Exception:  # anyone's code
                return Comparison(disagrees=True)
            still = [before and not np.any(one) for before, one in zip(still, plain, strict=True)]
    return Comparison(disagrees=False, vanishes=any(still))


def _pulled(function: Any, values: list[Any], weights: list[Any], *, moving: tuple[bool, ...]) -> list[Any]:
    """Gradients, by the floats among the operands, of the float results' sum with weights."""

    def total(some: list[Any]) -> Any:
        results = function(*merged(moving, some, values))
        results = results if isinstance(results, list | tuple) else [results]
        floats = [pair for pair in zip(results, weights, strict=True) if jnp.issubdtype(pair[0].dtype, jnp.floating)]
        terms = [jnp.sum(one.astype(jnp.float32) * weight.astype(jnp.float32)) for one, weight in floats]
        return sum(terms, jnp.float32(0.0))

    return jax.grad(total)([value for value, moves in zip(values, moving, strict=True) if moves])


def _operand(generator: np.random.Generator, atom: Any, scale: float) -> Any:
    """What the program has there, or a random array of floats, zeros and ones of other numbers, a key, or None."""
    aval: Any = atom.aval
    if isinstance(atom, Literal):
        return jnp.asarray(atom.val, aval.dtype)
    if jnp.issubdtype(aval.dtype, jnp.floating):
        return jnp.asarray(scale * generator.normal(size=aval.shape), aval.dtype)
    if jnp.issubdtype(aval.dtype, jnp.number) or aval.dtype == jnp.bool_:
        # Behind a mask that is False everywhere every rule would agree with its function.
        return jnp.asarray(generator.integers(2, size=aval.shape), aval.dtype)
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        return jnp.zeros(aval.shape, aval.dtype)
    return None


def _differ(ruled: np.ndarray, own: np.ndarray) -> bool:
    ruled, own = ruled.astype(np.float64), own.astype(np.float64)
    finite = np.isfinite(ruled) & np.isfinite(own)
    if not finite.any():
        return bool(np.isfinite(ruled).any() != np.isfinite(own).any())
    longest = max(np.linalg.norm(ruled[finite]), np.linalg.norm(own[finite]), 1e-30)
    return bool(np.linalg.norm((ruled - own)[finite]) > TOLERANCE * longest)
