"""Prepares a data set from its original archives: ArrayRecord in a tfds data_dir, without TensorFlow.

The result is what tfds itself would have prepared (same names, versions, features and order of the records), so that
``tfds.data_source`` and everything built on it read it too.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import shutil
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich import progress
from rich.console import Console

from robustjax.data.formats import Columns, File, shape_of
from robustjax.data.known import KNOWN, Known
from robustjax.data.tfds_source import resolve_data_dir
from robustjax.runtime.files import place
from robustjax.types import InputError, nearest

_TIMEOUT = 30  # seconds without a byte


def prepare(
    name: str,
    *,
    archive: str | None = None,
    data_dir: str | os.PathLike | None = None,
    sha256: Sequence[str] = (),
) -> Path:
    """Prepares the data set ``name`` and returns its folder, data_dir/name/version.

    Everything is checked before anything is written, and the folder appears at once when it is complete.

    Args:
        name: a key of ``robustjax.data.known.KNOWN``.
        archive: the original archives: a file, several separated by commas, or a folder that holds them; None: fetch
            them.
        data_dir: where data sets lie; None: TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        sha256: digests to accept besides the archives' own.

    Raises:
        InputError: no such data set, or it is already there; an archive that is missing, differs or cannot be fetched;
            a folder that cannot be written.
    """
    if name not in KNOWN:
        raise InputError(f"data set must be one of {', '.join(KNOWN)}, got {name!r}{nearest(name, KNOWN)}")
    known = KNOWN[name]
    directory = resolve_data_dir(data_dir)
    folder = directory / name / known.version
    _check_destination(folder)
    files = _download(known) if archive is None else _open(known, archive)
    _verify(known, files, sha256)
    splits = known.read(files)
    class_names = known.class_names(files) if callable(known.class_names) else known.class_names
    for split, columns in splits.items():
        _check_columns(name, split, columns, known, class_names)

    staging = directory / f".{name}-{known.version}.incomplete-{uuid.uuid4().hex}"
    try:
        staging.mkdir(parents=True)
        _write(staging, name, known, splits, class_names)
        folder.parent.mkdir(exist_ok=True)
        staging.rename(folder)
    except (OSError, RuntimeError) as error:  # ArrayRecord reports a full disk as a RuntimeError
        raise InputError(f"{folder}: cannot write ({error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _check_destination(folder: Path) -> None:
    if folder.exists():
        raise InputError(f"{folder}: already there, and nothing is overwritten; delete it to prepare it again")
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing} must be a folder that can be written, for {folder}; give another --data_dir")


def _open(known: Known, archive: str) -> list[File]:
    """The contents of the archives that the user has, in the order of the table."""
    wanted = [original.filename for original in known.archives]
    given = [place(path) for path in archive.split(",")]
    if given[0].is_dir():
        paths = {filename: given[0] / filename for filename in wanted}
    elif len(wanted) == len(given) == 1:
        paths = {wanted[0]: given[0]}  # a single file may have any name
    else:
        paths = {path.name: path for path in given}
        if sorted(paths) != sorted(wanted):
            raise InputError(
                f"--archive must be {', '.join(wanted)} (separated by commas, or the folder that holds them), "
                f"got {archive!r}"
            )
    files = []
    for filename in wanted:
        try:
            files.append(File(str(paths[filename]), paths[filename].read_bytes()))
        except OSError as error:
            raise InputError(f"--archive: cannot read {paths[filename]} ({error.strerror})") from error
    return files


def _download(known: Known) -> list[File]:
    """Fetches the archives, into memory: nothing is left behind whatever happens."""
    files = []
    for archive in known.archives:
        try:
            with (
                urllib.request.urlopen(archive.url, timeout=_TIMEOUT) as response,
                progress.wrap_file(
                    response, archive.size, description=f"fetching {archive.filename}", console=Console(stderr=True)
                ) as stream,
            ):
                files.append(File(archive.url, b"".join(iter(lambda: stream.read(2**20), b""))))
        except (OSError, http.client.HTTPException) as error:
            raise InputError(
                f"cannot fetch {archive.url} ({error}); fetch {', '.join(original.url for original in known.archives)} "
                "by other means and give --archive=FILE[,FILE...] or --archive=FOLDER"
            ) from error
    return files


def _verify(known: Known, files: list[File], accepted: Sequence[str]) -> None:
    """The archives are the originals, or the user has said that these are meant."""
    digests = [hashlib.sha256(file.content).hexdigest() for file in files]
    differing = [
        f"{file.name} must have SHA-256 {original.sha256} ({original.size} bytes), got {digest} "
        f"({len(file.content)} bytes)"
        for file, original, digest in zip(files, known.archives, digests, strict=True)
        if digest not in (original.sha256, *accepted)
    ]
    if differing:
        raise InputError(
            f"{'; '.join(differing)}; truncated, or not the original: to use it all the same, add "
            f"--sha256={','.join(digests)}"
        )


def _check_columns(
    name: str, split: str, columns: Columns, known: Known, class_names: Mapping[str, tuple[str, ...]]
) -> None:
    """What the archives hold is what the table promises, as far as records and features depend on it."""
    try:
        count, *shape = shape_of(columns["image"])
    except InputError as error:
        raise InputError(f"{name}, {split}: {error}") from error
    if tuple(shape) != known.image_shape or not count:
        raise InputError(f"{name}, {split}: images must be of shape {known.image_shape}, got {count} of {tuple(shape)}")
    for key, names in class_names.items():
        labels = columns[key]
        if len(labels) != count:
            raise InputError(f"{name}, {split}: labels must be as many as images ({count}), got {len(labels)}")
        if labels.min() < 0 or labels.max() >= len(names):
            raise InputError(
                f"{name}, {split}: {key} must be in 0..{len(names) - 1}, got {labels.min()}..{labels.max()}"
            )


def _write(
    folder: Path,
    name: str,
    known: Known,
    splits: dict[str, Columns],
    class_names: Mapping[str, tuple[str, ...]],
) -> None:
    """Writes the records and what tfds keeps beside them: features, names of the classes, sizes."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=known.image_shape),
            **{key: tfds.features.ClassLabel(names=names) for key, names in class_names.items()},
            **({"id": tfds.features.Text()} if "id" in splits["train"] else {}),
        }
    )
    features.save_config(str(folder))
    split_infos = []
    for split, columns in splits.items():
        count = len(columns["image"])
        # tfds sorts the records of a split by the MD5 digest of the split's name and the original index.
        order = sorted(
            range(count), key=lambda index: hashlib.md5(f"{split}{index}".encode(), usedforsecurity=False).digest()
        )
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        num_bytes = 0
        for index in progress.track(order, description=f"writing {name} {split}", console=Console(stderr=True)):
            example = {key: column[index] for key, column in columns.items()}
            encoded = example["image"] if isinstance(example["image"], bytes) else _png(example["image"])
            record = features.serialize_example(example | {"image": encoded})
            writer.write(record)
            num_bytes += len(record)
        writer.close()
        split_infos.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(num_bytes),
                "shardLengths": [str(count)],
            }
        )
    info = {
        "description": known.title,
        "fileFormat": "array_record",
        "location": {"urls": [known.homepage]},
        "name": name,
        "splits": split_infos,
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": known.version,
    }
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
