"""Which sites of a program hide nothing, by what the program computes at given arguments."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, get_opaque_trace_state

from robustjax.transforms import _kinds
from robustjax.transforms._derivatives import SiteKey
from robustjax.transforms._flat import NEARLY_ALL, Flat
from robustjax.transforms._interpreter import Interpreter
from robustjax.transforms._soft import Soft, value_of
from robustjax.types import Array

# A gradient that changes by less than this share of its length is the same.
SAME_GRADIENT = 1e-3
# Outputs that differ by less than this share of the largest are the same.
SAME_OUTPUT = 1e-4
# The share of entries that must be saturated, or clamped.
MOST = 0.5
# Where a derivative counts as vanished, as a share of its largest value; of an exponential, the value itself.
VANISHED = 1e-4
VANISHED_EXPONENTIAL = 1e-12


def harmless(program: ClosedJaxpr, arrays: list[Any], num_images: int, keys: Set[SiteKey]) -> set[SiteKey]:
    """Those of the sites that hide nothing at these arguments.

    Args:
        program: of the network.
        arrays: its arguments, the first ``num_images`` of which are images.
        keys: of all its sites.
    """
    found = _harmless_values(program, arrays, num_images, keys) | _harmless_mixtures(program, arrays, num_images, keys)
    return found | _harmless_stops(program, arrays, num_images, keys - found)


def _harmless_values(program: ClosedJaxpr, arrays: list[Any], num_images: int, keys: Set[SiteKey]) -> set[SiteKey]:
    """Selections between cases that agree where one follows the other, and what is not saturated."""
    asked = {key for key in keys if key[0] == "saturation" or key[1] in ("select_n", "clamp", *_kinds.BOUNDS)}
    if not asked:
        return set()
    names: list[SiteKey] = []
    names_of_flat: list[SiteKey] = []

    @jax.jit
    def observed(*arrays: Any) -> tuple[list[Array], list[Array]]:
        names.clear()
        names_of_flat.clear()
        measured: list[Array] = []
        flats: list[Array] = []

        def observe(key: SiteKey, equation: JaxprEqn, operands: list[Any], flat: Flat | None) -> None:
            if key not in asked or _depth() != depth:
                return
            if flat is not None:
                names_of_flat.append(key)
                flats.append(jnp.mean(flat.mask.astype(jnp.float32)) >= NEARLY_ALL)
            value = _measure(equation, operands)
            if value is not None:
                names.append(key)
                measured.append(value)

        depth = _depth()
        Interpreter(lambda key: None, 1.0, observe=observe).plain(program, *arrays)
        return measured, flats

    hidden: dict[SiteKey, bool] = {}
    values, flats = observed(*arrays)
    for key, value in zip(names, values, strict=True):
        hidden[key] = hidden.get(key, False) or bool(value)
    flat = {key for key, each in zip(names_of_flat, flats, strict=True) if each} - {k for k, v in hidden.items() if v}
    if _hides_everything(program, arrays, num_images, flat, keys):
        hidden.update(dict.fromkeys(flat, True))
    # Of selections that could not be observed nothing is known; saturation is only what was seen.
    unseen = {key for key in asked if key[1] != "select_n"} - set(hidden)
    return unseen | {key for key, hides in hidden.items() if not hides}


def _harmless_mixtures(program: ClosedJaxpr, arrays: list[Any], num_images: int, keys: Set[SiteKey]) -> set[SiteKey]:
    """Operations over a first axis that is not the images': the first output stays if all other images change."""
    asked = {key for key in keys if key[0] == "batch_dependent"}
    if not asked:
        return set()
    run = jax.jit(lambda *arrays: Interpreter(lambda key: None, 1.0).plain(program, *arrays))
    others = [array.at[1:].set(0.5 * array[1:] + 0.1) if i < num_images and array.ndim else array
              for i, array in enumerate(arrays)]  # fmt: skip
    for one, other in zip(run(*arrays), run(*others), strict=True):
        if one.ndim and jnp.issubdtype(one.dtype, jnp.floating):
            first, second = (np.asarray(each[0].astype(jnp.float32)) for each in (one, other))
            if np.max(np.abs(first - second)) > SAME_OUTPUT * max(np.max(np.abs(first)), 1e-30):
                return set()
    return asked


def _depth() -> Any:
    """Differs between the program itself and the loops in it, whose values cannot be had from outside."""
    return get_opaque_trace_state()


def _measure(equation: JaxprEqn, operands: list[Any]) -> Array | None:
    """Whether it hides a gradient, bool []; None where that cannot be told."""
    name = equation.primitive.name
    if name == "select_n":
        return _jumps(operands) if len(operands) == 3 and isinstance(operands[0], Soft) else None
    if name in _kinds.BOUNDS:
        return None
    values = [value_of(each) for each in operands]
    if name == "clamp":
        low, inside, high = values
        return jnp.mean(((inside <= low) | (inside >= high)).astype(jnp.float32)) >= MOST
    return jnp.mean((_slope(name, values[0].astype(jnp.float32))).astype(jnp.float32)) >= MOST


