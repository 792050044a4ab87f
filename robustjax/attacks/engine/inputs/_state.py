"""What a function reads besides its arguments: what was compiled for it holds as long as that is the same."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax.transforms._source import of_library

_VALUES = (bool, int, float, complex, str, bytes, np.generic, np.dtype, type(None), type(...), range, slice)


class Unchanged(NamedTuple):
    """A function and all that it read when this was made; equal to another of the same."""

    function: Callable[..., Any]
    state: Hashable

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)


def unchanged(function: Callable[..., Any]) -> Unchanged | None:
    """The function with what it reads: variables around it, globals, defaults, and what functions that it calls read.

    Arrays of JAX are the same if they are one object; those of NumPy, numbers and text if they hold the same; lists,
    tuples and mappings if their items are. None where it reads an object that may change unseen.

    Example:
        >>> def network(images, weights=[1.0]):
        ...     return weights[0] * images
        >>> before = unchanged(network)
        >>> before == unchanged(network)
        True
        >>> network.__defaults__[0][0] = 2.0
        >>> before == unchanged(network)
        False
    """
    try:
        return Unchanged(function, tuple(_read_by(function, [])))
    except (_MayChangeError, RecursionError):
        return None


class _MayChangeError(Exception):
    """Something may change without a trace."""


class _Same:
    """Equal to another of the very same object, which it keeps alive."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def _read_by(function: Any, above: list[Any]) -> Iterator[Hashable]:
    """What a function of Python reads; those ``above``, whose reading this is part of, are not read again."""
    above = [*above, function]
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # it is not bound yet
            value = None
        yield _token(value, (), above)
    yield _token((function.__defaults__, function.__kwdefaults__), (), above)
    if not of_library(function.__code__.co_filename):
        names = tuple(sorted(set(_names(function.__code__))))
        for name in names:
            if name in function.__globals__:
                yield name, _token(function.__globals__[name], names, above)


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes that code uses, also within functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _token(value: Any, names: tuple[str, ...], above: list[Any]) -> Hashable:
    """Something that is equal as long as the value is the same; of a module only what is used by these names counts."""
    again = functools.partial(_token, names=names, above=above)
    if isinstance(value, _VALUES):
        return type(value), value
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.shape, str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).tobytes()).digest()
    if isinstance(value, list | tuple):
        return type(value), tuple(map(again, value))
    if isinstance(value, Mapping):
        return type(value), tuple((again(key), again(item)) for key, item in value.items())
    if isinstance(value, functools.partial):
        return _Same(type(value)), again(value.func), again(value.args), again(value.keywords)
    if inspect.ismethod(value):
        return again(value.__self__), again(value.__func__)
    if inspect.ismodule(value):
        held = vars(value)
        if of_library(getattr(value, "__file__", None) or "<frozen"):
            return _Same(value)
        return _Same(value), tuple((name, again(held[name])) for name in names if name in held)
    if isinstance(value, FunctionType):
        read = () if any(value is each for each in above) else tuple(_read_by(value, above))
        return _Same(value), read
    if callable(inner := getattr(value, "__wrapped__", None)):  # of jax.jit and the like
        return _Same(value), again(inner)
    if isinstance(value, jax.Array | type | np.ufunc) or inspect.isbuiltin(value) or _is_fixed(value):
        return _Same(value)
    raise _MayChangeError


def _is_fixed(value: Any) -> bool:
    """Whether an object cannot change once it is made: of JAX, a function of NumPy, or a frozen dataclass.

    Modules of Flax Linen are frozen, too, but do not say so.
    """
    packages = [kind.__module__.partition(".")[0] for kind in type(value).__mro__]
    if packages[0] in ("jax", "jaxlib") or (packages[0] == "numpy" and callable(value)):
        return True
    params = getattr(value, "__dataclass_params__", None)
    return params is not None and (params.frozen or "flax" in packages)
