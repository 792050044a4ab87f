"""The one check of what attacks are given, and the conversion between the images' dtype and float32.

Every public attack, :func:`robustjax.attacks.autoattack` and ``evaluation.judge`` use it. What is concrete is checked
by value. Under ``jit``, ``vmap`` and ``shard_map`` values are not known, so shapes and dtypes are checked alone;
nothing here waits for a device inside traced code. All errors are :class:`robustjax.types.InputError`, one line each:
"name must be X, got Y; mend".
"""

from robustjax.attacks.engine.inputs._arguments import (
    are_flags,
    as_array,
    at_least,
    box,
    check_key,
    check_network,
    check_radius,
    labels_in_range,
    logits_of,
    static,
    takes,
)
from robustjax.attacks.engine.inputs._check import Inputs, check, on_host
from robustjax.attacks.engine.inputs._convert import as_pytree, in_dtype_of
from robustjax.attacks.engine.inputs._network import blaming, gradient_trouble, traced

__all__ = [
    "Inputs",
    "are_flags",
    "as_array",
    "as_pytree",
    "at_least",
    "blaming",
    "box",
    "check",
    "check_key",
    "check_network",
    "check_radius",
    "gradient_trouble",
    "in_dtype_of",
    "labels_in_range",
    "logits_of",
    "on_host",
    "static",
    "takes",
    "traced",
]
