"""Archives and prepared data sets that are damaged, hostile, or of another kind."""

import gzip
import hashlib
import io
import json
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from scipy.io import savemat

from bad_input.refusals import one_line
from robustjax import data
from robustjax.data import __main__ as command
from robustjax.types import InputError

pytestmark = [
    pytest.mark.bad_input,
    pytest.mark.filterwarnings("default"),  # tfds warns that OpenCV would decode faster
]
RNG = np.random.default_rng(0)


class Canary:
    """Unpickled, it leaves a file."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def idx(array):
    return gzip.compress(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def tar(*members):
    """A tar.gz of (name, content), or of TarInfo."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member in members:
            info, content = member if isinstance(member, tuple) else (member, b"")
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def mat(count):
    buffer = io.BytesIO()
    images = RNG.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
    savemat(buffer, {"X": images, "y": np.arange(1, count + 1, dtype=np.uint8)[:, None]}, do_compression=True)
    return buffer.getvalue()


def cifar(names, *, marks, count=2):
    records = RNG.integers(0, 256, (count, marks + 3072), dtype=np.uint8)
    records[:, :marks] = 3
    return tar(*((f"folder/{name}", records.tobytes()) for name in names))


BATCHES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
DIGITS = RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8)
ARCHIVES = {
    "mnist": {
        f"{part}-{kind}-ubyte.gz": idx(DIGITS if kind == "images-idx3" else np.arange(4, dtype=np.uint8))
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    },
    "cifar10": {"cifar-10-binary.tar.gz": cifar(BATCHES, marks=1)},
    "cifar100": {"cifar-100-binary.tar.gz": cifar(["train.bin", "test.bin"], marks=2)},
    "svhn_cropped": {"train_32x32.mat": mat(6), "test_32x32.mat": mat(6)},
}


