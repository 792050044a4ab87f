"""Checks that the compiler computes right numbers, because some releases of jaxlib silently do not."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxlib import version as jaxlib_version

from robustjax.runtime import files, process
from robustjax.types import InputError

MEND = 'pip install "jax>=0.10.1,!=0.10.2,!=0.11.0,!=0.11.1,<0.13"'

# Releases that setup.cfg leaves out as well. They are refused by number, before a program runs: two of them crash in
# `_fused_reduction`, and a crash would end the user's process without a word. (The numbers are those of jax's issues.)
_WRONG_SUM = "computes wrong sums under jit on CPUs (1071645696 where 1073741824 is right; jax issue 39103)"
_CRASH = "crashes in fused reductions of seven dimensions (jax issues 39257, 40412)"
_WRONG_KERNELS = "computes wrong values on some GPUs (sqrt(512) = 0 where 22.627417 is right; jax issue 40633)"
KNOWN_WRONG = {
    "0.10.2": f"{_WRONG_SUM} and {_CRASH}",
    "0.11.0": f"{_CRASH} and {_WRONG_KERNELS}",
    "0.11.1": _WRONG_KERNELS,
}

Program = Callable[[], tuple[Any, np.ndarray]]  # -> (computed, right)

_right: set[str] = set()  # the compilers that this process has seen to be right


def check() -> None:
    """Raises InputError where the compiler of the device in use computes wrong numbers.

    A few small programs, each of which some release of jaxlib got wrong, run, and their results are compared with the
    exact ones. This happens once for each jaxlib, backend, kind of device and XLA_FLAGS: that all were right is kept as
    a small file in the user's cache folder. A refusal is not kept, so that whatever mends it is noticed. Call this
    before trusting what is computed; once all was right it costs the reading of one file, and later nothing.

    Raises:
        InputError: names jaxlib, the backend, what was computed, what is right, and how to mend it.

    Example:
        >>> check()
    """
    version = jaxlib_version.__version__.partition("+")[0]
    if version in KNOWN_WRONG:
        raise InputError(f"jaxlib {version} (backend {jax.default_backend()}) {KNOWN_WRONG[version]}; {MEND}")
    default = jax.config.values["jax_default_device"]  # of several processes each asks for its own device
    device = default if isinstance(default, jax.Device) else jax.local_devices(backend=default)[0]
    which = _identity(device)
    if which in _right:
        return
    # Files that cannot be read or written, or that hold anything else, only mean that the programs run.
    file = None
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: there is no home
        file = process.cache_folder() / f"compiler-{hashlib.sha256(which.encode()).hexdigest()[:16]}.json"
        if file.read_bytes() == which.encode():
            _right.add(which)
            return
    # Settings of the caller's must not reach the programs: without jit there would be nothing to check.
    with jax.disable_jit(False), jax.transfer_guard("allow"), jax.default_device(device):
        for name, program in PROGRAMS.items():
            _compare(name, program, device)
    _right.add(which)
    if file is not None:
        with contextlib.suppress(OSError):
            files.write(file, which)


def _identity(device: Any) -> str:
    """All that the numbers depend on, as the text that the cache folder keeps."""
    kind = process.processor() if device.platform == "cpu" else device.device_kind
    about = {
        "jax": jax.__version__,
        "jaxlib": jaxlib_version.__version__,
        "backend": device.platform,
        "backend_version": device.client.platform_version,
        "device": kind,
        "flags": {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")},
        "computed_right": sorted(PROGRAMS),
    }
    return json.dumps(about, indent=2, sort_keys=True) + "\n"


def _compare(name: str, program: Program, device: Any) -> None:
    computed, right = program()
    computed = np.asarray(computed)
    wrong = np.argwhere(~np.isclose(computed, right, rtol=1e-6, atol=0.0))
    if len(wrong):
        place = tuple(wrong[-1])
        raise InputError(
            f"jaxlib {jaxlib_version.__version__} (backend {device.platform}, device {device.device_kind}) computes "
            f"wrong numbers: {name} must be {right[place]:.10g}, got {computed[place]:.10g}; {MEND}"
        )


def _sum_of_squares() -> tuple[Any, np.ndarray]:
    # jax issue 39103. Every product and sum is exact in float32 or rounds the same way everywhere.
    numbers = np.arange(32769, dtype=np.float32)
    rows = jnp.asarray(np.stack([numbers, 0 * numbers, 0 * numbers], axis=1))
    matrix = jnp.eye(3, dtype=jnp.float32)

    def squares(row: jax.Array) -> jax.Array:
        return jnp.sum(jnp.matmul(matrix, row, precision="highest") ** 2)

    return jax.jit(jax.vmap(squares))(rows), numbers**2


def _fused_reduction() -> tuple[Any, np.ndarray]:
    # jax issues 40412 and 39257. The affected releases crash here. They are refused before; should a later one crash as
    # well, no work is lost yet, and Python's fault handler points to this file. A process of its own would cost seconds
    # of every first start for that, and could not have the TPU.
    shape = (3, 1, 2, 2, 8, 8, 8)
    a, b = (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % modulus for modulus in (7, 5))
    return jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(jnp.asarray(a), jnp.asarray(b)), np.sum(a * b, axis=3)


def _single_operations() -> tuple[Any, np.ndarray]:
    # jax issue 40633: a kernel by itself, one after another, returns what an earlier one should have.
    root = jnp.sqrt(jnp.full(4, 512.0, jnp.float32))
    more = jnp.ones(4, jnp.float32) + 1.0
    return np.stack([np.asarray(root), np.asarray(more)]), np.array([[512.0**0.5] * 4, [2.0] * 4], np.float32)


PROGRAMS: dict[str, Program] = {
    "a sum of squares behind a matrix product under vmap": _sum_of_squares,
    "a sum of products over one of seven axes": _fused_reduction,
    "a square root or a sum by itself": _single_operations,
}
