"""Networks from other libraries: :func:`load_network`, :func:`from_torch` and :func:`to_torch`.

:func:`robustjax.interop.onnx.read` reads ONNX files, and ``python -m robustjax.interop`` makes a run of a checkpoint.
"""

from robustjax.interop.convert import from_torch, to_torch
from robustjax.interop.networks import Network, load_network

__all__ = ["Network", "from_torch", "load_network", "to_torch"]
