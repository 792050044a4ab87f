"""Data sets as arrays in memory: the embedded digits, or any prepared tfds image-classification data set."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from robustjax.data import prepared
from robustjax.data.order import permutation
from robustjax.types import InputError

SPLITS = ("train", "validation", "test")
# Which training examples "validation" takes must never depend on a run's seed: tuning would leak into training.
_VALIDATION_KEY = (0, 2**64 - 1)
# Where the test labels are not public, everyone judges on the validation split.
_STORED_TEST = {"imagenet2012": "validation"}


class Dataset(NamedTuple):
    """One split of a data set.

    Attributes:
        name: as given to `load`.
        images: uint8 [N, H, W, C] in 0..255.
        labels: int32 [N] in 0..num_classes - 1.
        num_classes: K.
        label_names: K strings.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    label_names: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]


def load(
    name: str,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    validation_examples: int = 0,
    num_examples: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Loads one split of a data set into memory.

    "validation" is a random part of the training split, the same in every run, and "train" is the rest: the two
    together are the data set's own training split, each in its order. The test split is never touched.

    Args:
        name: "digits" (1797 images 8x8, embedded), or a prepared tfds data set as in "cifar10", "cifar10:3.0.2" or
            "name/config".
        split: "train", "validation" or "test".
        data_dir: where prepared data sets lie; None: TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        validation_examples: size of the part of the training split that is "validation".
        num_examples: keep only the first so many examples of the split; None: all.
        image_size: side to which images are scaled and cropped (`scaling.centre_crop`); None: they are of one size.

    Returns:
        A `Dataset`.

    Raises:
        InputError: no such split or data set, unreadable files, a data set that is not image classification or whose
            images differ in size, more examples asked for than there are.

    >>> train = load("digits", "train", validation_examples=200)
    >>> train.images.shape, train.images.dtype.name, train.num_classes
    ((1237, 8, 8, 1), 'uint8', 10)
    """
    if split not in SPLITS:
        raise InputError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
    if validation_examples < 0:
        raise InputError(f"validation_examples: expected a number >= 0, received {validation_examples}")
    if split == "validation" and not validation_examples:
        raise InputError("split 'validation': expected validation_examples >= 1 (it is cut from 'train'), received 0")
    stored = _STORED_TEST.get(name.partition(":")[0], "test") if split == "test" else "train"
    if name == "digits":
        if image_size is not None:
            raise InputError(f"image_size: the digits are 8 x 8 and are not scaled, received {image_size}")
        source = _digits(stored)
    else:
        source = prepared.open_split(name, stored, data_dir, image_size=image_size)
    indices = select(source.num_examples, name, split, validation_examples, num_examples)
    images, labels = source.read(indices)
    return Dataset(name, images, labels, len(source.label_names), source.label_names)


def select(
    stored_examples: int, name: str, split: str, validation_examples: int, num_examples: int | None
) -> np.ndarray:
    """The indices, among those stored, of a split's examples: see `load`."""
    indices = np.arange(stored_examples)
    if split != "test" and validation_examples:
        if validation_examples >= stored_examples:
            raise InputError(
                f"validation_examples: expected fewer than the {stored_examples} examples that the training split "
                f"of {name!r} has, received {validation_examples}"
            )
        held_out = np.isin(indices, permutation(_VALIDATION_KEY, stored_examples)[:validation_examples])
        indices = indices[held_out if split == "validation" else ~held_out]
    if num_examples is not None:
        if not 1 <= num_examples <= len(indices):
            raise InputError(
                f"num_examples: expected 1 to {len(indices)}, the size of {split!r} of {name!r}, "
                f"received {num_examples}"
            )
        indices = indices[:num_examples]
    return indices


def _digits(split: str) -> prepared.Source:
    """The handwritten digits of scikit-learn (Alpaydin and Kaynak 1998): 1437 for training, 360 for testing.

    Sorted by class, every fifth image is a test image: the parts are stratified and depend on no random generator.
    """
    from sklearn import datasets  # a second to import, and only this data set needs it

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    test = np.zeros(len(labels), bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    chosen = np.flatnonzero(test if split == "test" else ~test)
    return prepared.Source(
        num_examples=len(chosen),
        label_names=tuple("0123456789"),
        example=lambda index, draws: (images[chosen[index]], labels[chosen[index]]),
        read=lambda indices: (images[chosen[indices]], labels[chosen[indices]].astype(np.int32)),
    )
