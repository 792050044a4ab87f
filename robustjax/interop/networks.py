"""Loads a network by the name that a command line gives: :func:`load_network`."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import transforms
from robustjax.attacks.engine import inputs
from robustjax.interop.weights import file_sha256, load_weights
from robustjax.models.layers import per_channel
from robustjax.runs.network import digest
from robustjax.runtime.files import place
from robustjax.transforms._torch import is_torch_module, reason
from robustjax.types import Array, InputError, LogitsFn

FORMS = "package.module:function, file.py:function, robustbench:NAME or onnx:FILE"
INPUT = "float images [B, H, W, C] in [0, 1]"
AS_IT_IS = "as the network has it"


class Network(NamedTuple):
    """A network and what records say of it.

    Attributes:
        logits_fn: images [B, H, W, C] in [0, 1] -> logits [B, K].
        about: plain data: ``model`` (the spec), ``framework`` ("jax", "torch" or "onnx"), ``input``, ``normalisation``
            ({"mean", "std"} in pixels of [0, 1], or "as the network has it"), ``weights`` (the file or None),
            ``weights_sha256`` (of the file; without one, of the names, shapes and values of the arrays; None for a
            function that keeps them to itself), ``num_parameters`` (None likewise), ``versions`` (of torch and torchax
            where they carry it out).
    """

    logits_fn: LogitsFn
    about: dict[str, Any]


def load_network(
    spec: str,
    *,
    weights: str | Path | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Network:
    """The network that a command line names.

    Args:
        spec: ``"package.module:function"`` or ``"file.py:function"``, which is called and returns a ``logits_fn`` or a
            ``torch.nn.Module`` in inference mode; ``"robustbench:NAME"``, one of that package's model zoo, as
            ``"robustbench:cifar10/Linf/NAME"`` where several data sets or threats have it; or ``"onnx:FILE"``.
        weights: a file. A function that takes ``weights`` is given its path; into the module of one that does not they
            are loaded (.safetensors, .npz, .pt, .pth), and it is put in inference mode. Of a model of RobustBench that
            has several files, their folder.
        mean, std: the network is given ``(images - mean) / std``, each one number or one for each channel; None: the
            images as they are.

    Returns:
        A :class:`Network`.

    Raises:
        InputError: there is nothing of that name; it fails, or returns something else; a package is missing; the
            weights are of another network. See also :func:`robustjax.transforms.from_torch_module`.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "mine.py"
        >>> _ = file.write_text("def network(): return lambda images: images.reshape(len(images), -1)[:, :2]")
        >>> network = load_network(f"{file}:network", mean=0.5, std=0.25)
        >>> network.logits_fn(jnp.full((1, 2, 2, 1), 0.75))
        Array([[1., 1.]], dtype=float32)
        >>> network.about["framework"], network.about["normalisation"]
        ('jax', {'mean': [0.5], 'std': [0.25]})
    """
    constants = _constants(mean, std)
    weights = None if weights is None else place(weights)
    kind, colon, name = spec.partition(":") if isinstance(spec, str) else ("", "", "")
    if not (kind and colon and name):
        raise InputError(f"model must be {FORMS}, got {spec!r}; give one of these")
    if kind == "onnx":
        if weights is not None:
            raise InputError(f"weights must not be given beside onnx:FILE, got {str(weights)!r}; the file holds them")
        from robustjax.interop import onnx  # pyright: ignore[reportAttributeAccessIssue]

        result, framework, weights = onnx.read(name), "onnx", name
    elif kind == "robustbench":
        from robustjax.interop import zoo

        result, framework = zoo.load(name, weights), "torch"
    else:
        result, framework = _by_function(spec, weights)
    logits_fn = transforms.from_torch_module(result) if framework == "torch" else result
    arrays = jax.tree.leaves(logits_fn) if isinstance(logits_fn, jax.tree_util.Partial) else []
    counted: Any = getattr(result, "parameters")() if framework == "torch" else arrays  # noqa: B009
    about = {
        "model": spec,
        "framework": framework,
        "input": INPUT,
        "normalisation": AS_IT_IS if constants is None else {"mean": list(constants[0]), "std": list(constants[1])},
        "weights": None if weights is None else str(weights),
        "weights_sha256": file_sha256(weights) if weights is not None else digest(logits_fn) if arrays else None,
        "num_parameters": sum(math.prod(array.shape) for array in counted) or None,
        "versions": {name: metadata.version(name) for name in ("torch", "torchax")} if framework == "torch" else {},
    }
    return Network(logits_fn if constants is None else _normalised(logits_fn, *constants), about)


def _by_function(spec: str, weights: str | Path | None) -> tuple[Any, str]:
    """The logits_fn or the PyTorch module that a function returns, and the framework."""
    source, _, name = spec.rpartition(":")
    with _importing(spec, source) as module:
        result, pending = _called(_attribute(module, name, spec), spec, weights)
    if is_torch_module(result):
        if pending is not None:
            load_weights(result, pending)
        return result, "torch"
    if pending is not None:
        raise InputError(
            f"model {spec} must take `weights`, got a function without; give it that argument, or let it return a "
            "torch.nn.Module, into which they are loaded"
        )
    if not callable(result) or (hasattr(result, "init") and hasattr(result, "apply")):
        raise InputError(
            f"model {spec} must return a function from images to logits or a torch.nn.Module, got "
            f"{type(result).__name__}; of a Flax module return lambda images: module.apply(variables, images)"
        )
    return result, "jax"


@contextlib.contextmanager
def _importing(spec: str, source: str) -> Iterator[ModuleType]:
    """The module that a spec names; while its function runs, the file's folder is where Python looks for others."""
    path = place(source)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise InputError(f"model {spec} must name a file that is there, got no {source}; give its path")
    before = list(sys.path)
    try:
        if is_file:
            sys.path.insert(0, str(path.resolve().parent))
        yield _imported(spec, source, path if is_file else None)
    finally:
        sys.path[:] = before


