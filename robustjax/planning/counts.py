"""Estimates the cost of a program from its jaxpr: FLOPs, bytes that pass through memory, and bytes held at once.

XLA's own count includes the body of a loop once, however often it runs; here it is counted as often as it runs. The
program is the one that JAX traced, before any compiler has changed it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, jaxprs_in_params


class Counts(NamedTuple):
    """The counts of one call of a program.

    Attributes:
        flops: of convolutions and matrix products, two for a multiplication and an addition.
        traffic: bytes, if each of them reads its operands from memory and writes its result there, once.
        held: bytes at once beside the arguments, if what no product, sum or loop makes is computed where it is used.
        open_loops: loops whose length the program does not say; they are counted as one turn.
    """

    flops: float
    traffic: float
    held: float
    open_loops: int = 0


class _Operation(NamedTuple):
    equation: JaxprEqn
    reads: tuple[int, ...]  # of buffers
    writes: tuple[int, ...]


# What is computed in place of being kept: everything but these, whose results have a place in memory.
_KEPT = (
    "conv_general_dilated", "dot_general", "reduce", "arg", "cum", "sort", "scan", "while", "cond", "gather", "scatter",
    "select_and", "dynamic_update_slice", "concatenate", "random", "threefry", "fft", "custom_", "eigh", "svd", "qr",
)  # fmt: skip
# Programs within a program that run once, in place.
_INLINED = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
            "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin", "shard_map")  # fmt: skip


def count(program: ClosedJaxpr) -> Counts:
    """The counts of a program, as ``jax.make_jaxpr`` returns it.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> program = jax.make_jaxpr(lambda a, b: jax.nn.relu(a @ b) @ b)(jnp.ones((8, 8)), jnp.ones((8, 8)))
        >>> count(program)[:2]
        (2048.0, 1536.0)
    """
    sizes: list[float] = []
    operations = list(_flat(program.jaxpr, {}, sizes))
    last = {buffer: at for at, operation in enumerate(operations) for buffer in (*operation.reads, *operation.writes)}
    flops = traffic = live = most = 0.0
    open_loops = 0
    for at, (equation, reads, writes) in enumerate(operations):
        own, inner, unknown = _of_one(equation)
        flops, traffic, open_loops = flops + own.flops, traffic + own.traffic, open_loops + unknown
        made = sum(sizes[buffer] for buffer in writes)
        live += made
        most = max(most, live + max(0.0, inner - made))
        live -= sum(sizes[buffer] for buffer in {*reads, *writes} if last[buffer] == at)
    return Counts(flops, traffic, most, open_loops)


def _of_one(equation: JaxprEqn) -> tuple[Counts, float, int]:
    """The counts of an equation, what programs in it hold, and how many of its loops are of unknown length."""
    name, params = equation.primitive.name.removeprefix("quick_"), equation.params
    if name == "conv_general_dilated":
        return Counts(_convolution(equation), _bytes((*equation.invars, *equation.outvars)), 0.0), 0.0, 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = _shape(equation.invars[0])
        products = _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)
        return Counts(2.0 * products, _bytes((*equation.invars, *equation.outvars)), 0.0), 0.0, 0
    parts = [count(program) for program in _programs(equation)]
    if not parts:
        return Counts(0.0, 0.0, 0.0), 0.0, 0
    held, unknown = max(part.held for part in parts), sum(part.open_loops for part in parts)
    if name == "cond":
        most = max(parts, key=lambda part: part.flops)
        return most, held, unknown
    turns = params["length"] if name == "scan" else 1
    flops, traffic = (turns * sum(part[i] for part in parts) for i in range(2))
    return Counts(flops, traffic, held), held, unknown + (name == "while")


def _convolution(equation: JaxprEqn) -> float:
    params, kernel = equation.params, _shape(equation.invars[1])
    spec = params["dimension_numbers"].rhs_spec
    seen = math.prod(kernel[axis] for axis in spec[1:])
    # Zeros between the pixels, as in the gradient of a convolution with strides, are no work.
    return 2.0 * _size(equation.outvars[0]) * seen / math.prod(params["lhs_dilation"])


def _flat(jaxpr: Any, places: dict[Any, tuple[int, ...]], sizes: list[float]) -> Iterator[_Operation]:
    """The operations of a program and of those within it that run once; ``places`` says in which buffers values lie.

    The arguments of the whole program have no buffers of their own: they are counted by who knows them.
    """

    def where(atoms: Sequence[Any]) -> tuple[int, ...]:
        found = (places.get(atom, ()) for atom in atoms if not isinstance(atom, Literal))
        return tuple(dict.fromkeys(buffer for buffers in found for buffer in buffers))

    for equation in jaxpr.eqns:
        name = equation.primitive.name.removeprefix("quick_")
        programs = list(_programs(equation)) if name in _INLINED else []
        if len(programs) == 1 and len(programs[0].jaxpr.invars) == len(equation.invars):
            inner = programs[0].jaxpr
            given = {variable: where([atom]) for variable, atom in zip(inner.invars, equation.invars, strict=True)}
            yield from _flat(inner, given, sizes)
            results = [() if isinstance(atom, Literal) else given.get(atom, ()) for atom in inner.outvars]
            places.update(zip(equation.outvars, results, strict=True))
            continue
        reads = where(equation.invars)
        large = [buffer for buffer in reads if sizes[buffer] * 2 >= _bytes(equation.outvars)]
        if not name.startswith(_KEPT) and len(large) <= 1:  # computed where it is used, from what it is computed from
            places.update((variable, tuple(large)) for variable in equation.outvars)
            yield _Operation(equation, reads, ())
            continue
        writes = []
        for variable in equation.outvars:
            sizes.append(_bytes([variable]))
            places[variable] = (len(sizes) - 1,)
            writes.append(len(sizes) - 1)
        yield _Operation(equation, reads, tuple(writes))


def _programs(equation: JaxprEqn) -> Iterator[ClosedJaxpr]:
    for program in jaxprs_in_params(equation.params):
        yield program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))


def _bytes(variables: Sequence[Any]) -> float:
    return float(sum(_size(each) * getattr(each.aval.dtype, "itemsize", 4) for each in variables))
