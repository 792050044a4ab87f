"""Reading prepared tfds data sets (ArrayRecord) without TensorFlow."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from robustjax.data import decoded, scaling
from robustjax.data.known import KNOWN
from robustjax.runtime.files import place
from robustjax.types import InputError, nearest

_CHUNK = 1024  # encoded records in memory at a time, beside the decoded images


class Source(NamedTuple):
    """One stored split whose examples are still to be read.

    Attributes:
        num_examples: how many it holds.
        label_names: one per class.
        example: (index, draws for ``scaling.random_resized_crop`` or None) -> uint8 image [H, W, C] and its label.
        read: indices [N] -> uint8 images [N, H, W, C] and int32 labels [N].
    """

    num_examples: int
    label_names: tuple[str, ...]
    example: Callable[[int, np.ndarray | None], tuple[np.ndarray, int]]
    read: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def resolve_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """Where data sets lie: ``data_dir``, or else TFDS_DATA_DIR, or else ~/tensorflow_datasets, as tfds has it."""
    return place(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def find_prepared(directory: Path) -> dict[str, Path]:
    """The folder of every prepared data set, by "name[/config]:version" and, for the newest, by "name[/config]"."""
    folders = [path.parent for levels in ("*/*", "*/*/*") for path in directory.glob(levels + "/features.json")]
    versions = [(_version(folder.name), folder) for folder in folders if _version(folder.name)]
    found = {}
    for _, folder in sorted(versions):
        name = folder.parent.relative_to(directory).as_posix()
        found[name] = found[f"{name}:{folder.name}"] = folder
    return found


def split_names(name: str, data_dir: str | os.PathLike | None) -> tuple[str, ...]:
    """The splits that a prepared data set has.

    Raises:
        InputError: there is no such data set, or its description cannot be read.
    """
    return _open(name, data_dir)[2]


def _open(name: str, data_dir: str | os.PathLike | None) -> tuple[Path, Any, tuple[str, ...]]:
    """The folder of a prepared data set, tfds's builder of it, and the names of its splits."""
    directory = resolve_data_dir(data_dir)
    found = find_prepared(directory)
    if name not in found:
        raise InputError(not_found(name, directory, found))
    folder = found[name]

    import tensorflow_datasets as tfds  # half a second, and the embedded digits do without

    with blaming(f"{folder} must be a readable tfds data set"):
        _check_classes(json.loads((folder / "features.json").read_text()))
        builder = tfds.builder_from_directory(folder)
        return folder, builder, tuple(builder.info.splits)


