"""Classifiers within a network, whose scores choose what becomes of the features.

Channel-wise Activation Suppressing keeps the channels of the class that such a head finds likeliest, and
Channel-wise Importance-based Feature Selection masks them by its largest scores. An attack that changes the scores of
the head changes the network, which the gradient of the logits does not show.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, get_opaque_trace_state

from robustjax.transforms._derivatives import SiteKey
from robustjax.transforms._interpreter import Interpreter
from robustjax.transforms._relax import RELAXABLE
from robustjax.transforms._soft import value_of
from robustjax.types import Array, Key

# What chooses by scores -> the parameter that names their axis.
CHOICES = {"argmax": "axes", "argmin": "axes", "top_k": "axis", "approx_top_k": "reduction_dimension",
           "sort": "dimension"}  # fmt: skip
# Scores that differ from the logits by less than this share of the largest are the logits themselves.
SAME_SCORES = 1e-5


class Heads(NamedTuple):
    """Classifiers found in a network.

    Attributes:
        scores: (images, *key) -> [S, B, K], with relaxed derivatives; a pytree.
        where: the user's own lines that choose by them, each with the operation, as "argmax at file.py:12 (function)".
    """

    scores: jax.tree_util.Partial
    where: tuple[str, ...]


def find(network: Any, images: Array, *key: Key) -> Heads | None:
    """The scores of the classes by which a network chooses something inside it.

    They are what ``argmax``, ``top_k`` or a sort is given of each image, where there are as many as classes. The
    network's own logits do not count, nor what lies within a loop. Where the smallest are chosen, scores are negated;
    of sorted ones the sign is that under which they agree with the network more often.

    Args:
        network: images -> logits [B, K], a pytree.
        images: [B, H, W, C], on which scores and logits are compared.
        *key: of a stochastic network.

    Returns:
        The heads; None where there are none that JAX can differentiate.
    """
    sites: list[SiteKey] = []
    # In a batch of another size, what only happens to be as long as the first is not.
    shapes = [
        jax.eval_shape(functools.partial(_scores, sites=some), network, points, *key)[1]
        for points, some in ((images, sites), (jnp.concatenate([images, images]), []))
    ]
    fit = [None not in both for both in itertools.zip_longest(*shapes)]
    if not any(fit):
        return None
    logits, every = jax.jit(functools.partial(_scores, sites=[]))(network, images, *key)
    logits = np.asarray(logits)
    signs = tuple(
        _sign(name, np.asarray(scores), logits) if fits else 0
        for (_, name, _), scores, fits in zip(sites, every, fit, strict=True)
    )
    kept = [f"{name} at {line}" for (_, name, line), sign in zip(sites, signs, strict=True) if sign]
    if not kept:
        return None
    found = jax.tree_util.Partial(_Signed(signs), network)
    try:
        jax.eval_shape(jax.grad(lambda points: jnp.sum(found(points, *key))), images)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return Heads(found, tuple(dict.fromkeys(kept)))


class _Signed(NamedTuple):
    """Static part of ``Heads.scores``: the factor of what each choice is made by; 0 leaves it out."""

    signs: tuple[int, ...]

    def __call__(self, network: Any, images: Array, *key: Key) -> Array:
        _, every = _scores(network, images, *key, sites=[])
        pairs = zip(self.signs, every, strict=True)
        return jnp.stack([sign * scores.astype(jnp.float32) for sign, scores in pairs if sign and scores is not None])


def _scores(network: Any, images: Array, *key: Key, sites: list[SiteKey]) -> tuple[Array, list[Array | None]]:
    """Logits, and of each choice, which is appended to ``sites``, what it is made by; None if that is not like them."""
    program = jax.make_jaxpr(network)(images, *key)
    (shape,) = (aval.shape for aval in program.out_avals)
    found: list[Array | None] = []
    depth = get_opaque_trace_state()

    def observe(site: SiteKey, equation: JaxprEqn, operands: list[Any], flat: Any) -> None:
        del flat
        name = equation.primitive.name
        if name not in CHOICES or get_opaque_trace_state() != depth:
            return
        scores, axis = value_of(operands[0]), equation.params.get(CHOICES[name], 1)
        fits = scores.shape == shape and axis in (1, -1, (1,)) and jnp.issubdtype(scores.dtype, jnp.floating)
        found.append(scores if fits else None)
        sites.append(site)

    interpreter = Interpreter(lambda site: True if site[0] in RELAXABLE else None, 1.0, observe=observe)
    (logits,) = interpreter.plain(program, images, *key)
    return logits, found


def _sign(name: str, scores: np.ndarray, logits: np.ndarray) -> int:
    """The factor under which the largest scores are the likeliest classes; 0 of the logits themselves."""
    finite = np.isfinite(scores) & np.isfinite(logits)  # masked classes are not
    scale = np.max(np.abs(logits[finite]), initial=0.0)
    if any(np.max(np.abs(each - logits)[finite], initial=0.0) <= SAME_SCORES * scale for each in (scores, -scores)):
        return 0
    if name != "sort":
        return -1 if name == "argmin" else 1
    likeliest = logits.argmax(axis=1)
    return 1 if (scores.argmax(axis=1) == likeliest).sum() >= (scores.argmin(axis=1) == likeliest).sum() else -1