def _slope(name: str, values: Array) -> Array:
    """Where the derivative has vanished, bool."""
    if name in ("exp", "exp2"):
        return jnp.exp(values) < VANISHED_EXPONENTIAL
    slope = {
        "logistic": lambda x: 4.0 * jax.nn.sigmoid(x) * jax.nn.sigmoid(-x),
        "tanh": lambda x: 1.0 - jnp.tanh(x) ** 2,
        "erf": lambda x: jnp.exp(-(x**2)),
    }[name](values)
    return slope < VANISHED


def _jumps(operands: list[Any]) -> Array:
    """Whether the cases of a selection differ where the predicate is about to change.

    Of cases that meet there, the difference vanishes with the margin.
    """
    predicate, *cases = operands
    values = [jnp.asarray(value_of(each)) for each in cases]
    if not jnp.issubdtype(values[0].dtype, jnp.floating):
        return jnp.any(jnp.isfinite(predicate.margin))
    jump = jnp.abs(values[1].astype(jnp.float32) - values[0].astype(jnp.float32)).ravel()
    margin = jnp.broadcast_to(predicate.margin, values[0].shape).ravel()
    usual = jnp.isfinite(jump) & jnp.isfinite(margin)
    jump, margin = jnp.where(usual, jump, 0.0), jnp.where(usual, margin, jnp.inf)
    near = usual & (margin <= jnp.nanquantile(jnp.where(usual, margin, jnp.nan), 0.02))

    def mean(array: Array, some: Array) -> Array:
        return jnp.sum(jnp.where(some, array, 0.0)) / jnp.maximum(jnp.sum(some.astype(jnp.float32)), 1.0)

    ratio_of_jumps = mean(jump, near) / jnp.maximum(mean(jump, usual), 1e-30)
    ratio_of_margins = mean(margin, near) / jnp.maximum(mean(margin, usual), 1e-30)
    infinite = jnp.any(~jnp.isfinite(values[0]) | ~jnp.isfinite(values[1])) & jnp.any(jnp.isfinite(predicate.margin))
    return (ratio_of_jumps > 3.0 * ratio_of_margins + 1e-3) | infinite


def _harmless_stops(program: ClosedJaxpr, arrays: list[Any], num_images: int, keys: Set[SiteKey]) -> set[SiteKey]:
    """Stopped gradients whose absence changes no gradient: each alone, and each where no other is stopped."""
    stops = sorted(key for key in keys if key[0] == "detached")
    if not stops:
        return set()
    # Whatever else hides gradients is relaxed, for behind it nothing would show.
    at = _gradients(program, arrays, num_images, stops, keys)
    count = len(stops)
    try:
        none, every = at(*[0.0] * count), at(*[1.0] * count)
    except (TypeError, ValueError, NotImplementedError):  # of what JAX cannot differentiate, nothing can be said
        return set()
    if count == 1:
        return set(stops) if _same(none, every) else set()
    return {
        key
        for i, key in enumerate(stops)
        if _same(at(*[float(j == i) for j in range(count)]), none)
        and _same(at(*[float(j != i) for j in range(count)]), every)
    }


def _hides_everything(
    program: ClosedJaxpr, arrays: list[Any], num_images: int, flat: Set[SiteKey], keys: Set[SiteKey]
) -> bool:
    """Whether there is no gradient at all as long as these are not relaxed, and one if they are.

    A stable form of a function may well hold a bound that is flat beside a term that is not.
    """
    if not flat:
        return False
    at = _gradients(program, arrays, num_images, sorted(flat), keys)
    try:
        return not np.any(at(*[0.0] * len(flat))) and bool(np.any(at(*[1.0] * len(flat))))
    except (TypeError, ValueError, NotImplementedError):
        return False


def _gradients(
    program: ClosedJaxpr, arrays: list[Any], num_images: int, some: list[SiteKey], keys: Set[SiteKey]
) -> Callable[..., np.ndarray]:
    """Of how much each of some sites is relaxed: the gradient of a random sum of the outputs by all images, with the
    other sites relaxed."""
    images = [array for array in arrays[:num_images] if jnp.issubdtype(array.dtype, jnp.floating)]
    moving = [i < num_images and jnp.issubdtype(array.dtype, jnp.floating) for i, array in enumerate(arrays)]

    @jax.jit
    def gradient(images: list[Array], strengths: Array) -> Array:
        def strength_of(key: SiteKey) -> Any:
            if key in some:
                return strengths[some.index(key)]
            return True if key in keys and key[0] not in ("saturation", "random") else None

        def total(images: list[Array]) -> Array:
            each = iter(images)
            given = [next(each) if moves else array for moves, array in zip(moving, arrays, strict=True)]
            outputs = Interpreter(strength_of, 1.0).plain(program, *given)
            generator = np.random.default_rng(0)
            floats = [each.astype(jnp.float32) for each in outputs if jnp.issubdtype(each.dtype, jnp.floating)]
            weights = [jnp.asarray(generator.normal(size=each.shape), jnp.float32) for each in floats]
            return sum(map(jnp.vdot, weights, floats), jnp.float32(0.0))

        return jnp.concatenate([each.ravel().astype(jnp.float32) for each in jax.grad(total)(images)])

    return lambda *strengths: np.asarray(gradient(images, jnp.asarray(strengths, jnp.float32)))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    finite = np.isfinite(one) & np.isfinite(other)
    longest = max(np.linalg.norm(one[finite]), np.linalg.norm(other[finite]), 1e-30)
    return bool(finite.all() and np.linalg.norm(one - other) <= SAME_GRADIENT * longest)
