"""An ONNX file as a function of images [B, H, W, C] in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks.engine import inputs
from robustjax.interop.onnx.graph import Graph, load
from robustjax.types import Array, InputError

_LAYOUTS = ("NCHW", "NHWC")


def read(
    path: str | Path,
    *,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    layout: str | None = None,
) -> jax.tree_util.Partial:
    """Reads a convolutional or dense network, or a vision transformer, as a function from images to logits.

    Images [B, H, W, C] become the network's input (images - mean) / std as its file declares it:

    - [N, C, H, W], or [N, H, W, C] where only that fits;
    - a vector, as [N, 784] or [N, 784, 1]: an image's values, channel after channel;
    - with a first axis of 1, or without an axis for the batch: one image at a time, over which ``jax.vmap`` maps, since
      such a file may hold the 1 in its shapes.

    Points [B, n] of a network that sees no images are taken as its input in the order that they have. Outputs are
    logits [B, K], at least in float32; axes of size 1 after the classes are left out.

    Args:
        path: of the .onnx file; weights may lie in a file of their own beside it.
        mean, std: of the normalisation that the network expects to be done before it; a number, or one for each
            channel. Attacks then work on images in [0, 1], whatever the network's own range is.
        layout: the order in which the network takes an image, "NCHW" or "NHWC"; None: "NHWC" where the declared shape
            fits nothing else, else "NCHW", as PyTorch exports networks.

    Returns:
        ``logits_fn`` as a ``jax.tree_util.Partial`` of its weights, float arrays by name: under ``jit`` they are
        arguments, when it is itself one. It is deterministic and in inference mode.

    Raises:
        InputError: the package onnx is missing; the file is none, damaged, has operators that are not known, several
            inputs or outputs, layers in training mode, or does not return logits. Calling the function raises it for
            images of another shape.

    Example:
        >>> import tempfile
        >>> from onnx import TensorProto, helper, numpy_helper, save
        >>> kernel = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "kernel")
        >>> nodes = [
        ...     helper.make_node("Conv", ["image", "kernel"], ["maps"]),
        ...     helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
        ...     helper.make_node("Flatten", ["means"], ["logits"]),
        ... ]
        >>> image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 4, 4])
        >>> logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])
        >>> graph = helper.make_graph(nodes, "sums", [image], [logits], [kernel])
        >>> path = Path(tempfile.mkdtemp()) / "sums.onnx"
        >>> save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

        >>> logits_fn = read(path)
        >>> logits_fn(jnp.full((1, 4, 4, 3), 0.5))
        Array([[1.5, 1.5]], dtype=float32)
    """
    if layout not in (None, *_LAYOUTS):
        raise InputError(f"layout must be NCHW, NHWC or None, got {layout!r}; leave it out to go by the declared shape")
    shift, scale = _numbers("mean", mean), _numbers("std", std)
    if not np.all(scale > 0):
        raise InputError(f"std must be greater than 0, got {std!r}; images are divided by it")
    graph = load(path)
    plain = not shift.any() and np.all(scale == 1)

    def logits_fn(weights: dict[str, Array], images: Array) -> Array:
        images = jnp.asarray(images)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images must be floats, got {images.dtype}; divide integers by 255")
        images = _at_least_float32(images)
        if not plain:
            images = (images - _for_images(images, "mean", shift)) / _for_images(images, "std", scale)
        return _logits(graph, weights, _as_input(graph, images, layout))

    weights = {name: jnp.asarray(array) for name, array in graph.weights.items()}
    _check_outputs(graph, weights)
    return jax.tree_util.Partial(logits_fn, weights)


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        numbers = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        numbers = np.float32(np.nan)
    if numbers.ndim > 1 or not np.all(np.isfinite(numbers)):
        raise InputError(f"{name} must be a number, or one for each channel, got {values!r}")
    return np.asarray(numbers)


def _for_images(images: Array, name: str, numbers: np.ndarray) -> Array:
    """Numbers that images [..., C] can be combined with, in their dtype."""
    if numbers.size not in (1, images.shape[-1]):
        raise InputError(
            f"{name} must be a number, or one for each of {images.shape[-1]} channels, got {numbers.size} numbers"
        )
    return jnp.asarray(numbers, images.dtype).reshape(*[1] * (images.ndim - 1), -1)


def _one_at_a_time(graph: Graph) -> bool:
    """Whether the file is written for a batch of one, or for no batch."""
    return graph.dims[:1] != (None,)


def _sample(graph: Graph) -> tuple[int | None, ...]:
    """The declared shape of one image, without the axis of the batch, if there is one."""
    return graph.dims[1:] if graph.dims[:1] in ((None,), (1,)) else graph.dims


def _check_outputs(graph: Graph, weights: dict[str, Array]) -> None:
    """Refuses a network that does not return logits, where its file declares the size of an image."""
    sample = _sample(graph)
    if None in sample:
        return
    example = jax.ShapeDtypeStruct((2, *sample), jax.dtypes.canonicalize_dtype(graph.dtype))
    outputs = jax.eval_shape(lambda weights, x: _logits(graph, weights, x), weights, example)
    if _one_at_a_time(graph) and outputs.ndim > 2 and outputs.shape[1] == graph.dims[0] != 1:
        raise InputError(
            f"{graph.path} must take any number of images, or one, got {graph.dims[0]} at a time; export it with an "
            "open first axis (dynamic_axes or dynamic_shapes)"
        )
    try:
        inputs.logits_of(outputs, 2)
    except InputError as error:
        raise InputError(f"{graph.path}: {error}") from error


def _logits(graph: Graph, weights: dict[str, Array], x: Array) -> Array:
    """Logits [B, K] of inputs [B, ...], each shaped as the file declares a single one."""
    if _one_at_a_time(graph):
        lead = (1,) * (len(graph.dims) + 1 - x.ndim)
        outputs = jax.vmap(lambda one: graph.compute(weights, one.reshape(*lead, *one.shape)))(x)
    else:
        outputs = graph.compute(weights, x)
    sizes = outputs.shape[1:]
    if outputs.ndim > 2 and math.prod(sizes) == max(sizes):  # but for the classes, all axes are 1
        outputs = outputs.reshape(outputs.shape[0], max(sizes))
    return _at_least_float32(outputs)


def _at_least_float32(values: Array) -> Array:
    half = jnp.issubdtype(values.dtype, jnp.floating) and jnp.finfo(values.dtype).bits < 32
    return values.astype(jnp.float32) if half else values


def _as_input(graph: Graph, images: Array, layout: str | None) -> Array:
    """Images as [B, ...], each shaped as the file declares a single one, in the file's dtype."""
    sample, given = _sample(graph), images.shape
    if images.ndim == 4:
        height, width, channels = images.shape[1:]
        only_last = _fits(sample, (height, width, channels)) and not _fits(sample, (channels, height, width))
        if (layout or ("NHWC" if only_last else "NCHW")) == "NCHW":
            images = images.transpose(0, 3, 1, 2)
    shape = images.shape[1:]
    size = math.prod(shape)
    if _fits(sample, shape):
        target = shape
    elif _fits(_long(sample), (size,)):  # a vector
        target = tuple(1 if dim == 1 else size for dim in sample)
    elif _long(sample) == _long(shape) or (len(shape) == 1 and math.prod(side or 0 for side in sample) == size):
        target = sample  # grey images without an axis for the channel, or points in the order of the input
    else:
        declared = ", ".join("any" if dim is None else str(dim) for dim in graph.dims)
        raise InputError(f"images must fit the input [{declared}] of {graph.path}, got {list(given)}; scale them to it")
    return images.astype(jax.dtypes.canonicalize_dtype(graph.dtype)).reshape(given[0], *target)


def _long(shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
    """The sizes that are not 1."""
    return tuple(size for size in shape if size != 1)


def _fits(sample: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(sample) == len(shape) and all(dim in (None, side) for dim, side in zip(sample, shape, strict=True))
