"""What the ONNX operators share: a node, and values that may be known before a program is traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from robustjax.types import InputError

Value = Any  # a jax.Array where it depends on the image, else a NumPy array; None where an input is left out


class Node(NamedTuple):
    """One step of a network.

    Attributes:
        operator: a key of ``operators.OPERATORS``.
        name: for messages.
        inputs, outputs: names of values; empty where one is left out.
        attributes: by name; tensors as NumPy arrays, ``to`` as a dtype.
        opset: version of the operators.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    opset: int


def namespace(*values: Value) -> Any:
    """NumPy if all values are known already, else jax.numpy."""
    return np if all(isinstance(value, np.ndarray | np.generic) for value in values) else jnp


def known(value: Value, what: str) -> np.ndarray:
    if not isinstance(value, np.ndarray | np.generic):
        raise InputError(f"{what} must not depend on the image")
    return np.asarray(value)


def option(node: Node, given: Sequence[Value], name: str, default: Any = None) -> Any:
    """A list or number that is an attribute in older operator sets and the input ``given`` in newer ones."""
    if given and given[0] is not None:
        return known(given[0], name).tolist()
    return node.attributes.get(name, default)


def aligned(*values: Value) -> list[Value]:
    """Values of one rank, with new axes in front, as ONNX broadcasts them."""
    rank = max(value.ndim for value in values)
    to_array = namespace(*values).asarray
    return [to_array(value).reshape((1,) * (rank - value.ndim) + value.shape) for value in values]


def per_channel(values: Value, rank: int) -> Value:
    """[C] as [1, C, 1, ...]."""
    return values.reshape(1, -1, *[1] * (rank - 2))
