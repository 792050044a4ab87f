"""Decoded splits, kept in the user's cache folder so that a second start need not decode them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from robustjax.runtime.process import cache_folder

# How files become pixels; to be raised when that changes, or what was decoded before would be read.
DECODING = 2

# Less than a tenth of a second is not worth a file, and more than two GiB are not worth the disk.
SECONDS_WORTH_KEEPING, MOST_BYTES = 0.1, 2 * 2**30


def remembered(
    files: Sequence[str | os.PathLike],
    indices: np.ndarray,
    scaled: Any,
    decode: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """The images and labels of ``decode``, or those that it returned earlier for the same files.

    What was kept is found by the files' places, sizes and times of change, the indices, how images are scaled and the
    version of Pillow, and read with a checksum: what does not fit, or is damaged, is decoded again. If the
    folder is full or cannot be written to, nothing is kept.

    Args:
        files: that the examples are read from.
        indices: int [N], which of the examples.
        scaled: how images are scaled and to what, or None; anything that JSON can hold.
        decode: () -> uint8 images [N, H, W, C] and int32 labels [N].
    """
    try:
        kept = cache_folder() / "decoded" / f"{_name(files, indices, scaled)}.npz"
    except OSError:  # what is wrong with the files is said by whoever reads them
        return decode()
    # A damaged archive raises whatever its bytes lead to.
    with contextlib.suppress(Exception), kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
        if (images.dtype, labels.dtype, len(images), labels.shape) == (np.uint8, np.int32, len(indices), indices.shape):
            return images, labels
    started = time.monotonic()
    images, labels = decode()
    if time.monotonic() - started > SECONDS_WORTH_KEEPING and images.nbytes < MOST_BYTES:
        written = kept.with_name(f"{kept.name}.{os.getpid()}")
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with written.open("wb") as file:
                np.savez(file, images=images, labels=labels)
            written.replace(kept)
        except OSError:
            with contextlib.suppress(OSError):
                written.unlink()
    return images, labels


def _name(files: Sequence[str | os.PathLike], indices: np.ndarray, scaled: Any) -> str:
    stats = [(str(Path(path).resolve()), os.stat(path)) for path in files]
    where = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    name = hashlib.sha256(json.dumps([where, scaled, PIL.__version__, DECODING]).encode())
    name.update(np.ascontiguousarray(indices, np.int64).tobytes())
    return name.hexdigest()[:32]
