"""Further training images, such as generated ones: how they are read, and which of them are in which batch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from robustjax.data import arrays
from robustjax.data.order import permutation
from robustjax.data.sources import Dataset, load, stored_at
from robustjax.data.stream import Stream, open_stream
from robustjax.runtime.files import place
from robustjax.types import InputError

# Second halves of the keys that order the places of a batch, by step, and the passes over further images; epochs of the
# training set count from 0.
_PLACES = 2**61
_PASSES = 2**62


def open_extra(
    spec: str,
    *,
    like: Dataset | Stream,
    streamed: bool,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    random_resized_crop: bool = False,
) -> Dataset | Stream:
    """Labelled or pseudo-labelled images to be mixed into the batches of a training set.

    Args:
        spec: path of an .npz file with images [N, H, W, C], uint8 or floats in [0, 1], and integer labels [N], or name
            of a prepared tfds data set, of which "train" is taken.
        like: the training set.
        streamed: read while the run trains. An .npz file is then in the host's memory, and its images go to the devices
            batch by batch.
        data_dir: where prepared data sets lie; None: TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        image_size, random_resized_crop: of a data set, as for ``load`` and ``open_stream``; images of an .npz file are
            taken as they are.

    Returns:
        A :class:`Dataset`, or a :class:`Stream` if ``streamed``.

    Raises:
        InputError: there is no such file or data set, it is the training set itself, or its images, labels or the names
            of its classes do not fit the training set's.
    """
    path = place(spec)
    if path.suffix != ".npz":
        if stored_at(spec, data_dir) == stored_at(like.name, data_dir):
            raise InputError(
                f"data.extra must be another data set than data.name, whose training split has the validation images, "
                f"got {spec!r} and {like.name!r}"
            )
        if streamed:
            crop = {"image_size": image_size, "random_resized_crop": random_resized_crop}
            found = open_stream(spec, data_dir=data_dir, **crop)
        else:
            found = load(spec, "train", data_dir=data_dir, image_size=image_size)
        _check_fit(spec, like, found.image_shape, found.num_classes, found.label_names)
        return found
    images, labels, label_names, _ = arrays.examples(path, "train")
    _check_fit(spec, like, images.shape[1:], int(labels.max()) + 1, label_names or ())
    if images.dtype != np.uint8:
        images = np.round(images * 255.0).astype(np.uint8)
    labels = labels.astype(np.int32)
    if not streamed:
        return Dataset(path.name, images, labels, like.num_classes, ())
    return Stream(
        path.name, len(labels), images.shape[1:], like.num_classes, lambda index, _: (images[index], int(labels[index]))
    )


def _check_fit(
    spec: str, like: Dataset | Stream, image_shape: tuple[int, ...], num_classes: int, label_names: tuple[str, ...]
) -> None:
    if tuple(image_shape) != tuple(like.image_shape):
        raise InputError(
            f"data.extra must hold images of {list(like.image_shape)} as {like.name} does, got {list(image_shape)} in "
            f"{spec}; scale them"
        )
    if num_classes > like.num_classes:
        raise InputError(
            f"data.extra must have labels 0 to {like.num_classes - 1} as {like.name} does, got {num_classes - 1} in "
            f"{spec}; leave out other classes"
        )
    own = {name: number for number, name in enumerate(like.label_names)}
    for number, name in enumerate(label_names):
        if own.get(name, number) != number:
            raise InputError(
                f"data.extra must number its classes as {like.name} does, where {name!r} is {own[name]}, got {number} "
                f"in {spec}; number them alike"
            )


class Mixture(NamedTuple):
    """Which examples make which batch, as a function of (seed, step): own ones from 0, further ones after them.

    Each of the two is passed through in an order of its own, one pass after the other, whatever is an epoch.

    Attributes:
        num_own, num_extra: examples there are of each.
        batch_size: of both together.
        extra_per_batch: of the further ones.
    """

    num_own: int
    num_extra: int
    batch_size: int
    extra_per_batch: int

    @classmethod
    def of(cls, own: Dataset | Stream, extra: Dataset | Stream, *, batch_size: int, ratio: float) -> Mixture:
        """The mixture whose batches hold the share ``ratio`` of further examples, rounded.

        Raises:
            InputError: a batch would have none of one kind, or there are too few further examples for one.
        """
        count = round(ratio * batch_size)
        if not 0 < count < batch_size:
            raise InputError(
                f"data.extra_ratio must leave a batch of {batch_size} at least one image of each kind, got {ratio}"
            )
        if extra.num_examples < count:
            raise InputError(
                f"data.extra must hold at least the {count} images that a batch takes of it, got {extra.num_examples}"
            )
        return cls(own.num_examples, extra.num_examples, batch_size, count)

    def indices(self, seed: int) -> Callable[[int], np.ndarray]:
        """step -> int32 [batch_size], both kinds in random places of the batch.

        Whatever takes a part of the batch by its places, such as a device, a micro-batch or the share of it that is
        left natural, then has both kinds; of places with a period it might have one alone.

        Example:
            >>> Mixture(num_own=4, num_extra=2, batch_size=3, extra_per_batch=1).indices(0)(0).tolist()
            [2, 4, 0]
        """
        order = functools.lru_cache(maxsize=4)(permutation)

        def part(step: int, count: int, stored: int, first_key: int) -> np.ndarray:
            turn, done = divmod(step, stored // count)
            return order((seed, first_key + turn), stored)[done * count : (done + 1) * count]

        def indices(step: int) -> np.ndarray:
            own = part(step, self.batch_size - self.extra_per_batch, self.num_own, 0)
            further = self.num_own + part(step, self.extra_per_batch, self.num_extra, _PASSES)
            return np.concatenate([own, further])[permutation((seed, _PLACES + step), self.batch_size)]

        return indices


def joined(own: Stream, extra: Stream) -> Stream:
    """A training split and further images as one stream, the further examples numbered after its own.

    Args:
        own: the training split, whose number of examples an epoch still has.
        extra: further images of the same shape.

    Returns:
        A :class:`Stream`, for :meth:`Mixture.indices` to choose from.
    """

    def read(index: int, draws: np.ndarray) -> tuple[np.ndarray, int]:
        return own.read(index, draws) if index < own.num_examples else extra.read(index - own.num_examples, draws)

    return own._replace(read=read)
