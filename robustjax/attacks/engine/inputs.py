"""The one check of what attacks are given, and the conversion between the images' dtype and float32.

Every public attack, :func:`robustjax.attacks.autoattack` and ``evaluation.judge`` use it. What is concrete is checked
by value. Under ``jit``, ``vmap`` and ``shard_map`` values are not known, so shapes and dtypes are checked alone;
nothing here waits for a device inside traced code. All errors are :class:`robustjax.types.InputError`, one line each:
"name must be X, got Y; mend".
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from robustjax.attacks import geometry, losses
from robustjax.ops import straight_through
from robustjax.types import AnyArray, Array, InputError, Key, LogitsFn, LossFn

# Losses that take logits and integer labels. `losses.kl` also takes distributions as labels.
INTEGER_LABEL_LOSSES = (losses.cross_entropy, losses.margin, losses.dlr)
LIBRARY_LOSSES = (*INTEGER_LABEL_LOSSES, losses.kl)


class Inputs(NamedTuple):
    """What an attack works on, checked.

    Attributes:
        logits_fn: takes float32 points and calls the network on them in the dtype of the images that were given.
        images: float32 [B, ...].
        labels: int32 [B]; with a loss of the user's own whatever it takes.
        bounds: a pair of floats, or of tuples of floats, one for each channel; hashable.
        loss: (outputs, labels) -> [B]; a loss of this library reads ``outputs.logits`` where there is such a field.
        given: the images as they were given.
    """

    logits_fn: LogitsFn
    images: Array
    labels: Array
    bounds: geometry.Bounds
    loss: LossFn
    given: Array

    @property
    def is_empty(self) -> bool:
        """Whether there is no image: attacks then return the images at once."""
        return self.images.shape[0] == 0

    def returned(self, points: Array) -> Array:
        """Float32 points in the dtype of the images that were given."""
        return in_dtype_of(self.given, points, self.bounds)


def check(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    norm: str,
    bounds: geometry.Bounds,
    radii: Mapping[str, Any] | None = None,
    loss: LossFn = losses.cross_entropy,
    eot_samples: int = 0,
    keys_per_example: bool = False,
    allow_infinite: bool = False,
    num_axes: int | None = None,
) -> Inputs:
    """Checks what an attack is given.

    Args:
        logits_fn, key, images, labels, norm, bounds, eot_samples: as the attack was given them.
        radii: name -> value of the options that are numbers >= 0, or one for each example, such as epsilon.
        loss: (outputs, labels) -> [B]. With one of the user's own, outputs may be any pytree and labels anything.
        keys_per_example: whether ``key`` may also be one key for each example [B].
        allow_infinite: whether ``radii`` may be infinite.
        num_axes: axes that images must have; by default any number from 2.

    Returns:
        An :class:`Inputs`.

    Raises:
        InputError: for whatever is wrong.
    """
    geometry.get(norm)
    at_least(0, eot_samples=eot_samples)
    if not callable(loss):
        known = ", ".join(f"losses.{function.__name__}" for function in LIBRARY_LOSSES)
        raise InputError(f"loss must be a function of (outputs, labels), got {loss!r}; give for example one of {known}")
    given = jnp.asarray(_images(images, num_axes))
    bounds = box(bounds, given.shape[-1])
    _in_box(given, bounds)
    num_examples = given.shape[0]
    _key(key, num_examples if keys_per_example else None)
    for name, value in (radii or {}).items():
        _radius(name, value, num_examples, allow_infinite=allow_infinite)
    library_loss = _unwrapped(loss) in LIBRARY_LOSSES
    labels = _labels(labels, num_examples, loss=loss)
    if library_loss:
        loss = functools.partial(_of_logits, loss)
    if num_examples:
        _outputs(logits_fn, key, given, labels, loss, eot_samples=eot_samples, library_loss=library_loss)

    def network(points: Array, *keys: Key) -> Any:
        return logits_fn(in_dtype_of(given, points, bounds), *keys)

    plain = given.dtype == jnp.float32
    return Inputs(logits_fn if plain else network, given.astype(jnp.float32), labels, bounds, loss, given)


def on_host(
    images: AnyArray,
    labels: AnyArray,
    epsilon: AnyArray | float,
    norm: str,
    bounds: geometry.Bounds,
    *,
    keep_dtype: bool = False,
    allow_empty: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checks what a driver on the host is given, by value.

    Args:
        images: float [N, H, W, C] inside bounds.
        labels: integers [N], at least 0. The driver compares them with the number of logits.
        epsilon: a number >= 0, or one for each image [N].
        norm: "linf", "l2" or "l1".
        bounds: the box.
        keep_dtype: leave images in the dtype that JAX has for theirs, rather than make them float32.
        allow_empty: whether there may be no image.

    Returns:
        NumPy arrays: images, labels int32 [N], epsilon float32 [N].

    Raises:
        InputError: for whatever is wrong.

    Example:
        >>> import jax.numpy as jnp
        >>> on_host(jnp.full((1, 2, 2, 1), 0.5), jnp.array([3]), 0.1, "linf", (0.0, 1.0))[1:]
        (array([3], dtype=int32), array([0.1], dtype=float32))
    """
    geometry.get(norm)
    images = _images(images, 4)
    _in_box(images, box(bounds, images.shape[-1]))
    if not (len(images) or allow_empty):
        raise InputError("images must be at least one, got none; give some")
    labels = _labels(labels, len(images), loss=losses.cross_entropy)
    labels_in_range(labels, None)
    _radius("epsilon", epsilon, len(images), allow_infinite=False)
    dtype = jax.dtypes.canonicalize_dtype(images.dtype) if keep_dtype else np.float32
    radius = np.broadcast_to(np.asarray(epsilon, np.float32), images.shape[:1])
    return np.asarray(images).astype(dtype), np.asarray(labels), radius