def _imported(spec: str, source: str, path: Path | None) -> ModuleType:
    try:
        if path is None:
            return importlib.import_module(source)
        found = importlib.util.spec_from_file_location(f"_network_{path.stem}", path)
        assert found is not None and found.loader is not None  # as its name ends in .py
        module = sys.modules[found.name] = importlib.util.module_from_spec(found)  # where dataclasses look for it
        found.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path is None and (source == missing or source.startswith(f"{missing}.")):
            raise InputError(f"model must be {FORMS}, got {spec!r}; there is no module {missing}") from error
        raise InputError(
            f"model {spec} must find what it imports, got no module {missing}; install the package that has it"
        ) from error
    except Exception as error:  # the user's code
        raise InputError(f"model {spec} must be importable, got {reason(error)}; mend {source}") from error


def _attribute(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function
    own = {other for other, value in vars(module).items() if _defined_in(module, value) and not other.startswith("_")}
    nearest = difflib.get_close_matches(name, sorted(own), n=3, cutoff=0.5)
    which = f"nearest: {', '.join(nearest)}" if nearest else f"it has {', '.join(sorted(own)[:5]) or 'none'}"
    got = "no" if function is None else type(function).__name__
    raise InputError(f"model {spec} must name a function, got {got} {name} in it; {which}")


def _defined_in(module: ModuleType, value: Any) -> bool:
    """Whether it is a function or class of the module or, of a package, of one in it."""
    return callable(value) and str(getattr(value, "__module__", "")).startswith(module.__name__)


def _called(function: Callable[..., Any], spec: str, weights: str | Path | None) -> tuple[Any, str | Path | None]:
    """What the function returns, and the weights if they are still to be loaded."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # some builtins have none
        parameters = {}
    # An argument of that name in torchvision chooses among files to download.
    takes = "weights" in parameters and not (function.__module__ or "").startswith("torchvision.")
    given = {"weights": str(weights)} if takes and weights is not None else {}
    missing = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and parameter.name not in given
    ]
    if missing == ["weights"]:
        raise InputError(f"weights must be given for {spec}, got none; give --weights=FILE")
    if missing:
        raise InputError(
            f"model {spec} must be called without arguments, or with `weights`, and return the network, got a function "
            f"of {', '.join(missing)}; write one that returns it"
        )
    if weights is not None and not Path(weights).exists():
        raise InputError(f"weights must be a file that is there, got no {weights}; give its path")
    try:
        return function(**given), None if takes else weights
    except InputError:
        raise
    except Exception as error:  # the user's code
        raise InputError(f"model {spec} must return a network, got {reason(error)}; mend it") from error


def _constants(mean: Any, std: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("mean and std must be given both or none, got one of them; give the other")
    constants = per_channel("mean", mean), per_channel("std", std)
    if len({len(values) for values in constants} - {1}) > 1:
        raise InputError(
            f"mean and std must be for the same channels, got {len(constants[0])} and {len(constants[1])}; give one "
            "number for each channel"
        )
    return constants


def _normalised(logits_fn: LogitsFn, mean: Sequence[float], std: Sequence[float]) -> LogitsFn:
    values = (jnp.array(numbers, jnp.float32).reshape(1, 1, 1, -1) for numbers in (mean, std))
    return jax.tree_util.Partial(_of_normalised, inputs.as_pytree(logits_fn), *values)


def _of_normalised(logits_fn: LogitsFn, mean: Array, std: Array, images: Array, *key: Array) -> Any:
    if mean.shape[-1] not in (1, images.shape[-1]) or std.shape[-1] not in (1, images.shape[-1]):
        raise InputError(
            f"mean and std must be one number or one for each channel, got {max(mean.shape[-1], std.shape[-1])} for "
            f"images with {images.shape[-1]} channels; give as many"
        )
    return logits_fn((images - mean.astype(images.dtype)) / std.astype(images.dtype), *key)
