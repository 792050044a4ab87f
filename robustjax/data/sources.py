"""Data sets as arrays in memory: the embedded digits, any prepared tfds image-classification data set, or a folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from robustjax.data import folder, tfds_source
from robustjax.data.order import check_integers, permutation
from robustjax.data.scaling import Size
from robustjax.runtime.files import place
from robustjax.types import InputError, nearest

# Which training examples "validation" takes must never depend on a run's seed: tuning would leak into training.
_VALIDATION_KEY = (0, 2**64 - 1)
# Where the test labels are not public, everyone evaluates on the validation split.
_STORED_TEST = {"imagenet2012": "validation", "tiny_imagenet": "validation"}


class Dataset(NamedTuple):
    """One split of a data set, in memory.

    Iterate over batches of it with :func:`robustjax.data.batches`; attacks and networks take its images as
    :func:`robustjax.data.to_float` returns them.

    Attributes:
        name: as given to :func:`load`.
        images: uint8 [N, H, W, C] in 0..255.
        labels: int32 [N] in 0..K - 1.
        num_classes: K.
        label_names: K strings.

    Example:
        >>> greys = Dataset("greys", np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32), 2, ("dark", "light"))
        >>> greys.num_examples, greys.image_shape
        (4, (2, 2, 1))
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
    name: str | os.PathLike,
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    validation_examples: int = 0,
    num_examples: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Loads one split of a data set into memory.

    With ``validation_examples``, "validation" is a random part of the training split, the same in every run, and
    "train" is the rest: the two together are the data set's own training split, each in its order. Every other split is
    read as it is stored. Of ImageNet and Tiny ImageNet, whose test labels are not public, "test" is the stored
    validation split.

    Images are decoded to 8 bits: 16-bit values v become v // 256, palettes become colours, and an alpha channel is
    dropped unless the data set declares four channels.

    Args:
        name: "digits" (1797 images 8x8, embedded); a prepared tfds data set as in "cifar10", "cifar10:3.0.2" or
            "name/config"; or the path of a folder with a folder for each split, as "train" and "test", that holds JPEG
            and PNG files in folders of their classes (./NAME, where a data set has the same name).
        split: "train", "test", or another of the splits that :func:`splits` lists; "validation" see above.
        data_dir: where prepared data sets lie; None: TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        validation_examples: size of the part of the training split that is "validation", at least 0.
        num_examples: keep only the first so many examples of the split; None: all.
        image_size: side to which images are scaled and cropped (``scaling.centre_crop``); None: they are of one size.

    Returns:
        A :class:`Dataset`.

    Raises:
        InputError: no such split (those that there are are named) or data set, unreadable files, a data set that is
            not image classification or whose images differ in size, more examples asked for than there are.

    Example:
        >>> train = load("digits", "train", validation_examples=200)
        >>> train.images.shape, train.images.dtype.name, train.num_classes
        ((1237, 8, 8, 1), 'uint8', 10)
        >>> load("digits", "tset")
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: split must be one of train, test of 'digits', got 'tset' (nearest: 'test')
    """
    check_integers(validation_examples=validation_examples, num_examples=num_examples, image_size=image_size)
    if validation_examples < 0:
        raise InputError(f"validation_examples must be at least 0, got {validation_examples}")
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    carved = split == "train" or (split == "validation" and validation_examples > 0)
    stored = "train" if carved else split
    source = open_stored(name, stored, data_dir=data_dir, image_size=image_size)
    indices = select(source.num_examples, name, split, validation_examples if carved else 0, num_examples)
    images, labels = source.read(indices)
    return Dataset(name, images, labels, len(source.label_names), source.label_names)


def splits(name: str | os.PathLike, *, data_dir: str | os.PathLike | None = None) -> tuple[str, ...]:
    """The splits that a data set has, as they are stored.

    Args:
        name, data_dir: as for :func:`load`.

    Returns:
        Their names, as ``("train", "test")``.

    Raises:
        InputError: there is no such data set, or its description cannot be read.

    Example:
        >>> splits("digits")
        ('train', 'test')
    """
    name = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(name, str) or not name:
        raise InputError(f"data set must be a name, got {name!r}; give one such as 'digits'")
    if name == "digits":
        return "train", "test"
    of_folder = _as_folder(name, data_dir)
    return tfds_source.split_names(name, data_dir) if of_folder is None else folder.splits(of_folder)


def open_stored(
    name: str, split: str, *, data_dir: str | os.PathLike | None, image_size: Size | None
) -> tfds_source.Source:
    """Opens a split as it is stored, without reading its images yet; of ImageNet, "test" is the validation split.

    Raises:
        InputError: as :func:`load`.
    """
    split = _stored_split(name, split, data_dir)
    of_folder = _as_folder(name, data_dir)
    if of_folder is not None:
        return folder.open_split(of_folder, split, image_size)
    if name != "digits":
        return tfds_source.open_split(name, split, data_dir, image_size=image_size)
    if image_size is not None:
        raise InputError(f"image_size must be None for the digits, which are always 8 x 8, got {image_size}")
    return _digits(split)


def _as_folder(name: str, data_dir: str | os.PathLike | None) -> Path | None:
    """The folder that a name means: where there is one, and no data set of that name."""
    path = place(name)
    if (
        name == "digits"
        or not path.is_dir()
        or name in tfds_source.find_prepared(tfds_source.resolve_data_dir(data_dir))
    ):
        return None
    return path


def stored_at(name: str, data_dir: str | os.PathLike | None) -> Path | str:
    """Where the data set of a name lies: two names of one data set lie at one place. Without a place, the name."""
    found = _as_folder(name, data_dir)
    if found is None and name != "digits":  # which are embedded, whatever was prepared under that name
        found = tfds_source.find_prepared(tfds_source.resolve_data_dir(data_dir)).get(name)
    return name if found is None else found.resolve()


def _stored_split(name: str, split: str, data_dir: str | os.PathLike | None) -> str:
    """The name under which a split is stored.

    Raises:
        InputError: there is none; those that there are are named.
    """
    stored = splits(name, data_dir=data_dir)
    if split == "test":
        split = _STORED_TEST.get(name.partition(":")[0], split)
    if split not in stored:
        hint = nearest(split, stored)
        if split == "validation":
            hint = "; to cut it from the training split, give validation_examples"
        elif not hint and _as_folder(name, data_dir) is not None:
            hint = "; put the folders of the classes into a folder for each split"
        raise InputError(f"split must be one of {', '.join(stored)} of {name!r}, got {split!r}{hint}")
    return split


def select(
    stored_examples: int, name: str, split: str, validation_examples: int, num_examples: int | None
) -> np.ndarray:
    """The indices, among those stored, of a split's examples: see ``load``."""
    indices = np.arange(stored_examples)
    if validation_examples:
        if validation_examples >= stored_examples:
            raise InputError(
                f"validation_examples must be less than the {stored_examples} examples that the training split of "
                f"{name!r} has, got {validation_examples}"
            )
        held_out = np.isin(indices, permutation(_VALIDATION_KEY, stored_examples)[:validation_examples])
        indices = indices[held_out if split == "validation" else ~held_out]
    if num_examples is not None:
        if not 1 <= num_examples <= len(indices):
            raise InputError(
                f"num_examples must be 1 to {len(indices)}, the size of {split!r} of {name!r}, got {num_examples}"
            )
        indices = indices[:num_examples]
    return indices


def _digits(split: str) -> tfds_source.Source:
    """The handwritten digits of scikit-learn (Alpaydin and Kaynak 1998): 1437 for training, 360 for testing.

    Sorted by class, every fifth image is a test image: the parts are stratified and depend on no random generator.
    """
    from sklearn import datasets  # a second to import, and only this data set needs it

    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    test = np.zeros(len(labels), bool)
    test[np.argsort(labels, kind="stable")[::5]] = True
    chosen = np.flatnonzero(test if split == "test" else ~test)
    return tfds_source.Source(
        num_examples=len(chosen),
        label_names=tuple("0123456789"),
        example=lambda index, draws: (images[chosen[index]], int(labels[chosen[index]])),
        read=lambda indices: (images[chosen[indices]], labels[chosen[indices]].astype(np.int32)),
    )
