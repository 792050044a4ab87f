"""Networks from elsewhere: :func:`load_network`, :func:`from_torch`, :func:`to_torch`; a command makes runs of them.

Networks in ONNX files are read by :func:`robustjax.interop.onnx.read`.
"""

from robustjax.interop.convert import from_torch, to_torch
from robustjax.interop.networks import Network, load_network

__all__ = ["Network", "from_torch", "load_network", "to_torch"]
