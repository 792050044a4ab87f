"""Elementwise operators, and softmax."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from robustjax.interop.onnx.node import Node, Value, aligned, namespace


def _binary(function: Callable[[Value, Value], Value]) -> Callable[..., Value]:
    """An operator of any number of values that broadcast."""

    def apply(node: Node, *values: Value) -> Value:
        return functools.reduce(function, aligned(*values))

    return apply


def _named(name: str) -> Callable[..., Value]:
    """A function of one value that NumPy and jax.numpy both have."""
    return lambda node, x: getattr(namespace(x), name)(x)


def _divide(x: Value, y: Value) -> Value:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return x / y
    xp = namespace(x, y)
    return xp.sign(x) * xp.sign(y) * (abs(x) // abs(y))  # integers are rounded towards zero


def _maximum(x: Value, y: Value) -> Value:
    return namespace(x, y).maximum(x, y)


def _minimum(x: Value, y: Value) -> Value:
    return namespace(x, y).minimum(x, y)


def _pow(node: Node, x: Value, exponent: Value) -> Value:
    if isinstance(exponent, np.ndarray | np.generic) and exponent.size == 1 and float(exponent.item()).is_integer():
        return aligned(x, exponent)[0] ** int(exponent.item())  # whose derivative is exact everywhere
    return operator.pow(*aligned(x, exponent.astype(x.dtype)))


def _mod(node: Node, x: Value, y: Value) -> Value:
    xp = namespace(x, y)
    return (xp.fmod if node.attributes.get("fmod", 0) else xp.mod)(*aligned(x, y))


def _mean(node: Node, *values: Value) -> Value:
    return functools.reduce(operator.add, aligned(*values)) / len(values)


def _where(node: Node, condition: Value, x: Value, y: Value) -> Value:
    return namespace(condition, x, y).where(*aligned(condition, x, y))


def _clip(node: Node, x: Value, *limits: Value) -> Value:
    low, high = (*limits, None, None)[:2] if node.opset >= 11 else map(node.attributes.get, ("min", "max"))
    for limit, function in ((low, _maximum), (high, _minimum)):
        x = x if limit is None else function(*aligned(x, np.asarray(limit, x.dtype) if np.isscalar(limit) else limit))
    return x


def _cast(node: Node, x: Value) -> Value:
    dtype = node.attributes["to"]
    return x.astype(dtype if namespace(x) is np else jax.dtypes.canonicalize_dtype(dtype))


def _elu(node: Node, x: Value) -> Value:
    return jax.nn.elu(x, node.attributes.get("alpha", 1.0))


def _celu(node: Node, x: Value) -> Value:
    return jax.nn.celu(x, node.attributes.get("alpha", 1.0))


def _selu(node: Node, x: Value) -> Value:
    alpha = node.attributes.get("alpha", 1.67326319217681884765625)
    return node.attributes.get("gamma", 1.05070102214813232421875) * jax.nn.elu(x, alpha)


def _leaky_relu(node: Node, x: Value) -> Value:
    return jax.nn.leaky_relu(x, node.attributes.get("alpha", 0.01))


def _thresholded_relu(node: Node, x: Value) -> Value:
    return jnp.where(x > node.attributes.get("alpha", 1.0), x, 0)


def _prelu(node: Node, x: Value, slope: Value) -> Value:
    x, slope = aligned(x, slope)
    return jnp.where(x >= 0, x, slope * x)


def _hard_sigmoid(node: Node, x: Value) -> Value:
    return jnp.clip(node.attributes.get("alpha", 0.2) * x + node.attributes.get("beta", 0.5), 0, 1)


def _gelu(node: Node, x: Value) -> Value:
    return jax.nn.gelu(x, approximate=node.attributes.get("approximate", "none") == "tanh")


def _softmax(function: Callable[..., Value]) -> Callable[[Node, Value], Value]:
    def apply(node: Node, x: Value) -> Value:
        if node.opset >= 13:
            return function(x, axis=node.attributes.get("axis", -1))
        # Older sets take all axes from this one on as one.
        return function(x, axis=tuple(range(node.attributes.get("axis", 1) % x.ndim, x.ndim)))

    return apply


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _named("abs"),
    "Add": _binary(operator.add),
    "And": _binary(operator.and_),
    "Cast": _cast,
    "Ceil": _named("ceil"),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _named("cos"),
    "Div": _binary(_divide),
    "Elu": _elu,
    "Equal": _binary(operator.eq),
    "Erf": lambda node, x: lax.erf(x),
    "Exp": _named("exp"),
    "Floor": _named("floor"),
    "Gelu": _gelu,
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda node, x: x * jnp.clip(x / 6 + 0.5, 0, 1),
    "Identity": lambda node, x: x,
    "LeakyRelu": _leaky_relu,
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "Log": _named("log"),
    "LogSoftmax": _softmax(jax.nn.log_softmax),
    "Max": _binary(_maximum),
    "Mean": _mean,
    "Min": _binary(_minimum),
    "Mish": lambda node, x: x * jnp.tanh(jax.nn.softplus(x)),
    "Mod": _mod,
    "Mul": _binary(operator.mul),
    "Neg": _named("negative"),
    "Not": _named("logical_not"),
    "Or": _binary(operator.or_),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": lambda node, x: 1 / x,
    "Relu": lambda node, x: jax.nn.relu(x),
    "Round": _named("round"),
    "Selu": _selu,
    "Sigmoid": lambda node, x: jax.nn.sigmoid(x),
    "Sign": _named("sign"),
    "Sin": _named("sin"),
    "Softmax": _softmax(jax.nn.softmax),
    "Softplus": lambda node, x: jax.nn.softplus(x),
    "Softsign": lambda node, x: x / (1 + abs(x)),
    "Sqrt": _named("sqrt"),
    "Sub": _binary(operator.sub),
    "Sum": _binary(operator.add),
    "Tanh": _named("tanh"),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _binary(operator.xor),
}