def open_split(
    name: str, split: str, data_dir: str | os.PathLike | None, *, image_size: scaling.Size | None = None
) -> Source:
    """Opens a split of a prepared data set; its images are decoded, and scaled to image_size, when they are read.

    Raises:
        InputError: there is no such data set or split, it is not image classification, or its files cannot be read.
    """
    folder, builder, splits = _open(name, data_dir)
    if split not in splits:
        raise InputError(f"split must be one of {', '.join(splits)} of {name!r} in {folder}, got {split!r}")

    import tensorflow_datasets as tfds

    with blaming(f"{folder} must be a readable tfds data set"):
        features = dict(builder.info.features)
    for path in builder.info.splits[split].filepaths:
        if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
            raise InputError(f"{folder} must hold its files, got {path}")
    image_key, label_key = _supervised_keys(builder.info.supervised_keys)
    image, label = features.get(image_key), features.get(label_key)
    if not (
        isinstance(image, tfds.features.Image)
        and image.np_dtype in (np.uint8, np.uint16)
        and image.shape[-1] in (1, 3, 4)  # pyright: ignore[reportIndexIssue] - tfds wraps a tuple
        and isinstance(label, tfds.features.ClassLabel)
        and label.num_classes
    ):
        received = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        raise InputError(
            f"{folder} must be image classification, with an 8-bit or 16-bit image of 1, 3 or 4 channels and a class "
            f"label, got the features {received}"
        )
    num_classes = label.num_classes
    channels = image.shape[-1]  # pyright: ignore[reportIndexIssue] - tfds wraps a tuple
    where = f"{folder}, split {split!r}"
    with blaming(f"{where} must be ArrayRecord files with examples"):
        # The images stay encoded: tfds would decode them more slowly, and with OpenCV wherever that is installed.
        records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
        size = sum(os.path.getsize(path) for path in builder.info.splits[split].filepaths)
    if len(records) > size:
        raise InputError(f"{where} must hold {len(records)} records, got files of {size} bytes in all")

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        files = [folder / "features.json", *builder.info.splits[split].filepaths]
        return decoded.remembered(files, indices, image_size, lambda: decode(indices))

    def decode(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = None, np.empty(len(indices), np.int32)
        for start in range(0, len(indices), _CHUNK):
            chunk = indices[start : start + _CHUNK].tolist()
            with blaming(f"{where}: truncated or corrupt records; prepare the data set again"):
                examples = records.__getitems__(chunk)
            for position, (index, example) in enumerate(zip(chunk, examples, strict=True), start):
                with blaming(f"{where}, record {index} must be an encoded image"):
                    pixels = _decode(example[image_key], channels, image_size)
                if images is None:
                    images = np.empty((len(indices), *pixels.shape), np.uint8)
                if pixels.shape != images.shape[1:]:
                    raise InputError(
                        f"{where}: images must be of one size, {images.shape[1:3]} as the first, got "
                        f"{pixels.shape[:2]} in record {index}"
                    )
                images[position], labels[position] = pixels, example[label_key]
        check_labels(labels.min(), labels.max())
        assert images is not None  # without examples, labels.min() has raised
        return images, labels

    def read_one(index: int, draws: np.ndarray | None) -> tuple[np.ndarray, int]:
        with blaming(f"{where}: truncated or corrupt records; prepare the data set again"):
            example = records[index]
        with blaming(f"{where}, record {index} must be an encoded image"):
            pixels = _decode(example[image_key], channels, image_size, draws)
        check_labels(example[label_key], example[label_key])
        return pixels, example[label_key]

    def check_labels(least: int, most: int) -> None:
        if least < 0 or most >= num_classes:
            raise InputError(
                f"{where}: labels must be in 0..{num_classes - 1}, got {least}..{most} "
                "(-1 marks examples without a label)"
            )

    return Source(len(records), tuple(label.names), read_one, read)


def _version(name: str) -> tuple[int, ...]:
    """(3, 0, 2) of "3.0.2"; () of anything else."""
    parts = name.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else ()


def _supervised_keys(declared: Any) -> tuple[str, str]:
    """The names of the image and of the label: as the data set declares them, or else the usual ones."""
    if isinstance(declared, tuple) and all(isinstance(key, str) for key in declared[:2]):
        return declared[:2]
    return "image", "label"


def _decode(encoded: bytes, channels: int, size: scaling.Size | None, draws: np.ndarray | None = None) -> np.ndarray:
    """The pixels of a PNG or JPEG, uint8 [H, W, channels]; of its middle scaled to a size, or of a random part."""
    # In one thread: on small images Pillow mostly holds the interpreter's lock, and two threads are no faster.
    with Image.open(io.BytesIO(encoded)) as image:
        image = scaling.to_channels(image, channels)
        if size is None:
            pixels = np.asarray(image)
        elif draws is None:
            pixels = scaling.to_size(image, size)
        else:
            assert isinstance(size, int)  # random crops are square
            pixels = scaling.random_resized_crop(image, size, draws)
    return pixels[:, :, None] if channels == 1 else pixels


def _check_classes(features: Any) -> None:
    """tfds imports whatever module a features.json names, which would run it: its own are enough for images."""
    if isinstance(features, list):
        for entry in features:
            _check_classes(entry)
    elif isinstance(features, dict):
        for key, value in features.items():
            _check_classes(value)
            named = key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str)
            if named and not value.startswith("tensorflow_datasets.core.features."):
                raise ValueError(f"features.json names {value}, which is no feature of tfds")


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turns the errors of tfds, ArrayRecord and Pillow on damaged or foreign files into an InputError."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from error


def not_found(name: str, directory: Path, found: dict[str, Path]) -> str:
    if not directory.is_dir():
        there = "no such folder"
    else:
        there = "prepared there: " + (", ".join(known for known in found if ":" not in known) or "nothing")
    base, *_ = name.replace(":", "/").split("/")
    if base in KNOWN:
        mend = f"prepare it with: python -m robustjax.data prepare {base} --data_dir={shlex.quote(str(directory))}"
    elif like := nearest(name, ["digits", *KNOWN, *found]):
        mend = f"give the name of one that is there{like}, or have tfds prepare it in the array_record format"
    else:
        mend = (
            f"give digits, or one of {', '.join(KNOWN)} (python -m robustjax.data prepare NAME), or another data set "
            "that tfds has prepared in the array_record format"
        )
    return f"data set {name!r} not found in {directory} ({there}); {mend}"
