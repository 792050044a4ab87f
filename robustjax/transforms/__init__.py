"""Networks as programs: another function with the same outputs. :func:`from_torch_module`."""

from robustjax.transforms._torch import from_torch_module

__all__ = ["from_torch_module"]
