"""The same network with derivatives that an attack can follow."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.ops import check_number, chosen, merged
from robustjax.transforms import _noise, _program
from robustjax.transforms._derivatives import SiteKey, Strength
from robustjax.transforms._inspect import KINDS, Finding, Findings
from robustjax.transforms._interpreter import Interpreter
from robustjax.types import InputError, nearest

# Kinds whose derivatives can be relaxed; the others say something of the values.
RELAXABLE = (
    "step", "integer", "detached", "custom_rule", "selection", "saturation", "callback", "inner_optimisation", "random",
)  # fmt: skip


def relax(
    function: Callable[..., Any],
    *,
    temperature: Any = 1.0,
    kinds: Collection[str | Finding] | None = None,
    loops: str = "through",
    callbacks: str = "identity",
) -> Callable[..., Any]:
    r"""The same function with useful derivatives in place of those that its program hides.

    Values stay what they are, bit for bit where XLA compiles the same operations alike: every operation is carried out
    as it is. Derivatives become

    - of rounding, ``floor``, ``ceil``, casts to integers and clamps the identity, of ``sign`` that of a tanh as wide as
      what it is given;
    - of ``stop_gradient`` the identity;
    - of remainders half of the identity, which leaves as much for the rounded number that they are subtracted from;
    - of maxima, minima and clips by a bound that hold nearly everywhere in an image, the identity;
    - of bits of a float that become a float again, that of the float, in proportion;
    - of a function whose own derivative rule disagrees with it, or is zero as it is, its own derivative;
    - of a comparison that selects between a and b with the margin m, that of

      .. math:: \sigma(m / (T s))\, a + (1 - \sigma(m / (T s)))\, b

      where T is the temperature and s the mean magnitude of the margins; where nothing says how near the other case
      is, that of a + b;
    - of an index of the largest entries, of sorting and of lookups by them, that of a softmax of the same scores;
    - of a place among sorted numbers that of a soft count of those below, and of counts in bins that of an entry
      which moves half from the bin before to the next;
    - of ``exp``, sigmoid, tanh and erf that of the same function of smaller numbers, of mean magnitude T at the most;
    - of a call into Python the identity, and an estimate by differences in random directions where no operand is like
      the result;
    - of a loop with no fixed number of iterations that of its first 64;
    - of a product with a random factor, or a random mask, that of a product with its mean, which for dropout and
      pruning at random is the identity.

    This is the surrogate of a backward-pass differentiable approximation (Athalye et al. 2018, arXiv 1802.00420), made
    from the network's own program. It composes with ``jit``, ``vmap``, ``grad`` and :func:`quicken`.

    Args:
        function: any function that JAX can trace, of arrays in any pytree. Of a ``jax.tree_util.Partial`` the arrays
            stay arguments.
        temperature: T, above 0. It may be traced.
        kinds: what is relaxed: kinds of :class:`Finding`, or findings of :func:`inspect`, of which only the lines that
            they name are relaxed. None: every kind.
        loops: "through" differentiates loops that take gradients; "around" gives their results the derivative of what
            they begin with.
        callbacks: of calls into Python "identity", where an operand is like the result, or "differences" for all.

    Returns:
        A function with the same arguments and results.

    Raises:
        InputError: for an unknown kind or way through loops or callbacks, or a temperature that is not above 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import transforms
        >>> quantised = lambda x: jnp.round(4 * x) / 4
        >>> jax.value_and_grad(transforms.relax(quantised))(0.3), jax.grad(quantised)(0.3)
        ((Array(0.25, dtype=float32...), Array(1., dtype=float32...)), Array(0., dtype=float32...))
    """
    wanted, by_name = _wanted(kinds)
    if loops not in ("through", "around"):
        raise InputError(f"loops must be through or around, got {loops!r}")
    if callbacks not in ("identity", "differences"):
        raise InputError(f"callbacks must be identity or differences, got {callbacks!r}")
    check_number("temperature", temperature, "(0, inf)")
    _program.check_function(function)
    if isinstance(function, jax.tree_util.Partial):
        inner = relax(function.func, temperature=temperature, kinds=kinds, loops=loops, callbacks=callbacks)
        return jax.tree_util.Partial(inner, *function.args, **function.keywords)
    return functools.update_wrapper(
        functools.partial(relaxed, function, wanted, temperature, loops, callbacks == "differences", by_name, False),
        function,
        updated=(),
    )


def relaxed(
    function: Callable[..., Any],
    strength_of: Callable[[SiteKey], Strength],
    temperature: Any,
    loops: str,
    differences: bool,
    check_rules: bool,
    replace: bool,
    *arguments: Any,
    **keywords: Any,
) -> Any:
    """What a function returns, with derivatives relaxed where ``strength_of`` says.

    With ``replace`` random factors there are their means, and masks of which nothing is known drop nothing, for the
    values as well.
    """
    leaves, tree = jax.tree.flatten((arguments, keywords))
    are_arrays = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]

    def of_arrays(*arrays: Any) -> Any:
        arguments, keywords = jax.tree.unflatten(tree, merged(are_arrays, arrays, leaves))
        return function(*arguments, **keywords)

    arrays = [jnp.asarray(leaf) for leaf in chosen(are_arrays, leaves)]
    program, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    interpreter = Interpreter(
        strength_of, temperature, loops=loops, differences=differences, replace=replace, check_rules=check_rules
    )
    return jax.tree.unflatten(jax.tree.structure(shape), interpreter.plain(program, *arrays))


def relaxable(findings: Findings, function: Callable[..., Any], *arguments: Any) -> tuple[Finding, ...]:
    """The findings whose derivatives become others: of random draws those that are factors or masks."""
    wanted = tuple(finding for finding in findings if finding.kind in RELAXABLE)
    if all(finding.kind != "random" for finding in wanted):
        return wanted
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    factors = _noise.draws_in_factors(program, _noise.of_arguments(program.invars))
    return tuple(finding for finding in wanted if finding.kind != "random" or finding[:3] in factors)


def has_replacements(findings: Collection[Finding], function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether :func:`relaxed` with ``replace``, where the findings are, changes values."""
    keys = {finding[:3] for finding in findings}
    program = jax.make_jaxpr(function)(*arguments)
    interpreter = Interpreter(lambda site: True if site in keys else None, 1.0, replace=True)
    jax.eval_shape(lambda *operands: interpreter.plain(program, *operands), *arguments)
    return interpreter.has_replaced


def _wanted(kinds: Collection[str | Finding] | None) -> tuple[Callable[[SiteKey], Strength], bool]:
    """What is relaxed, and whether only its kind is known: a rule may then agree with its function after all."""
    names, keys = set(), set()
    if kinds is None:
        kinds = RELAXABLE
    elif isinstance(kinds, str | Finding) or not isinstance(kinds, Iterable):
        kinds = (kinds,)
    for kind in kinds:
        if isinstance(kind, Finding):
            keys.add(kind[:3])
        elif kind in KINDS:
            names.add(kind)
        else:
            near = nearest(str(kind), RELAXABLE)
            raise InputError(f"kinds must be findings or of {', '.join(RELAXABLE)}, got {kind!r}{near}")
    return lambda key: True if key[0] in names or key in keys else None, bool(names)
