"""Published PyTorch networks as ours: :func:`from_torch`, :func:`to_torch`, and a command that makes a run of one.

Networks in ONNX files are read by :func:`robustjax.interop.onnx.read`.
"""

from robustjax.interop.convert import from_torch, to_torch

__all__ = ["from_torch", "to_torch"]