def link(kind, name="folder/data_batch_1.bin", target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def flipped(content, position):
    damaged = bytearray(content)
    damaged[position] ^= 0x10
    return bytes(damaged)


def wrong_archives():
    """(what, data set, its archives, what the refusal names)"""
    for name, archives in ARCHIVES.items():
        first = next(iter(archives))
        for fraction in (0.0, 0.01, 0.3, 0.7, 0.99):
            spoilt = archives[first][: int(fraction * len(archives[first]))]
            yield f"cut at {fraction}", name, archives | {first: spoilt}, first
        for tenth in range(2, 9):
            spoilt = flipped(archives[first], tenth * len(archives[first]) // 10)
            yield f"a bit of tenth {tenth}", name, archives | {first: spoilt}, first
        for kind, content in {
            "pickle": pickle.dumps(Canary()),
            "zip": b"PK\x03\x04" + bytes(3000),
            "zeros": bytes(4096),
            "text": b"<html>Not found</html>",
            "gzip of a pickle": gzip.compress(pickle.dumps(Canary())),
            "npy with a pickle": b"\x93NUMPY\x01\x00" + pickle.dumps(Canary()),
            "tar of a pickle": tar(("data_batch_1", pickle.dumps(Canary()))),
        }.items():
            yield kind, name, dict.fromkeys(archives, content), first
    for kind, header in {
        "huge sizes": struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3),
        "no images": struct.pack(">HBB3I", 0, 8, 3, 0, 28, 28),
        "floats": struct.pack(">HBB3I", 0, 13, 3, 4, 28, 28) + bytes(4 * 28 * 28 * 4),
        "two dimensions": struct.pack(">HBB2I", 0, 8, 2, 4, 784) + bytes(4 * 784),
        "another size": struct.pack(">HBB3I", 0, 8, 3, 4, 27, 28) + bytes(4 * 27 * 28),
    }.items():
        yield kind, "mnist", ARCHIVES["mnist"] | {"train-images-idx3-ubyte.gz": gzip.compress(header)}, "train"
    for name, kind in {
        "a symbolic link": link(tarfile.SYMTYPE),
        "a hard link": link(tarfile.LNKTYPE),
        "a link upwards": link(tarfile.SYMTYPE, target="../../../etc/passwd"),
        "a fifo": link(tarfile.FIFOTYPE),
        "a device": link(tarfile.CHRTYPE),
        "a folder": link(tarfile.DIRTYPE),
    }.items():
        rest = [(f"folder/{batch}", bytes(3073)) for batch in BATCHES[1:]]
        yield name, "cifar10", {"cifar-10-binary.tar.gz": tar(kind, *rest)}, "data_batch_1.bin"
    for name, path in {"upwards": "../../escaped", "absolute": "/tmp/escaped", "a drive": "C:\\escaped"}.items():
        yield name, "cifar10", {"cifar-10-binary.tar.gz": tar((path, b"x"))}, "data_batch_1.bin"
    for size in (1, 3072, 3074):
        content = tar(*((batch, bytes(size)) for batch in BATCHES))
        yield f"records of {size}", "cifar10", {"cifar-10-binary.tar.gz": content}, f"got {size} bytes"
    labels = tar(*((batch, b"\x0a" + bytes(3072)) for batch in BATCHES))
    yield "class 10", "cifar10", {"cifar-10-binary.tar.gz": labels}, "got 10..10"


WRONG_ARCHIVES = list(wrong_archives())


@pytest.mark.parametrize(
    ("name", "archives", "cause"),
    [case[1:] for case in WRONG_ARCHIVES],
    ids=[f"{case[1]}-{case[0]}" for case in WRONG_ARCHIVES],
)
def test_wrong_archives_are_refused_even_when_the_user_accepts_their_digest(
    tmp_path, monkeypatch, capsys, name, archives, cause
):
    (tmp_path / "in").mkdir()
    for filename, content in archives.items():
        (tmp_path / "in" / filename).write_bytes(content)
    digests = ",".join(hashlib.sha256(content).hexdigest() for content in archives.values())
    monkeypatch.chdir(tmp_path)
    arguments = ["prepare", name, "--archive=in", "--data_dir=out", f"--sha256={digests}"]
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")
    one_line(captured.err, cause)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]  # nothing prepared, nothing unpickled
    assert not list(tmp_path.parent.glob("escaped")) and not Path("/tmp/escaped").exists()


WRONG_ARGUMENTS = [
    ([], "command"),
    (["prepare"], "NAME"),
    (["preprae", "mnist"], "'preprae'"),
    (["prepare", "cifar"], "'cifar10'"),
    (["prepare", "../mnist"], "'../mnist'"),
    (["prepare", "mnist", "--archive=nowhere"], "nowhere"),
    (["prepare", "mnist", "--archive="], "--archive"),
    (["prepare", "mnist", "--archive=a,b"], "'a,b'"),
    (["prepare", "mnist", "--archve=a"], "archve"),
    (["prepare", "mnist", "--sha256=12"], "'12'"),
    (["prepare", "mnist", f"--sha256={'g' * 64}"], "'gggg"),
    (["prepare", "mnist", "more"], "more"),
]


@pytest.mark.parametrize(("arguments", "cause"), WRONG_ARGUMENTS, ids=str)
def test_wrong_arguments_to_prepare(tmp_path, monkeypatch, capsys, arguments, cause):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert command.main(arguments) == 2
    one_line(capsys.readouterr().err, cause)
    assert not list(tmp_path.iterdir())


