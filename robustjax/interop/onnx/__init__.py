"""Networks in ONNX files as functions of JAX: :func:`read`.

The operators stand in ``elementwise``, ``layers`` and ``shapes``, with the semantics of https://onnx.ai/onnx/operators
from operator set 7 on; where sets differ, ``Node.opset`` says which it is. Each takes its node and the values of its
inputs, None where one is left out, and returns its output, or a tuple of them. What depends on the image is an array of
JAX; what depends on shapes and constants alone is computed in NumPy at once, as JAX needs it while it traces. What is
not computed as written there is refused. Inside, images are channels first, as ONNX has them.
"""

from robustjax.interop.onnx._read import read

__all__ = ["read"]
