"""Feeds examples to the compiled step: from a data set that lies on the devices, or streamed from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from robustjax import data
from robustjax.runtime.sharding import Layout
from robustjax.training import step
from robustjax.training.state import TrainState

# (state after `at` steps, at, count) -> state after count more steps of the same epoch; at most as many as are logged
# together. The state is donated.
Advance = Callable[[TrainState, int, int], TrainState]


def make_advance(
    train: data.Dataset | data.Stream,
    update: step.Step,
    *,
    seed: int,
    batch_size: int,
    most: int,
    layout: Layout,
    extra: data.Dataset | data.Stream | None = None,
    extra_ratio: float = 0.0,
) -> Advance:
    """The steps of a run on its examples, in the order of ``data.epoch_order``.

    Args:
        train: what to train on; a ``Dataset`` is put on the devices.
        update: one step.
        seed: of the run.
        batch_size: over all devices.
        most: steps at a time.
        layout: of the devices.
        extra: of the same kind as ``train``, whose examples make the share ``extra_ratio`` of every batch.
    """
    indices = None
    if extra is not None:
        indices = data.Mixture.of(train, extra, batch_size=batch_size, ratio=extra_ratio).indices(seed)
    if isinstance(train, data.Dataset):
        assert extra is None or isinstance(extra, data.Dataset)
        parts = (train, extra) if extra else (train,)
        return _from_devices(parts, update, seed, batch_size, most, layout, indices)
    assert extra is None or isinstance(extra, data.Stream)
    return _from_disk(data.joined(train, extra) if extra else train, update, seed, batch_size, layout, indices)


# step -> the places of its batch's examples, int32 [B]; None: those of ``data.epoch_order``.
Indices = Callable[[int], np.ndarray] | None


def _from_devices(
    parts: tuple[data.Dataset, ...],
    update: step.Step,
    seed: int,
    batch_size: int,
    most: int,
    layout: Layout,
    indices: Indices,
) -> Advance:
    dispatch = step.make_dispatch(update, layout)
    train = parts[0]
    images, labels = [part.images for part in parts], [part.labels for part in parts]
    if len(parts) == 1:  # nothing is copied
        images, labels = layout.replicate((images[0], labels[0]))
    else:
        images, labels = layout.replicate((np.concatenate(images), np.concatenate(labels)))
    steps_per_epoch = train.num_examples // batch_size

    def advance(state: TrainState, at: int, count: int) -> TrainState:
        epoch, done = divmod(at, steps_per_epoch)
        if indices is None:
            order = data.epoch_order(seed, epoch, train.num_examples)
            order = order[: steps_per_epoch * batch_size].reshape(-1, batch_size)[done : done + most]
        else:
            order = np.stack([indices(at + i) for i in range(count)])
        # As many rows whatever is left of the epoch, or the program would be compiled anew.
        order = np.concatenate([order, np.zeros((most - len(order), batch_size), order.dtype)])
        return dispatch(state, images, labels, order, count)

    return advance


def _from_disk(
    train: data.Stream, update: step.Step, seed: int, batch_size: int, layout: Layout, indices: Indices
) -> Advance:
    dispatch = step.make_batch_dispatch(update, layout)
    rows = layout.own_rows(batch_size)
    batches: Iterator[Any] = iter(())
    position = -1  # the step whose batch comes next

    def advance(state: TrainState, at: int, count: int) -> TrainState:
        nonlocal batches, position
        if at != position:  # at the start, and after going back to a checkpoint
            batches = data.stream_batches(
                train, seed=seed, batch_size=batch_size, rows=rows, first_step=at, indices=indices
            )
            position = at
        for _ in range(count):  # the devices work on a batch while the next one is read
            state = dispatch(state, *layout.join_batch(next(batches)))
            position += 1
        return state

    return advance
