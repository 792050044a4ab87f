"""What in a network's program hides gradients or makes it random, each with the user's own line."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from robustjax.ops import chosen, merged
from robustjax.transforms import _kinds, _observed, _program, _rules, _source
from robustjax.types import InputError

# Kind -> what it hides.
KINDS = {
    "step": "zero gradient",
    "detached": "no gradient",
    "custom_rule": "another function's gradient",
    "selection": "jumps, or a gradient of the selected part alone",
    "saturation": "vanishing gradient",
    "random": "noise",
    "callback": "no gradient",
    "inner_optimisation": "a long chain, or no gradient",
    "batch_dependent": "other images",
    "integer": "zero gradient",
    "precision": "rounding",
    "unknown": "what it does is not known",
}
_REMEDIES = {
    "step": "the identity in its derivative's place; of sign that of a tanh",
    "detached": "the derivative that is stopped here",
    "custom_rule": "the function's own derivative, which its rule disagrees with",
    "selection": "both cases mixed by a sigmoid of the margin, indices by a softmax of the scores",
    "saturation": "a larger temperature in the derivative",
    "callback": "the identity in its derivative's place, or differences",
    "inner_optimisation": "the derivative through the loop; images of the network without it",
    "batch_dependent": "statistics that do not depend on the batch, as in inference mode",
    "integer": "the identity in its derivative's place",
    "precision": "float32, in which attacks take their gradients",
    "unknown": "a surrogate_fn, if it hides a gradient",
}
_BY_KEY = "Hints(stochastic=True): gradients averaged over draws of the key, and random factors by their mean"
_UNDECLARED = (
    "undeclared randomness: the draws depend on no argument, so that every call of this trace has the same and another "
    "trace may have others; take a key as an argument"
)
_OF_IMAGE = "undeclared randomness: the draws depend on the image alone; take a key as an argument"


HEADINGS = ("kind", "operation", "where", "count", "hides", "remedy")


class Finding(NamedTuple):
    """One of the things in a network's program that hide gradients or make it random.

    Attributes:
        kind: of the table in :func:`inspect`.
        primitive: JAX's name of the operation.
        where: the user's own line, as "file.py:12 (function)".
        count: operations alike at that line.
        remedy: what an attack does about it.
    """

    kind: str
    primitive: str
    where: str
    count: int
    remedy: str


class Findings(tuple[Finding, ...]):
    """Findings in the order of the program; prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "nothing hides a gradient"
        rows = [HEADINGS, *map(cells, self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>{self}</p>"
        line = lambda row, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)  # noqa: E731
        rows = "".join(f"<tr>{line(cells(each), 'td')}</tr>" for each in self)
        return f"<table><tr>{line(HEADINGS, 'th')}</tr>{rows}</table>"


def inspect(function: Callable[..., Any], *arguments: Any) -> Findings:
    """Reads a network's program for what hides gradients from an attack, or makes the network random.

    The program is what JAX traces, whatever library wrote the network. Only operations through which the outputs depend
    on the image count, also those within ``jit``, loops, conditionals, checkpoints and functions with derivative rules.

    Kinds:

    - ``step``: ``round``, ``floor``, ``ceil``, ``sign``, remainders
    - ``integer``: casts of floats to integers, or of their bits
    - ``detached``: ``stop_gradient``, where the gradient is another without it
    - ``custom_rule``: ``custom_jvp`` and ``custom_vjp`` whose rule disagrees with the function's own derivative
    - ``selection``: ``where`` that jumps, clamps of most values, bounds that leave no gradient, casts of comparisons,
      indices of the largest
    - ``saturation``: exponentials and sigmoids of such large numbers that half of their derivatives vanish
    - ``random``: random bits that reach the outputs
    - ``callback``: calls into Python
    - ``inner_optimisation``: loops without a fixed number of iterations, and loops that take gradients
    - ``batch_dependent``: sums, means and the like over the images of a batch, where the outputs depend on it
    - ``precision``: casts to shorter floats
    - ``unknown``: operations that JAX does not define

    What only looks like hiding is left out by numbers and not by names: the program is evaluated at the arguments where
    one of detached, selection or saturation is in question (a softmax stops the gradient of its largest entry, which
    changes nothing; a leaky ReLU selects between cases that agree where it changes from one to the other), and rules
    are compared with derivatives at random operands. A network of convolutions, BatchNorm, ReLU and max-pooling has no
    finding. A finding is no accusation: whether a gradient is hidden to any effect is for an attack to say.

    Args:
        function: images -> logits, or outputs with a field ``logits``, or any pytree; may take more, such as a key.
        *arguments: those it is traced with; the first are the images, of which two are enough.

    Returns:
        :class:`Findings`, a tuple.

    Raises:
        InputError: ``function`` cannot be called, or the first of the arguments holds no array.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def logits_fn(images):
        ...     return jnp.round(8 * images).reshape(len(images), -1)
        >>> (finding,) = inspect(logits_fn, jnp.full((2, 2, 2, 1), 0.3))
        >>> finding.kind, finding.primitive, finding.where.split(" ")[-1]
        ('step', 'round', '(logits_fn)')
        >>> inspect(lambda images: jax.nn.relu(images), jnp.full((2, 2, 2, 1), 0.3))
        nothing hides a gradient
    """
    _program.check_function(function)
    leaves, tree = jax.tree.flatten(arguments)
    are_arrays = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    arrays = [jnp.asarray(leaf) for leaf in chosen(are_arrays, leaves)]
    num_images = sum(are_arrays[: len(jax.tree.leaves(arguments[:1]))])
    if not num_images:
        got = type(arguments[0]).__name__ if arguments else "nothing"
        raise InputError(f"images must be an array, got {got}; give inspect(function, images), of which two are enough")

    def of_arrays(*arrays: Any) -> Any:
        outputs = function(*jax.tree.unflatten(tree, merged(are_arrays, arrays, leaves)))
        return getattr(outputs, "logits", outputs)

    program = jax.make_jaxpr(of_arrays)(*arrays)
    depends = [_kinds.IMAGE if i < num_images else _kinds.ARGUMENT for i in range(len(arrays))]
    needed = [jnp.issubdtype(aval.dtype, jnp.floating) for aval in program.out_avals]
    batch = next((array.shape[0] for array in arrays[:num_images] if array.ndim), 0)
    sites = _kinds.sites(program, depends, needed, batch)
    sites = _without_honest_rules(sites)
    keys = {site.key for site in sites} - _observed.harmless(program, arrays, num_images, {site.key for site in sites})
    findings = _findings(site for site in sites if site.key in keys)
    return Findings([*findings, *_constants_that_vary(program, of_arrays, arrays)])


def _without_honest_rules(sites: Sequence[_kinds.Site]) -> list[_kinds.Site]:
    """The sites without the rules that agree with their functions."""
    verdicts: dict[Any, bool] = {}

    def disagrees(site: _kinds.Site) -> bool:
        name = _rules.name_of(site.equation)
        if name not in verdicts:
            verdicts[name] = _rules.compare(site.equation, site.closed_over).disagrees
        return verdicts[name]

    return [site for site in sites if site.kind != "custom_rule" or disagrees(site)]


def _findings(sites: Iterable[_kinds.Site]) -> list[Finding]:
    counted: dict[tuple[str, str, str], list[_kinds.Site]] = {}
    for site in sites:
        counted.setdefault(site.key, []).append(site)
    return [Finding(*key, len(some), _remedy(some[0])) for key, some in counted.items()]


def _remedy(site: _kinds.Site) -> str:
    if site.primitive in ("clamp", *_kinds.BOUNDS):
        return _REMEDIES["integer"]
    if site.kind != "random":
        return _REMEDIES[site.kind]
    if site.depends & _kinds.ARGUMENT:
        return _BY_KEY
    return _OF_IMAGE if site.depends & _kinds.IMAGE else _UNDECLARED


def _constants_that_vary(program: ClosedJaxpr, function: Callable[..., Any], arrays: list[Any]) -> list[Finding]:
    """Draws of Python or NumPy, which a trace keeps as constants: those that another trace has otherwise."""
    again = jax.make_jaxpr(lambda *arrays: function(*arrays))(*arrays)  # JAX keeps the trace of the same function
    if len(again.consts) != len(program.consts):
        return []
    found = []
    for var, one, other in zip(program.jaxpr.constvars, program.consts, again.consts, strict=True):
        if one is other or np.shape(one) != np.shape(other) or not jnp.issubdtype(var.aval.dtype, jnp.number):
            continue
        one, other = np.asarray(one), np.asarray(other)
        if not np.array_equal(one, other, equal_nan=jnp.issubdtype(one.dtype, jnp.inexact)):
            uses = (each for each in program.jaxpr.eqns if var in each.invars)
            line = next((_source.line_of(each, None) for each in uses), _source.UNKNOWN)
            found.append(Finding("random", "constant", line, 1, _UNDECLARED))
    return found


def cells(finding: Finding) -> tuple[str, ...]:
    """A finding as a row of a table under ``HEADINGS``."""
    return finding.kind, finding.primitive, finding.where, str(finding.count), KINDS[finding.kind], finding.remedy
