"""Removes what is around a published network: checkpoint dictionaries, wrapping modules, normalising layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from robustjax.models.layers import per_channel
from robustjax.types import InputError

# Under which keys checkpoints hold their state dict, and what layers that normalise call their constants.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
NORMALISERS = (("mean", "std"), ("mu", "sigma"), ("new_mean", "new_std"))


def unwrapped(state_dict: Any) -> dict[str, Any]:
    """The state dict that a checkpoint holds, without counters of batches.

    Raises:
        InputError: it is not a mapping, or its arrays are under an unknown key.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(entry, str) for entry in state_dict):
        raise InputError(f"state dict must be a mapping from names to arrays, got {type(state_dict).__name__}")
    inner = next((key for key in WRAPPERS if isinstance(state_dict.get(key), Mapping)), None)
    if inner is not None:
        return unwrapped(state_dict[inner])
    holding = [key for key, value in state_dict.items() if isinstance(value, Mapping) and _holds_arrays(value)]
    if holding:
        keys = " or ".join(f"checkpoint[{key!r}]" for key in holding)
        raise InputError(f"state dict must hold arrays by name, got a checkpoint that holds one; give {keys}")
    return {entry: value for entry, value in state_dict.items() if not entry.endswith("num_batches_tracked")}


def _holds_arrays(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_arrays, value.values()))
    return hasattr(value, "shape")


def inside(everything: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of the network, without the prefix, and those outside of it that do not repeat one of them."""
    entries = {name.removeprefix(prefix): value for name, value in everything.items() if name.startswith(prefix)}

    def repeats(name: str) -> bool:
        parts = name.split(".")
        if parts[-1] in {part for pair in NORMALISERS for part in pair}:
            return False  # what normalises twice does not repeat itself
        twin = next((key for i in range(len(parts)) if (key := ".".join(parts[i:])) in entries), None)
        return twin is not None and _equal(everything[name], entries[twin], name)

    outside = {name: value for name, value in everything.items() if not name.startswith(prefix)}
    return entries, {name: value for name, value in outside.items() if not repeats(name)}


def _equal(a: Any, b: Any, name: str) -> bool:
    if not (hasattr(a, "shape") and hasattr(b, "shape")) or tuple(a.shape) != tuple(b.shape):
        return False
    return np.array_equal(float32(name, a), float32(name, b))


class Normaliser(NamedTuple):
    """The layer of a wrapper that normalises: names of its entries, and what they hold."""

    names: str
    mean: np.ndarray
    std: np.ndarray

    def check(self, name: str, channels: int) -> tuple[float, ...]:
        """Its mean or std: one number, or one per channel."""
        array = getattr(self, name)
        if array.size not in (1, channels):
            wanted = f"one number or one for each of {channels} channels"
            raise InputError(f"state dict: {self.names} must hold {wanted}, got {array.shape}")
        return per_channel(name, array)


def normaliser_of(others: dict[str, Any]) -> tuple[dict[str, Any], Normaliser | None]:
    """Of entries that are not the network's: those that remain without the mean and std of a layer that normalises, and
    that layer.

    Raises:
        InputError: there are several layers, and they differ.
    """
    found: dict[str, Normaliser] = {}
    for mean, std in NORMALISERS:
        for name in others:
            layer, _, last = name.rpartition(".")
            pair = name, f"{layer}.{std}" if layer else std
            if last == mean and pair[1] in others:
                found[layer] = Normaliser(" and ".join(pair), *(float32(part, others[part]) for part in pair))
    layers = list(found.values())
    for other in layers[1:]:
        if not (np.array_equal(layers[0].mean, other.mean) and np.array_equal(layers[0].std, other.std)):
            raise InputError(f"state dict normalises in several ways, by {layers[0].names} and by {other.names}")
    used = {name for normaliser in found.values() for name in normaliser.names.split(" and ")}
    return {name: value for name, value in others.items() if name not in used}, layers[0] if layers else None


def float32(entry: str, value: Any) -> np.ndarray:
    """An entry of a state dict as float32; refused where it is not of real numbers."""
    if hasattr(value, "detach"):  # a torch tensor, on any device; NumPy knows no bfloat16 of its own
        value = value.detach().cpu().float().numpy()
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise InputError(f"state dict: {entry} must hold real numbers, got {array.dtype}")
    return array.astype(np.float32)