def at_least(least: int, **counts: Any) -> None:
    """Refuses counts that are no integers or too small; traced ones pass.

    Example:
        >>> at_least(1, num_steps=0)
        Traceback (most recent call last):
        robustjax.types.InputError: num_steps must be at least 1, got 0; give an integer from 1
    """
    for name, value in counts.items():
        if isinstance(value, Tracer):
            continue
        try:
            fine = operator.index(value) >= least
        except TypeError:
            fine = False
        if not fine:
            raise InputError(f"{name} must be at least {least}, got {value!r}; give an integer from {least}")


def box(bounds: Any, num_channels: int) -> geometry.Bounds:
    """Bounds as floats, or as tuples of one float for each channel: hashable, and equal where the numbers are.

    Example:
        >>> box([0, np.array([1.0, 0.5])], 2)
        ((0.0, 0.0), (1.0, 0.5))
    """
    wanted = f"two numbers low < high, or arrays of {num_channels} such numbers, one for each channel"
    if hasattr(bounds, "dtype") and _is_concrete(bounds):
        bounds = np.asarray(bounds)  # within a trace, iterating over an array of JAX would be traced
    try:
        low, high = (np.asarray(wall, np.float64) for wall in bounds)
    except (TypeError, ValueError, jax.errors.TracerArrayConversionError):
        raise InputError(f"bounds must be {wanted}, got {bounds!r}; give for example (0.0, 1.0)") from None
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
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function without one, such as a builtin
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise InputError(f"{name} must take {wanted}, got {signature}; {mend}") from error


def check_network(logits_fn: LogitsFn, images: AnyArray, draw: tuple[Key, ...], eot_samples: int) -> None:
    """Refuses a network that takes a key and is not given one, and the other way round."""
    wanted = f"(images, key), as eot_samples={eot_samples} says" if draw else "(images)"
    mend = "leave eot_samples out" if draw else "of a network that draws give eot_samples, or bind the key"
    takes("logits_fn", logits_fn, (images, *draw), wanted, mend)


def check_key(key: Key) -> None:
    """Refuses all but one typed key."""
    _key(key, None)


def labels_in_range(labels: AnyArray, num_classes: int | None) -> None:
    """Refuses concrete labels below 0 or, where it is known, from the number of classes."""
    if not _is_concrete(labels) or labels.size == 0:
        return
    values = np.asarray(labels)
    least, most = int(values.min()), int(values.max())
    if least < 0 or (num_classes is not None and most >= num_classes):
        to = "" if num_classes is None else f" to {num_classes - 1}, as there are logits"
        raise InputError(f"labels must be classes 0{to}, got {least} to {most}; number the classes from 0")


@overload
def as_pytree(function: None) -> None: ...
@overload
def as_pytree(function: Callable[..., Any]) -> jax.tree_util.Partial: ...
def as_pytree(function: Callable[..., Any] | None) -> jax.tree_util.Partial | None:
    """A function as a pytree that jitted functions take as an argument; None stays None.

    Arrays of a ``jax.tree_util.Partial`` become traced arguments, so that other weights compile nothing new.
    """
    if function is None or isinstance(function, jax.tree_util.Partial):
        return function
    # A callable object may hold arrays and lack a hash, which jit needs; a function around it has one.
    return jax.tree_util.Partial(function if inspect.isfunction(function) else lambda *arguments: function(*arguments))


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


