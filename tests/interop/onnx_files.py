"""ONNX files made for tests, and what the reference evaluator of the package onnx makes of them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.standard_normal(shape, np.float32)


def model(nodes, arrays=None, dims=("N", 3, 8, 8), *, opset=17, outputs=("logits",), dtype=TensorProto.FLOAT):
    """A network from "image" [dims] to `outputs`; arrays by name are its weights and constants."""
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", dtype, dims)],
        [helper.make_tensor_value_info(name, dtype, ["B", "K"]) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (arrays or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def save(folder, *arguments, **options):
    path = folder / "network.onnx"
    onnx.save(model(*arguments, **options), path)
    return path


def reference(path, x):
    """What onnx's own evaluator, written in NumPy, makes of an input shaped as the file declares it."""
    return ReferenceEvaluator(str(path)).run(None, {ReferenceEvaluator(str(path)).input_names[0]: x})[0]


def node(operator, inputs, output="logits", **attributes):
    """A node; inputs are names separated by spaces, "-" where one is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, output.split(), **attributes)


def residual_network(dims=("N", 3, 8, 8), *, flatten=None):
    """The nodes and weights of a small residual network with BatchNorm, pooling and a dense layer."""
    rng = np.random.default_rng(0)

    def floats(*shape):
        return rng.standard_normal(shape, np.float32)

    arrays = {
        "conv1": floats(8, 3, 3, 3) / 5,
        "conv2": floats(8, 4, 3, 3) / 6,
        "bias2": floats(8) / 3,
        "short": floats(8, 8, 1, 1) / 3,
        "dense": floats(5, 8),
        "offset": floats(5),
    }
    arrays |= {"scale": 1 + floats(8) / 5, "shift": floats(8) / 5, "mean": floats(8) / 5, "var": floats(8) ** 2 + 0.5}
    nodes = [
        node("Conv", "image conv1", "a", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("BatchNormalization", "a scale shift mean var", "b", epsilon=1e-3),
        node("Relu", "b", "c"),
        node("MaxPool", "c", "d", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "d conv2 bias2", "e", pads=[1, 1, 1, 1], strides=[2, 2], group=2),
        node("Conv", "d short", "f", strides=[2, 2]),
        node("Add", "e f", "g"),
        node("Relu", "g", "h"),
        node("GlobalAveragePool", "h", "i"),
        *(flatten or [node("Flatten", "i", "j")]),
        node("Gemm", "j dense offset", "logits", transB=1),
    ]
    return nodes, arrays, dims
