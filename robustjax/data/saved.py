"""Adversarial images on disk: written by an evaluation, or found by another program and read for verification."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.data import arrays
from robustjax.runtime import files
from robustjax.types import InputError

# Names under which adversarial images may stand in a file of others.
_NAMES = ("images", "adversarial", "x_adv", "x")


def save_images(
    path: str | Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    clean_images: np.ndarray,
    predictions: np.ndarray,
    clean_predictions: np.ndarray,
    robust: Mapping[str, np.ndarray],
    about: Mapping[str, Any],
) -> None:
    """Writes adversarial images and the network's predictions to an .npz file, whole or not at all.

    The file holds the arrays below under their names, but for ``robust``: ``attacks``, the A names, strings [A];
    ``robust_by_attack``, bool [A, N]; and ``robust``, bool [N], whether the image withstood all of them. ``about`` is a
    string of JSON. ``numpy.load(path)`` reads it, without pickles, as does :func:`read_saved`; and
    :func:`robustjax.data.read_images` takes it for images and labels.

    Args:
        path: ends in ``.npz``; missing folders are made.
        images: of each example the adversarial image, or where no attack succeeded what is to be shown of it; float
            [N, H, W, C], written as float32.
        labels: integers [N].
        clean_images: as they were given, uint8 or float, [N, H, W, C].
        predictions: the classes that the network sees in ``images``, integers [N].
        clean_predictions: those that it sees in ``clean_images``, integers [N].
        robust: name of an attack -> whether the network withstood it, bool [N].
        about: what made the images, such as the threat and the network; JSON-able.

    Raises:
        InputError: the name is another, or the arrays do not fit each other.
        WriteError: the file cannot be written; what was there before is intact.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "found.npz"
        >>> clean = np.full((2, 4, 4, 1), 51, np.uint8)
        >>> found = np.float32([0.25, 0.2]).reshape(2, 1, 1, 1) + np.zeros((2, 4, 4, 1), np.float32)
        >>> save_images(
        ...     path, found, np.array([3, 7]), clean_images=clean, predictions=np.array([5, 7]),
        ...     clean_predictions=np.array([3, 7]), robust={"pgd20": np.array([False, True])}, about={"epsilon": 0.05},
        ... )
        >>> with np.load(path) as saved:
        ...     print(sorted(saved.files), saved["robust"])
        ['about', 'attacks', 'clean_images', 'clean_predictions', 'images', 'labels', 'predictions', 'robust',
         'robust_by_attack'] [False  True]
        >>> read_saved(path, clean).shape
        (2, 4, 4, 1)
    """
    path = checked_path(path)
    count = len(labels)
    content = {
        "images": np.asarray(images, np.float32),
        "clean_images": np.asarray(clean_images),
        "labels": np.asarray(labels),
        "predictions": np.asarray(predictions),
        "clean_predictions": np.asarray(clean_predictions),
        **{f"robust[{name!r}]": np.asarray(flags, bool) for name, flags in robust.items()},
    }
    shape = (count, *content["images"].shape[1:])
    for name, array in content.items():
        wanted = shape if name in ("images", "clean_images") else (count,)
        if array.shape != wanted:
            raise InputError(f"{name} must be of shape {list(wanted)}, as labels and images, got {list(array.shape)}")
    flags = np.array([content.pop(f"robust[{name!r}]") for name in robust], bool).reshape(len(robust), count)
    content |= {"attacks": np.array([*robust], str), "robust_by_attack": flags, "robust": flags.all(axis=0)}
    content["about"] = np.array(json.dumps(about))
    with files.replacing(path) as file:
        np.savez(file, **content)


def checked_path(path: str | Path) -> Path:
    """The path of a file for :func:`save_images`, before anything runs that is to be written there.

    Raises:
        InputError: it does not end in .npz, or is a folder.
    """
    path = files.place(path)
    if path.suffix != ".npz":
        raise InputError(f"save_images must be a file that ends in .npz, got {str(path)!r}; name it so")
    if path.is_dir():
        raise InputError(f"save_images must be a file, got the folder {path}; name a file in it")
    return path


def read_saved(path: str | Path, clean_images: np.ndarray, *, bounds: tuple[Any, Any] = (0.0, 1.0)) -> np.ndarray:
    """Reads adversarial images written by :func:`save_images` or by another program.

    They may lie further from the clean images than a threat allows: that is for whoever evaluates them to verify.

    Args:
        path: an .npz with an array ``images`` (or ``adversarial``, ``x_adv``, ``x``), or an .npy; float, or uint8,
            which is divided by 255; [N, H, W, C], in the order of ``clean_images``. If it holds ``clean_images`` too,
            they must be the same.
        clean_images: those that they belong to, uint8 in 0..255 or float, [N, H, W, C].
        bounds: the box, (low, high): numbers, or one for each channel.

    Returns:
        float32 [N, H, W, C], finite and inside the bounds.

    Raises:
        InputError: no such file, damaged, without these arrays; other images, or as many as there are not; values that
            are not finite or not inside the bounds.

    Example:
        See :func:`save_images`.
    """
    path = files.place(path)
    if not path.is_file():
        raise InputError(f"saved images must be an .npz or .npy file, got {path}: no such file")
    if path.suffix in (".pt", ".pth"):
        raise InputError(
            f"saved images must be an .npz or .npy file, got {path} of PyTorch; save them with "
            "numpy.savez(FILE, images=x.permute(0, 2, 3, 1).numpy())"
        )
    names, held = arrays.read(path, {*_NAMES, "clean_images", ""})
    found = [name for name in ("", *_NAMES) if name in held]
    if len(found) != 1:
        raise InputError(
            f"{path} must hold one array of adversarial images named {', '.join(_NAMES[:-1])} or {_NAMES[-1]}, got "
            f"{', '.join(names) or 'nothing'}; save them with numpy.savez(FILE, images=images)"
        )
    images = held[found[0]]
    where = ", ".join(filter(None, [str(path), found[0]]))
    shape, clean_shape = images.shape, np.shape(clean_images)
    if shape != clean_shape:
        if len(shape) == 4 and (shape[0], *shape[2:], shape[1]) == clean_shape:
            mend = "save images.transpose(0, 2, 3, 1)"
        elif shape[1:] == clean_shape[1:]:
            mend = "give as many as are evaluated, in their order"
        else:
            mend = "give those of these clean images"
        raise InputError(f"{where} must be images {list(clean_shape)}, got {list(shape)}; {mend}")
    theirs = held.get("clean_images")
    if theirs is not None and not _same(theirs, clean_images):
        raise InputError(
            f"{path}, clean_images must be the images that are evaluated, in their order, got others; evaluate with "
            "the data and subset that the file was made with"
        )
    return _inside(where, images, bounds)


def _inside(where: str, images: np.ndarray, bounds: tuple[Any, Any]) -> np.ndarray:
    """Images as float32, refused unless each pixel is finite and inside the box."""
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / np.float32(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(f"{where} must be floats, or uint8 in 0..255, got {images.dtype}; convert them")
    images = np.asarray(images, np.float32)
    low, high = (np.asarray(wall, np.float32) for wall in bounds)
    outside = ~((images >= low) & (images <= high))  # not a number compares false
    if outside.any():
        rows = np.flatnonzero(outside.any(axis=(1, 2, 3)))
        value = images[outside][0]
        raise InputError(
            f"{where} must be finite and inside the bounds {[low.tolist(), high.tolist()]}, got {value:.6g} in image "
            f"{rows[0]} and such in {len(rows)} of {len(images)}; clip or scale them"
        )
    return images


def _same(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Whether two arrays of images are the same up to a rounding, each uint8 in 0..255 or float."""
    if theirs.shape != np.shape(ours):
        return False
    theirs, ours = (np.asarray(each, np.float32) / (255 if each.dtype == np.uint8 else 1) for each in (theirs, ours))
    return bool(np.all(np.abs(theirs - ours) <= 1e-6))