def in_dtype_of(given: Array, points: Array, bounds: geometry.Bounds) -> Array:
    """Float32 points in the dtype of the images they belong to, no further from them; differentiable as a cast.

    In float16 and bfloat16 each pixel is rounded towards the image, so that what was inside ball and box stays there.
    In float64 the change of each pixel is added to the image, so that what did not change is exactly the image.

    Args:
        given: the images, of any float dtype.
        points: float32, like them.
        bounds: the box, which float64 points are clipped to.

    Returns:
        An array like ``given``.

    Example:
        >>> import jax.numpy as jnp
        >>> in_dtype_of(jnp.zeros(1, jnp.bfloat16), jnp.array([0.3]), (0.0, 1.0))  # its neighbours: 0.2988 and 0.3008
        Array([0.298828], dtype=bfloat16)
    """
    if given.dtype == jnp.float32:
        return points
    images = given.astype(jnp.float32)
    if jnp.finfo(given.dtype).bits > 32:
        low, high = geometry.walls(bounds, given)
        return jnp.clip(given + (points - images).astype(given.dtype), low, high)
    nearest = points.astype(given.dtype)
    constant = jax.lax.stop_gradient(nearest)
    too_far = jnp.abs(constant.astype(jnp.float32) - images) > jnp.abs(jax.lax.stop_gradient(points) - images)
    return straight_through(jnp.where(too_far, jnp.nextafter(constant, given), constant), nearest)


def _array(values: Any) -> AnyArray:
    """An array of JAX or NumPy as it is, and of anything else, such as lists and tensors of PyTorch, one of NumPy."""
    return values if isinstance(values, jax.Array | np.ndarray) else np.asarray(values)


def _images(images: Any, num_axes: int | None) -> AnyArray:
    """Images as an array of JAX or NumPy; refused by rank and dtype."""
    images = _array(images)
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


def _in_box(images: AnyArray, bounds: geometry.Bounds) -> None:
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


def _key(key: Any, num_examples: int | None) -> None:
    wanted = "a typed key" + ("" if num_examples is None else f", or one for each of {num_examples} examples")
    mend = "make one by jax.random.key(seed), or by jax.random.wrap_key_data(key) of a key of the old kind"
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        got = f"{key.dtype} {list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise InputError(f"key must be {wanted}, got {got}; {mend}")
    if key.shape != () and (num_examples is None or key.shape != (num_examples,)):
        raise InputError(f"key must be {wanted}, got keys {list(key.shape)}; split or index them")


def _labels(labels: Any, num_examples: int, *, loss: LossFn) -> Array:
    """Labels as an array; int32 where they are integers."""
    labels = _array(labels)
    kind = _unwrapped(loss)
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
    if _is_concrete(labels) and labels.size and int(np.asarray(labels).max()) > np.iinfo(np.int32).max:
        raise InputError(f"labels must be classes, got {int(np.asarray(labels).max())}; number the classes from 0")


def _radius(name: str, value: Any, num_examples: int, *, allow_infinite: bool) -> None:
    given = value if hasattr(value, "dtype") else np.asarray(value)
    wanted = f"a number >= 0, or one for each of {num_examples} examples"
    number = jnp.issubdtype(given.dtype, jnp.floating) or jnp.issubdtype(given.dtype, jnp.integer)
    if not number or given.shape not in ((), (num_examples,)):
        got = f"{given.dtype} {list(given.shape)}" if number or given.ndim else repr(value)
        raise InputError(f"{name} must be {wanted}, got {got}; give one number for all")
    if not _is_concrete(given) or given.size == 0:
        return
    values = np.asarray(given, np.float64)
    wrong = values[~((values >= 0) & (np.isfinite(values) | allow_infinite))]  # NaN compares false
    if wrong.size:
        raise InputError(f"{name} must be {wanted}, got {wrong.flat[0]:g}; give it in the units of the pixels")


def _outputs(
    logits_fn: LogitsFn, key: Key, images: Array, labels: Array, loss: LossFn, *, eot_samples: int, library_loss: bool
) -> None:
    """Refuses outputs that a loss cannot use, by one abstract evaluation, and labels beyond the logits."""
    num_examples = images.shape[0]

    def evaluate(points: Array, *keys: Key) -> tuple[Any, Any]:
        outputs = logits_fn(points, *keys)
        return outputs, (logits_of(outputs, num_examples) if library_loss else loss(outputs, labels))

    draw = (key if key.ndim == 0 else key[0],) if eot_samples else ()
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


def _of_logits(loss: LossFn, outputs: Any, labels: Array) -> Array:
    return loss(getattr(outputs, "logits", outputs), labels)


def _unwrapped(loss: Any) -> Callable:
    """The function under ``functools.partial``."""
    while isinstance(loss, functools.partial):
        loss = loss.func
    return loss


def _is_concrete(values: Any) -> bool:
    """Whether values can be read here and now: not traced, and on devices of this process."""
    return not isinstance(values, Tracer) and getattr(values, "is_fully_addressable", True)


def _short(value: Any) -> str:
    return " ".join(repr(value).split())
