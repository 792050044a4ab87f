"""Published PyTorch networks as ours: `from_torch` and `to_torch`, and a command that makes a run of a checkpoint."""

from robustjax.interop.convert import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
