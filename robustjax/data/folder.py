"""A folder of class folders: JPEG and PNG files, each in the folder of its class."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from robustjax.data import decoded, scaling
from robustjax.data.tfds_source import blaming
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

    Hidden files and folders do not count, nor do files beside the class folders that are no images.

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


def reader(
    files: Files, *, size: scaling.Size | None, channels: int | None
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The function that reads some of the images: indices [N] -> uint8 [N, H, W, C] and int32 labels [N].

    Args:
        files: as :func:`find` lists them.
        size: to which images are scaled, see ``scaling.to_size``; None: all are of one size.
        channels: 1 or 3 to read every image in grey or in colour; None: all are of one kind.

    Raises:
        InputError: by the function: a file that is no whole JPEG or PNG, or that differs from the first one in its size
            or channels; each names the file.
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
                    f"{kinds[pixels.shape[2]]} in {path}; give channels, 3 to read every image in colour or 1 in grey"
                )
            if pixels.shape != first.shape:
                raise InputError(
                    f"images must be of one size, {_by(first)} as the first, got {_by(pixels)} in {path}; give size, "
                    "to which all are scaled"
                )
            images[position] = pixels
        return images, np.zeros(len(paths), np.int32)

    return read


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _decode(path: Path, size: scaling.Size | None, channels: int | None) -> np.ndarray:
    """The pixels of a file, uint8 [H, W, 1] or [H, W, 3]."""
    with blaming(f"{path} must be a whole JPEG or PNG"), Image.open(path, formats=("JPEG", "PNG")) as image:
        channels = channels or scaling.natural_channels(image)
        image = scaling.to_channels(image, channels)
        pixels = np.asarray(image) if size is None else scaling.to_size(image, size)
    return pixels[:, :, None] if channels == 1 else pixels


def _by(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]}"
