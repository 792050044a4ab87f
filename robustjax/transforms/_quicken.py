"""Any network's convolutions, pooling and random bits by the fast forms that this library has for a CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustjax.layers import quick
from robustjax.transforms import _program


def quicken(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with this library's fast convolutions in place of XLA's on a CPU.

    XLA's convolution on a CPU is slow in compiled loops, where attacks take their gradients: several times slower than
    it could be, and for some layouts a hundred times. The program of the function is read, whatever library wrote it,
    and each float32 convolution and pooling in it is computed by the quickest form known here, its derivatives of
    every order too. Outputs and gradients agree to rounding: within 1e-5 of the largest. Random bits of JAX's default
    generator, "threefry2x32", are drawn about four times as fast, and are the same bits. Everything else stays as it
    is, custom derivative rules included, and so does the whole program where it is compiled for another backend.

    Drivers (:func:`robustjax.attacks.autoattack`, ``evaluation.judge`` and ``evaluation.evaluate``) do so by
    themselves; an attack that is a pure function takes ``quicken(logits_fn)`` in place of ``logits_fn``.

    Args:
        function: any function that JAX can trace, of arrays in any pytree. It is traced anew whenever the result is,
            so weights that it holds may change between calls. Of a ``jax.tree_util.Partial`` the arrays stay arguments.

    Returns:
        A function with the same arguments. Two made of the same function are equal and hash alike, so that a function
        compiled for the one is not compiled again for the other.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import attacks, transforms
        >>> kernel = jax.random.normal(jax.random.key(0), (10, 1, 3, 3))
        >>> def logits_fn(images):  # [B, H, W, C], while the convolution is written for [B, C, H, W]
        ...     return jax.lax.conv(images.transpose(0, 3, 1, 2), kernel, (2, 2), "SAME").mean(axis=(2, 3))
        >>> images, labels = jnp.full((2, 8, 8, 1), 0.5), jnp.array([0, 1])
        >>> @jax.jit
        ... def attack(key, images, labels):
        ...     logits = transforms.quicken(logits_fn)
        ...     return attacks.pgd(logits, key, images, labels, epsilon=0.1, step_size=0.02, num_steps=10)
        >>> attack(jax.random.key(1), images, labels).shape
        (2, 8, 8, 1)
    """
    _program.check_function(function)
    if isinstance(function, _Quickened):
        return function
    if isinstance(function, jax.tree_util.Partial):
        return jax.tree_util.Partial(quicken(function.func), *function.args, **function.keywords)
    return _Quickened(function)


class _Quickened:
    """A function that is traced and rewritten in each call; equal to another of the same function."""

    __wrapped__: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return _program.rewritten(self.__wrapped__, _rule_of)(*arguments, **keywords)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Quickened) or hash(self) != hash(other):
            return False
        return self.__wrapped__ is other.__wrapped__ or self.__wrapped__ == other.__wrapped__

    def __hash__(self) -> int:
        try:
            return hash((_Quickened, self.__wrapped__))
        except TypeError:  # an object that holds arrays: the same only if it is this one
            return id(self.__wrapped__)


def _rule_of(equation: Any) -> _program.Rule | None:
    """Binds the quick primitive, of operands in float32 or of keys."""
    quickened = quick.quickened(equation)
    if quickened is None or not all(_is_quick(atom.aval.dtype) for atom in equation.invars):
        return None
    return lambda _, *operands: _program.bind(quickened, *operands)


def _is_quick(dtype: Any) -> bool:
    return dtype == jnp.float32 or jnp.issubdtype(dtype, jax.dtypes.prng_key)
