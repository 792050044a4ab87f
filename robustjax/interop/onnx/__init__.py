"""Networks in ONNX files as functions of JAX: :func:`read`.

The operators are in ``elementwise``, ``layers`` and ``shapes``, with the semantics of https://onnx.ai/onnx/operators
from operator set 7 on; where sets differ, ``Node.opset`` is the one of the file. An operator takes its node and the
values of its inputs, None where one is left out, and returns its output or a tuple of outputs. Values that depend on
the image are JAX arrays. Values that depend on shapes and constants alone are NumPy arrays, as JAX needs them while it
traces. An operator or attribute that is not implemented is refused. Inside, images are channels first, as in ONNX.
"""

from robustjax.interop.onnx._read import read

__all__ = ["read"]
