"""The sizes of batches: few, so that little is compiled, or of a network that takes long for an image any.

They follow from counts of images, steps and operations alone.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax.attacks.engine.inputs import logits_of
from robustjax.types import Array, Key

# Batches come in few sizes, each a quarter of the one before: every size compiles every attack once more.
SHRINK, SMALLEST_BATCH = 4, 16
# From so many operations for an image on, by XLA's count, a network is heavy.
HEAVY = 5e7
# A batch changes to a smaller size if it has at least so many passes before it: what is saved must pay for compiling.
# A run of APGD has 300, and Square 5000. Of a heavy network it is so many passes of 16 slots.
LEAST_PASSES_TO_SHRINK = 1500


class Sizes(NamedTuple):
    """The sizes that a batch may have.

    Attributes:
        common: of a network for which few sizes are compiled, falling; the first is the largest of any network.
        any: whether a batch may have any size up to the largest, as it does for a heavy network.
    """

    common: tuple[int, ...]
    any: bool = False

    def first(self, count: int, num_lanes: int) -> int:
        """The size to begin with: the largest that leaves fewer slots empty than the next smaller one.

        A heavy network keeps all cores busy by itself, and several batches of it are begun only where one would not do.
        """
        if self.any and count <= self.common[0]:
            return max(count, 1)
        each = -(-count // num_lanes)
        if self.any:
            return min(each, self.common[0])
        return next((size for size, less in itertools.pairwise(self.common) if each > size - less), self.common[-1])

    def smaller(self, size: int, count: int, passes: int) -> int:
        """The size to go on with, for so many images and passes left."""
        fitting = count if self.any else min((each for each in self.common if each >= count), default=size)
        saved = passes * (size - fitting) / SMALLEST_BATCH if self.any else passes
        return fitting if fitting < size and saved >= LEAST_PASSES_TO_SHRINK else size


def is_heavy(network: Any, image: np.ndarray, keys: tuple[Key, ...]) -> bool:
    """Whether a CPU takes so long for an image [1, H, W, C] that empty slots cost more than compiling for fewer.

    One that does not give a row of logits for a single image is not, so that it is called with common sizes alone: it
    may be made for a batch of these. If it is wrong, those calls say so.

    The network is a pytree, as ``inputs.as_pytree`` makes it.
    """
    if jax.default_backend() != "cpu":
        return False
    try:
        cost = _logits.lower(network, image, *keys).cost_analysis() or {}
    except Exception:  # the user's code
        return False
    return cost.get("flops", 0.0) >= HEAVY


@jax.jit
def _logits(network: Any, image: Array, *keys: Key) -> Array:
    return logits_of(network(image, *keys), image.shape[0])


def sizes_of(largest: int, num_devices: int, *, heavy: bool) -> Sizes:
    """The sizes of batches that the devices can share."""
    least = -(-SMALLEST_BATCH // num_devices)
    sizes = [largest // num_devices]
    while sizes[-1] > least:
        sizes.append(max(-(-sizes[-1] // SHRINK), least))
    return Sizes(tuple(size * num_devices for size in sizes), any=heavy and num_devices == 1)
