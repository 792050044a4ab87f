"""Attacks around other attacks: aimed at a class, restricted to a ball, or with an optimizer given by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from robustjax import attacks
from robustjax.attacks import geometry, losses
from robustjax.attacks.engine import verify
from robustjax.attacks.engine.one_class import one_against_rest
from robustjax.attacks.eot import expected_logits_fn
from robustjax.types import Array, InputError, Key, LogitsFn, LossFn


def within(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    base: Callable[..., Array],
    epsilon: Array | float,
    norm: str,
    bounds: geometry.Bounds = (0.0, 1.0),
    **options: Any,
) -> Array:
    """A minimum-norm attack, which knows no ball: what it finds outside the ball counts as not found.

    Args:
        logits_fn, key, images, labels, options: as of ``base``.
        base: the attack.
        epsilon, norm, bounds: the ball and the box.

    Returns:
        The attack's image where it is inside the ball, elsewhere exactly the image itself.

    Example:
        >>> images = jnp.full((1, 1, 1, 1), 0.5, jnp.float32)
        >>> far = lambda logits_fn, key, images, labels, *, bounds: images + 0.2
        >>> within(None, None, images, None, base=far, epsilon=0.1, norm="linf").ravel()
        Array([0.5], dtype=float32)
    """
    points = base(logits_fn, key, images, labels, bounds=bounds, **options)
    valid = verify.is_valid(images, points, epsilon=epsilon, norm=norm, bounds=bounds)
    return _where(valid, points, images)


def toward(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    base: Callable[..., Array],
    classes: str | int,
    own: bool,
    offset: Array | int = 1,
    eot_samples: int = 0,
    **options: Any,
) -> tuple[Array, Array]:
    r"""An attack that aims at one class of each image.

    What can aim by itself is given the classes as labels. Every other attack runs on the network that only knows
    whether an image is of the class, :func:`one_against_rest`, with label 0.

    Args:
        logits_fn, key, images, labels, options: as of ``base``.
        base: the attack.
        classes: "next" or "all" (``offset`` classes after the label, cyclically), "random", "likeliest" or
            "least_likely" (of the wrong classes, on the image as it is), or the number of a class.
        own: whether ``base`` takes ``targeted``.
        offset: see ``classes``; may be traced.
        eot_samples: as of ``base``.

    Returns:
        The images, as they were where the class aimed at is the label itself; and these classes, int32 [B].

    Example:
        >>> from functools import partial
        >>> base, images = partial(attacks.apgd, num_steps=10, epsilon=0.5), jnp.array([[0.9, 0.2, 0.5]])
        >>> points, classes = toward(lambda x: x, jax.random.key(0), images, jnp.array([0]), base=base,
        ...                          classes="least_likely", own=False)
        >>> classes, points.argmax(axis=1)
        (Array([1], dtype=int32), Array([1], dtype=int32))
    """
    key_attack, key_classes = jax.random.split(key)
    logits = expected_logits_fn(logits_fn, key_classes, num_samples=eot_samples)
    targets = _targets(classes, offset, key_classes, logits, images, labels)
    given = {"eot_samples": eot_samples} if eot_samples else {}
    if own:
        points = base(logits_fn, key_attack, images, targets, targeted=True, **given, **options)
    else:
        known = one_against_rest(logits_fn, targets)
        points = base(known, key_attack, images, jnp.zeros_like(labels), **given, **options)
    return _where(targets != labels, points, images), targets


def by_optimizer(
    logits_fn: LogitsFn,
    key: Key,
    images: Array,
    labels: Array,
    *,
    epsilon: Array | float,
    step_size: Array | float,
    num_steps: int,
    optimizer: str,
    norm: str = "linf",
    random_start: bool = True,
    loss: LossFn = losses.cross_entropy,
    bounds: geometry.Bounds = (0.0, 1.0),
    eot_samples: int = 0,
) -> Array:
    """:func:`robustjax.attacks.optimized_pgd` with an optimizer by its name: "momentum" (MI-FGSM) or "adam"."""
    makers = {
        "momentum": lambda: attacks.momentum(step_size, norm=norm, bounds=bounds),  # pyright: ignore[reportArgumentType]
        "adam": lambda: optax.adam(step_size),  # pyright: ignore[reportArgumentType] - traced numbers are fine
    }
    return attacks.optimized_pgd(
        logits_fn, key, images, labels, epsilon=epsilon, optimizer=makers[optimizer](), num_steps=num_steps, norm=norm,
        random_start=random_start, loss=loss, bounds=bounds, eot_samples=eot_samples,
    )  # fmt: skip


def _targets(
    classes: str | int, offset: Array | int, key: Key, logits: Callable[[Array], Array], images: Array, labels: Array
) -> Array:
    """The class that each image is driven to, int32 [B]."""
    labels = labels.astype(jnp.int32)
    if isinstance(classes, int):
        return jnp.full_like(labels, classes)
    values = logits(images)
    num_classes = values.shape[-1]
    if classes in ("next", "all"):
        return (labels + offset) % num_classes
    if classes == "random":
        return (labels + jax.random.randint(key, labels.shape, 1, num_classes, jnp.int32)) % num_classes
    if classes not in ("likeliest", "least_likely"):
        raise InputError(f"toward must be next, random, likeliest, least_likely, all or a class, got {classes!r}")
    is_label = jax.nn.one_hot(labels, num_classes, dtype=bool)
    sign = 1.0 if classes == "likeliest" else -1.0
    return jnp.argmax(jnp.where(is_label, -jnp.inf, sign * values), axis=-1).astype(jnp.int32)


def _where(rows: Array, chosen: Array, other: Array) -> Array:
    return jnp.where(rows.reshape(rows.shape + (1,) * (chosen.ndim - 1)), chosen, other)
