"""Classifiers within a network, whose scores choose what becomes of the features.

Channel-wise Activation Suppressing keeps the channels of the class that such a head finds likeliest, and
Channel-wise Importance-based Feature Selection masks them by its largest scores. Who turns the head turns the network,
which the gradient of the logits does not say.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, get_opaque_trace_state

from robustjax.transforms._interpreter import Interpreter
from robustjax.transforms._relax import RELAXABLE
from robustjax.transforms._soft import value_of
from robustjax.types import Array, Key

# Scores that differ from the logits by less than this share of the largest are the logits themselves.
SAME_SCORES = 1e-5


def find(network: Any, images: Array, *key: Key) -> jax.tree_util.Partial | None:
    """The scores [S, B, K] of the classes that something in a network is chosen by, with relaxed derivatives.

    They are what ``argmax`` and ``top_k`` are given for each image, if there are as many of them as classes; those that
    are the logits do not count, nor what lies within a loop.

    Args:
        network: images -> logits [B, K], a pytree.
        images: [B, H, W, C], at which the scores are compared with the logits.
        *key: of a stochastic network.

    Returns:
        (images, *key) -> scores, as ``Hints.auxiliary_fn``; None where there are none.
    """
    logits, every = jax.jit(_scores)(network, images, *key)
    keep = [i for i, scores in enumerate(every) if not _same(np.asarray(scores), np.asarray(logits))]
    return jax.tree_util.Partial(_Heads(tuple(keep)), network) if keep else None


class _Heads(NamedTuple):
    """Static part of what :func:`find` returns: which of the scores count."""

    keep: tuple[int, ...]

    def __call__(self, network: Any, images: Array, *key: Key) -> Array:
        _, every = _scores(network, images, *key)
        return jnp.stack([every[i].astype(jnp.float32) for i in self.keep])


def _scores(network: Any, images: Array, *key: Key) -> tuple[Array, list[Array]]:
    """Logits, and all scores of their shape."""
    program = jax.make_jaxpr(network)(images, *key)
    (shape,) = (aval.shape for aval in program.out_avals)
    found: list[Array] = []
    depth = get_opaque_trace_state()

    def observe(site: Any, equation: JaxprEqn, operands: list[Any]) -> None:
        del site
        if equation.primitive.name not in ("argmax", "top_k") or get_opaque_trace_state() != depth:
            return
        scores = value_of(operands[0])
        axis = equation.params["axes"][0] if "axes" in equation.params else equation.params.get("axis", 1)
        if scores.shape == shape and axis in (1, -1) and jnp.issubdtype(scores.dtype, jnp.floating):
            found.append(scores)

    interpreter = Interpreter(lambda site: True if site[0] in RELAXABLE else None, 1.0, observe=observe)
    (logits,) = interpreter.plain(program, images, *key)
    return logits, found


def _same(scores: np.ndarray, logits: np.ndarray) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.max(np.abs(scores - logits)) <= SAME_SCORES * max(np.max(np.abs(logits)), 1e-30))
