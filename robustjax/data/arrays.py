"""Images and labels as arrays of an ``.npz`` or ``.npy`` file. Nothing is ever unpickled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from robustjax.types import InputError

# Names under which files hold images and labels: ours, those of generated data (Gowal et al. 2021, Wang et al. 2023),
# Keras's with and without a split, and MedMNIST's.
PAIRS = (
    ("images", "labels"),
    ("x", "y"),
    ("x_{split}", "y_{split}"),
    ("{split}_images", "{split}_labels"),
    ("image", "label"),
)


def read(path: Path, wanted: Collection[str]) -> tuple[list[str], dict[str, np.ndarray]]:
    """The names of all arrays of an .npz file, and those that are wanted; an .npy holds one, of the name "".

    Raises:
        InputError: the file cannot be read, is damaged, is of another kind, or holds Python objects.
    """
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return [""], {"": content}
            with content:
                return content.files, {name: content[name] for name in content.files if name in wanted}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # of a damaged file, whatever its bytes lead to
        if "allow_pickle" in str(error):
            mend = "got another kind of file, or Python objects, which are never unpickled; save with numpy.savez"
        else:
            mend = f"got one that cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise InputError(f"{path} must be a whole .npz or .npy file of numbers, {mend}") from error


def examples(path: Path, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...] | None, bool]:
    """Images, labels and the names of the classes that an .npz file holds.

    Returns:
        Images, uint8 or float32 in [0, 1], [N, H, W, C]; int32 labels [N]; the names, where the file has an array
        ``class_names``; and whether the file names its arrays by their split.

    Raises:
        InputError: for whatever is wrong in the file.
    """
    pairs = {tuple(name.format(split=split) for name in pair): pair for pair in PAIRS}
    names, held = read(path, {name for pair in pairs for name in pair} | {"class_names"})
    found = [pair for pair in pairs if set(pair) <= held.keys()]
    if len(found) != 1:
        wanted = ", or ".join(" and ".join(pair) for pair in pairs)
        got = "a single array" if "" in names else ", ".join(names) or "nothing"
        mend = "keep one pair" if found else "save them with numpy.savez(FILE, images=images, labels=labels)"
        raise InputError(f"{path} must hold {wanted}, got {got}; {mend}")
    images_name, labels_name = found[0]
    images = checked_images(f"{path}, {images_name}", held[images_name])
    labels = _checked_labels(f"{path}, {labels_name}", held[labels_name], len(images))
    class_names = _class_names(path, held, int(labels.max()))
    return images, labels, class_names, "{split}" in pairs[found[0]][0]


def checked_images(where: str, images: np.ndarray) -> np.ndarray:
    """Images uint8 or float32 in [0, 1], [N, H, W, C], from uint8 or floats [N, H, W, C] or [N, H, W].

    Raises:
        InputError: they are of another dtype, rank or range, or there are none.
    """
    floats = np.issubdtype(images.dtype, np.floating)
    wanted = f"{where} must be uint8, or floats in [0, 1], of [N, H, W, C]"
    got = f"got {images.dtype} {list(images.shape)}"
    if images.dtype != np.uint8 and not floats:
        raise InputError(f"{wanted}, {got}; convert them")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(f"{wanted}, {got}; give one image a row of the array")
    if not len(images):
        raise InputError(f"{wanted}, got no image; give at least one")
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4):
        raise InputError(f"{wanted}, {got}, channels first; save images.transpose(0, 2, 3, 1)")
    if not floats:
        return np.ascontiguousarray(images)
    least, most = float(images.min()), float(images.max())
    if not (least >= 0 and most <= 1):  # not a number compares false
        mend = "scale them"
        if least >= 0 and 1 < most <= 255:
            mend = "divide by 255, or save uint8"
        elif -np.inf < least < 0:
            mend = "save them before any normalisation, which belongs to the network (--mean and --std)"
        raise InputError(f"{wanted}, got values from {least:.6g} to {most:.6g}; {mend}")
    return np.ascontiguousarray(images, np.float32)


def _checked_labels(where: str, labels: np.ndarray, num_images: int) -> np.ndarray:
    """Labels int32 [N], from integers [N] or [N, 1]."""
    wanted = f"{where} must be integers [{num_images}], the number of each image's class from 0"
    got = f"got {labels.dtype} {list(labels.shape)}"
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise InputError(f"{wanted}, {got}; of one-hot labels save their argmax(axis=1)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"{wanted}, {got}; convert them")
    if labels.shape != (num_images,):
        raise InputError(f"{wanted}, {got}; give one for each image")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most > np.iinfo(np.int32).max:
        raise InputError(f"{wanted}, got {least} to {most}; number the classes from 0")
    return labels.astype(np.int32)


def _class_names(path: Path, held: Mapping[str, np.ndarray], most: int) -> tuple[str, ...] | None:
    names = held.get("class_names")
    if names is None:
        return None
    if names.dtype.kind != "U" or names.ndim != 1:
        raise InputError(f"{path}, class_names must be strings [K], got {names.dtype} {list(names.shape)}; save text")
    if most >= len(names):
        raise InputError(
            f"{path}: labels must be 0 to {len(names) - 1}, as there are class_names, got {most}; "
            "number the classes from 0, or name all of them"
        )
    return tuple(names.tolist())
