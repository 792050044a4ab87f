"""An ONNX file as nodes, constants and weights, checked; nothing is computed yet."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from robustjax.interop.onnx import elementwise, layers, shapes
from robustjax.interop.onnx.node import Node, Value
from robustjax.runtime import files
from robustjax.types import InputError

OPERATORS = elementwise.OPERATORS | layers.OPERATORS | shapes.OPERATORS
# Before, operators say by attributes how they broadcast; what a later set will mean is not known.
OLDEST_OPSET, NEWEST_OPSET = 7, 28

_OWN_DOMAIN = ("", "ai.onnx")


class Graph(NamedTuple):
    """A network.

    Attributes:
        path: of its file, for messages.
        nodes: in the order in which they are computed.
        weights: floats with more than one element, by name.
        constants: all other arrays.
        input, output: names of the image and of the logits.
        dims: sizes of the input's axes, None where it is left open.
        dtype: of the input.
    """

    path: str
    nodes: tuple[Node, ...]
    weights: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    input: str
    output: str
    dims: tuple[int | None, ...]
    dtype: np.dtype

    def compute(self, weights: dict[str, Value], x: Value) -> Value:
        """The output for an input of the shape and dtype that the file declares."""
        values = {"": None, **self.constants, **weights, self.input: x}
        for node in self.nodes:
            with _blaming(self.path, node):
                results = OPERATORS[node.operator](node, *(values[name] for name in node.inputs))
                values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False))
        return values[self.output]


def load(path: str | Path) -> Graph:
    """Reads a file and refuses what it cannot compute.

    Raises:
        InputError: there is no such file, it is not an ONNX file, or damaged, or it holds other operators, several
            inputs or outputs, or inputs that are not floats.
    """
    path = files.place(path)
    if not path.is_file():
        raise InputError(f"{path} must be an ONNX file, got none there; give the path of a .onnx file")
    try:
        import onnx
        import onnx.inliner
    except ImportError as error:
        raise InputError(f"{path} is read by the package onnx, which is not installed; pip install onnx") from error
    try:
        model = onnx.load(path)  # and the weights beside it, where they lie in a file of their own
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _check_operators(model, path)
        onnx.checker.check_model(model)
        return _graph(onnx, model, path)
    except InputError:
        raise
    except Exception as error:  # protobuf and the checker raise whatever a file leads them to
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} must be a whole ONNX file, got one that is not ({type(error).__name__}: {reason})"
        ) from error


def _check_operators(model: Any, path: Path) -> None:
    for opset in model.opset_import:
        if opset.domain in _OWN_DOMAIN and not OLDEST_OPSET <= opset.version <= NEWEST_OPSET:
            raise InputError(
                f"{path} must have operators of set {OLDEST_OPSET} to {NEWEST_OPSET}, got {opset.version}; export it "
                "with another opset_version, or use onnx.version_converter"
            )
    unknown: dict[str, str] = {}
    for node in model.graph.node:
        name = node.op_type if node.domain in _OWN_DOMAIN else f"{node.domain}.{node.op_type}"
        if name not in OPERATORS and name != "Constant":
            unknown.setdefault(name, node.name or ", ".join(node.output))
    if unknown:
        which = ", ".join(f"{operator} (node {name!r})" for operator, name in unknown.items())
        raise InputError(
            f"{path}: operators must be among those that are read, got {which}; export the network without, or "
            f"evaluate it from the library that made it; read are Constant, {', '.join(sorted(OPERATORS))}"
        )


def _graph(onnx: types.ModuleType, model: Any, path: Path) -> Graph:
    graph = model.graph
    opset = max(opset.version for opset in model.opset_import if opset.domain in _OWN_DOMAIN)
    if graph.sparse_initializer:
        raise InputError(f"{path}: weights must be dense, got sparse ones; export them as dense tensors")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        attributes = {each.name: _attribute(onnx, each) for each in node.attribute}
        name = node.name or ", ".join(node.output)
        if node.op_type == "Constant":
            arrays[node.output[0]] = _constant(path, name, attributes)
        else:
            nodes.append(Node(node.op_type, name, tuple(node.input), tuple(node.output), attributes, opset))
    inputs = [value for value in graph.input if value.name not in arrays]
    for what, values in (("input, the images", inputs), ("output, the logits", graph.output)):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise InputError(f"{path} must have one {what}, got {names}; export the network with this one alone")
    tensor = inputs[0].type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"{path}, input {inputs[0].name!r} must be floats, got {dtype}; export it for float images")
    used = {name for node in nodes for name in node.inputs}
    weights = {name: array for name, array in arrays.items() if name in used and _is_weight(array)}
    return Graph(
        path=str(path),
        nodes=tuple(nodes),
        weights=weights,
        constants={name: array for name, array in arrays.items() if name in used and name not in weights},
        input=inputs[0].name,
        output=graph.output[0].name,
        dims=tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim),
        dtype=dtype,
    )


def _is_weight(array: np.ndarray) -> bool:
    return array.size > 1 and jnp.issubdtype(array.dtype, jnp.floating)


def _attribute(onnx: types.ModuleType, attribute: Any) -> Any:
    """An attribute as Python has it: numbers, strings, lists of them, arrays, and ``to`` as a dtype."""
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "to":
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value))
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if isinstance(value, int | float) else list(value)


def _constant(path: Path, name: str, attributes: dict[str, Any]) -> np.ndarray:
    """The value of a Constant, which has one attribute."""
    ((kind, value),) = attributes.items()
    dtypes = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if kind == "value":
        return value
    if kind in dtypes:
        return np.asarray(value, dtypes[kind])
    raise InputError(f"{path}, node {name!r}: a Constant must be a tensor or numbers, got {kind}; export a tensor")


@contextlib.contextmanager
def _blaming(path: str, node: Node) -> Iterator[None]:
    """Names the node in what an operator refuses, or JAX does where the shapes or dtypes of a file do not fit."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}, {node.operator} (node {node.name!r}): {error}") from error
    except (TypeError, ValueError, LookupError, ArithmeticError, NotImplementedError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"{path}, {node.operator} (node {node.name!r}) cannot be computed ({reason})") from error
