"""What in a program may hide gradients or make it random, read off its equations alone: nothing is computed here.

Only what lies on a path from the image to the outputs counts. Which equations the outputs depend on is what JAX's own
elimination of dead code leaves; which depend on the image is followed here, through programs within the program.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jax.interpreters import partial_eval

from robustjax.layers import quick
from robustjax.ops import chosen
from robustjax.transforms import _program, _rules, _source
from robustjax.transforms._finite import FINITE
from robustjax.transforms._source import Place

# What a value depends on, as bits: the image; any other argument; random bits.
IMAGE, ARGUMENT, RANDOM = 1, 2, 4

STEPS = ("round", "floor", "ceil", "sign")
SATURATING = ("exp", "exp2", "logistic", "tanh", "erf")
DRAWS = (
    "random_bits", "quick_random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform", "random_gamma",
)  # fmt: skip
CALLBACKS = ("pure_callback", "io_callback", "buffer_callback", "ffi_call")
CUSTOM = ("custom_jvp_call", "custom_vjp_call")
CALLS = ("jit", "pjit", "closed_call", "core_call", "call", "checkpoint", "remat", "remat2", *CUSTOM)
BOUNDS = ("max", "min")
INDEX_OF_LARGEST = ("argmax", "argmin")
# An operation that is a class, as jax 0.12 has them, and the one that is a binary search, before that a call of the
# function of this name.
CLASS, SEARCH = "call_hi_primitive", "SearchSorted"
# Of JAX, but what they compute is not followed.
OPAQUE = (
    "pallas_call", "shard_map", "custom_partitioning", "tpu_custom_call", "linear_call", "custom_transpose_call",
)  # fmt: skip
# What the index of a conditional is made of.
_FOLDED = (
    "clamp", "convert_element_type", "max", "min", "add", "sub", "not", "and", "or", "eq", "ne", "lt", "gt", "copy",
)  # fmt: skip


class Site(NamedTuple):
    """An equation that may hide a gradient.

    Attributes:
        kind: of :class:`robustjax.transforms.Finding`.
        primitive: its name.
        where: the user's line.
        equation: itself.
        depends: bits of what it depends on.
        closed_over: of a rule of derivatives the arrays that its function closes over, None where they are computed.
    """

    kind: str
    primitive: str
    where: str
    equation: JaxprEqn
    depends: int
    closed_over: tuple[Any, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """Sites alike in this are one finding."""
        return self.kind, self.primitive, self.where


def kind_of(equation: JaxprEqn) -> str | None:
    """What an equation may hide, or None, whatever its operands depend on."""
    name = equation.primitive.name
    if name in STEPS or (name == "rem" and jnp.issubdtype(_aval(equation.outvars[0]).dtype, jnp.floating)):
        return "step"
    if name == "stop_gradient":
        return "detached"
    if name == "convert_element_type":
        return _kind_of_cast(_aval(equation.invars[0]), _aval(equation.outvars[0]).dtype)
    if name == "reduce_precision":
        return "precision"
    if name == "bitcast_convert_type":
        return "integer"
    if name == CLASS:
        return "selection" if type(equation.params.get("_prim")).__name__ == SEARCH else "unknown"
    if name in (*INDEX_OF_LARGEST, "cond"):
        return "selection"
    if name in ("select_n", "clamp"):
        numbers = jnp.number if name == "select_n" else jnp.floating
        return "selection" if jnp.issubdtype(_aval(equation.outvars[0]).dtype, numbers) else None
    if name in BOUNDS:
        return "selection" if jnp.issubdtype(_aval(equation.outvars[0]).dtype, jnp.floating) else None
    if name in ("sort", "top_k", "approx_top_k") and any(_is_integer(var) for var in equation.outvars):
        return "selection"
    if name in SATURATING:
        return "saturation"
    if name in CUSTOM:
        return "custom_rule"
    if name in CALLBACKS:
        return "callback"
    if name in ("while", "scan"):
        return "inner_optimisation"
    if name in DRAWS:
        return "random"
    return None if name not in OPAQUE and _is_known(equation.primitive, len(sys.modules)) else "unknown"


def _is_known(primitive: Primitive, num_modules: int) -> bool:
    """Whether JAX or this library defines it."""
    ours = (FINITE, *(each for each, _ in quick.QUICK.values()))
    return primitive in _defined(num_modules) or primitive in ours


@functools.lru_cache(maxsize=4)
def _defined(num_modules: int) -> frozenset[Primitive]:
    """The primitives of all loaded modules of JAX; ``num_modules`` because others may be by the next call."""
    del num_modules
    modules = [module for name, module in list(sys.modules.items()) if name.split(".")[0] == "jax"]
    values = (value for module in modules for value in list(vars(module).values()))
    return frozenset(value for value in values if isinstance(value, Primitive))


def _kind_of_cast(given: Any, new: Any) -> str | None:
    old = given.dtype
    floating = [jnp.issubdtype(dtype, jnp.floating) for dtype in (old, new)]
    if all(floating):
        return "precision" if jnp.finfo(new).bits < jnp.finfo(old).bits else None
    if floating[0]:  # a complex number keeps the whole of a real one
        return None if jnp.issubdtype(new, jnp.complexfloating) else "integer"
    # An integer that is no array is what a conditional is given, which is a site itself.
    return "selection" if old == jnp.bool_ and (given.ndim or jnp.issubdtype(new, jnp.floating)) else None


def _aval(atom: Any) -> Any:
    """Shape and dtype."""
    return atom.aval


def _is_whole(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.integer) or var.aval.dtype == jnp.bool_


def _is_integer(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.integer)


def sites(program: ClosedJaxpr, depends: Sequence[int], needed: Sequence[bool], num_images: int) -> list[Site]:
    """Every site on a path from the image to the outputs, in the order of the program.

    Args:
        program: of the network.
        depends: bits of each argument.
        needed: which of its results count.
        num_images: in the batch. An operation over a first axis of so many may mix them: a site "batch_dependent".
    """
    jaxpr, used_consts, used = partial_eval.dce_jaxpr_consts(program.jaxpr, tuple(needed))
    found: list[Site] = []
    reader = _Reader(found.append, num_images)
    reader.know(jaxpr.constvars, chosen(used_consts, program.consts))
    reader.read(jaxpr, chosen(used, depends), None)
    return found


class _Reader:
    """Follows what values depend on; ``add`` is given each site."""

    def __init__(self, add: Callable[[Site], None], num_images: int):
        self._add, self._num_images = add, num_images
        self._silent = 0
        # What is the same in every call: it says which branch of a conditional is taken, and what a rule closes over.
        self._known: dict[Any, Any] = {}

    def know(self, variables: Sequence[Any], values: Sequence[Any]) -> None:
        """Sets what is known; a program that JAX keeps is read again for each call, so that other calls' goes."""
        for var, value in zip(variables, values, strict=True):
            if value is not None:
                self._known[var] = value
            else:
                self._known.pop(var, None)

    def _entered(self, program: Jaxpr | ClosedJaxpr, atoms: Sequence[Any]) -> Jaxpr:
        """A program within the program, its constants known, and its first arguments as they are where it is called.

        Of the others nothing is known, as of what changes from turn to turn of a loop.
        """
        jaxpr, consts = (program.jaxpr, program.consts) if isinstance(program, ClosedJaxpr) else (program, ())
        values = [self._value_of(atom) for atom in atoms]
        self.know(jaxpr.constvars, consts)
        self.know(jaxpr.invars, values + [None] * (len(jaxpr.invars) - len(values)))
        return jaxpr

    def _value_of(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else self._known.get(atom)

    def read(self, jaxpr: Jaxpr, depends: Sequence[int], place: Place | None) -> list[int]:
        """The bits of a program's results; ``place`` is where it was called."""
        bits: dict[Any, int] = dict.fromkeys(jaxpr.constvars, 0)
        bits.update(zip(jaxpr.invars, depends, strict=True))
        of = lambda atom: 0 if isinstance(atom, Literal) else bits[atom]  # noqa: E731
        for equation in jaxpr.eqns:
            given = [of(atom) for atom in equation.invars]
            self._fold(equation)
            for var, value in zip(equation.outvars, self._results(equation, given, place), strict=True):
                bits[var] = value
        return [of(atom) for atom in jaxpr.outvars]

    def _results(self, equation: JaxprEqn, given: list[int], place: Place | None) -> Sequence[int]:
        every = _union(given)
        self._note(equation, given, every, place)
        name, params = equation.primitive.name, equation.params
        if name in CALLS:
            key = next(each for each in ("jaxpr", "call_jaxpr") if each in params)
            within = self._entered(params[key], equation.invars)
            return self.read(within, given, _source.within(equation, place, key))
        if name == "scan":
            return self._scan(equation, given, _source.within(equation, place))
        if name == "while":
            return self._while(equation, given, _source.within(equation, place))
        if name == "cond":
            inner = _source.within(equation, place)
            taken = self._value_of(equation.invars[0])
            branches = params["branches"] if taken is None else [params["branches"][int(taken)]]
            results = [self.read(self._entered(each, equation.invars[1:]), given[1:], inner) for each in branches]
            return [given[0] | _union(each) for each in zip(*results, strict=True)]
        return [every | (RANDOM if name in DRAWS else 0)] * len(equation.outvars)

    def _fold(self, equation: JaxprEqn) -> None:
        """Learns the results of arithmetic on known integers."""
        self.know(equation.outvars, [None] * len(equation.outvars))
        values = [self._value_of(atom) for atom in equation.invars]
        whole = all(_is_whole(var) and not _aval(var).ndim for var in equation.outvars)
        if whole and values and equation.primitive.name in _FOLDED and all(value is not None for value in values):
            with jax.ensure_compile_time_eval():
                self.know(equation.outvars, [_program.bind(equation, *map(jnp.asarray, values))])

    def _scan(self, equation: JaxprEqn, given: list[int], place: Place | None) -> list[int]:
        params = equation.params
        num_consts, count = _program.scan_counts(params)
        consts, carry, inputs = _split(given, num_consts, count)
        body = self._entered(params["jaxpr"], equation.invars[:num_consts])
        turn = lambda carry: self.read(body, [*consts, *carry, *inputs], place)  # noqa: E731
        return turn(self._settled(lambda carry: turn(carry)[:count], carry))

    def _while(self, equation: JaxprEqn, given: list[int], place: Place | None) -> list[int]:
        params = equation.params
        counts = params["cond_nconsts"], params["body_nconsts"]
        of_cond, of_body, carry = _split(given, *counts)
        cond_consts, body_consts, _ = _split(equation.invars, *counts)
        cond = self._entered(params["cond_jaxpr"], cond_consts)
        body = self._entered(params["body_jaxpr"], body_consts)

        def step(carry: list[int]) -> list[int]:
            (goes_on,) = self.read(cond, [*of_cond, *carry], place)
            return [goes_on | bits for bits in self.read(body, [*of_body, *carry], place)]

        carry = self._settled(step, carry)
        return step(carry)

    def _settled(self, step: Callable[[list[int]], Sequence[int]], carry: list[int]) -> list[int]:
        """The bits of a loop's carry after any number of turns."""
        self._silent += 1
        while True:
            grown = [old | new for old, new in zip(carry, step(carry), strict=True)]
            if grown == carry:
                self._silent -= 1
                return carry
            carry = grown

    def _note(self, equation: JaxprEqn, given: list[int], every: int, place: Place | None) -> None:
        kind = "batch_dependent" if _is_over(equation, self._num_images) else kind_of(equation)
        if self._silent or kind is None or (kind != "random" and not every & IMAGE):
            return
        name = equation.primitive.name
        if name in ("select_n", "cond") and not given[0] & IMAGE:
            return  # what is selected does not depend on the image
        if name == "select_n" and _is_integer(equation.outvars[0]) and all(bits & IMAGE for bits in given[1:]):
            return  # an index from the end in place of a negative one
        if name == "clamp" and not given[1] & IMAGE:
            return
        if name in BOUNDS and all(bits & IMAGE for bits in given):
            return  # the larger of two features, as in pooling
        if name == "rem" and not given[0] & IMAGE:
            return  # of its divisor the derivative is no less than its own
        if name == "while" and not any(jnp.issubdtype(_aval(var).dtype, jnp.floating) for var in equation.outvars):
            return
        if name == "scan" and not _takes_gradients(equation.params["jaxpr"].jaxpr):
            return
        closed_over = equation.invars[: _rules.num_closed_over(equation)]
        known = tuple(map(self._value_of, closed_over))
        self._add(Site(kind, name, _source.line_of(equation, place), equation, every, known))


def _is_over(equation: JaxprEqn, count: int) -> bool:
    """Whether an operation is over a first axis of this length."""
    if not equation.primitive.name.startswith(("reduce_", "arg", "cum")) or "precision" in equation.primitive.name:
        return False
    axes = equation.params.get("axes", (equation.params.get("axis"),))
    return 0 in axes and _aval(equation.invars[0]).shape[:1] == (count,)


def _takes_gradients(jaxpr: Jaxpr) -> bool:
    """Whether a program holds equations that come of differentiating another in reverse."""
    for equation in jaxpr.eqns:
        if "transpose(" in str(equation.source_info.name_stack):
            return True
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else (value,):
                within = getattr(each, "jaxpr", each)
                if isinstance(within, Jaxpr) and _takes_gradients(within):
                    return True
    return False


def _union(values: Sequence[int]) -> int:
    total = 0
    for value in values:
        total |= value
    return total


def _split(values: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
    return values[:first], values[first : first + second], values[first + second :]
