"""Random bits that are fast on a CPU: those of JAX's default generator, bit for bit.

For a CPU, JAX computes the rounds of Threefry-2x32 (Salmon et al., SC 2011) in a loop whose state goes through memory
in every turn. Written out, they become one pass of vector instructions, which takes a quarter of the time.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from robustjax.layers import quick
from robustjax.types import Array, Key

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def _on_cpu(keys: Key, *, bit_width: int, shape: tuple[int, ...]) -> Array:
    """Bits of this shape for each key.

    JAX's own primitive draws for another generator, without ``jax_threefry_partitionable``, for empty and symbolic
    shapes, and for 2^32 entries or more, since the counter here is one word of 32 bits.
    """
    is_known = all(isinstance(length, int) and length > 0 for length in (*keys.shape, *shape))
    by_entry = jax.threefry_partitionable.value and is_known and math.prod(shape) < 2**32
    if str(jax.random.key_impl(keys)) != "threefry2x32" or not by_entry:
        return primitives.random_bits_p.bind(keys, bit_width=bit_width, shape=shape)
    words = jax.random.key_data(keys)[..., None, :]
    size = math.prod(shape)
    entries = jnp.arange(2 * -(-size // 2), dtype=jnp.uint32).reshape(2, *[1] * keys.ndim, -1)

    # Else XLA would compute the bits anew in every place that reads them. It keeps the results of a loop; one of a
    # single turn it would dissolve.
    def half(_: None, entries: Array) -> tuple[None, Array]:
        high, low = _threefry(words[..., 0], words[..., 1], jnp.zeros_like(entries), entries)
        if bit_width == 64:
            return None, high.astype(jnp.uint64) << np.uint64(32) | low.astype(jnp.uint64)
        return None, (high ^ low).astype(f"uint{bit_width}")

    _, halves = jax.lax.scan(half, None, entries)
    return jnp.moveaxis(halves, 0, -2).reshape(*keys.shape, -1)[..., :size].reshape(*keys.shape, *shape)


def _threefry(first: Array, second: Array, high: Array, low: Array) -> tuple[Array, Array]:
    """Twenty rounds on the counter (high, low), with a key of two words."""
    schedule = (first, second, first ^ second ^ _PARITY)
    high, low = high + schedule[0], low + schedule[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            high = high + low
            low = high ^ (low << np.uint32(rotation) | low >> np.uint32(32 - rotation))
        high, low = high + schedule[(turn + 1) % 3], low + schedule[(turn + 2) % 3] + np.uint32(turn + 1)
    return high, low


quick.register(primitives.random_bits_p, _on_cpu)
