"""The original file formats of the usual data sets, read from bytes.

Every reader takes the contents of a data set's archives, in the order of its table of archives, and returns columns by
split: arrays or lists of one length, by feature. Nothing is unpickled and nothing is unpacked to disk.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from robustjax.types import InputError

# "image": uint8 [N, H, W, C], or the bytes of N encoded files; labels: integer arrays [N]; "id", where there is one: N
# strings.
Columns = dict[str, Any]


class File(NamedTuple):
    """The content of a file, and its name for messages."""

    name: str
    content: bytes


def read_mnist(files: Sequence[File]) -> dict[str, Columns]:
    """MNIST's format: gzipped IDX files, in the order train images, train labels, test images, test labels."""
    train_images, train_labels, test_images, test_labels = files
    return {
        "train": {"image": _idx(train_images, rank=3)[..., None], "label": _idx(train_labels, rank=1)},
        "test": {"image": _idx(test_images, rank=3)[..., None], "label": _idx(test_labels, rank=1)},
    }


def read_cifar10(files: Sequence[File]) -> dict[str, Columns]:
    """CIFAR-10's binary version: one tar.gz with five training batches and a test batch."""
    train = [f"data_batch_{number}.bin" for number in range(1, 6)]
    (archive,) = files
    return _cifar(archive, {"train": train, "test": ["test_batch.bin"]}, labels=["label"])


def read_cifar100(files: Sequence[File]) -> dict[str, Columns]:
    """CIFAR-100's binary version: one tar.gz; every record starts with the coarse and the fine label."""
    (archive,) = files
    return _cifar(archive, {"train": ["train.bin"], "test": ["test.bin"]}, labels=["coarse_label", "label"])


def read_svhn(files: Sequence[File]) -> dict[str, Columns]:
    """SVHN's cropped digits: MATLAB files with X [32, 32, 3, N] and y [N, 1], where the digit 0 has the label 10."""
    return {split: _svhn(file, split) for split, file in zip(("train", "test"), files, strict=True)}


def read_tiny_imagenet(files: Sequence[File]) -> dict[str, Columns]:
    """Tiny ImageNet's zip: JPEG files in folders of their classes, and a table of the validation images' classes.

    Labels are the places of the WordNet ids in their sorted order. The test images have no public labels.
    """
    (archive,) = files
    with _tiny_imagenet(archive) as opened:
        places = {wnid: place for place, wnid in enumerate(_wnids(opened))}
        train, validation = [], []
        for path in sorted(opened.namelist()):
            parts = PurePosixPath(path).parts[1:]
            if len(parts) == 4 and parts[0] == "train" and parts[2] == "images":
                train.append((path, parts[1]))
        for line in opened.read("tiny-imagenet-200/val/val_annotations.txt").decode().splitlines():
            name, wnid, *_ = line.split("\t")
            validation.append((f"tiny-imagenet-200/val/images/{name}", wnid))
        return {
            split: {
                "id": [PurePosixPath(path).name for path, _ in listed],
                "image": [opened.read(path) for path, _ in listed],
                "label": np.array([places[wnid] for _, wnid in listed], np.int64),
            }
            for split, listed in (("train", train), ("validation", validation))
        }


def tiny_imagenet_classes(files: Sequence[File]) -> dict[str, tuple[str, ...]]:
    """The first word for each class, with the WordNet id where two classes share it."""
    (archive,) = files
    with _tiny_imagenet(archive) as opened:
        lines = opened.read("tiny-imagenet-200/words.txt").decode().splitlines()
        words = {wnid: text.split(",")[0].strip() for wnid, text in (line.split("\t", 1) for line in lines)}
        wnids = _wnids(opened)
        first = [words[wnid] for wnid in wnids]
    return {
        "label": tuple(
            word if first.count(word) == 1 else f"{word} ({wnid})" for word, wnid in zip(first, wnids, strict=True)
        )
    }


@contextlib.contextmanager
def _tiny_imagenet(file: File) -> Iterator[zipfile.ZipFile]:
    """The archive, whatever of which is missing or damaged is an InputError."""
    try:
        # Members are read by their names into memory, with their checksums, so no path can lead anywhere.
        with zipfile.ZipFile(io.BytesIO(file.content)) as opened:
            yield opened
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError) as error:
        raise InputError(f"{file.name} must be a whole tiny-imagenet-200.zip, got {_reason(error)}") from error


