"""Networks read from ONNX files: the logits of onnx's own evaluator, whatever the file declares its input to be."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from bad_input.refusals import one_line
from onnx import TensorProto, helper
from onnx_files import floats, model, node, reference, residual_network, save

from robustjax import attacks, data
from robustjax.interop.onnx import read
from robustjax.types import InputError

INT = np.int64
IMAGES = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
FIRST = IMAGES.transpose(0, 3, 1, 2)  # channels first


def one_by_one(path, x):
    return np.concatenate([reference(path, each[None]) for each in x])


# What a file may declare


def test_a_residual_network_of_any_batch(tmp_path):
    path = save(tmp_path, *residual_network())
    np.testing.assert_allclose(read(path)(IMAGES), reference(path, FIRST), rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_that_shapes_repeat(tmp_path):
    """As PyTorch exports it without dynamic axes: the 1 stands in a Reshape."""
    flatten = [node("Constant", "", "one_row", value_ints=[1, 8]), node("Reshape", "i one_row", "j")]
    path = save(tmp_path, *residual_network((1, 3, 8, 8), flatten=flatten))
    logits_fn = read(path)
    expected = one_by_one(path, FIRST)
    np.testing.assert_allclose(logits_fn(IMAGES), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.jit(logits_fn)(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_shapes_that_the_network_computes(tmp_path):
    """x.view(x.size(0), -1), with all sizes open."""
    flatten = [
        node("Shape", "i", "shape"),
        node("Constant", "", "zero", value_int=0),
        node("Gather", "shape zero", "batch"),
        node("Constant", "", "zeros", value_ints=[0]),
        node("Unsqueeze", "batch zeros", "batches"),
        node("Constant", "", "rest", value_ints=[-1]),
        node("Concat", "batches rest", "rows", axis=0),
        node("Reshape", "i rows", "j"),
    ]
    path = save(tmp_path, *residual_network(("N", 3, "H", "W"), flatten=flatten))
    np.testing.assert_allclose(jax.jit(read(path))(IMAGES), reference(path, FIRST), rtol=1e-5, atol=1e-5)


def test_images_with_channels_last(tmp_path):
    """As tf2onnx exports networks."""
    nodes = [
        node("Transpose", "image", "first", perm=[0, 3, 1, 2]),
        node("Conv", "first kernel", "maps"),
        node("ReduceMean", "maps", "logits", axes=[2, 3], keepdims=0),
    ]
    arrays = {"kernel": floats(4, 3, 3, 3)}
    path = save(tmp_path, nodes, arrays, ("N", 8, 8, 3))
    np.testing.assert_allclose(read(path)(IMAGES), reference(path, IMAGES), rtol=1e-5, atol=1e-5)
    # Where both fit, a layout decides; by default it is PyTorch's.
    nodes = [node("Conv", "image kernel", "maps"), nodes[-1]]
    path = save(tmp_path, nodes, arrays, ("N", 3, 3, 3))
    cube = IMAGES[:, :3, :3]
    np.testing.assert_allclose(read(path)(cube), reference(path, cube.transpose(0, 3, 1, 2)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(read(path, layout="NHWC")(cube), reference(path, cube), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dims", "image"),
    [
        (("N", 48), (4, 4, 3)),
        ((1, 48), (4, 4, 3)),
        ((48,), (4, 4, 3)),
        ((1, 48, 1), (4, 4, 3)),
        ((1, 48, 1, 1), (4, 4, 3)),
        ((1, 1, 4, 4), (4, 4, 1)),
        ((1, 4, 4), (4, 4, 1)),
        (("N", 4, 4), (4, 4, 1)),
    ],
)
def test_dense_networks_take_an_image_as_a_vector(dims, image, tmp_path):
    size = np.prod(image)
    nodes = [
        node("Reshape", "image rows", "a"),
        node("MatMul", "a first", "b"),
        node("Add", "b bias", "c"),
        node("Relu", "c", "d"),
        node("Gemm", "d second", "e"),
        *([node("Squeeze", "e zero", "logits")] if len(dims) == 1 else [node("Identity", "e", "logits")]),
    ]
    arrays = {"rows": np.array([-1, size], INT), "zero": np.array([0], INT)}
    arrays |= {"first": floats(size, 6), "bias": floats(6), "second": floats(6, 3)}
    path = save(tmp_path, nodes, arrays, dims)
    images = np.random.default_rng(1).random((3, *image), np.float32)
    flat = images.transpose(0, 3, 1, 2).reshape(3, -1)
    expected = np.stack([reference(path, row.reshape([1 if d == "N" else d for d in dims])).ravel() for row in flat])
    np.testing.assert_allclose(read(path)(images), expected, rtol=1e-5, atol=1e-5)


def test_points_that_are_no_images(tmp_path):
    """The networks that steer an aircraft see five numbers, as [1, 1, 1, 5]."""
    nodes = [
        node("Flatten", "image", "a"),
        node("Gemm", "a first", "b"),
        node("Relu", "b", "c"),
        node("Gemm", "c second"),
    ]
    path = save(tmp_path, nodes, {"first": floats(5, 6), "second": floats(6, 3)}, (1, 1, 1, 5))
    points = floats(4, 5)
    expected = one_by_one(path, points.reshape(4, 1, 1, 5))
    np.testing.assert_allclose(read(path)(points), expected, rtol=1e-5, atol=1e-5)


def test_outputs_with_axes_of_one_are_logits(tmp_path):
    nodes = [node("Conv", "image kernel", "a"), node("GlobalAveragePool", "a")]
    path = save(tmp_path, nodes, {"kernel": floats(4, 3, 3, 3)})
    assert read(path)(IMAGES).shape == (3, 4)


def test_weights_beside_the_file(tmp_path):
    made = model(*residual_network())
    onnx.save(made, tmp_path / "plain.onnx")
    onnx.save(made, tmp_path / "split.onnx", save_as_external_data=True, size_threshold=0, location="weights")
    expected = read(tmp_path / "plain.onnx")(IMAGES)
    assert np.array_equal(read(tmp_path / "split.onnx")(IMAGES), expected)
    (tmp_path / "weights").unlink()
    with pytest.raises(InputError, match=r"split\.onnx must be a whole ONNX file"):
        read(tmp_path / "split.onnx")


def test_functions_of_the_file_itself(tmp_path):
    """As PyTorch's newer exporter writes modules."""
    nodes = [helper.make_node("Block", ["image"], ["a"], domain="mine"), node("Flatten", "a")]
    made = model(nodes, dims=("N", 3, 2, 2))
    opsets = [helper.make_opsetid("", 17)]
    block = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["y"])]
    made.functions.append(helper.make_function("mine", "Block", ["x"], ["y"], block, opsets))
    made.opset_import.append(helper.make_opsetid("mine", 1))
    onnx.save(made, tmp_path / "functions.onnx")
    x = IMAGES[:, :2, :2] - 0.5
    expected = -np.maximum(x, 0).transpose(0, 3, 1, 2).reshape(3, -1)
    assert np.array_equal(read(tmp_path / "functions.onnx")(x), expected)


