"""Placement of arrays: one mesh over all devices, weights replicated, batches split between devices.

jit + NamedSharding runs the same program on one device and on many; BatchNorm then sees the global batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from robustjax.types import InputError


class Layout(NamedTuple):
    """A mesh with one axis "data", and the two ways in which an array lies on it."""

    mesh: Mesh
    replicated: NamedSharding
    batch: NamedSharding

    @property
    def num_devices(self) -> int:
        return self.mesh.size

    def constrain_batch(self, tree: Any) -> Any:
        """Inside jit: splits the leading axis of every array between the devices."""
        return jax.lax.with_sharding_constraint(tree, self.batch)

    def replicate(self, tree: Any) -> Any:
        """A copy of every array on each device."""
        return _put(tree, self.replicated)

    def split_batch(self, tree: Any) -> Any:
        """Every array with its leading axis split between the devices."""
        return _put(tree, self.batch)

    def own_rows(self, size: int) -> np.ndarray:
        """The places in a batch of ``size`` that lie on devices of this process, rising."""
        slices = self.batch.addressable_devices_indices_map((size,)).values()
        return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))

    def join_batch(self, tree: Any) -> Any:
        """Every process's own rows of a batch as one batch, split between the devices."""
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(self.batch, rows), tree)

    def check_batch_size(self, name: str, size: int, *, parts: int = 1) -> None:
        """Raises InputError unless the devices can share a batch, or each of its equal parts, evenly."""
        least = self.num_devices * parts
        if size % least:
            by = f"the {self.num_devices} devices" + (f" times {parts} micro-batches" if parts > 1 else "")
            raise InputError(
                f"{name} must be divisible by {by}, got {size} (nearest: {max(1, round(size / least)) * least})"
            )


def layout(devices: list[Any] | None = None) -> Layout:
    """The layout over all devices, or over those given."""
    devices = jax.devices() if devices is None else devices
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return Layout(mesh, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Host arrays, the same in every process, as arrays over all devices of all processes."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(array: Any) -> jax.Array:
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put, tree)