def _wnids(opened: zipfile.ZipFile) -> list[str]:
    return sorted(opened.read("tiny-imagenet-200/wnids.txt").decode().split())


def shape_of(images: Any) -> tuple[int, ...]:
    """(N, H, W, C) of a column of images; of encoded ones, which count as colour, all have to be of one size.

    Raises:
        InputError: one is not an image, or of another size than the first.
    """
    if isinstance(images, np.ndarray):
        return images.shape
    sizes = []
    for number, content in enumerate(images):
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                sizes.append(image.size)
        except OSError as error:
            raise InputError(f"image {number} must be a JPEG or PNG, got {_reason(error)}") from error
        if sizes[-1] != sizes[0]:
            raise InputError(f"images must be of one size, {sizes[0]} as the first, got {sizes[-1]} in image {number}")
    width, height = sizes[0] if sizes else (0, 0)
    return len(images), height, width, 3


def _idx(file: File, rank: int) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes: 0, 0, type 8, the rank, then the sizes (big-endian), then the bytes."""
    try:
        content = gzip.decompress(file.content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file.name} must be a whole gzip file, got {_reason(error)}") from error
    header = 4 * (1 + rank)
    if len(content) < header or content[:4] != bytes([0, 0, 8, rank]):
        raise InputError(f"{file.name} must be an IDX file of unsigned bytes with {rank} dimensions")
    shape = struct.unpack(f">{rank}I", content[4:header])
    if len(content) != header + math.prod(shape):
        raise InputError(f"{file.name} must hold {shape} bytes after the header, got {len(content) - header}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _cifar(file: File, batches: dict[str, list[str]], labels: list[str]) -> dict[str, Columns]:
    """Batches of records: one byte per label, then the red, green and blue 32 x 32 planes, row by row."""
    wanted = {name for names in batches.values() for name in names}
    try:
        # Decompressed whole, since tarfile would not look at the checksum. Members are read by their base names into
        # memory, so no path in the archive can lead anywhere.
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(file.content)), mode="r:") as tar:
            members = {PurePosixPath(member.name).name: member for member in tar if member.isfile()}
            content = {
                name: member.read()
                for name in wanted & members.keys()
                if (member := tar.extractfile(members[name])) is not None
            }
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file.name} must be a whole tar.gz archive, got {_reason(error)}") from error

    def split_columns(split: str, names: list[str]) -> Columns:
        missing = [name for name in names if name not in content]
        if missing:
            raise InputError(
                f"{file.name} must be the binary version, with {', '.join(names)}, got an archive without "
                f"{', '.join(missing)}"
            )
        size = len(labels) + 3 * 32 * 32
        for name in names:
            if not content[name] or len(content[name]) % size:
                raise InputError(
                    f"{file.name} must hold records of {size} bytes in {name}, got {len(content[name])} bytes"
                )
        records = np.frombuffer(b"".join(content[name] for name in names), np.uint8).reshape(-1, size)
        return {
            "id": [f"{split}_{index:05d}" for index in range(len(records))],
            "image": records[:, len(labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
            **{label: records[:, column] for column, label in enumerate(labels)},
        }

    return {split: split_columns(split, names) for split, names in batches.items()}


def _svhn(file: File, split: str) -> Columns:
    from scipy import io as scipy_io

    try:
        arrays = scipy_io.loadmat(io.BytesIO(file.content), variable_names=("X", "y"))
        images, labels = arrays["X"], arrays["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # whatever SciPy's parser raises on bytes that are not a MATLAB file
        raise InputError(f"{file.name} must be a MATLAB file with X and y, got {_reason(error)}") from error
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(f"{file.name} must hold X, uint8 [32, 32, 3, N], got {images.dtype} {images.shape}")
    return {
        "id": [f"{split}_{index:06d}" for index in range(len(labels))],
        "image": images.transpose(3, 0, 1, 2),
        "label": np.where(labels == 10, 0, labels),
    }


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
