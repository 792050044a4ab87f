"""Permutations that are pure functions of their key, the same on every platform and with every version of NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from robustjax.types import InputError


def check_integers(**values: Any) -> None:
    """Refuses values that are neither an integer nor None.

    Example:
        >>> check_integers(num_examples="5")
        Traceback (most recent call last):
        robustjax.types.InputError: num_examples must be an integer, got '5'; give one
    """
    for name, value in values.items():
        if value is not None and not (isinstance(value, int | np.integer) and not isinstance(value, bool)):
            raise InputError(f"{name} must be an integer, got {value!r}; give one")


def permutation(key: tuple[int, int], size: int) -> np.ndarray:
    """The permutation of range(size), int32 [size], that belongs to ``key``, two integers in 0..2^64 - 1.

    It ranks the raw 64-bit output of the counter-based generator Philox (Salmon et al. 2011). NumPy promises that
    stream for ever (NEP 19), which it does not for ``Generator.permutation``.
    """
    return np.argsort(np.random.Philox(key=np.array(key, np.uint64)).random_raw(size), kind="stable").astype(np.int32)


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order in which an epoch of a run visits its training set.

    A pure function of its arguments, so a resumed run needs no saved iterator.

    Args:
        seed: of the run, at least 0.
        epoch: from 0.
        num_examples: N.

    Returns:
        A permutation of 0..N - 1, int32 [N].

    Example:
        >>> sorted(epoch_order(0, 3, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    return permutation((seed, epoch), num_examples)


def spread(count: int, size: int) -> np.ndarray:
    """Marks places of a batch, as evenly as it goes, so that parts of it have equal shares of them.

    Args:
        count: places to mark, 0 to ``size``.
        size: of the batch.

    Returns:
        bool [size].

    Example:
        >>> spread(2, 6).astype(int)
        array([0, 0, 1, 0, 0, 1])
    """
    return np.diff(np.arange(size + 1) * count // size).astype(bool)
