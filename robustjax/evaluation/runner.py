"""Runs attacks over a data set in full batches, and believes none: every image is checked and classified anew."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import data
from robustjax.attacks import verify
from robustjax.training.sharding import Layout
from robustjax.types import Array, Attack, Key

# How many adversarial images an outcome keeps, to be looked at.
NUM_KEPT = 64


class Outcome(NamedTuple):
    """What an attack did to a data set.

    Attributes:
        robust: bool [N], correct as it is and after the attack, by a forward pass apart from the attack's.
        clean_predictions, predictions: int [N], the classes before and after the attack.
        adversarial: the first images, float32 [min(N, NUM_KEPT), H, W, C].
        seconds: wall time, compilation included.
    """

    robust: np.ndarray
    clean_predictions: np.ndarray
    predictions: np.ndarray
    adversarial: np.ndarray
    seconds: float


def make_runner(
    logits_fn: Callable[[Any, Array], Array],
    variables: Any,
    dataset: data.Dataset,
    *,
    epsilon: float,
    norm: str,
    batch_size: int,
    layout: Layout,
) -> Callable[[Attack | None, Key, Callable[[int], None]], Outcome]:
    """`(attack, key, progress) -> Outcome`; None as the attack gives clean accuracy, progress hears of each batch.

    Args:
        logits_fn: (variables, images) -> float32 logits [B, K].
        variables: of the network.
        dataset: to be judged on.
        epsilon, norm: every returned image is checked against them.
        batch_size: examples at a time, shared by the devices.
        layout: of the devices.
    """
    batches = [layout.split_batch(batch) for batch in data.batches(dataset, batch_size)]
    variables = layout.replicate(variables)

    @jax.jit
    def classify(variables: Any, images: Array, labels: Array) -> tuple[Array, Array]:
        logits = logits_fn(variables, images)
        return verify.is_correct(logits, labels), logits.argmax(axis=-1)

    def run(attack: Attack | None, key: Key, progress: Callable[[int], None]) -> Outcome:
        @jax.jit
        def perturb(variables: Any, key: Key, images: Array, labels: Array) -> tuple[Array, Array]:
            adversarial = attack(lambda points: logits_fn(variables, points), key, images, labels)
            return adversarial, verify.is_valid(images, adversarial, epsilon=epsilon, norm=norm)

        started = time.perf_counter()
        robust, before, after, kept = [], [], [], []
        for i, batch in enumerate(batches):
            images = data.to_float(batch.images)
            correct, predicted = classify(variables, images, batch.labels)
            before.append(np.asarray(predicted)[batch.mask])
            if attack is not None:
                images, valid = perturb(variables, jax.random.fold_in(key, i), images, batch.labels)
                if not np.all(valid):
                    raise RuntimeError(
                        f"an attack returned {np.sum(~np.asarray(valid))} images outside the {norm} ball of {epsilon} "
                        f"or the box, in batch {i}: its figure would be meaningless"
                    )
                still_correct, predicted = classify(variables, images, batch.labels)
                correct = correct & still_correct
            robust.append(np.asarray(correct)[batch.mask])
            after.append(np.asarray(predicted)[batch.mask])
            if i * batch_size < NUM_KEPT:
                kept.append(np.asarray(images)[batch.mask])
            progress(i + 1)
        return Outcome(
            np.concatenate(robust),
            np.concatenate(before),
            np.concatenate(after),
            np.concatenate(kept)[:NUM_KEPT],
            time.perf_counter() - started,
        )

    run.num_batches = len(batches)
    return run