# What comes of it


def test_normalisation_comes_first(tmp_path):
    path = save(tmp_path, *residual_network())
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = reference(path, ((IMAGES - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2))
    np.testing.assert_allclose(read(path, mean=mean, std=std)(IMAGES), expected, rtol=1e-5, atol=1e-5)
    assert not np.allclose(read(path)(IMAGES), expected, atol=0.1)


@pytest.mark.parametrize("dims", [("N", 3, 8, 8), (1, 3, 8, 8)])
def test_gradients_are_those_of_the_reference(dims, tmp_path):
    nodes, arrays, _ = residual_network()
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    path = save(tmp_path, nodes, arrays, dims, dtype=TensorProto.DOUBLE)
    images = IMAGES.astype(np.float64)
    direction = np.random.default_rng(3).standard_normal(IMAGES.shape)
    with jax.enable_x64(True):
        logits_fn = read(path)
        slope = jnp.vdot(jax.jit(jax.grad(lambda x: jnp.sum(logits_fn(x) ** 2)))(images), direction)
    ahead, behind = (
        np.sum(one_by_one(path, (images + step * direction).transpose(0, 3, 1, 2)) ** 2) for step in (1e-7, -1e-7)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-7, rtol=1e-6)


def test_a_network_of_float64_in_either_mode(tmp_path):
    arrays = {"w": np.random.default_rng(0).standard_normal((12, 3))}
    nodes = [node("Flatten", "image", "a"), node("Gemm", "a w")]
    path = save(tmp_path, nodes, arrays, ("N", 3, 2, 2), dtype=TensorProto.DOUBLE)
    images = IMAGES[:, :2, :2]
    expected = reference(path, images.transpose(0, 3, 1, 2).astype(np.float64))
    logits = read(path)(images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        logits = read(path)(images)
        assert logits.dtype == jnp.float64
        np.testing.assert_allclose(logits, expected, rtol=1e-12)


def test_half_precision_inside_gives_float32_logits(tmp_path):
    arrays = {"w": floats(12, 3).astype(np.float16)}
    nodes = [node("Flatten", "image", "a"), node("Gemm", "a w")]
    path = save(tmp_path, nodes, arrays, ("N", 3, 2, 2), dtype=TensorProto.FLOAT16)
    images = IMAGES[:, :2, :2]
    logits = read(path)(images)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, reference(path, images.transpose(0, 3, 1, 2).astype(np.float16)), atol=2e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_images_are_normalised_in_float32(dtype, tmp_path):
    logits_fn = read(save(tmp_path, *residual_network()), mean=0.45, std=0.25)
    half = jnp.asarray(IMAGES).astype(dtype)
    assert np.array_equal(logits_fn(half), logits_fn(half.astype(jnp.float32)))


def test_weights_are_arguments_under_jit(tmp_path):
    logits_fn = read(save(tmp_path, *residual_network()))
    traces = []

    @jax.jit
    def call(network, images):
        traces.append(len(images))
        return network(images)

    other = jax.tree.map(lambda leaf: 2 * leaf, logits_fn)
    np.testing.assert_allclose(call(logits_fn, IMAGES), logits_fn(IMAGES), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(call(other, IMAGES), other(IMAGES), rtol=1e-4, atol=1e-4)
    assert traces == [3] and not np.allclose(other(IMAGES), logits_fn(IMAGES))
    assert sum(leaf.size for leaf in jax.tree.leaves(logits_fn)) > 8 * 27 + 8 * 36


def test_attacks_take_it(tmp_path, key):
    logits_fn = read(save(tmp_path, *residual_network((1, 3, 8, 8))))
    labels = jnp.argmax(logits_fn(IMAGES), axis=1)
    attack = jax.jit(lambda key, x, y: attacks.fgsm(logits_fn, key, x, y, epsilon=0.01))
    found = attack(key, jnp.asarray(IMAGES), labels)
    before, after = (attacks.losses.cross_entropy(logits_fn(x), labels) for x in (IMAGES, found))
    assert jnp.all(after > before)


# Refused


def refused(cause, path, **options):
    with pytest.raises(InputError) as error:
        read(path, **options)
    one_line(str(error.value), cause)


@pytest.mark.bad_input
@pytest.mark.parametrize("content", [b"", b"not a network", b"\x08\x07", np.arange(999).tobytes()])
def test_files_that_are_no_networks(content, tmp_path):
    (tmp_path / "network.onnx").write_bytes(content)
    refused("network.onnx", tmp_path / "network.onnx")


@pytest.mark.bad_input
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(part, tmp_path):
    path = save(tmp_path, *residual_network())
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused("network.onnx", path)


FLAT = {"w": floats(192, 2)}
DENSE = [node("Flatten", "image", "a"), node("Gemm", "a w")]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("nodes", "arrays", "options", "cause"),
    [
        ([node("LSTM", "image w r", hidden_size=2)], {"w": floats(1, 8, 2), "r": floats(1, 8, 2)}, {}, "LSTM (node"),
        ([helper.make_node("Gelu", ["image"], ["logits"], domain="com.microsoft")], {}, {}, "com.microsoft.Gelu"),
        (DENSE, FLAT, {"opset": 6}, "operators of set 7 to 28, got 6"),
        (DENSE, FLAT, {"opset": 29}, "operators of set 7 to 28, got 29"),
        (DENSE, FLAT, {"outputs": ("logits", "a")}, "one output, the logits, got logits, a"),
        ([node("Gemm", "a w")], FLAT, {}, "network.onnx"),
        ([*DENSE[:1], node("Gemm", "a w w")], FLAT, {}, "Gemm (node 'logits')"),
        (DENSE, {"w": floats(191, 2)}, {}, "Gemm (node 'logits')"),
        (DENSE, {"w": floats(192, 1)}, {}, "float32 [2, 1]"),
        ([node("Relu", "image")], {}, {}, "float32 [2, 3, 8, 8]"),
        (DENSE, FLAT, {"dims": (4, 3, 8, 8)}, "4 at a time"),
        (DENSE, {"w": np.ones((192, 2), np.uint8)}, {"dtype": TensorProto.UINT8}, "must be floats, got uint8"),
        (
            [node("BatchNormalization", "image s s s s", "a b c", training_mode=1), node("Flatten", "a")],
            {"s": floats(3)},
            {"opset": 15},
            "training_mode must be 0",
        ),
        (
            [node("Dropout", "image half yes", "a"), node("Flatten", "a")],
            {"half": np.float32(0.5), "yes": np.array(True)},
            {},
            "training_mode must be false",
        ),
        (
            [node("Cast", "image", "a", to=TensorProto.INT64), node("Reshape", "image a")],
            {},
            {},
            "Reshape (node 'logits'): shape must not depend on the image",
        ),
        ([node("MaxPool", "image", "a b", kernel_shape=[2, 2]), node("Cast", "b", to=1)], {}, {}, "Cast (node"),
        ([node("Gather", "image at", "a"), node("Flatten", "a")], {"at": np.array(7, INT)}, {}, "Gather"),
    ],
)
def test_networks_that_cannot_be_computed(nodes, arrays, options, cause, tmp_path):
    refused(cause, save(tmp_path, nodes, arrays, **options))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"layout": "CHWN"}, "layout must be NCHW, NHWC or None, got 'CHWN'"),
        ({"mean": "grey"}, "mean must be a number"),
        ({"mean": [[0.5]]}, "mean must be a number"),
        ({"mean": float("nan")}, "mean must be a number"),
        ({"std": 0.0}, "std must be greater than 0, got 0.0"),
        ({"std": (0.5, -0.5, 0.5)}, "std must be greater than 0"),
    ],
)
def test_options_that_mean_nothing(options, cause, tmp_path):
    refused(cause, save(tmp_path, DENSE, FLAT), **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shape", "dtype", "options", "cause"),
    [
        ((2, 9, 8, 3), np.float32, {}, "input [any, 3, 8, 8] of"),
        ((2, 8, 8, 1), np.float32, {}, "got [2, 8, 8, 1]"),
        ((2, 4, 16, 3), np.float32, {}, "got [2, 4, 16, 3]"),  # as many values in another shape
        ((2, 191), np.float32, {}, "got [2, 191]"),
        ((2, 8, 8, 3), np.uint8, {}, "images must be floats, got uint8; divide integers by 255"),
        ((2, 8, 8, 3), np.float32, {"mean": (0.5, 0.5)}, "mean must be a number, or one for each of 3 channels, got 2"),
    ],
)
def test_images_that_do_not_fit(shape, dtype, options, cause, tmp_path):
    logits_fn = read(save(tmp_path, DENSE, FLAT), **options)
    with pytest.raises(InputError) as error:
        jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(shape, dtype))
    one_line(str(error.value), cause)


