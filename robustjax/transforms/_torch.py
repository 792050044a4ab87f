"""A PyTorch module as a function of JAX arrays, through torchax, and the checks that it is the same function."""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from robustjax.transforms import _source
from robustjax.types import Array, InputError

# What setup.cfg's extra `torch` asks for: torchax 0.0.13 cannot be imported beside PyTorch 2.13 and newer.
INSTALL = "pip install 'torch>=2.10,<2.13' torchax==0.0.13"

# Largest difference of logits from PyTorch's, as a share of the largest logit.
MOST_DIFFERENCE = 1e-5
# Largest length of the difference of input gradients, as a share of their own, without a warning. Rounding puts some
# activations on the other side of a kink: of a ResNet-50, PyTorch's gradient in float32 is 0.2 % off that in float64.
MOST_GRADIENT_DIFFERENCE = 0.05


def from_torch_module(module: Any) -> jax.tree_util.Partial:
    """The function that a PyTorch module computes, for attacks under ``jit``, ``grad`` and ``vmap``.

    At the first call with images of a new size, two random images pass through both PyTorch and the converted function,
    and logits that differ by more than 1e-5 of the largest are refused. So are modules whose logits change from call to
    call or with the other images of the batch. Of gradients that differ there is a warning: where a module defines its
    own or hides one, attacks follow that of the operations that it carries out. The module is copied: what becomes of
    it afterwards changes nothing.

    Args:
        module: a ``torch.nn.Module`` in inference mode (``module.eval()``) with float32 parameters, on any device, that
            maps images [B, C, H, W] to logits [B, K]. What it normalises stays in it.

    Returns:
        images [B, H, W, C] -> logits [B, K], float32: a ``jax.tree_util.Partial`` that holds parameters and buffers, so
        that what is compiled with it as an argument takes them as arguments. Those without axes are constants: a module
        may branch on them.

    Raises:
        InputError: torch or torchax is missing, or the two do not fit; the module is in training mode, has parameters
            that are not float32, or uses what torchax does not know. At the first call: it refuses the images, returns
            something else than logits, is random, mixes the images of a batch, or is not reproduced.

    Example:
        With PyTorch installed::

            module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
            logits_fn = transforms.from_torch_module(module.eval())
            logits_fn(jnp.zeros((2, 32, 32, 3)))  # float32 [2, 10]

        >>> from_torch_module(lambda images: images)
        Traceback (most recent call last):
        robustjax.types.InputError: module must be a torch.nn.Module, got function; a function of JAX arrays is a
        logits_fn already
    """
    if not is_torch_module(module):
        raise InputError(
            f"module must be a torch.nn.Module, got {type(module).__name__}; a function of JAX arrays is a logits_fn "
            "already"
        )
    torchax = _torchax()
    _refuse_training(module)
    _refuse_dtypes(module)
    try:
        module = _with_lines(copy.deepcopy(module).cpu().requires_grad_(False))
        variables, function = torchax.extract_jax(module)
    except Exception as error:
        raise InputError(f"module must be one that can be copied and converted, got {reason(error)}") from error
    scalars = {name: value for name, value in variables.items() if value.ndim == 0}
    variables = {name: value for name, value in variables.items() if name not in scalars}
    return jax.tree_util.Partial(_Converted(module, variables, scalars, function), variables)


def is_torch_module(value: Any) -> bool:
    """Whether it is a ``torch.nn.Module``, without importing PyTorch, which need not be there."""
    return any(base.__module__ == "torch.nn.modules.module" for base in type(value).__mro__)


