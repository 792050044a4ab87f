"""What the author of a network declares about it (:class:`Hints`), and the hints of a defense of this library.

A program does not show everything: an author knows where a network is random, which function replaces a useless
gradient, which auxiliary heads there are, and what the network is without its defense (Tramer et al. 2020, arXiv
2002.08347). :func:`hints_of` reads the same off a :class:`robustjax.defenses.Defense`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax.defenses.convention import Defense
from robustjax.types import Array, Key, LogitsFn

# FSR trains this head to name a wrong class: an attack gains nothing by raising its loss of the label.
TRAINED_WRONG = "nonrobust"


class Hints(NamedTuple):
    """What the author of a network declares about it; every field is optional.

    Attributes:
        stochastic: every function takes (images, key), and equal keys give equal outputs.
        surrogate_fn: the same outputs with useful gradients (BPDA).
        auxiliary_fn: returns the logits [S, B, K] of auxiliary heads, attacked jointly with the network's own logits.
        undefended_fn: the same network with its defense switched off; adversarial images are transferred from it.
        trained_fn: another network for the same task, such as a plain adversarially trained one, to transfer from.
        bfloat16_fn: the same network computing in bfloat16; its predictions are compared with float32's.
    """

    stochastic: bool = False
    surrogate_fn: LogitsFn | None = None
    auxiliary_fn: Callable[..., Array] | None = None
    undefended_fn: LogitsFn | None = None
    trained_fn: LogitsFn | None = None
    bfloat16_fn: LogitsFn | None = None


def hints_of(
    create_module: Callable[[Defense | None], Any], defense: Defense | None, variables: Any
) -> tuple[LogitsFn, Hints]:
    """The logits function and the hints of a network of this library, as :func:`robustjax.evaluation.judge` takes them.

    Args:
        create_module: defense -> flax module, such as ``lambda defense: models.create("resnet18", defense=defense)``.
        defense: of the network, or None.
        variables: of the network, as trained.

    Returns:
        logits_fn: images -> logits, or (images, key) -> logits for a stochastic defense.
        hints: the network with the defense's surrogate in its place, the auxiliary heads (computed through the
            surrogate as well), and the network with the defense switched off.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from robustjax import defenses, models
        >>> build = lambda defense: models.create("small_cnn", defense=defense)
        >>> guard = defenses.create("cifs", hidden=4)
        >>> images = jnp.zeros((3, 8, 8, 1))
        >>> variables = jax.jit(build(guard).init)(jax.random.key(0), images)
        >>> logits_fn, hints = hints_of(build, guard, variables)
        >>> jax.eval_shape(logits_fn, images).shape, jax.eval_shape(hints.auxiliary_fn, images).shape
        ((3, 10), (2, 3, 10))
    """

    def network(defense: Defense | None, read: Callable[[Any], Array]) -> LogitsFn:
        module = create_module(defense)

        def apply(variables: Any, images: Array, *key: Key) -> Array:
            return read(module.apply(variables, images, rngs={"defense": key[0]} if key else None))

        return jax.tree_util.Partial(apply, variables)

    logits = lambda outputs: outputs.logits  # noqa: E731
    if defense is None:
        return network(None, logits), Hints()
    kinds = [kind for kind in defense.heads if kind != TRAINED_WRONG]
    return network(defense, logits), Hints(
        stochastic=defense.stochastic,
        surrogate_fn=network(defense.surrogate, logits),
        auxiliary_fn=network(
            defense.surrogate, lambda outputs: jnp.concatenate([outputs.auxiliary[kind] for kind in kinds])
        )
        if kinds
        else None,
        undefended_fn=network(defense.switched_off, logits),
    )
