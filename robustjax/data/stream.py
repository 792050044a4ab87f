"""A training split that is read from disk while the run trains, through Grain: for data that do not fit on devices.

The examples in the batch of a step are a function of (seed, step), ``epoch_order``, as in the pipeline in memory. So a
run resumes exactly where it was without an iterator in its checkpoint, also with another number of processes, and both
pipelines train on the same batches.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from robustjax.data.order import epoch_order
from robustjax.data.scaling import NUM_DRAWS
from robustjax.data.sources import open_stored, select
from robustjax.types import InputError

NUM_THREADS = 16  # that read and decode


class Stream(NamedTuple):
    """The training split of a prepared data set, or of a folder.

    Attributes:
        name: as given to ``open_stream``.
        num_examples: N.
        image_shape: (H, W, C).
        num_classes: K.
        read: (index in 0..N - 1, uniform numbers in [0, 1)) -> uint8 image [H, W, C] and its label.
        label_names: K strings, or () where nothing tells them.
    """

    name: str
    num_examples: int
    image_shape: tuple[int, int, int]
    num_classes: int
    read: Callable[[int, np.ndarray], tuple[np.ndarray, int]]
    label_names: tuple[str, ...] = ()


def open_stream(
    name: str | os.PathLike,
    *,
    data_dir: str | os.PathLike | None = None,
    validation_examples: int = 0,
    num_examples: int | None = None,
    image_size: int | None = None,
    random_resized_crop: bool = False,
) -> Stream:
    """The examples that ``load(name, "train", ...)`` would hold, in the same order, without loading them.

    Args:
        name, data_dir, validation_examples, num_examples, image_size: as for ``load``.
        random_resized_crop: crop a random part instead of the middle; needs image_size.

    Returns:
        A :class:`Stream`.

    Raises:
        InputError: as for ``load``, and for the embedded digits, which have no files.
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if name == "digits":
        raise InputError("data.pipeline 'stream' reads data sets from files; the digits are in memory: use 'memory'")
    source = open_stored(name, "train", data_dir=data_dir, image_size=image_size)
    indices = select(source.num_examples, name, "train", validation_examples, num_examples)

    shape = source.example(int(indices[0]), None)[0].shape

    def read(index: int, draws: np.ndarray) -> tuple[np.ndarray, int]:
        image, label = source.example(int(indices[index]), draws if random_resized_crop else None)
        if image.shape != shape:
            raise InputError(
                f"{name}: images must be of one size, {shape[:2]} as the first, got {image.shape[:2]} in record "
                f"{indices[index]}; set data.image_size"
            )
        return image, label

    return Stream(name, len(indices), shape, len(source.label_names), read, source.label_names)


def stream_batches(
    stream: Stream,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    first_step: int,
    indices: Callable[[int], np.ndarray] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """This process's part of the batches from ``first_step`` on, without end: uint8 images and int32 labels.

    Args:
        stream: to read from.
        seed: of the order, and of random crops.
        batch_size: over all processes; an epoch is as many full batches as there are.
        rows: int [n], the places in a batch that this process reads.
        first_step: counted from the beginning of the run.
        indices: step -> int [batch_size], the examples of its batch; None: as ``epoch_order`` has them.
    """
    import grain  # a second, and runs in memory do without

    steps_per_epoch = stream.num_examples // batch_size

    lock = threading.Lock()  # or every thread would sort at the beginning of an epoch
    cached_order = functools.lru_cache(maxsize=2)(epoch_order)  # of this epoch and, read ahead, of the next

    chosen = functools.lru_cache(maxsize=8)(indices) if indices else None

    def batch(step: int) -> np.ndarray:
        epoch, done = divmod(step, steps_per_epoch)
        with lock:
            if chosen is not None:
                return chosen(step)
            return cached_order(seed, epoch, stream.num_examples)[done * batch_size : (done + 1) * batch_size]

    def read(position: int) -> tuple[np.ndarray, np.int32]:
        step, part = divmod(position, len(rows))
        place = step * batch_size + int(rows[part])
        # The raw stream, which NumPy promises for ever (NEP 19), as 53 bits of a float in [0, 1).
        raw = np.random.Philox(key=np.array([seed, 2**63 + place], np.uint64)).random_raw(NUM_DRAWS)
        image, label = stream.read(int(batch(step)[rows[part]]), (raw >> 11) * 2.0**-53)
        return image, np.int32(label)

    ahead = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=max(2 * len(rows), NUM_THREADS))
    endless = grain.MapDataset.range(first_step * len(rows), 2**62).map(read)
    return iter(endless.to_iter_dataset(ahead).batch(len(rows), drop_remainder=True))