class _Converted:
    """``(variables, images) -> logits`` of a module, checked against PyTorch once for each size of images.

    Args:
        module: a private copy.
        variables, scalars, function: what torchax makes of it, the variables without axes apart.
    """

    def __init__(self, module: Any, variables: dict[str, Array], scalars: dict[str, Array], function: Any):
        self._module, self._variables, self._scalars, self._function = module, variables, scalars, function
        self._checked: set[tuple[int, ...]] = set()
        # Tracing puts tracers into the module for a moment, and several threads may trace at the same time.
        self._lock = threading.RLock()
        # Tracing through PyTorch is slow: the program is kept for each shape. Inline, transformations see its inside.
        self._program = jax.jit(self._trace, inline=True)

    def __call__(self, variables: dict[str, Array], images: Array) -> Array:
        images = jnp.asarray(images)
        size = images.shape[1:]
        if len(size) != 3 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images must be floats [B, H, W, C] in [0, 1], got {images.dtype} {list(images.shape)}; give a "
                "batch of images, integers divided by 255"
            )
        with self._lock:
            if size not in self._checked:
                with jax.ensure_compile_time_eval(), _one_thread():
                    _check(self._module, self.values, size)
                self._checked.add(size)
        return self._program(variables, images.astype(jnp.float32))

    def _trace(self, variables: dict[str, Array], images: Array) -> Array:
        # torchax relies on the promotion that is JAX's default.
        with self._lock, jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return self._function(variables | self._scalars, (jnp.moveaxis(images, 3, 1),))

    def values(self, images: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits of images [B, H, W, C], and the gradient of their sum with weights [B, K], in full float32."""

        @jax.jit
        def both(variables: dict[str, Array], images: Array, weights: Array) -> tuple[Array, Array]:
            logits, pull = jax.vjp(partial(self._program, variables), images)
            return logits, pull(weights)[0]

        with jax.default_matmul_precision("highest"):
            logits, gradient = both(self._variables, jnp.asarray(images), jnp.asarray(weights))
        return np.asarray(logits), np.asarray(gradient)


def _with_lines(module: Any) -> Any:
    """The module, whose operations say in the names of JAX's scopes which line of its code they come of.

    Tracebacks of JAX end where PyTorch, which is not Python, calls it.
    """
    from torch.overrides import TorchFunctionMode  # pyright: ignore[reportMissingImports]

    class Lines(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            line, kwargs = _source.user_line(), kwargs or {}
            scope = contextlib.nullcontext() if line is None else jax.named_scope(_source.named(line))
            # What depends on scalar buffers alone is a number that a module may branch on.
            known = jax.ensure_compile_time_eval() if _are_known((args, kwargs)) else contextlib.nullcontext()
            with scope, known:
                return function(*args, **kwargs)

    forward = module.forward

    def with_lines(*args: Any, **kwargs: Any) -> Any:
        with Lines():
            return forward(*args, **kwargs)

    module.forward = with_lines
    return module


def _are_known(arguments: Any) -> bool:
    """Whether arguments hold arrays, all of them scalars, and none of them is traced."""
    arrays = [getattr(leaf, "_elem", None) for leaf in jax.tree.leaves(arguments)]
    arrays = [array for array in arrays if array is not None]
    return bool(arrays) and not any(isinstance(array, Tracer) or array.ndim for array in arrays)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """PyTorch's threads have crashed beside those of JAX."""
    import torch  # pyright: ignore[reportMissingImports]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _torchax() -> Any:
    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports] - an extra, which need not be installed
        import torchax  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"a torch.nn.Module must have torch and torchax beside it, got {reason(error)}; {INSTALL}"
        ) from error
    except Exception as error:  # what torchax raises when PyTorch no longer has what it asks for
        raise InputError(f"torchax must fit the installed PyTorch, got {reason(error)}; {INSTALL}") from error
    return torchax


def _refuse_training(module: Any) -> None:
    training = [(name or "the module", layer) for name, layer in module.named_modules() if layer.training]
    if training:
        # Of all the layers in training mode, name one that behaves differently there.
        name, layer = next((pair for pair in training if _differs_in_training(pair[1])), training[0])
        raise InputError(
            f"module must be in inference mode, got {name} ({type(layer).__name__}) in training mode; "
            "call module.eval()"
        )


def _differs_in_training(layer: Any) -> bool:
    return any(word in type(layer).__name__ for word in ("BatchNorm", "Drop"))


def _refuse_dtypes(module: Any) -> None:
    dtypes = {str(value.dtype) for value in module.parameters() if value.is_floating_point()} - {"torch.float32"}
    if dtypes:
        raise InputError(f"module must have float32 parameters, got {', '.join(sorted(dtypes))}; call module.float()")


