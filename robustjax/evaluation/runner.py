"""Runs attacks over a data set in full batches, and believes none: every image is checked and classified anew."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import data, hosts
from robustjax.attacks import verify
from robustjax.training.sharding import Layout
from robustjax.types import Array, Attack, Batch, Key

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
) -> Callable[..., Outcome]:
    """`(attack, key, *, whole=False, progress=...) -> Outcome`.

    An attack takes a batch and is compiled here; with `whole`, one like `attacks.autoattack` takes the whole data set,
    compiles by itself and returns a result with `images`. None as the attack gives clean accuracy. `progress` hears how
    many batches are done.

    Args:
        logits_fn: (variables, images) -> float32 logits [B, K].
        variables: of the network.
        dataset: to be judged on.
        epsilon, norm: every adversarial image is checked against them.
        batch_size: examples at a time, shared by the devices.
        layout: of the devices.
    """
    variables = layout.replicate(variables)
    dataset = dataset._replace(images=np.asarray(data.to_float(dataset.images)))

    def in_batches(images: np.ndarray) -> Iterator[Batch]:
        for batch in data.batches(dataset._replace(images=images), batch_size):
            yield layout.split_batch(batch)._replace(mask=batch.mask)  # the mask is the host's

    # Replicated, so that each of several processes has the whole.
    @partial(jax.jit, out_shardings=layout.replicated)
    def judge(variables: Any, images: Array, adversarial: Array, labels: Array) -> tuple[Array, Array, Array]:
        logits = logits_fn(variables, adversarial)
        valid = verify.is_valid(images, adversarial, epsilon=epsilon, norm=norm)
        return valid, verify.is_correct(logits, labels), logits.argmax(axis=-1)

    def judged(adversarial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which are correctly classified, and the predictions; every image has to be valid."""
        parts = [
            [np.asarray(part)[batch.mask] for part in judge(variables, batch.images, moved.images, batch.labels)]
            for batch, moved in zip(in_batches(dataset.images), in_batches(adversarial), strict=True)
        ]
        valid, correct, predictions = (np.concatenate(column) for column in zip(*parts, strict=True))
        if not valid.all():
            raise RuntimeError(
                f"an attack returned {np.sum(~valid)} images outside the {norm} ball of {epsilon} or the box, first "
                f"of example {np.argmin(valid)}: its figure would be meaningless"
            )
        return correct, predictions

    def perturbed(attack: Attack, key: Key, progress: Callable[[int], None]) -> np.ndarray:
        @partial(jax.jit, out_shardings=layout.replicated)
        def perturb(variables: Any, key: Key, images: Array, labels: Array) -> Array:
            return attack(lambda points: logits_fn(variables, points), key, images, labels)

        done = []
        for i, batch in enumerate(in_batches(dataset.images)):
            images = perturb(variables, jax.random.fold_in(key, i), batch.images, batch.labels)
            done.append(np.asarray(images)[batch.mask])
            progress(i + 1)
        return np.concatenate(done)

    def run(
        attack: Callable[..., Any] | None,
        key: Key,
        *,
        whole: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Outcome:
        started = time.perf_counter()
        correct, clean_predictions = judged(dataset.images)
        adversarial, predictions = dataset.images, clean_predictions
        if attack is not None:
            if whole:
                # Several processes do it side by side, each the whole.
                network = jax.tree_util.Partial(logits_fn, jax.device_get(variables) if hosts.several() else variables)
                adversarial = attack(network, key, dataset.images, dataset.labels, batch_size=batch_size).images
            else:
                adversarial = perturbed(attack, key, progress)
            still_correct, predictions = judged(adversarial)
            correct = correct & still_correct
        progress(run.num_batches)
        return Outcome(correct, clean_predictions, predictions, adversarial[:NUM_KEPT], time.perf_counter() - started)

    run.num_batches = math.ceil(len(dataset.labels) / batch_size)
    return run