# Prepared data sets

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
RECORDS = "shapes-train.array_record-00000-of-00001"
PIXELS = RNG.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The files of a small prepared data set, by name."""
    folder = tmp_path_factory.mktemp("prepared")
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(6, 5, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
    )
    features.save_config(folder)
    writer = ArrayRecordWriter(str(folder / RECORDS), "group_size:1")
    for index, image in enumerate(PIXELS):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        writer.write(features.serialize_example({"image": buffer.getvalue(), "label": index % 3}))
    writer.close()
    info = {
        "fileFormat": "array_record",
        "name": "shapes",
        "splits": [{"filepathTemplate": TEMPLATE, "name": "train", "shardLengths": ["8"]}],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": "1.0.0",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(files, directory):
    folder = directory / "shapes/1.0.0"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return data.load("shapes", "train", data_dir=directory)


def test_the_prepared_data_set_is_right_as_it_is(prepared, tmp_path):
    assert np.array_equal(load(prepared, tmp_path).images, PIXELS)


REPLACEMENTS = [
    *(
        ("features.json", "tensorflow_datasets.core.features.class_label_feature.ClassLabel", wrong)
        for wrong in ("canary.Feature", "os.system", "tensorflow_datasets.nothing.Feature", "ClassLabel", "", "a b.c")
    ),
    *(("features.json", '"3"', wrong) for wrong in ('"x"', '"-3"', "null", "{}", '"1e400"')),
    ("features.json", '"uint8"', '"uint7"'),
    ("features.json", '"uint8"', '"float32"'),
    ("features.json", '"image": {', '"picture": {'),
    ("features.json", "classLabel", "clasLabel"),
    *(
        ("dataset_info.json", '["8"]', wrong)
        for wrong in ('["9"]', '["x"]', '["-1"]', '["0"]', "[]", "null", '["1000000000000000"]')
    ),
    *(("dataset_info.json", "array_record", wrong) for wrong in ("tfrecord", "riegeli", "parquet", "zip", "")),
    *(
        ("dataset_info.json", TEMPLATE, wrong)
        for wrong in (f"../../../{TEMPLATE}", f"/etc/{TEMPLATE}", "{SPLIT}", "nothing")
    ),
    ("dataset_info.json", '"train"', '"training"'),
    ("dataset_info.json", '"splits"', '"split"'),
    ("dataset_info.json", '"featureKey": "image"', '"featureKey": "picture"'),
    ("dataset_info.json", '"featureKey": "label"', '"featureKey": "image"'),
]


@pytest.mark.parametrize(("file", "old", "new"), REPLACEMENTS)
def test_a_prepared_data_set_whose_description_is_wrong(prepared, tmp_path, monkeypatch, file, old, new):
    (tmp_path / "canary.py").write_text("open('imported', 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("canary", None)
    text = prepared[file].decode()
    assert old in text
    with pytest.raises(InputError) as caught:
        load(prepared | {file: text.replace(old, new).encode()}, tmp_path)
    one_line(str(caught.value), "shapes")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("file", ["features.json", "dataset_info.json", RECORDS])
@pytest.mark.parametrize("damage", ["nothing", "a byte", "half", "all but a byte", "zeros", "missing", "a pickle"])
def test_a_prepared_data_set_with_a_damaged_file(prepared, tmp_path, monkeypatch, file, damage):
    monkeypatch.chdir(tmp_path)
    content = prepared[file]
    changed = {
        "nothing": b"",
        "a byte": content[:1],
        "half": content[: len(content) // 2],
        "all but a byte": content[:-1],
        "zeros": bytes(len(content)),
        "a pickle": pickle.dumps(Canary()),
    }
    files = {name: content for name, content in prepared.items() if name != file}
    with pytest.raises(InputError) as caught:
        load(files if damage == "missing" else files | {file: changed[damage]}, tmp_path)
    one_line(str(caught.value), "shapes")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("tenth", range(30))
def test_a_flipped_bit_in_the_records_is_noticed_or_changes_nothing(prepared, tmp_path, tenth):
    content = prepared[RECORDS]
    try:
        dataset = load(prepared | {RECORDS: flipped(content, (2 * tenth + 1) * len(content) // 60)}, tmp_path)
    except InputError as error:
        one_line(str(error), "shapes")
    else:
        assert np.array_equal(dataset.images, PIXELS) and np.array_equal(dataset.labels, np.arange(8) % 3)
