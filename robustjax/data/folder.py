"""A folder of class folders: JPEG and PNG files, each in the folder of its class."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from robustjax.data import decoded, scaling
from robustjax.data.tfds_source import Source, blaming
from robustjax.types import InputError

SUFFIXES = (".jpg", ".jpeg", ".png")


class Files(NamedTuple):
    """The images of a folder, in the order of torchvision's ``ImageFolder``.

    Attributes:
        paths: sorted by class, then by name.
        labels: int32 [N], the place of each one's class among the sorted names.
        class_names: names of the class folders, sorted.
    """

    paths: list[Path]
    labels: np.ndarray
    class_names: tuple[str, ...]


def find(folder: Path) -> Files:
    """Lists the images of a folder of class folders, without opening them.

    Hidden files and folders do not count, nor do files beside the class folders that are not images.

    Raises:
        InputError: no class folders, images outside of them, a class folder without images, or one that holds
            something else.
    """
    with blaming(f"{folder} must be a folder that can be read"):
        entries = _visible(folder)
        classes = [entry for entry in entries if entry.is_dir()]
        found = {entry.name: _visible(entry) for entry in classes}
    wanted = f"{folder} must hold a folder of JPEG or PNG images for each class"
    loose = [entry.name for entry in entries if entry.suffix.lower() in SUFFIXES]
    if loose:
        raise InputError(f"{wanted}, got {loose[0]} without a class; move it to the folder of its class")
    if not classes:
        raise InputError(f"{wanted}, got {'other files' if entries else 'an empty folder'}; give the folder that does")
    for name, files in found.items():
        if not files:
            raise InputError(f"{wanted}, got none in {name}; add images of that class, or remove the folder")
        if files[0].is_dir():
            raise InputError(f"{wanted}, got folders within folders ({name}/{files[0].name}); give {folder / name}")
        for file in files:
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                raise InputError(f"{wanted}, got {name}/{file.name}; convert or remove it")
    return Files(
        paths=[file for files in found.values() for file in files],
        labels=np.repeat(np.arange(len(found), dtype=np.int32), [len(files) for files in found.values()]),
        class_names=tuple(found),
    )


def splits(folder: Path) -> tuple[str, ...]:
    """The splits of a folder that has one folder for each, sorted."""
    with blaming(f"{folder} must be a folder that can be read"):
        return tuple(entry.name for entry in _visible(folder) if entry.is_dir())


def open_split(folder: Path, split: str, size: scaling.Size | None) -> Source:
    """Opens a split of a folder; its images are decoded, and scaled to a size, when they are read.

    Raises:
        InputError: as :func:`find`, or "train" has other classes, by which labels are numbered.
    """
    files = find(folder / split)
    if split != "train" and (folder / "train").is_dir():
        own, numbered = set(files.class_names), find(folder / "train").class_names
        if own - set(numbered):
            raise InputError(
                f"{folder / split} must have the classes of {folder / 'train'}, got {min(own - set(numbered))} beside "
                "them; move its images, or train with that class"
            )
        places = np.array([numbered.index(name) for name in files.class_names], np.int32)
        files = files._replace(labels=places[files.labels], class_names=numbered)
    channels = None  # of all images, those of the first

    def example(index: int, draws: np.ndarray | None) -> tuple[np.ndarray, int]:
        nonlocal channels
        channels = channels or _decode(files.paths[0], None, None).shape[2]
        return _decode(files.paths[index], size, channels, draws), int(files.labels[index])

    return Source(len(files.paths), files.class_names, example, reader(files, size=size, channels=None))


def reader(
    files: Files, *, size: scaling.Size | None, channels: int | None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The function that reads some of the images: indices [N] -> uint8 [N, H, W, C] and int32 labels [N].

    Args:
        files: as :func:`find` lists them.
        size: to which images are scaled, see ``scaling.to_size``; None: all are of one size.
        channels: 1 or 3 to read every image in grey or in colour; None: all are of one kind.

    Raises:
        InputError: raised by the function, with the name of a file that is not a whole JPEG or PNG, or differs from the
            first one in size or channels.
    """

    def read(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = [files.paths[index] for index in indices]
        with blaming(f"{chosen[0].parent.parent} must be a folder that can be read"):
            sizes = [os.path.getsize(path) for path in chosen]
        if 0 in sizes:
            raise InputError(f"{chosen[sizes.index(0)]} must be a whole JPEG or PNG, got an empty file; replace it")
        images, _ = decoded.remembered(chosen, np.arange(len(chosen)), [size, channels], lambda: decode(chosen))
        return images, files.labels[indices]

    def decode(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
        first = images = np.empty((0, 0, 0), np.uint8)
        for position, path in enumerate(paths):
            pixels = _decode(path, size, channels)
            if position == 0:
                first, images = pixels, np.empty((len(paths), *pixels.shape), np.uint8)
            if pixels.shape[2] != first.shape[2]:
                kinds = {1: "grey", 3: "colour"}
                raise InputError(
                    f"images must have the channels of the first ({kinds[first.shape[2]]}), got "
                    f"{kinds[pixels.shape[2]]} in {path}; give channels to data.read_images, 3 to read every image in "
                    "colour or 1 in grey"
                )
            if pixels.shape != first.shape:
                raise InputError(
                    f"images must be of one size, {_by(first)} as the first, got {_by(pixels)} in {path}; give size "
                    "(--image_size), to which all are scaled"
                )
            images[position] = pixels
        return images, np.zeros(len(paths), np.int32)

    return read


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _decode(path: Path, size: scaling.Size | None, channels: int | None, draws: np.ndarray | None = None) -> np.ndarray:
    """The pixels of a file, uint8 [H, W, 1] or [H, W, 3]; with draws, of a random part of it."""
    with blaming(f"{path} must be a whole JPEG or PNG"), Image.open(path, formats=("JPEG", "PNG")) as image:
        channels = channels or scaling.natural_channels(image)
        image = scaling.to_channels(image, channels)
        if draws is not None:
            assert isinstance(size, int)  # random crops are square
            pixels = scaling.random_resized_crop(image, size, draws)
        else:
            pixels = np.asarray(image) if size is None else scaling.to_size(image, size)
    return pixels[:, :, None] if channels == 1 else pixels


def _by(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]}"
