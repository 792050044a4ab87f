"""Checks of single arguments; each raises an :class:`robustjax.types.InputError` of one line."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from robustjax.attacks import geometry, losses
from robustjax.attacks.engine.search import first_key
from robustjax.transforms._torch import is_torch_module
from robustjax.types import AnyArray, Array, InputError, Key, LogitsFn, LossFn

# Losses that take logits and integer labels. `losses.kl` also takes distributions as labels.
INTEGER_LABEL_LOSSES = (losses.cross_entropy, losses.margin, losses.dlr)
LIBRARY_LOSSES = (*INTEGER_LABEL_LOSSES, losses.kl)
LARGEST_RADIUS = 1e18


def at_least(least: int, **counts: Any) -> None:
    """Refuses counts that are not integers or too small; traced ones pass.

    Example:
        >>> at_least(1, num_steps=0)
        Traceback (most recent call last):
        robustjax.types.InputError: num_steps must be at least 1, got 0; give an integer from 1
    """
    for name, value in counts.items():
        if isinstance(value, Tracer):
            continue
        try:
            fine = operator.index(value) >= least and not isinstance(value, bool)
        except TypeError:
            fine = False
        if not fine:
            raise InputError(f"{name} must be at least {least}, got {value!r}; give an integer from {least}")


def static(least: int, **counts: Any) -> None:
    """Like :func:`at_least`, for counts that decide what is compiled, which must not be arrays or traced.

    Example:
        >>> import jax.numpy as jnp
        >>> static(1, num_steps=jnp.int32(3))
        Traceback (most recent call last):
        robustjax.types.InputError: num_steps must be a Python integer, got an array; it decides what is compiled, so
        give a number, of jit a static argument
    """
    for name, value in counts.items():
        if isinstance(value, jax.Array | np.ndarray):
            mend = "it decides what is compiled, so give a number, of jit a static argument"
            raise InputError(f"{name} must be a Python integer, got an array; {mend}")
    at_least(least, **counts)


def are_flags(**flags: Any) -> None:
    """Refuses values other than True and False, such as text, which would always count as True.

    Example:
        >>> are_flags(targeted="no")
        Traceback (most recent call last):
        robustjax.types.InputError: targeted must be True or False, got 'no'; choose one of the two
    """
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise InputError(f"{name} must be True or False, got {value!r}; choose one of the two")


def box(bounds: Any, num_channels: int, dtype: Any = np.float32) -> geometry.Bounds:
    """Bounds as floats, or as tuples of one float for each channel: hashable, and equal where the numbers are.

    Those of images in half precision are as their dtype has them: pixels at a wall that it rounds outwards are in the
    box, and would otherwise make every image that an attack returns an invalid one.

    Example:
        >>> box([0, np.array([1.0, 0.5])], 2)
        ((0.0, 0.0), (1.0, 0.5))
        >>> box((-2.1179, 2.64), 3, jnp.bfloat16)
        (-2.125, 2.640625)
    """
    wanted = f"two numbers low < high, or arrays of {num_channels} such numbers, one for each channel"
    if hasattr(bounds, "dtype") and _is_concrete(bounds):
        bounds = np.asarray(bounds)  # within a trace, iterating over an array of JAX would be traced
    try:  # this casting refuses text, of which NumPy would otherwise parse numbers
        low, high = (np.asarray(wall).astype(np.float64, casting="same_kind") for wall in bounds)
    except (TypeError, ValueError, jax.errors.TracerArrayConversionError):
        raise InputError(f"bounds must be {wanted}, got {bounds!r}; give for example (0.0, 1.0)") from None
    if jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32:
        low, high = (wall.astype(dtype).astype(np.float64) for wall in (low, high))
    shapes = {low.shape, high.shape}
    if not (shapes <= {(), (num_channels,)} and np.all(low < high) and np.all(np.isfinite([*low.flat, *high.flat]))):
        raise InputError(f"bounds must be {wanted}, got {_short(bounds)}; give for example (0.0, 1.0)")
    if shapes == {()}:
        return float(low), float(high)
    low, high = (tuple(np.broadcast_to(wall, num_channels).tolist()) for wall in (low, high))
    return low, high


def takes(name: str, function: Callable[..., Any], arguments: tuple[Any, ...], wanted: str, mend: str) -> None:
    """Refuses a function that cannot be called with these arguments, as far as its signature tells.

    Example:
        >>> takes("logits_fn", lambda images, key: images, (1,), "(images)", "bind the key")
        Traceback (most recent call last):
        robustjax.types.InputError: logits_fn must take (images), got (images, key); bind the key
    """
    if not callable(function):
        raise InputError(f"{name} must be a function of {wanted}, got {type(function).__name__}; give one")
    if is_torch_module(function):
        raise InputError(
            f"{name} must be a function of JAX arrays, got the torch.nn.Module {type(function).__name__}; make one by "
            "transforms.from_torch_module(module.eval())"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function without one, such as a builtin
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise InputError(f"{name} must take {wanted}, got {signature}; {mend}") from error


def check_network(
    logits_fn: LogitsFn, images: AnyArray, draw: tuple[Key, ...], eot_samples: int, *, name: str = "logits_fn"
) -> None:
    """Refuses a network that takes a key and is not given one, and the other way round."""
    wanted = f"(images, key), as eot_samples={eot_samples} says" if draw else "(images)"
    mend = "leave eot_samples out" if draw else "of a network that draws give eot_samples, or bind the key"
    takes(name, logits_fn, (images, *draw), wanted, mend)


def check_loss(loss: Any) -> None:
    """Refuses a loss that is not a function, such as the name of one."""
    if not callable(loss):
        known = ", ".join(f"losses.{function.__name__}" for function in LIBRARY_LOSSES)
        raise InputError(f"loss must be a function of (outputs, labels), got {loss!r}; give for example one of {known}")


def check_key(key: Any, num_examples: int | None = None) -> None:
    """Refuses all but one typed key or, where their number is given, one for each example."""
    wanted = "a typed key" + ("" if num_examples is None else f", or one for each of {num_examples} examples")
    mend = "make one by jax.random.key(seed), or by jax.random.wrap_key_data(key) of a key of the old kind"
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        got = f"{key.dtype} {list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise InputError(f"key must be {wanted}, got {got}; {mend}")
    if key.shape != () and (num_examples is None or key.shape != (num_examples,)):
        raise InputError(f"key must be {wanted}, got keys {list(key.shape)}; split or index them")


def labels_in_range(labels: AnyArray, num_classes: int | None) -> None:
    """Refuses concrete labels below 0 or, where it is known, from the number of classes."""
    if not _is_concrete(labels) or labels.size == 0:
        return
    values = np.asarray(labels)
    least, most = int(values.min()), int(values.max())
    if least < 0 or (num_classes is not None and most >= num_classes):
        to = "" if num_classes is None else f" to {num_classes - 1}, as there are logits"
        raise InputError(f"labels must be classes 0{to}, got {least} to {most}; number the classes from 0")


def logits_of(outputs: Any, num_examples: int) -> Array:
    """The logits [B, K] among a network's outputs: these themselves, or their field ``logits``.

    Raises:
        InputError: for outputs of another shape or dtype, or of fewer than two classes.
    """
    logits = getattr(outputs, "logits", outputs)
    if not _are_logits(logits, num_examples):
        shape = getattr(logits, "shape", None)
        got = f"{type(logits).__name__}" if shape is None else f"{logits.dtype} {list(shape)}"
        one = shape is not None and tuple(shape) in ((num_examples,), (num_examples, 1))
        mend = (
            "of one score z make two logits, jnp.stack([0 * z, z], axis=1)"
            if one
            else "return a row of logits for each image, or outputs with a field `logits`"
        )
        raise InputError(f"logits_fn must return float logits [{num_examples}, K] with K >= 2, got {got}; {mend}")
    return logits


def as_array(name: str, values: Any) -> AnyArray:
    """An array of JAX or NumPy as it is, and of anything else, such as lists and tensors of PyTorch, one of NumPy."""
    if isinstance(values, np.ma.MaskedArray):
        raise InputError(f"{name} must be an array, got one with a mask; fill it by values.filled(...)")
    if isinstance(values, jax.Array):
        return values
    try:
        array = np.asarray(values)
        # JAX knows neither the byte order of other machines nor more than 64 bits.
        dtype = np.dtype(np.float64) if array.dtype == np.longdouble else array.dtype.newbyteorder("=")
        return array if array.dtype == dtype else array.astype(dtype)
    except (TypeError, ValueError) as error:  # rows of different lengths
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{name} must be an array, got {type(values).__name__} ({reason}); make it one") from error


def as_images(images: Any, num_axes: int | None) -> AnyArray:
    """Images as an array of JAX or NumPy; refused by rank and dtype."""
    images = as_array("images", images)
    axes = "[B, H, W, C]" if num_axes == 4 else "[B, ...]"
    if not jnp.issubdtype(images.dtype, jnp.floating):
        mend = "divide integers by 255 and" if jnp.issubdtype(images.dtype, jnp.integer) else "convert them and"
        raise InputError(
            f"images must be floats {axes}, got {images.dtype} {list(images.shape)}; {mend} give bounds to match"
        )
    if images.ndim < 2 or (num_axes is not None and images.ndim != num_axes):
        raise InputError(
            f"images must be floats {axes}, got {images.dtype} {list(images.shape)}; give a batch of images"
        )
    return images


def check_in_box(images: AnyArray, bounds: geometry.Bounds) -> None:
    """Refuses concrete images outside the box, or not finite."""
    if not _is_concrete(images) or images.size == 0:
        return
    values = np.asarray(images)
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    axes = tuple(range(values.ndim - 1))
    if isinstance(bounds[0], float):
        axes = None
    # Not a number compares false with everything.
    low, high = np.min(values, axis=axes), np.max(values, axis=axes)
    walls = np.asarray(np.asarray(bounds, images.dtype), values.dtype)  # as the images' own dtype has them
    if not (np.all(low >= walls[0]) and np.all(high <= walls[1])):
        raise InputError(
            f"images must be finite pixels in bounds {list(bounds)}, got [{np.min(low):.6g}, {np.max(high):.6g}]; "
            "scale them, or give their bounds"
        )


def as_labels(labels: Any, num_examples: int, *, loss: LossFn) -> Array:
    """Labels as an array; int32 where they are integers."""
    labels = as_array("labels", labels)
    kind = unwrapped(loss)
    integers = jnp.issubdtype(labels.dtype, jnp.integer)
    if kind in INTEGER_LABEL_LOSSES or (kind is losses.kl and integers):
        fine, wanted = integers and labels.shape == (num_examples,), f"integers [{num_examples}]"
    elif kind is losses.kl:
        fine = jnp.issubdtype(labels.dtype, jnp.floating) and labels.ndim == 2 and labels.shape[0] == num_examples
        wanted = f"integers [{num_examples}] or probabilities [{num_examples}, K]"
    else:
        fine = True
    if not fine:
        mend = "give the number of each image's class"
        if labels.ndim == 2:
            mend += ", of one-hot labels their argmax" if labels.shape[1] > 1 else ", labels[:, 0]"
        raise InputError(f"labels must be {wanted}, got {labels.dtype} {list(labels.shape)}; {mend}")
    if integers and labels.ndim == 1:
        _fits_int32(labels)
        return jnp.asarray(labels).astype(jnp.int32)
    return jnp.asarray(labels)


def _fits_int32(labels: Any) -> None:
    if not _is_concrete(labels) or labels.size == 0:
        return
    values, most = np.asarray(labels), np.iinfo(np.int32).max
    for value in (int(values.min()), int(values.max())):
        if not -most <= value <= most:  # which would become another class
            raise InputError(f"labels must be classes, got {value}; number the classes from 0")


def check_radius(name: str, value: Any, num_examples: int | None, *, allow_infinite: bool) -> None:
    """Refuses all but one number >= 0, or, of so many examples, one for each; values where they are concrete."""
    given = as_array(name, value)
    wanted = "a number >= 0" + ("" if num_examples is None else f", or one for each of {num_examples} examples")
    number = jnp.issubdtype(given.dtype, jnp.floating) or jnp.issubdtype(given.dtype, jnp.integer)
    if not number or given.shape not in ((), *([] if num_examples is None else [(num_examples,)])):
        got = f"{given.dtype} {list(given.shape)}" if number or given.ndim else repr(value)
        raise InputError(f"{name} must be {wanted}, got {got}; give one number for all")
    if not _is_concrete(given) or given.size == 0:
        return
    values = np.asarray(given, np.float64)
    # NaN compares false. The squares of what is larger overflow, and images with them.
    wrong = values[~((values >= 0) & ((values <= LARGEST_RADIUS) | (np.isinf(values) & allow_infinite)))]
    if wrong.size:
        raise InputError(f"{name} must be {wanted}, got {wrong.flat[0]:g}; give it in the units of the pixels")


def check_outputs(
    logits_fn: LogitsFn, key: Key, images: Array, labels: Array, loss: LossFn, *, eot_samples: int, library_loss: bool
) -> None:
    """Refuses outputs that a loss cannot use, by one abstract evaluation, and labels beyond the logits."""
    num_examples = images.shape[0]

    def evaluate(points: Array, *keys: Key) -> tuple[Any, Any]:
        outputs = logits_fn(points, *keys)
        return outputs, (logits_of(outputs, num_examples) if library_loss else loss(outputs, labels))

    draw = (first_key(key),) if eot_samples else ()
    check_network(logits_fn, images, draw, eot_samples)
    outputs, value = jax.eval_shape(evaluate, images, *draw)
    if not library_loss and getattr(value, "shape", None) != (num_examples,):
        got = list(value.shape) if hasattr(value, "shape") else type(value).__name__
        raise InputError(f"loss must return one number for each example [{num_examples}], got {got}; do not average")
    logits = getattr(outputs, "logits", outputs)
    if _are_logits(logits, num_examples) and labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.integer):
        labels_in_range(labels, logits.shape[1])
    if _are_logits(logits, num_examples) and labels.ndim == 2 and library_loss and labels.shape != logits.shape:
        raise InputError(
            f"labels must be probabilities {list(logits.shape)}, got {list(labels.shape)}; give one a class"
        )


def _are_logits(logits: Any, num_examples: int) -> bool:
    shape = getattr(logits, "shape", ())
    return len(shape) == 2 and shape[0] == num_examples and shape[1] >= 2 and jnp.issubdtype(logits.dtype, jnp.floating)


def unwrapped(loss: Any) -> Callable:
    """The function under ``functools.partial``."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _is_concrete(values: Any) -> bool:
    """Whether values can be read here and now: not traced, and on devices of this process."""
    return not isinstance(values, Tracer) and getattr(values, "is_fully_addressable", True)


def _short(value: Any) -> str:
    return " ".join(repr(value).split())
