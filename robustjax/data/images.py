"""Images to evaluate on, from a prepared data set, a folder of class folders, or an ``.npz`` file."""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from robustjax.data import arrays, folder, scaling, sources, tfds_source
from robustjax.data.order import check_integers, permutation
from robustjax.runtime.files import place
from robustjax.types import InputError

# Second half of the key that orders a random subset: no epoch has it, and validation examples have another.
_SUBSET = 2**64 - 2

_Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Images(NamedTuple):
    """Images and labels to evaluate on, and where they are from.

    Attributes:
        images: [N, H, W, C], uint8 in 0..255 or float32 in [0, 1].
        labels: int32 [N], from 0.
        class_names: K strings, or None where nothing tells how many classes there are.
        about: for records, as JSON holds it: ``spec``, ``split`` (None where there are none), ``size``, ``channels``,
            ``n``, ``subset`` (``of`` how many, and the ``seed`` of a random one, or None), and the SHA-256 digests of
            the bytes of ``images`` and ``labels``.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...] | None
    about: dict[str, Any]


class _Stored(NamedTuple):
    num_examples: int
    class_names: tuple[str, ...] | None
    split: str | None
    read: _Read


def read_images(
    spec: str | os.PathLike,
    *,
    split: str = "test",
    num_examples: int | None = None,
    subset_seed: int | None = None,
    size: scaling.Size | None = None,
    channels: int | None = None,
    data_dir: str | os.PathLike | None = None,
) -> Images:
    """Reads images and labels from a data set, a folder or a file.

    A name of a data set means that, also where a folder of the same name exists (which ``./name`` means).

    - **A data set**: what :func:`load` reads, by its name, as ``"digits"``, ``"cifar10"`` or
      ``"cifar10_corrupted/brightness_1"``; in its stored order.
    - **A folder of class folders**, with JPEG and PNG files. Classes are numbered by their sorted names, and images are
      ordered by class and then by name, as torchvision's ``ImageFolder`` does it; so the first so many may all be of
      one class, and ``subset_seed`` takes some of each. Alpha channels are dropped, 16 bits become 8, palettes become
      colours; EXIF orientations are left alone.
    - **An .npz file** with images, uint8 or floats in [0, 1], [N, H, W, C] or (grey) [N, H, W], and integer labels [N]
      or [N, 1], under the names ``images`` and ``labels``, ``x`` and ``y``, ``x_test`` and ``y_test``, or
      ``test_images`` and ``test_labels``, with another ``split`` in place of "test"; and names of the classes under
      ``class_names``, if they are to be known. Nothing is unpickled.

    Args:
        spec: name of a data set, path of a folder, or path of an .npz file.
        split: of a data set, or of an .npz whose arrays are named by it.
        num_examples: only so many; None: all.
        subset_seed: None: the first ``num_examples``. A number from 0: as many at random, in their stored order; a pure
            function of seed and size of the set, and of one seed, fewer are a part of more.
        size: to which files and records are scaled. An integer: squares of that side, cut from the middle of an image
            whose shorter side was scaled to size * 256 / 224. A pair (H, W): the whole image is scaled to it. None: all
            have one size.
        channels: of a folder, 1 to read every image in grey, 3 in colour; None: all are of one kind.
        data_dir: where prepared data sets lie; None: TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Returns:
        An :class:`Images`.

    Raises:
        InputError: nothing is there; a folder that is empty or holds images without a class, a file that is broken or
            differs from the first in size or channels; an .npz with other names, dtypes, ranges or shapes; labels
            beyond the names of the classes; more examples asked for than there are; or options that do not belong to
            what ``spec`` means. One line each, with the file's name.

    Example:
        >>> images, labels, class_names, about = read_images("digits", num_examples=100, subset_seed=0)
        >>> images.shape, images.dtype.name, labels[:5], about["subset"]
        ((100, 8, 8, 1), 'uint8', array([5, 6, 3, 7, 2], dtype=int32), {'of': 360, 'seed': 0})
    """
    if channels not in (None, 1, 3):
        raise InputError(f"channels must be 1 (grey), 3 (colour) or None, got {channels!r}")
    check_integers(num_examples=num_examples, subset_seed=subset_seed)
    if not isinstance(spec, str | os.PathLike):
        raise InputError(f"data must be a data set, a folder of class folders or an .npz file, got {spec!r}; name one")
    size = _checked_size(size)
    stored = _open(spec, split, size=size, channels=channels, data_dir=data_dir)
    indices = _subset(stored.num_examples, os.fspath(spec), num_examples, subset_seed)
    images, labels = stored.read(indices)
    about = {
        "spec": os.fspath(spec),
        "split": stored.split,
        "size": list(size) if isinstance(size, tuple) else size,
        "channels": channels,
        "n": len(labels),
        "subset": {"of": stored.num_examples, "seed": subset_seed},
        "sha256": _digest(images),
        "labels_sha256": _digest(labels),
    }
    return Images(images, labels, stored.class_names, about)


def _open(
    spec: str | os.PathLike,
    split: str,
    *,
    size: scaling.Size | None,
    channels: int | None,
    data_dir: str | os.PathLike | None,
) -> _Stored:
    """What a spec means, before any image is read."""
    name = os.fspath(spec)
    directory = tfds_source.resolve_data_dir(data_dir)
    prepared = tfds_source.find_prepared(directory)
    path = place(name)
    if isinstance(spec, str) and (name == "digits" or name in prepared):
        _must_be_none(f"the data set {name!r}, which declares its own", channels=channels)
        source = sources.open_stored(name, split, data_dir=data_dir, image_size=size)
        return _Stored(source.num_examples, source.label_names, split, source.read)
    if name and path.is_dir():
        if split != "test":
            raise InputError(
                f"split must be left out for a folder, which is one split, got {split!r}; give the folder of the "
                f"split, such as {path / split}"
            )
        files = folder.find(path)
        return _Stored(len(files.paths), files.class_names, None, folder.reader(files, size=size, channels=channels))
    if path.is_file():
        if path.suffix != ".npz":
            raise InputError(
                f"data must be a data set, a folder of class folders or an .npz file, got the file {name}; save "
                "images and labels with numpy.savez"
            )
        _must_be_none("an .npz file, whose images are taken as they are", size=size, channels=channels)
        images, labels, class_names, by_split = arrays.examples(path, split)
        if not by_split and split != "test":
            raise InputError(f"split must be left out for {name}, which holds one split, got {split!r}")
        return _Stored(
            len(images), class_names, split if by_split else None, lambda indices: (images[indices], labels[indices])
        )
    raise InputError(
        f"data must be a data set, a folder of class folders or an .npz file, got {name!r}: no such file or folder, "
        f"and {tfds_source.not_found(name, directory, prepared)}"
    )


def _checked_size(size: Any) -> scaling.Size | None:
    if size is None:
        return None
    try:
        sides = [operator.index(side) for side in (size if isinstance(size, tuple | list) else [size])]
    except TypeError:
        sides = []
    if not (1 <= len(sides) <= 2 and min(sides) >= 1):
        raise InputError(f"size must be a side, or height and width, in pixels, got {size!r}; give 224 or (32, 32)")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]


def _must_be_none(what: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} must be left out for {what}, got {value!r}")


def _subset(stored: int, name: str, num_examples: int | None, seed: int | None) -> np.ndarray:
    """The indices of the examples that are read, rising."""
    if num_examples is not None and not 1 <= num_examples <= stored:
        raise InputError(f"num_examples must be 1 to {stored}, as many as {name} has, got {num_examples}")
    if seed is None:
        return np.arange(stored)[:num_examples]
    if not 0 <= seed < 2**64:
        raise InputError(f"subset_seed must be 0 to 2^64 - 1, got {seed}")
    if num_examples is None:
        raise InputError(f"subset_seed must come with num_examples, the size of the subset, got {seed} alone")
    return np.sort(permutation((seed, _SUBSET), stored)[:num_examples])


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
