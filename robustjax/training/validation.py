"""Clean, FGSM and PGD accuracy during training, and warnings that follow from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import data
from robustjax.attacks.engine.verify import is_robust
from robustjax.runtime.sharding import Layout
from robustjax.statistics import wilson_interval
from robustjax.types import Attack, Batch, Key

# Catastrophic overfitting (Wong et al. 2020): the network learns to fool the one-step attack and loses PGD accuracy
# within an epoch. An honest network's gap between the two stays small.
OVERFITTING_GAP = 0.2
OVERFITTING_SHARE_OF_BEST = 0.7


def make_validation(
    module: Any, attacks: Mapping[str, Attack | None], dataset: data.Dataset, *, batch_size: int, layout: Layout
) -> Callable[[Any, Key], dict[str, float]]:
    """``(variables, key) -> accuracies by attack``, over the whole data set, compiled once.

    Args:
        module: the network, evaluated in inference mode and in float32; attacks see it in its own dtype.
        attacks: by the name under which the accuracy is reported; None for clean accuracy.
        dataset: validation split.
        batch_size: examples at a time, shared by the devices.
        layout: of the devices.
    """

    exact = module.clone(dtype="float32")

    @jax.jit
    def count(variables: Any, key: Key, batch: Batch[jax.Array]) -> dict[str, jax.Array]:
        key_attack, key_defense = jax.random.split(key)

        def logits(network: Any, points: jax.Array) -> jax.Array:
            return network.apply(variables, points, train=False, rngs={"defense": key_defense}).logits

        evaluated, attacked = partial(logits, exact), partial(logits, module)
        images = data.to_float(batch.images)
        right = {
            name: is_robust(evaluated, attack, key_attack, images, batch.labels, attacked_fn=attacked)
            for name, attack in attacks.items()
        }
        return {name: jnp.sum(flags & batch.mask) for name, flags in right.items()}

    batches = [layout.split_batch(batch) for batch in data.batches(dataset.images, dataset.labels, batch_size)]

    def validate(variables: Any, key: Key) -> dict[str, float]:
        counts = [count(variables, jax.random.fold_in(key, i), batch) for i, batch in enumerate(batches)]
        totals = jax.tree.map(lambda *values: int(np.sum(values)), *jax.device_get(counts))
        return {f"{name}_accuracy": total / len(dataset.labels) for name, total in totals.items()}

    return validate


def guess_accuracy(labels: np.ndarray) -> float:
    """Accuracy of a guess that names the commonest class for every image: 1/K where classes are equally common.

    Example:
        >>> guess_accuracy(np.array([0, 1, 1, 2]))
        0.5
    """
    return int(np.bincount(labels).max()) / len(labels)


def at_chance(accuracy: float, labels: np.ndarray) -> bool:
    """Whether a network cannot be told from such a guess: its 95 % interval reaches down to ``guess_accuracy``.

    Args:
        accuracy: on natural images, in [0, 1].
        labels: of those images, integers [N].

    Example:
        >>> labels = np.arange(200) % 10
        >>> at_chance(0.075, labels), at_chance(0.13, labels), at_chance(0.2, labels)
        (True, True, False)
    """
    return wilson_interval(accuracy * len(labels), len(labels))[0] <= guess_accuracy(labels)


def catastrophic_overfitting(history: Sequence[Mapping[str, float]]) -> bool:
    """Whether the newest of a run's validations shows catastrophic overfitting: FGSM accuracy far above PGD accuracy,
    which has fallen well below its own best.

    Example:
        >>> good = {"fgsm_accuracy": 0.5, "pgd_accuracy": 0.45}
        >>> collapsed = {"fgsm_accuracy": 0.8, "pgd_accuracy": 0.01}
        >>> catastrophic_overfitting([good, good]), catastrophic_overfitting([good, collapsed])
        (False, True)
    """
    newest = history[-1]
    best = max(line["pgd_accuracy"] for line in history)
    gap = newest["fgsm_accuracy"] - newest["pgd_accuracy"]
    return gap > OVERFITTING_GAP and newest["pgd_accuracy"] < OVERFITTING_SHARE_OF_BEST * best
