"""Checks of a network by abstract evaluation; errors name the line of the user's own code."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from robustjax.attacks.engine.inputs._arguments import logits_of
from robustjax.transforms._source import raised_at, raised_in_callback
from robustjax.types import AnyArray, Array, InputError

Shaped = AnyArray | jax.ShapeDtypeStruct
MEND_IMAGES = "give it the images that it is for, or mend it"


def traced(name: str, function: Callable[..., Any], images: Shaped, *rest: Any, mend: str = MEND_IMAGES) -> Any:
    """Shapes and dtypes of what a network returns, by one abstract evaluation, whatever was evaluated before.

    Args:
        name: of the network, in what is raised.
        function: images, and whatever else is given -> outputs.
        images: [B, ...], or their shape and dtype.
        mend: where the network itself raises an error.

    Raises:
        InputError: it raises an error, whatever it is, or returns something else than arrays, with the user's line; or
            it has kept a traced value of an earlier call.

    Example:
        >>> import numpy as np
        >>> traced("logits_fn", lambda x: x.reshape(2, -1), np.zeros((2, 1, 1, 3))).shape
        (2, 3)
    """
    try:
        # A function that JAX has not seen yet: it keeps what it found of others.
        program, shapes = jax.make_jaxpr(lambda *arguments: function(*arguments), return_shape=True)(images, *rest)
        if any(isinstance(constant, Tracer) for constant in program.consts):
            raise InputError(
                f"{name} must keep nothing from call to call that depends on being traced, got a value of an earlier "
                "call; make what it keeps before, for instance by calling it once"
            )
        return shapes
    except InputError:
        raise
    except Exception as error:  # the user's code
        text = " ".join((str(error).splitlines() or [""])[0].split())
        if isinstance(error, jax.errors.JAXTypeError):
            mend = "compute with jax.numpy, whatever the values are; or declare what computes otherwise as a callback"
        elif kind := re.search(r"value of type <class '([^']+)'>.* not a valid JAX type", text):
            text = f"an output of type {kind[1]}"
            mend = "return the logits alone, or a pytree of arrays"
        elif "torch" in sys.modules and "Tracer" in text:  # a closure that hands JAX's arrays to PyTorch
            mend = "compute with jax.numpy; of a PyTorch model give the torch.nn.Module itself, not a function of it"
        line = raised_at(error)
        raise InputError(
            f"{name} must take images {list(images.shape[1:])}, got {type(error).__name__}: {text[:200]}"
            f"{line and f' in {line}'}; {mend}"
        ) from error


def gradient_trouble(function: Callable[..., Any], images: Shaped, *rest: Any) -> str:
    """Why JAX cannot differentiate a network's logits by its images, in one line, or "".

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def endless(images):
        ...     return jax.lax.while_loop(lambda x: jnp.sum(x) < 1.0, lambda x: 2.0 * x, images[:, :2])
        >>> gradient_trouble(endless, jnp.ones((1, 2)))
        'Reverse-mode differentiation does not work for lax.while_loop ...
    """

    def total(points: Array) -> Array:
        return jnp.sum(logits_of(function(points, *rest), points.shape[0]).astype(jnp.float32))

    try:
        jax.eval_shape(jax.grad(total), images)
    except Exception as error:  # anyone's derivative rule
        return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ""


@contextlib.contextmanager
def blaming(name: str, network: Callable[..., Any], images: Shaped, *rest: Any) -> Iterator[None]:
    """Explains errors of an attack whose network cannot be traced again, raises in a callback, or has no gradient.

    Raises:
        InputError: the network is at fault; whatever else is raised within passes.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        traced(name, network, images, *rest)
        if raised := raised_in_callback(error):
            raise InputError(f"{name} must compute whatever it calls back, got {raised}; {MEND_IMAGES}") from error
        if trouble := gradient_trouble(network, images, *rest):
            mend = "attack it by square or hopskipjump, which need none, or by adaptive, which finds others"
            raise InputError(f"{name} must have a gradient, got {trouble}; {mend}") from error
        raise
