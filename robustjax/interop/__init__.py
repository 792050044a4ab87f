"""Published PyTorch networks as ours: `from_torch` and `to_torch`, and a command that makes a run of a checkpoint."""

from robustjax.interop.convert import from_torch, to_torch
from robustjax.interop.layouts import SOURCES

__all__ = ["SOURCES", "from_torch", "to_torch"]
