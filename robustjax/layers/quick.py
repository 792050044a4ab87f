"""Primitives that equal JAX's own except for the program that computes them on a CPU.

A quick primitive has the parameters, results and derivatives of the JAX primitive that it replaces. Its rules of
differentiation, transposition and batching are JAX's own with quick primitives in place of the originals, so that
derivatives of every order are fast as well. The program is chosen when the primitive is lowered: for any backend but a
CPU it is JAX's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import core
from jax.extend.core import JaxprEqn, Primitive
from jax.interpreters import ad, batching, mlir, xla

from robustjax.ops import chosen, is_explicit, merged
from robustjax.types import Array

# JAX's primitive -> the quick one, and whether it pays with an equation's parameters.
QUICK: dict[Primitive, tuple[Primitive, Callable[..., bool]]] = {}


def register(
    slow: Primitive, on_cpu: Callable[..., Array] | None = None, *, pays: Callable[..., bool] = lambda **params: True
) -> None:
    """Makes the quick primitive of a slow one.

    Args:
        slow: a primitive of JAX with one result.
        on_cpu: computes it on a CPU from the same arguments and parameters. Without it a CPU does as JAX does, which is
            of use where only the derivatives are slow.
        pays: whether an equation with these parameters is to be quick.
    """
    quick = Primitive(f"quick_{slow.name}")
    quick.def_impl(partial(xla.apply_primitive, quick))
    quick.def_effectful_abstract_eval(slow.abstract_eval)
    ad.primitive_jvps[quick] = partial(_jvp, slow)
    ad.primitive_transposes[quick] = partial(_transpose, slow)
    batching.primitive_batchers[quick] = partial(_batch, slow)
    mlir.register_lowering(quick, mlir.lower_fun(slow.bind, multiple_results=False))
    if on_cpu is not None:

        def where_it_can(*operands: Array, **params: Any) -> Array:
            # Shapes of its own making would leave JAX without an answer to where rows lie on explicit axes.
            function = slow.bind if any(map(is_explicit, operands)) else on_cpu
            return function(*operands, **params)

        mlir.register_lowering(quick, mlir.lower_fun(where_it_can, multiple_results=False), platform="cpu")
    QUICK[slow] = quick, pays


def quickened(equation: JaxprEqn) -> JaxprEqn | None:
    """The equation with a quick primitive in place of its own, or None where that is not faster."""
    quick, pays = QUICK.get(equation.primitive, (None, None))
    return equation.replace(primitive=quick) if pays and pays(**equation.params) else None


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function with quick primitives in place of the originals that it binds itself.

    For functions of a few operations; :func:`robustjax.transforms.quicken` takes whole networks.
    """
    program, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    jaxpr = program.jaxpr.replace(eqns=[quickened(equation) or equation for equation in program.jaxpr.eqns])
    values = core.eval_jaxpr(jaxpr, program.consts, *jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shape), values)


def _jvp(slow: Primitive, primals: tuple, tangents: tuple, **params: Any) -> tuple[Array, Array]:
    moving = [not isinstance(tangent, ad.Zero) for tangent in tangents]

    def along(primals: tuple, slopes: list[Array]) -> tuple[Array, Array]:
        apply = lambda *some: slow.bind(*merged(moving, some, primals), **params)  # noqa: E731
        return jax.jvp(apply, tuple(chosen(moving, primals)), tuple(slopes))

    return call(along, tuple(primals), chosen(moving, tangents))


def _transpose(slow: Primitive, cotangent: Array, *operands: Any, **params: Any) -> list[Any]:
    linear = [ad.is_undefined_primal(operand) for operand in operands]
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(operand.aval) if moves else None for moves, operand in zip(linear, operands, strict=True)]
    known = [None if moves else operand for moves, operand in zip(linear, operands, strict=True)]
    avals = [operand.aval for operand in chosen(linear, operands)]

    def pull(cotangent: Array, known: list[Array | None]) -> tuple[Array, ...]:
        apply = lambda *some: slow.bind(*merged(linear, some, known), **params)  # noqa: E731
        return jax.linear_transpose(apply, *avals)(cotangent)

    return merged(linear, call(pull, cotangent, known), [None] * len(operands))


def _batch(slow: Primitive, operands: tuple[Array, ...], axes: tuple[int | None, ...], **params: Any):
    return call(jax.vmap(partial(slow.bind, **params), in_axes=tuple(axes)), *operands), 0
