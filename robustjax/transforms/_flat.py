"""Where a bound holds: entries of a maximum, a minimum or a selection that do not move with the image.

A clip is a maximum and a minimum, each flat for some entries and both together perhaps for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from robustjax.transforms import _kinds, _noise
from robustjax.transforms._soft import is_float
from robustjax.types import Array

# The share of entries from which on a gradient counts as hidden. Half of what a ReLU is given is no less than usual.
NEARLY_ALL = 0.99


class Flat(NamedTuple):
    """A float array of which some entries do not move.

    Attributes:
        value: itself.
        mask: which entries, bool, like the value.
        bounded: what it is without bounds, like the value.
    """

    value: Array
    mask: Array
    bounded: Array


def of_result(
    equation: JaxprEqn, operands: Sequence[Any], origins: Sequence[_noise.Origin], known: dict[int, Flat], result: Any
) -> Flat | None:
    """Which entries of a result stand still though one of the operands moves; None where nothing is known.

    Args:
        equation: any.
        operands: of it, plain arrays.
        origins: of the operands.
        known: by the ``id`` of values, what is known of them.
        result: of the equation.
    """
    name = equation.primitive.name
    moving = [origin == _noise.MOVES for origin in origins]
    if name in _kinds.BOUNDS and is_float(result) and sum(moving) == 1:
        values, bound = operands[moving.index(True)], operands[moving.index(False)]
        before = known.get(id(values))
        beyond = values < bound if name == "max" else values > bound
        if before is None:
            return Flat(result, beyond, values)
        return Flat(result, beyond | before.mask, before.bounded)
    if name == "select_n" and is_float(result) and len(operands) == 3 and any(moving[1:]):
        still = [_still(case, moves, known) for case, moves in zip(operands[1:], moving[1:], strict=True)]
        return Flat(result, jnp.where(operands[0], still[1], still[0]), result)
    return None


def _still(case: Any, moves: bool, known: dict[int, Flat]) -> Array:
    before = known.get(id(case))
    if before is not None:
        return before.mask
    return jnp.full(jnp.shape(case), not moves)


def without_bounds(flat: Flat) -> Array:
    """The value, and what it is without bounds in rows of which nearly all entries stand still."""
    axes = tuple(range(1, flat.mask.ndim)) if flat.mask.ndim > 1 else None
    share = jnp.mean(flat.mask.astype(jnp.float32), axis=axes, keepdims=True)
    return jnp.where(share >= NEARLY_ALL, flat.bounded, flat.value)
