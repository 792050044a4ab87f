"""Every operator against the reference evaluator of the package onnx, in the sets where its meaning changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx_files import floats, node, reference, save

from robustjax.interop.onnx.graph import OPERATORS, load
from robustjax.types import InputError

INT = np.int64
IMAGE = (2, 3, 8, 7)
WINDOWS = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1]}
UNARY = (
    *("Abs", "Ceil", "Exp", "Floor", "Identity", "Neg", "Relu"),
    *("Reciprocal", "Round", "Sigmoid", "Sign", "Softplus", "Softsign", "Tanh"),
)
UNARY_ONCE = (
    *("Celu", "Cos", "Elu", "Erf", "HardSigmoid", "HardSwish"),
    *("LeakyRelu", "Mish", "Selu", "Sin", "ThresholdedRelu"),
)

# (operator sets, nodes, arrays); a string of inputs stands for one node. The image is [2, 3, 8, 7].
CASES = {
    # elementwise
    **{name: ([13, 20], node(name, "image"), {}) for name in UNARY},
    **{name: ([18], node(name, "image"), {}) for name in UNARY_ONCE},
    **{
        f"{name} broadcasts": ([7, 14], node(name, "image other"), {"other": floats(3, 1, 7) + 3})
        for name in ("Add", "Sub", "Mul", "Div")
    },
    **{
        f"{name} of three": ([13], node(name, "image other third"), {"other": floats(7), "third": floats(8, 1)})
        for name in ("Max", "Min", "Sum", "Mean")
    },
    "Add of a number": ([13], node("Add", "image one"), {"one": np.float32(1)}),
    "Log": ([13], [node("Abs", "image", "a"), node("Log", "a")], {}),
    "Sqrt": ([13], [node("Abs", "image", "a"), node("Sqrt", "a")], {}),
    "Pow, whole": ([13], node("Pow", "image two"), {"two": np.float32(2)}),
    "Pow, whole of another type": ([13], node("Pow", "image three"), {"three": np.array([3], INT)}),
    "Pow, fraction": ([13], [node("Abs", "image", "a"), node("Pow", "a half")], {"half": np.float32(0.5)}),
    "Pow, several": ([13], [node("Abs", "image", "a"), node("Pow", "a some")], {"some": np.abs(floats(7))}),
    "Elu, alpha": ([13], node("Elu", "image", alpha=0.3), {}),
    "Celu, alpha": ([13], node("Celu", "image", alpha=0.3), {}),
    "Selu, alpha": ([13], node("Selu", "image", alpha=2.0, gamma=0.7), {}),
    "LeakyRelu, alpha": ([13], node("LeakyRelu", "image", alpha=0.3), {}),
    "HardSigmoid, alpha": ([13], node("HardSigmoid", "image", alpha=0.3, beta=0.1), {}),
    "ThresholdedRelu, alpha": ([13], node("ThresholdedRelu", "image", alpha=0.4), {}),
    "PRelu": ([13], node("PRelu", "image slope"), {"slope": floats(3, 1, 1)}),
    "Gelu": ([20], node("Gelu", "image"), {}),
    "Gelu, tanh": ([20], node("Gelu", "image", approximate="tanh"), {}),
    "Clip, attributes": ([7], node("Clip", "image", min=-0.5, max=0.4), {}),
    "Clip": ([13], node("Clip", "image low high"), {"low": np.float32(-0.5), "high": np.float32(0.4)}),
    "Clip, above alone": ([13], node("Clip", "image - high"), {"high": np.float32(0.4)}),
    "Cast": ([13], [node("Cast", "image", "a", to=TensorProto.INT32), node("Cast", "a", to=TensorProto.FLOAT)], {}),
    "Where": ([16], [node("Greater", "image other", "a"), node("Where", "a image other")], {"other": floats(7)}),
    **{
        name: ([16], [node(name, "image other", "a"), node("Cast", "a", to=TensorProto.FLOAT)], {"other": floats(7)})
        for name in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
    },
    **{
        name: (
            [16],
            [
                node("Greater", "image other", "a"),
                node("Less", "image other", "b"),
                node("Not", "b", "c"),
                node(name, "a c", "d"),
                node("Cast", "d", to=TensorProto.FLOAT),
            ],
            {"other": floats(7)},
        )
        for name in ("And", "Or", "Xor")
    },
    "Softmax": ([13], node("Softmax", "image"), {}),
    "Softmax, axis": ([13], node("Softmax", "image", axis=1), {}),
    "LogSoftmax": ([13], node("LogSoftmax", "image", axis=-2), {}),
    # convolution and pooling
    "Conv": ([7, 17], node("Conv", "image w b"), {"w": floats(4, 3, 3, 2), "b": floats(4)}),
    "Conv, pads": ([13], node("Conv", "image w", pads=[1, 0, 2, 1], strides=[2, 3]), {"w": floats(4, 3, 3, 2)}),
    "Conv, dilated": ([13], node("Conv", "image w", dilations=[2, 3]), {"w": floats(4, 3, 3, 2)}),
    "Conv, depthwise": ([13], node("Conv", "image w", group=3), {"w": floats(6, 1, 3, 2)}),
    **{
        f"Conv, {pad}": ([13], node("Conv", "image w", auto_pad=pad, strides=[2, 3]), {"w": floats(4, 3, 4, 3)})
        for pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
    },
    "MaxPool": ([8, 13], node("MaxPool", "image", **WINDOWS), {}),
    "MaxPool, ceil": ([13], node("MaxPool", "image", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}),
    "MaxPool, dilated": ([13], node("MaxPool", "image", dilations=[2, 3], **WINDOWS), {}),
    "MaxPool, same": ([13], node("MaxPool", "image", kernel_shape=[3, 2], strides=[2, 2], auto_pad="SAME_UPPER"), {}),
    "AveragePool": ([7, 13], node("AveragePool", "image", **WINDOWS), {}),
    "AveragePool, padding counts": ([13], node("AveragePool", "image", count_include_pad=1, **WINDOWS), {}),
    "AveragePool, ceil": ([19], node("AveragePool", "image", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), {}),
    "AveragePool, dilated": ([19], node("AveragePool", "image", kernel_shape=[3, 2], dilations=[2, 3]), {}),
    "GlobalAveragePool": ([13], node("GlobalAveragePool", "image"), {}),
    "GlobalMaxPool": ([13], node("GlobalMaxPool", "image"), {}),
    # normalisation
    "BatchNormalization": (
        [15],
        node("BatchNormalization", "image s b m v", epsilon=1e-2),
        {"s": floats(3), "b": floats(3), "m": floats(3), "v": floats(3) ** 2},
    ),
    "InstanceNormalization": (
        [13],
        node("InstanceNormalization", "image s b", epsilon=1e-2),
        {"s": floats(3), "b": floats(3)},
    ),
    "LayerNormalization": ([17], node("LayerNormalization", "image s b"), {"s": floats(7), "b": floats(7)}),
    "LayerNormalization, axes": ([17], node("LayerNormalization", "image s", axis=2), {"s": floats(8, 7)}),
    "Dropout": ([7, 13], node("Dropout", "image"), {}),
    "Dropout, told": ([13], node("Dropout", "image half no"), {"half": np.float32(0.5), "no": np.array(False)}),
    # linear algebra
    "Gemm": (
        [13],
        [node("Flatten", "image", "a"), node("Gemm", "a w b", transB=1, alpha=0.5, beta=2.0)],
        {"w": floats(4, 168), "b": floats(4)},
    ),
    "Gemm, transposed": (
        [13],
        [node("Flatten", "image", "a"), node("Gemm", "w a", transA=1, transB=1)],
        {"w": floats(168, 4)},
    ),
    "MatMul": ([13], node("MatMul", "image w"), {"w": floats(7, 4)}),
    "MatMul, batches": ([13], node("MatMul", "w image"), {"w": floats(3, 5, 8)}),
    "Einsum": ([13], node("Einsum", "image w", equation="nchw,wk->nkc"), {"w": floats(7, 4)}),
    # reductions
    **{
        f"{name}, attributes": ([11], node(name, "image", axes=[1, -1], keepdims=0), {})
        for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2")
    },
    **{
        f"{name}, inputs": ([18], node(name, "image axes"), {"axes": np.array([2, 3], INT)})
        for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
    },
    "ReduceMin": ([18], node("ReduceMin", "image axes"), {"axes": np.array([2, 3], INT)}),
    "ReduceProd": ([18], node("ReduceProd", "image axes"), {"axes": np.array([1], INT)}),
    "ReduceL1": ([18], node("ReduceL1", "image axes"), {"axes": np.array([1], INT)}),
    "ReduceMean, all": ([18], node("ReduceMean", "image"), {}),
    "ReduceSum, none": ([18], node("ReduceSum", "image", noop_with_empty_axes=1), {}),
    # shapes
    "Flatten": ([7, 13], node("Flatten", "image"), {}),
    "Flatten, axis": ([13], node("Flatten", "image", axis=-1), {}),
    "Reshape": ([13], node("Reshape", "image shape"), {"shape": np.array([0, -1, 4], INT)}),
    "Transpose": ([13], node("Transpose", "image", perm=[2, 0, 3, 1]), {}),
    "Transpose, reversed": ([13], node("Transpose", "image"), {}),
    "Unsqueeze and Squeeze, attributes": (
        [11],
        [node("Unsqueeze", "image", "a", axes=[0, 3]), node("Squeeze", "a", axes=[3])],
        {},
    ),
    "Unsqueeze and Squeeze": (
        [13],
        [node("Unsqueeze", "image axes", "a"), node("Squeeze", "a last")],
        {"axes": np.array([0, -1], INT), "last": np.array([-1], INT)},
    ),
    "Squeeze, all": ([13], [node("Unsqueeze", "image axes", "a"), node("Squeeze", "a")], {"axes": np.array([2], INT)}),
    "Concat": ([13], node("Concat", "image other image", axis=1), {"other": floats(2, 1, 8, 7)}),
    "Slice, attributes": ([9], node("Slice", "image", starts=[1, -3], ends=[2, 100], axes=[1, 3]), {}),
    "Slice": (
        [13],
        node("Slice", "image starts ends axes steps"),
        {
            "starts": np.array([-1, 1], INT),
            "ends": np.array([np.iinfo(INT).min, np.iinfo(INT).max], INT),
            "axes": np.array([2, -1], INT),
            "steps": np.array([-2, 3], INT),
        },
    ),
    "Gather": ([13], node("Gather", "image at", axis=2), {"at": np.array([[0, -1], [3, 2]], INT)}),
    "Gather, one": ([13], node("Gather", "image at", axis=1), {"at": np.array(-2, INT)}),
    "GatherND": ([13], node("GatherND", "image at"), {"at": np.array([[[0, 2]], [[-1, 1]]], INT)}),
    "ScatterND": (
        [13],
        node("ScatterND", "image at new"),
        {"at": np.array([[0, 2], [-1, 1]], INT), "new": floats(2, 8, 7)},
    ),
    "ScatterND and Mod of shapes": (
        [16],
        [
            node("Shape", "image", "a"),
            node("ScatterND", "a at new", "b"),
            node("Mod", "b nine", "c"),
            node("Tile", "image c"),
        ],
        {"at": np.array([[0], [3]], INT), "new": np.array([10, -8], INT), "nine": np.array(9, INT)},
    ),
    "Mod, of floats": ([13], node("Mod", "image other", fmod=1), {"other": floats(7) + 3}),
    "Split, attributes": ([11], [node("Split", "image", "a logits", axis=2, split=[3, 5])], {}),
    "Split": ([13], [node("Split", "image sizes", "a logits", axis=2)], {"sizes": np.array([3, 5], INT)}),
    "Split, equal": ([18], [node("Split", "image", "a logits", axis=3, num_outputs=2)], {}),
    "Pad, attributes": ([9], node("Pad", "image", pads=[0, 0, 1, 2, 0, 1, 0, 3], value=0.5), {}),
    "Pad": (
        [13],
        node("Pad", "image pads value"),
        {"pads": np.array([0, 0, 1, 2, 0, 1, 0, 3], INT), "value": np.float32(0.5)},
    ),
    "Pad, axes": (
        [18],
        node("Pad", "image pads - axes"),
        {"pads": np.array([1, 2, 0, 3], INT), "axes": np.array([2, 3], INT)},
    ),
    **{
        f"Pad, {mode}": ([18], node("Pad", "image pads", mode=mode), {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 1], INT)})
        for mode in ("reflect", "edge")
    },
    "Expand": ([13], node("Expand", "image shape"), {"shape": np.array([4, 1, 1, 8, 1], INT)}),
    "Tile": ([13], node("Tile", "image repeats"), {"repeats": np.array([1, 2, 1, 3], INT)}),
    "Shape and arithmetic": (
        [15],
        [
            node("Shape", "image", "a"),
            node("Gather", "a zero", "b", axis=0),
            node("Shape", "image", "c", start=2),
            node("ReduceProd", "c", "d", keepdims=0),
            node("Mul", "d three", "e"),
            node("Div", "e two", "f"),
            node("Unsqueeze", "b zeros", "g"),
            node("Unsqueeze", "f zeros", "h"),
            node("Concat", "g two_of h", "i", axis=0),
            node("Cast", "i", "j", to=TensorProto.INT64),
            node("Reshape", "image j"),
        ],
        {
            "zero": np.array(0, INT),
            "zeros": np.array([0], INT),
            "two": np.array(2, INT),
            "two_of": np.array([2], INT),
            "three": np.array(3, INT),
        },
    ),
    "ConstantOfShape and Expand": (
        [13],
        [
            node("ConstantOfShape", "size", "a", value=numpy_helper.from_array(np.array([2], INT))),
            node("Equal", "a two", "b"),
            node("Where", "b shape a", "c"),
            node("Expand", "image c"),
        ],
        {"size": np.array([4], INT), "two": np.array([2], INT), "shape": np.array([2, 3, 8, 7], INT)},
    ),
    "Range": (
        [13],
        [node("Range", "zero three one", "a"), node("Gather", "image a", axis=1)],
        {"zero": np.array(0, INT), "three": np.array(3, INT), "one": np.array(1, INT)},
    ),
    **{
        f"Constant, {kind}": ([13], [node("Constant", "", "a", **{kind: value}), node("Add", "image a")], {})
        for kind, value in {
            "value": numpy_helper.from_array(floats(7)),
            "value_float": 0.5,
            "value_floats": floats(7).tolist(),
        }.items()
    },
    "Constant, value_ints": ([13], [node("Constant", "", "a", value_ints=[0, -1]), node("Reshape", "image a")], {}),
}


def test_every_operator_has_a_case():
    def operators(nodes):
        return {each.op_type for each in (nodes if isinstance(nodes, list) else [nodes])}

    assert set(OPERATORS) == set().union(*(operators(nodes) for _, nodes, _ in CASES.values())) - {"Constant"} | {"LRN"}


@pytest.mark.parametrize("case", CASES)
def test_operators_agree_with_the_reference(case, tmp_path):
    opsets, nodes, arrays = CASES[case]
    x = np.random.default_rng(1).standard_normal(IMAGE, np.float32) * 2
    for opset in opsets:
        path = save(tmp_path, nodes if isinstance(nodes, list) else [nodes], arrays, IMAGE, opset=opset)
        graph = load(path)
        expected = reference(path, x)
        value = graph.compute({name: jnp.asarray(array) for name, array in graph.weights.items()}, jnp.asarray(x))
        assert value.shape == expected.shape and value.dtype == expected.dtype
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6 * max(1, np.abs(expected).max()))


def test_local_response_normalisation(tmp_path):
    """The reference evaluator computes as many channels as there are images: here, all."""
    x = floats(3, 3, 8, 7)
    path = save(tmp_path, [node("LRN", "image", size=2, alpha=0.3, beta=0.6, bias=1.5)], dims=x.shape, opset=13)
    np.testing.assert_allclose(load(path).compute({}, jnp.asarray(x)), reference(path, x), rtol=2e-5)


def test_batch_normalisation_of_older_sets(tmp_path):
    """The reference evaluator fails on the oldest, and takes the next to be in training."""
    x = np.random.default_rng(1).standard_normal(IMAGE, np.float32)
    arrays = {"s": floats(3), "b": floats(3), "m": floats(3), "v": floats(3) ** 2}
    nodes = [node("BatchNormalization", "image s b m v")]
    oldest, older, new = (
        load(save(tmp_path, nodes, arrays, IMAGE, opset=opset)).compute(arrays, jnp.asarray(x)) for opset in (7, 9, 15)
    )
    assert np.array_equal(oldest, new) and np.array_equal(older, new)
    nodes = [node("BatchNormalization", "image s b m v", spatial=0)]
    with pytest.raises(InputError, match="spatial 1"):
        load(save(tmp_path, nodes, arrays, IMAGE, opset=7)).compute(arrays, jnp.asarray(x))


def test_softmax_of_older_sets_takes_all_later_axes_as_one(tmp_path):
    """The reference evaluator does not know the older meaning."""
    x = np.random.default_rng(1).standard_normal(IMAGE, np.float32)
    graph = load(save(tmp_path, [node("Softmax", "image")], dims=IMAGE, opset=11))
    flat = np.exp(x.reshape(2, -1))
    expected = (flat / flat.sum(1, keepdims=True)).reshape(IMAGE)
    np.testing.assert_allclose(graph.compute({}, jnp.asarray(x)), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("more", [{}, {"dilations": [2, 1]}, {"ceil_mode": 1}])
def test_pooling_has_gradients(name, more, tmp_path):
    """Against differences, which are exact where a function is linear."""
    dims = (1, 1, 6, 5)
    options = {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]} | more
    graph = load(save(tmp_path, [node(name, "image", **options)], dims=dims, opset=19))
    x = np.random.default_rng(1).permutation(30).reshape(dims).astype(np.float32)
    weights = np.random.default_rng(2).standard_normal(graph.compute({}, jnp.asarray(x)).shape, np.float32)

    def value(x):
        return jnp.sum(graph.compute({}, x) * weights)

    steps = 0.25 * np.eye(30, dtype=np.float32).reshape(30, *dims)
    slopes = (jax.vmap(value)(x + steps) - value(jnp.asarray(x))) / 0.25
    np.testing.assert_allclose(jax.grad(value)(jnp.asarray(x)).ravel(), slopes, rtol=1e-3, atol=1e-4)


def test_the_norm_of_nothing_has_a_gradient(tmp_path):
    nodes = [node("ReduceL2", "image axes", keepdims=0)]
    graph = load(save(tmp_path, nodes, {"axes": np.array([1, 2, 3], INT)}, IMAGE, opset=18))
    gradient = jax.grad(lambda x: jnp.sum(graph.compute({}, x)))(jnp.zeros(IMAGE))
    assert np.array_equal(gradient, np.zeros(IMAGE))
