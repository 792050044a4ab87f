"""The sizes of batches: few, so that little is compiled, or of a network that takes long for an image any.

They depend on the network's number of operations, numbers of images and steps, the given batch size, and the backend
with its devices and threads; never on the clock or on how busy the machine is.
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
# A batch changes to a smaller size only if at least so many forward passes are still to be made, since what is saved
# must pay for compiling: a run of APGD has 300, and Square 5000. Of a heavy network it is only if passes times the
# slots saved, divided by 16, come to as much.
LEAST_PASSES_TO_SHRINK = 1500


class Sizes(NamedTuple):
    """The sizes that a batch may have.

    Attributes:
        common: the few sizes of a network that is not heavy, falling; no batch is larger than the first.
        any_size: whether every size up to that is allowed, as for a heavy network on one device.
    """

    common: tuple[int, ...]
    any_size: bool = False

    def first(self, count: int, num_lanes: int) -> int:
        """The size to begin with.

        It is the largest common size with fewer empty slots than the next smaller size has slots. A heavy network keeps
        all cores busy by itself: one batch of exactly these images where they fit, else an equal share for each lane.
        """
        if self.any_size and count <= self.common[0]:
            return max(count, 1)
        each = -(-count // num_lanes)
        if self.any_size:
            return min(each, self.common[0])
        return next((size for size, less in itertools.pairwise(self.common) if each > size - less), self.common[-1])

    def smaller(self, size: int, count: int, passes: int) -> int:
        """The size to go on with, for so many images and passes left."""
        fitting = count if self.any_size else min((each for each in self.common if each >= count), default=size)
        saved = passes * (size - fitting) / SMALLEST_BATCH if self.any_size else passes
        return fitting if fitting < size and saved >= LEAST_PASSES_TO_SHRINK else size


def is_heavy(network: Any, image: np.ndarray, keys: tuple[Key, ...]) -> bool:
    """Whether, on a CPU, XLA counts so many operations for an image [1, H, W, C] that batches are made to fit.

    A network that does not give a row of logits for a single image is not heavy: it may be made for a fixed batch, and
    is called with common sizes alone. If it is faulty, those later calls raise.

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
    return Sizes(tuple(size * num_devices for size in sizes), any_size=heavy and num_devices == 1)
