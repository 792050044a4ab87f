"""Results on disk, a small durable file for each batch, which is never computed again.

A folder holds the batches of one attack under one set of settings. Its name ends in a digest of the settings, so that
results of other settings are never mistaken for these. A file is written whole, reaches the disk and only then takes
its name; it begins with the checksum of the rest, and holds arrays, never pickled objects.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robustjax.runtime import files

DIGEST_BYTES = hashlib.sha256().digest_size


class DamagedBatch(ValueError):
    """A stored batch that cannot be used; the message names the file and says why."""


class Store(NamedTuple):
    """The batches of one attack under one set of settings.

    Attributes:
        folder: of their files.
    """

    folder: Path

    def read(self, index: int, examples: np.ndarray) -> dict[str, np.ndarray] | None:
        """The arrays of a batch that holds at least these examples, or None where it is not stored.

        Args:
            index: of the batch.
            examples: uint32 [n], ``fingerprints`` of the examples that are asked for. A stored batch may hold more.

        Raises:
            DamagedBatch: the file is not what was written, or is of other examples.
        """
        path = self._path(index)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, packed = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            raise DamagedBatch(f"{path} is damaged")
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            stored = dict(arrays)
        known = stored.pop("examples")
        shared = min(len(known), len(examples))
        if not np.array_equal(known[:shared], examples[:shared]):
            raise DamagedBatch(f"{path} is of other examples than those of the data set")
        return stored if shared == len(examples) else None

    def write(self, index: int, examples: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Stores a batch; when this returns, neither a kill nor a power failure takes it away.

        Raises:
            WriteError: the disk takes no more.
        """
        packed = io.BytesIO()
        # NumPy's stub takes any of them for its option allow_pickle, which no array is called.
        np.savez(packed, examples=examples, **arrays)  # pyright: ignore[reportArgumentType]
        content = packed.getvalue()
        files.write(self._path(index), hashlib.sha256(content).digest() + content)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.batch"


def open_store(root: str | Path, name: str, settings: Mapping[str, Any]) -> Store:
    """The store of an attack under these settings, which are written beside the batches for a reader.

    Args:
        root: folder of all stores.
        name: of the attack.
        settings: everything that makes a result, as JSON can hold it.

    Example:
        >>> import tempfile
        >>> root = tempfile.mkdtemp()
        >>> examples = fingerprints(np.zeros((2, 8, 8, 1), np.uint8), np.array([3, 5]))
        >>> open_store(root, "pgd20", {"seed": 0}).write(0, examples, {"robust": np.array([True, False])})
        >>> open_store(root, "pgd20", {"seed": 0}).read(0, examples)
        {'robust': array([ True, False])}
        >>> open_store(root, "pgd20", {"seed": 1}).read(0, examples)
    """
    text = json.dumps(settings, sort_keys=True, indent=1)
    folder = Path(root) / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not (folder / "settings.json").exists():
        files.write(folder / "settings.json", text + "\n")
    return Store(folder)


def fingerprints(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A checksum of each example, image and label, uint32 [N]."""
    return np.array(
        [
            zlib.crc32(np.int64(label).tobytes(), zlib.crc32(np.ascontiguousarray(image).data))
            for image, label in zip(images, labels, strict=True)
        ],
        np.uint32,
    )
