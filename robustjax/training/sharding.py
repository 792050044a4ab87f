"""Where arrays live: one mesh over all devices, weights on each, batches split between them.

jit + NamedSharding runs the same program on one device and on many; BatchNorm then sees the global batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
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
        return jax.device_put(tree, self.replicated)

    def split_batch(self, tree: Any) -> Any:
        """Every array with its leading axis split between the devices."""
        return jax.device_put(tree, self.batch)

    def check_batch_size(self, name: str, size: int) -> None:
        """Raises InputError unless the devices can share a batch evenly."""
        if size % self.num_devices:
            raise InputError(
                f"{name} must be divisible by the {self.num_devices} devices, got {size} "
                f"(nearest: {max(1, round(size / self.num_devices)) * self.num_devices})"
            )


def layout(devices: list[Any] | None = None) -> Layout:
    """The layout over all devices, or over those given."""
    devices = jax.devices() if devices is None else devices
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    return Layout(mesh, NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data")))