def _check(module: Any, converted: Any, size: tuple[int, ...]) -> None:
    """Compares a module with itself and with its conversion on random images of a size [H, W, C].

    Args:
        module: of PyTorch.
        converted: (images [B, H, W, C], weights [B, K]) -> logits, and the gradient of their weighted sum.
        size: of the images.

    Raises:
        InputError: see :func:`from_torch_module`.
    """
    generator = np.random.default_rng(0)
    one, two, three = generator.uniform(size=(3, *size)).astype(np.float32)
    images = np.stack([one, two])
    logits, _ = _by_torch(module, images)
    weights = generator.normal(size=logits.shape).astype(np.float32)
    again, gradient = _by_torch(module, images, weights)
    if not _difference(again, logits) <= MOST_DIFFERENCE:
        raise InputError(
            "module must give the same logits at every call, got others at the second; draw in a JAX function of "
            "(images, key)"
        )
    if not _difference(_by_torch(module, np.stack([one, three]))[0][:1], logits[:1]) <= MOST_DIFFERENCE:
        raise InputError(
            "module must classify each image by itself, got logits that change with the other images of the batch; "
            "give its BatchNorm layers running statistics (track_running_stats=True)"
        )
    try:
        ours, our_gradient = converted(images, weights)
    except Exception as error:
        raise InputError(f"module must be one that torchax converts, got {reason(error)}") from error
    difference = _difference(ours, logits) if ours.shape == logits.shape else np.inf
    if not difference <= MOST_DIFFERENCE:  # not a number compares false
        raise InputError(
            f"module must have the same logits in JAX up to {MOST_DIFFERENCE:g} of the largest, got a difference of "
            f"{difference:.1e}; convert it another way, as by onnx:FILE"
        )
    difference = _relative_length(our_gradient, gradient)
    if not difference <= MOST_GRADIENT_DIFFERENCE:
        # On CPUs PyTorch 2.10 to 2.13 computes wrong gradients of strided convolutions of contiguous images where the
        # incoming gradient is transposed, as in patch embeddings; in the other layout of the images they are right.
        with contextlib.suppress(InputError):  # of a module that takes contiguous images only
            _, gradient = _by_torch(module, images, weights, channels_last=True)
            difference = min(difference, _relative_length(our_gradient, gradient))
    if not difference <= MOST_GRADIENT_DIFFERENCE:
        warnings.warn(
            f"the module's input gradient in JAX differs from PyTorch's by {difference:.0%} of its length: it defines "
            "one of its own (torch.autograd.Function) or hides one (torch.no_grad), and attacks follow that of the "
            "operations that it carries out; write a straight-through estimator as x + (f(x) - x).detach()",
            stacklevel=4,
        )


def _relative_length(one: np.ndarray, other: np.ndarray) -> float:
    """Length of the difference of two gradients as a share of the longer one's."""
    longest = max(np.linalg.norm(one), np.linalg.norm(other), np.finfo(np.float32).tiny)
    return float(np.linalg.norm(one - other) / longest)


def _by_torch(
    module: Any, images: np.ndarray, weights: np.ndarray | None = None, *, channels_last: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's own logits of images [B, H, W, C], and the gradient of their sum with weights [B, K], or zeros."""
    import torch  # pyright: ignore[reportMissingImports]

    batch, height, width, channels = images.shape
    pictures = torch.tensor(images.transpose(0, 3, 1, 2).copy())
    if channels_last:
        pictures = pictures.to(memory_format=torch.channels_last)
    pictures.requires_grad_(weights is not None)
    try:
        with torch.set_grad_enabled(weights is not None):
            logits = module(pictures.clone())  # which it may change in place
    except Exception as error:
        raise InputError(
            f"module must take images [B, {channels}, {height}, {width}], got {reason(error)}; give [B, H, W, C] of "
            "the size and channels that it was made for, or wrap it in a module that brings them into its own shape"
        ) from error
    wanted = "module must return float logits [B, K] with K >= 2"
    if not isinstance(logits, torch.Tensor):
        mend = "its field `logits`" if hasattr(logits, "logits") else "the logits alone"
        count = f" of {len(logits)}" if isinstance(logits, tuple | list) else ""
        raise InputError(f"{wanted}, got {type(logits).__name__}{count}; wrap it in a module that returns {mend}")
    if logits.ndim != 2 or len(logits) != batch or logits.shape[1] < 2 or not logits.is_floating_point():
        raise InputError(
            f"{wanted}, got {str(logits.dtype).removeprefix('torch.')} {list(logits.shape)} for {batch} images; "
            "wrap it in a module that returns a row of logits for each image"
        )
    values, gradient = logits.detach().float().numpy(), np.zeros_like(images)
    if not np.isfinite(values).all():
        raise InputError("module must return finite logits, got others at random pixels in [0, 1]; check its weights")
    if weights is not None and logits.requires_grad:
        (slopes,) = torch.autograd.grad((logits * torch.tensor(weights)).sum(), pictures)
        gradient = slopes.numpy().transpose(0, 2, 3, 1)
    return values, gradient


def _difference(values: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference as a share of the largest value of either; not a number where one of them is none."""
    largest = max(np.max(np.abs(values)), np.max(np.abs(expected)), np.finfo(np.float32).tiny)
    return float(np.max(np.abs(values - expected)) / largest)


def reason(error: Exception) -> str:
    """An error in one line of at most about 200 characters."""
    # JAX goes on with which of its callers was tracing.
    said = str(error).partition("The error occurred while tracing")[0]
    text = f"{type(error).__name__}: {' '.join(said.split())}"
    return text if len(text) <= 200 else f"{text[:197]}..."