@pytest.mark.bad_input
def test_a_file_that_is_not_there(tmp_path):
    refused("absent.onnx must be an ONNX file, got none there", tmp_path / "absent.onnx")
    refused("must be an ONNX file", tmp_path)


def test_without_the_package_one_line_says_what_to_install(tmp_path):
    path = save(tmp_path, DENSE, FLAT)
    program = (
        "import sys; sys.modules['onnx'] = None\n"
        "from robustjax.interop.onnx import read\n"
        f"try: read({str(path)!r})\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    one_line(done.stdout, "which is not installed; pip install onnx")


# Published networks


@pytest.fixture(scope="session")
def verified(tfds_dir):
    folder = Path(tfds_dir) / "verified"
    if not folder.is_dir():
        pytest.skip(f"{tfds_dir} holds no verified networks")
    return folder


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mnist-net_256x2", "mnist-net_256x4", "mnist-net_256x6"])
def test_published_dense_networks_on_mnist(name, verified, tfds_dir):
    path = verified / "mnistfc" / f"{name}.onnx"
    images, labels, *_ = data.read_images("mnist", num_examples=200, data_dir=tfds_dir)
    images = np.asarray(data.to_float(images))
    logits = jax.jit(read(path))(images)
    expected = one_by_one(path, images[:20].reshape(20, 784, 1))
    np.testing.assert_allclose(logits[:20], expected, rtol=1e-5, atol=1e-5)
    assert np.mean(np.argmax(logits, axis=1) == labels) > 0.95


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["resnet_2b", "resnet_4b"])
def test_published_residual_networks_on_cifar10(name, verified, tfds_dir):
    """Their properties are boxes around images normalised by these constants."""
    path = verified / "cifar10_resnet/onnx" / f"{name}.onnx"
    mean, std = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    images, labels, *_ = data.read_images("cifar10", num_examples=200, data_dir=tfds_dir)
    images = np.asarray(data.to_float(images))
    logits = jax.jit(read(path, mean=mean, std=std))(images)
    normalised = ((images - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(logits[:10], one_by_one(path, normalised[:10]), rtol=1e-5, atol=1e-5)
    assert np.mean(np.argmax(logits, axis=1) == labels) > 0.6
