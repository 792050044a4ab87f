"""What a function reads besides its arguments. A program compiled for it is valid as long as that has not changed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import sys
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

    Attributes of a user's classes count where code names them. Arrays of JAX are the same if they are one object; those
    of NumPy, numbers and text if they hold the same; lists, tuples and mappings if their items are. None where it reads
    an object that may change unseen.

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
        return Unchanged(function, tuple(_read_by(function, {})))
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


# What was read already, by what it is and by which names; the value keeps it alive, so that no other takes its place.
_Seen = dict[tuple[int, tuple[str, ...]], Any]


def _read_by(function: Any, seen: _Seen) -> Iterator[Hashable]:
    """What a function of Python reads."""
    of_user = not of_library(function.__code__.co_filename)
    names = tuple(sorted(set(_names(function.__code__)))) if of_user else ()
    for cell in function.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:  # it is not bound yet
            value = None
        yield _token(value, names, seen)
    yield _token((function.__defaults__, function.__kwdefaults__), (), seen)
    for name in names:
        if name in function.__globals__:
            yield name, _token(function.__globals__[name], names, seen)


def _read_by_class(kind: type, names: tuple[str, ...], seen: _Seen) -> Iterator[Hashable]:
    """What the methods of a user's class read, and of its attributes those that are used by these names or in them.

    What may change unseen is left out: libraries put such things into users' classes, and a class rarely changes.
    """
    own = [part for part in kind.__mro__ if not of_library(_file(sys.modules.get(part.__module__)))]
    held = [(name, value) for part in own for name, value in vars(part).items()]
    methods = [(name, inner) for name, value in held for inner in _functions(value)]
    used = {*names, *(name for _, method in methods for name in _names(method.__code__))}
    values = [(name, value) for name, value in held if name in used and not any(_functions(value))]
    for name, value in (*methods, *values):
        with contextlib.suppress(_MayChangeError):
            yield name, _token(value, (), seen)


def _functions(value: Any) -> Iterator[FunctionType]:
    """The functions of Python that an attribute of a class stands for."""
    if isinstance(value, property):
        inner = (value.fget, value.fset)
    elif isinstance(value, staticmethod | classmethod):
        inner = (value.__func__,)
    else:
        inner = (value,)
    # Within the wrappers that libraries put around methods.
    unwrapped = (inspect.unwrap(function) for function in inner if isinstance(function, FunctionType))
    yield from (function for function in unwrapped if isinstance(function, FunctionType))


def _file(module: Any) -> str:
    return getattr(module, "__file__", None) or "<frozen"


def _names(code: CodeType) -> Iterator[str]:
    """Names of globals and attributes that code uses, also within functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _token(value: Any, names: tuple[str, ...], seen: _Seen) -> Hashable:
    """Something that is equal as long as the value is the same; of a module only what is used by these names counts."""
    again = functools.partial(_token, names=names, seen=seen)
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
        if of_library(_file(value)):
            return _Same(value)
        return _Same(value), tuple((name, again(held[name])) for name in names if name in held)
    if isinstance(value, FunctionType):
        return _Same(value), *_once(value, (), seen, lambda: _read_by(value, seen))
    if isinstance(value, type):
        return _Same(value), *_once(value, names, seen, lambda: _read_by_class(value, names, seen))
    if callable(inner := getattr(value, "__wrapped__", None)):  # of jax.jit and the like
        return _Same(value), again(inner)
    if isinstance(value, jax.Array | np.ufunc) or inspect.isbuiltin(value):
        return _Same(value)
    if _is_fixed(value):
        return _Same(value), again(type(value))
    raise _MayChangeError


def _once(
    value: Any, names: tuple[str, ...], seen: _Seen, read: Callable[[], Iterator[Hashable]]
) -> tuple[Hashable, ...]:
    """What is read of a value by these names, nothing where it was before and is part of the state already."""
    if (id(value), names) in seen:
        return ()
    seen[id(value), names] = value
    return tuple(read())


def _is_fixed(value: Any) -> bool:
    """Whether an object cannot change once it is made: of JAX, a function of NumPy, or a frozen dataclass.

    Modules of Flax Linen are frozen, too, but do not say so.
    """
    packages = [kind.__module__.partition(".")[0] for kind in type(value).__mro__]
    if packages[0] in ("jax", "jaxlib") or (packages[0] == "numpy" and callable(value)):
        return True
    params = getattr(value, "__dataclass_params__", None)
    return params is not None and (params.frozen or "flax" in packages)
