"""Features, logits and gradients of a network on images and on their adversarial images, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks, data
from robustjax.attacks.engine import inputs
from robustjax.ops import global_average_pool
from robustjax.types import AnyArray, Array, InputError, Key, LogitsFn


class Observed(NamedTuple):
    """A network's outputs on N images and on N adversarial ones, in this order where an axis has two entries.

    Attributes:
        labels: int [N].
        images, adversarial: float32 [N, H, W, C].
        logits: [2, N, K].
        auxiliary: kind of head -> [2, S, N, K].
        pooled: site -> features averaged over positions, [2, N, C].
        movement: site -> mean over positions of ``|F(x) - F(x')|``, [N, C]; its mean over the images is
            :func:`robustjax.defenses.sns.sensitivity`.
        magnitude: site -> mean over positions of ``|F(x)|``, [N, C].
    """

    labels: np.ndarray
    images: np.ndarray
    adversarial: np.ndarray
    logits: np.ndarray
    auxiliary: Mapping[str, np.ndarray]
    pooled: Mapping[str, np.ndarray]
    movement: Mapping[str, np.ndarray]
    magnitude: Mapping[str, np.ndarray]

    @property
    def predictions(self) -> np.ndarray:
        """int [2, N]."""
        return self.logits.argmax(axis=-1)

    @property
    def right(self) -> np.ndarray:
        """bool [2, N]."""
        return self.predictions == self.labels[None, :]

    @property
    def probabilities(self) -> np.ndarray:
        """[2, N, K]."""
        return np.asarray(jax.nn.softmax(jnp.asarray(self.logits)))


def observe(
    outputs_fn: LogitsFn, images: AnyArray, adversarial: AnyArray, labels: AnyArray, *, batch_size: int = 250
) -> Observed:
    """Runs a network on natural and on adversarial images.

    Args:
        outputs_fn: images -> :class:`robustjax.types.Outputs`. Given as ``jax.tree_util.Partial(apply, variables)``,
            networks of one kind share a compiled program.
        images, adversarial: float32 [N, H, W, C], of the same examples in the same order.
        labels: integers [N].
        batch_size: images at a time.

    Returns:
        An :class:`Observed`.

    Raises:
        InputError: the arrays do not belong together, or there are no examples.

    Example:
        >>> from robustjax import models
        >>> images, labels = np.full((3, 8, 8, 1), 0.5, np.float32), np.array([0, 1, 2])
        >>> module = models.create("small_cnn")
        >>> variables = jax.jit(module.init)(jax.random.key(0), images)
        >>> seen = observe(jax.tree_util.Partial(module.apply, variables), images, images + 0.1, labels)
        >>> seen.logits.shape, seen.pooled["conv1"].shape, seen.movement["dense"].shape
        ((2, 3, 10), (2, 3, 16), (3, 100))
    """
    images, adversarial, labels = (np.asarray(array) for array in (images, adversarial, labels))
    if images.shape != adversarial.shape or labels.shape != images.shape[:1] or not len(images):
        raise InputError(
            f"images, adversarial and labels must be of the same examples, at least one, got shapes "
            f"{list(images.shape)}, {list(adversarial.shape)} and {list(labels.shape)}"
        )
    network = outputs_fn if isinstance(outputs_fn, jax.tree_util.Partial) else jax.tree_util.Partial(outputs_fn)
    size = min(batch_size, len(images))
    parts = []
    for start in range(0, len(images), size):
        chosen = np.minimum(np.arange(start, start + size), len(images) - 1)  # the last batch is filled up
        parts.append(jax.device_get(_seen(network, jnp.asarray(images[chosen]), jnp.asarray(adversarial[chosen]))))
    count = len(images)
    whole = lambda axis: lambda *found: np.concatenate(found, axis=axis).take(np.arange(count), axis=axis)  # noqa: E731
    logits, auxiliary, pooled, movement, magnitude = zip(*parts, strict=True)
    return Observed(
        labels,
        images,
        adversarial,
        whole(1)(*logits),
        jax.tree.map(whole(2), *auxiliary),
        jax.tree.map(whole(1), *pooled),
        jax.tree.map(whole(0), *movement),
        jax.tree.map(whole(0), *magnitude),
    )


@jax.jit
def _seen(outputs_fn: LogitsFn, images: Array, adversarial: Array) -> tuple[Any, ...]:
    natural, changed = outputs_fn(images), outputs_fn(adversarial)
    both = lambda read: jax.tree.map(lambda *two: jnp.stack(two), read(natural), read(changed))  # noqa: E731
    difference = lambda one, other: global_average_pool(jnp.abs(one - other))  # noqa: E731
    return (
        both(lambda outputs: outputs.logits),
        both(lambda outputs: dict(outputs.auxiliary)),
        both(lambda outputs: {site: global_average_pool(value) for site, value in outputs.features.items()}),
        jax.tree.map(difference, dict(natural.features), dict(changed.features)),
        {site: global_average_pool(jnp.abs(value)) for site, value in natural.features.items()},
    )


def checked(
    logits_fn: LogitsFn, images: AnyArray, labels: AnyArray, epsilon: float, norm: str, *keys: Key
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels after a check by value, since under ``jit`` wrong ones would give wrong figures silently.

    Raises:
        InputError: images that are not floats in [0, 1], labels that are none of the network's classes, or an epsilon
            that is not a radius.
    """
    images, labels, *_ = inputs.on_host(images, labels, epsilon, norm, (0.0, 1.0))
    logits = inputs.logits_of(inputs.traced("logits_fn", logits_fn, images[:1], *keys), 1)
    inputs.labels_in_range(labels, logits.shape[1])
    return images, labels


def attacked(
    logits_fn: LogitsFn,
    key: Key,
    images: AnyArray,
    labels: AnyArray,
    *,
    epsilon: float,
    step_size: float | None = None,
    num_steps: int = 20,
    norm: str = "linf",
    eot_samples: int = 0,
    batch_size: int = 250,
) -> np.ndarray:
    """Adversarial images of all examples by PGD from the image itself, as the papers have it, batch by batch.

    Every epsilon and number of steps is the same compiled program.

    Args:
        logits_fn, key, images, labels, epsilon, norm, eot_samples: as for :func:`robustjax.attacks.pgd`.
        step_size: None: a tenth of epsilon.
        num_steps: at least 0.
        batch_size: images at a time.

    Returns:
        float32 [N, H, W, C].

    Raises:
        InputError: as of :func:`robustjax.attacks.pgd`.

    Example:
        >>> linear = lambda x: jnp.stack([x.sum(axis=(1, 2, 3)), jnp.full(x.shape[0], 0.9)], axis=1)
        >>> images, labels = np.full((1, 1, 2, 1), 0.5, np.float32), np.array([0])
        >>> attacked(linear, jax.random.key(0), images, labels, epsilon=0.1).ravel()
        array([0.4, 0.4], dtype=float32)
    """
    inputs.check_key(key)
    inputs.static(0, num_steps=num_steps, eot_samples=eot_samples)
    images, labels = checked(logits_fn, images, labels, epsilon, norm, *((key,) if eot_samples else ()))
    step_size = epsilon / 10 if step_size is None else step_size
    inputs.check_radius("step_size", step_size, len(images), allow_infinite=False)
    network = logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)
    found = []
    for i, batch in enumerate(data.batches(images, labels, min(batch_size, len(labels)))):
        lengths = {"epsilon": jnp.float32(epsilon), "step_size": jnp.float32(step_size)}
        points = _pgd(
            network,
            jax.random.fold_in(key, i),
            jnp.asarray(batch.images, jnp.float32),
            jnp.asarray(batch.labels),
            num_steps=jnp.int32(num_steps),
            norm=norm,
            eot_samples=eot_samples,
            **lengths,
        )
        found.append(np.asarray(points)[batch.mask])
    return np.concatenate(found)


_pgd = jax.jit(partial(attacks.pgd, random_start=False), static_argnames=("norm", "eot_samples"))
