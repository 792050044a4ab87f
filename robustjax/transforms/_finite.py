"""The identity, whose reverse derivative leaves out what is not finite.

A branch that is not taken still has a derivative: 0 · inf of ``where(x > 0, 1 / x, 0)`` at x = 0, which spreads from
one entry over the whole gradient of an image. JAX's rules for functions cannot say this and keep derivatives in forward
mode, so it is a primitive.
"""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from robustjax.types import Array

# Operations with a pole: of what they are given, an infinite derivative counts as none.
WITH_A_POLE = ("div", "log", "log1p", "sqrt", "rsqrt", "cbrt", "pow", "integer_pow")
FINITE = Primitive("finite_cotangent")
FINITE.def_impl(partial(xla.apply_primitive, FINITE))
FINITE.def_abstract_eval(lambda values: values)
ad.deflinear2(FINITE, lambda cotangent, values: [_finite(cotangent)])
batching.primitive_batchers[FINITE] = lambda operands, axes: (FINITE.bind(*operands), axes[0])
mlir.register_lowering(FINITE, lambda context, values: [values])


def finite_cotangent(values: Array) -> Array:
    """The values as they are; a cotangent that is not finite counts as zero.

    Example:
        >>> import jax
        >>> slope = lambda clean: jax.grad(lambda x: jnp.where(x > 0, 1 / clean(x), 0.0))(0.0)
        >>> slope(finite_cotangent), slope(lambda x: x)
        (Array(0., dtype=float32...), Array(nan, dtype=float32...))
    """
    return FINITE.bind(values)


def _finite(cotangent: Array | ad.Zero) -> Array | ad.Zero:
    return cotangent if isinstance(cotangent, ad.Zero) else jnp.where(jnp.isfinite(cotangent), cotangent, 0)
