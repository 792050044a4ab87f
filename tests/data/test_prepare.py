"""`python -m robustjax.data prepare`: archives in the original formats go in, what tfds reads comes out.

The archives are made here, small, from the published descriptions of the formats, so that readers and writers are
independent; the command line is called as a user calls it.
"""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy.io import savemat
from tensorflow_datasets.core import hashing

from robustjax import data
from robustjax.data import __main__ as command
from robustjax.data.known import KNOWN

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = {
    "mnist": "3.0.1",
    "fashion_mnist": "3.0.1",
    "cifar10": "3.0.2",
    "cifar100": "3.0.2",
    "svhn_cropped": "3.1.0",
    "tiny_imagenet": "1.0.0",
}


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes())


def tar_gz(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def cifar_records(images, *labels):
    return b"".join(
        bytes(marks) + image.transpose(2, 0, 1).tobytes() for image, *marks in zip(images, *labels, strict=True)
    )


def mat(images, labels):
    buffer = io.BytesIO()
    y = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
    savemat(buffer, {"X": images.transpose(1, 2, 3, 0), "y": y}, do_compression=True)
    return buffer.getvalue()


def tiny_imagenet():
    """As its zip is laid out, with three classes, two of which share a word, and images of a gradient."""
    wnids = {"n02": "bow, bow tie", "n10": "bow", "n01": "goldfish, Carassius auratus"}
    files, expected = {}, {split: {"id": [], "image": [], "label": []} for split in ("train", "validation")}
    ramp = np.linspace(0, 255, 64).astype(np.uint8)

    def add(split, path, label):
        image = np.stack(np.broadcast_arrays(ramp, ramp[:, None], np.uint8(20 * len(files))), axis=-1)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG")
        files[f"tiny-imagenet-200/{path}"] = buffer.getvalue()
        with Image.open(buffer) as decoded:
            for key, value in (("id", path.split("/")[-1].encode()), ("image", np.asarray(decoded)), ("label", label)):
                expected[split][key].append(value)

    for label, wnid in enumerate(sorted(wnids)):
        for number in range(2):
            add("train", f"train/{wnid}/images/{wnid}_{number}.JPEG", label)
        files[f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt"] = b"n01_0.JPEG\t0\t0\t63\t63\n"
    lines = []
    for number, wnid in enumerate(["n10", "n01"]):
        add("validation", f"val/images/val_{number}.JPEG", sorted(wnids).index(wnid))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62")
    files["tiny-imagenet-200/test/images/test_0.JPEG"] = b"not read"
    files["tiny-imagenet-200/val/val_annotations.txt"] = "\n".join(lines).encode()
    files["tiny-imagenet-200/wnids.txt"] = "\n".join(wnids).encode()
    words = wnids | {"n99": "not of these"}
    files["tiny-imagenet-200/words.txt"] = "\n".join(f"{wnid}\t{text}" for wnid, text in words.items()).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    arrays = {split: {key: np.array(values) for key, values in part.items()} for split, part in expected.items()}
    return {"tiny-imagenet-200.zip": buffer.getvalue()}, arrays


def make(name):
    """The original archives of a tiny data set `name`, by file name, and what must come out of them, by split."""
    if name == "tiny_imagenet":
        return tiny_imagenet()
    rng = np.random.default_rng(len(name))
    shape = (28, 28, 1) if name.endswith("mnist") else (32, 32, 3)
    num_classes = 100 if name == "cifar100" else 10
    expected = {}
    for split, count in (("train", 15), ("test", 6)):
        expected[split] = {
            "image": rng.integers(0, 256, (count, *shape), dtype=np.uint8),
            "label": np.arange(count, dtype=np.uint8) % num_classes,
        }
    train, test = expected["train"], expected["test"]
    if name.endswith("mnist"):
        return {
            "train-images-idx3-ubyte.gz": idx(train["image"][..., 0]),
            "train-labels-idx1-ubyte.gz": idx(train["label"]),
            "t10k-images-idx3-ubyte.gz": idx(test["image"][..., 0]),
            "t10k-labels-idx1-ubyte.gz": idx(test["label"]),
        }, expected
    digits = 6 if name == "svhn_cropped" else 5
    for split in expected:
        expected[split]["id"] = [
            f"{split}_{index:0{digits}d}".encode() for index in range(len(expected[split]["label"]))
        ]
    if name == "svhn_cropped":
        return {f"{split}_32x32.mat": mat(part["image"], part["label"]) for split, part in expected.items()}, expected
    if name == "cifar10":
        members = {
            f"cifar-10-batches-bin/data_batch_{batch + 1}.bin": cifar_records(
                train["image"][3 * batch : 3 * batch + 3], train["label"][3 * batch : 3 * batch + 3]
            )
            for batch in range(5)
        }
        members["cifar-10-batches-bin/test_batch.bin"] = cifar_records(test["image"], test["label"])
        return {"cifar-10-binary.tar.gz": tar_gz(members)}, expected
    for part in expected.values():
        part["coarse_label"] = (part["label"] + 7) % 20
    members = {
        f"cifar-100-binary/{split}.bin": cifar_records(part["image"], part["coarse_label"], part["label"])
        for split, part in expected.items()
    }
    return {"cifar-100-binary.tar.gz": tar_gz(members)}, expected


def save(archives, folder):
    """Writes archives to a folder; returns the flag that accepts them."""
    folder.mkdir(exist_ok=True)
    for filename, content in archives.items():
        (folder / filename).write_bytes(content)
    return "--sha256=" + ",".join(hashlib.sha256(content).hexdigest() for content in archives.values())


def refused(arguments, capsys):
    """The one line that the command prints when it exits with status 2."""
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def cifar(tmp_path):
    """A small archive of CIFAR-10 and the arguments that prepare it into tmp_path/out."""
    flag = save(make("cifar10")[0], tmp_path / "in")
    archive = tmp_path / "in/cifar-10-binary.tar.gz"
    return archive, ["prepare", "cifar10", f"--archive={archive}", f"--data_dir={tmp_path / 'out'}", flag]


@pytest.mark.filterwarnings("default")  # tfds warns that OpenCV would decode faster
@pytest.mark.parametrize("name", KNOWN)
def test_tfds_and_load_read_what_was_prepared(name, tmp_path, capsys):
    archives, expected = make(name)
    flag = save(archives, tmp_path / "in")
    assert command.main(["prepare", name, f"--archive={tmp_path / 'in'}", f"--data_dir={tmp_path}", flag]) == 0
    folder = tmp_path / name / VERSIONS[name]
    assert capsys.readouterr().out.strip() == str(folder)
    for split, columns in expected.items():
        # tfds orders the records by a hash of the split and the original index.
        hasher = hashing.Hasher(split)
        order = sorted(range(len(columns["image"])), key=hasher.hash_key)
        source = tfds.data_source(name, split=split, data_dir=tmp_path, download=False)
        examples = source.__getitems__(range(len(source)))
        assert len(examples) == len(order)
        assert set(examples[0]) == set(columns)
        for key, values in columns.items():
            assert np.array_equal([example[key] for example in examples], [values[index] for index in order]), key
        dataset = data.load(name, split, data_dir=tmp_path)
        assert np.array_equal(dataset.images, columns["image"][order])
        assert np.array_equal(dataset.labels, columns["label"][order])
        assert dataset.label_names == tuple(source.dataset_info.features["label"].names)
        assert source.dataset_info.splits[split].num_examples == len(order)
        assert source.dataset_info.supervised_keys == ("image", "label")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in", name])


@pytest.mark.filterwarnings("default")  # tfds warns that OpenCV would decode faster
def test_tiny_imagenet_is_evaluated_on_its_validation_images_under_its_words(tmp_path):
    archives, expected = make("tiny_imagenet")
    flag = save(archives, tmp_path / "in")
    assert (
        command.main(["prepare", "tiny_imagenet", f"--archive={tmp_path / 'in'}", f"--data_dir={tmp_path}", flag]) == 0
    )
    test = data.load("tiny_imagenet", "test", data_dir=tmp_path)
    assert test.label_names == ("goldfish", "bow (n02)", "bow (n10)")
    assert sorted(test.labels) == sorted(expected["validation"]["label"]) == [0, 2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda files: files | {"wnids.txt": b"n01\nn02"}, "KeyError: 'n10'"),
        (lambda files: {key: value for key, value in files.items() if key != "words.txt"}, "no item named"),
        (lambda files: files | {"val/images/val_0.JPEG": b"no image"}, "image 0 must be a JPEG or PNG"),
        (lambda files: files | {"val/val_annotations.txt": b"val_0.JPEG"}, "ValueError"),
        (None, "BadZipFile"),
    ],
    ids=["class", "words", "image", "annotations", "torn"],
)
def test_a_damaged_tiny_imagenet_is_one_line(damage, message, tmp_path, capsys):
    content = make("tiny_imagenet")[0]["tiny-imagenet-200.zip"]
    if damage is None:
        content = content[:-100]
    else:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = {path.partition("/")[2]: archive.read(path) for path in archive.namelist()}
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for path, part in damage(files).items():
                archive.writestr(f"tiny-imagenet-200/{path}", part)
        content = buffer.getvalue()
    flag = save({"tiny-imagenet-200.zip": content}, tmp_path / "in")
    arguments = ["prepare", "tiny_imagenet", f"--archive={tmp_path / 'in'}", f"--data_dir={tmp_path / 'out'}", flag]
    assert message in refused(arguments, capsys)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "tiny_imagenet"])  # which tfds lacks
def test_the_table_agrees_with_what_tfds_says(name):
    """Digests, sizes, versions and features come from another hand: the checksums and builders inside tfds."""
    package = Path(tfds.__file__).parent
    listed = [package / f"url_checksums/{name}.txt", package / f"datasets/{name}/checksums.tsv"]
    lines = [line.split() for path in listed if path.exists() for line in path.read_text().splitlines()]
    checksums = {url: (int(size), digest) for url, size, digest, *_ in lines}
    known = KNOWN[name]
    for archive in known.archives:
        assert checksums[archive.url] == (archive.size, archive.sha256)
    builder = tfds.builder_cls(name)
    assert str(builder.VERSION) == known.version == VERSIONS[name]
    features = builder(data_dir="/nonexistent").info.features
    assert features["image"].shape == known.image_shape
    for key, names in known.class_names.items():
        assert len(set(names)) == len(names) == features[key].num_classes
        if name.startswith("cifar"):  # tfds takes the names from the archive, where they are in alphabetical order
            assert list(names) == sorted(names)
        else:
            assert list(names) == features[key].names


def test_the_command_line_of_a_user(cifar):
    """Once in a process of its own: status and streams."""
    _, arguments = cifar
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    python = [sys.executable, "-W", "error", "-m", "robustjax.data"]
    first, second = (run([*python, *arguments]) for _ in range(2))
    assert first.returncode == 0 and "writing cifar10 train" in first.stderr, first.stderr
    assert second.returncode == 2 and second.stderr.count("\n") == 1 and "already there" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command, NAME"),
        (["prepare"], "required: NAME"),
        (["mend", "mnist"], "'mend'"),
        (["prepare", "mnits"], "nearest: 'mnist'"),
        (["prepare", "imagenet"], "mnist, fashion_mnist, cifar10, cifar100, svhn_cropped"),
        (["prepare", "mnist", "--archve=x"], "'archve'. Did you mean: archive"),
        (["prepare", "mnist", "--arch=x"], "'arch'"),
        (["prepare", "mnist", "--sha256=123"], "64 hexadecimal"),
        (["prepare", "mnist", "--archive=here/not"], "train-images-idx3-ubyte.gz"),
        (["prepare", "mnist", "--archive=a.gz,b.gz"], "a.gz,b.gz"),
        (["prepare", "cifar10", "--archive=here/not"], "here/not"),
        (["prepare", "svhn_cropped", "--archive=."], "train_32x32.mat"),
    ],
    ids=str,
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in refused([*arguments, f"--data_dir={tmp_path / 'out'}"] if arguments else [], capsys)
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    assert caught.value.code == 0
    help_ = capsys.readouterr().out
    assert all(text in help_ for text in ["NAME", "--archive", "--data_dir", "--sha256", *KNOWN])


def test_another_archive_is_refused_until_its_digest_is_given(cifar, tmp_path, capsys):
    archive, arguments = cifar
    line = refused(arguments[:-1], capsys)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert KNOWN["cifar10"].archives[0].sha256 in line and f"--sha256={digest}" in line and str(archive) in line
    assert "SHA-256" in refused([*arguments[:-1], "--sha256=" + "0" * 64], capsys)
    assert not (tmp_path / "out").exists()
    assert command.main(arguments) == 0


def test_one_wrong_file_of_several_is_named(tmp_path, capsys):
    archives = make("mnist")[0]
    flag = save(archives, tmp_path / "in")
    save({"t10k-labels-idx1-ubyte.gz": b"something else"}, tmp_path / "in")
    files = ",".join(str(tmp_path / "in" / name) for name in reversed(archives))  # in any order
    line = refused(["prepare", "mnist", f"--archive={files}", f"--data_dir={tmp_path}", flag], capsys)
    assert "t10k-labels-idx1-ubyte.gz" in line.split("must have SHA-256")[0]
    assert line.count("must have SHA-256") == 1


class Canary:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def _spoil(name, kind):
    """Archives that are not what they should be: (archives, a part of the message)."""
    archives, expected = make(name)
    first, *others = archives
    if kind == "truncated":
        return archives | {first: archives[first][:-200]}, first
    if kind == "another type":
        return dict.fromkeys(archives, b"PK\x03\x04" + bytes(5000)), first
    if kind == "empty":
        return dict.fromkeys(archives, b""), first
    if name == "mnist":
        train = expected["train"]
        spoilt = {
            "fewer labels": {others[0]: idx(train["label"][:-1])},
            "class 10": {others[0]: idx(train["label"] + 1)},
            "other shape": {first: idx(train["image"][:, :20, :20, 0])},
            "images as labels": {others[0]: archives[first]},
            "short": {others[0]: gzip.compress(gzip.decompress(archives[others[0]])[:-3])},
            "no bytes": {first: gzip.compress(b"\0\0")},
        }
        messages = {"fewer labels": "(15), got 14", "class 10": "got 1..10", "other shape": "(20, 20, 1)"}
        return archives | spoilt[kind], messages.get(kind, "ubyte.gz")
    if name == "svhn_cropped":
        buffer = io.BytesIO()
        savemat(buffer, {"X": np.zeros((2, 2))} if kind == "no y" else {"X": np.zeros((2, 2)), "y": np.ones((2, 1))})
        return archives | {first: buffer.getvalue()}, first
    batch = "cifar-10-batches-bin/data_batch_1.bin"
    members = {
        "short record": {batch: bytes(3072)},
        "the python version": {"cifar-10-batches-py/data_batch_1": pickle.dumps(Canary())},
    }
    return {first: tar_gz(members[kind])}, {"short record": "data_batch_2.bin"}.get(kind, "binary version")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("mnist", "cifar100", "svhn_cropped") for kind in ("truncated", "another type", "empty")]
    + [("mnist", "fewer labels"), ("mnist", "class 10"), ("mnist", "other shape"), ("mnist", "images as labels")]
    + [("mnist", "short"), ("mnist", "no bytes"), ("svhn_cropped", "no y"), ("svhn_cropped", "other shape")]
    + [("cifar10", "short record"), ("cifar10", "the python version")],
)
def test_spoilt_archives_leave_nothing(name, kind, tmp_path, monkeypatch, capsys):
    """Even when the user accepts their digests."""
    archives, message = _spoil(name, kind)
    flag = save(archives, tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    line = refused(["prepare", name, f"--archive={tmp_path / 'in'}", f"--data_dir={tmp_path / 'out'}", flag], capsys)
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_paths_in_an_archive_lead_nowhere(cifar, tmp_path, capsys):
    archive, arguments = cifar
    with tarfile.open(archive) as tar:
        members = {f"../../{member.name}": tar.extractfile(member).read() for member in tar}
    content = tar_gz(members | {"../../escaped": b"x", str(tmp_path / "absolute"): b"x"})
    archive.write_bytes(content)
    assert command.main([*arguments[:-1], f"--sha256={hashlib.sha256(content).hexdigest()}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert not list(tmp_path.parent.glob("escaped")) and not list(tmp_path.parent.parent.glob("escaped"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cifar10"]


def test_a_link_in_an_archive_is_not_followed(cifar, tmp_path, capsys):
    archive, arguments = cifar
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for batch in range(1, 6):
            link = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{batch}.bin")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    archive.write_bytes(buffer.getvalue())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    assert "without data_batch_1.bin" in refused([*arguments[:-1], f"--sha256={digest}"], capsys)


def test_nothing_is_overwritten(cifar, tmp_path, capsys):
    there = tmp_path / "out/cifar10/3.0.2"
    there.mkdir(parents=True)
    (there / "mine").write_text("precious")
    assert "already there" in refused(cifar[1], capsys)
    assert [path.name for path in there.iterdir()] == ["mine"]


def test_a_data_dir_that_cannot_be_written(cifar, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for data_dir in ("file", "file/below"):
        line = refused([*cifar[1], f"--data_dir={tmp_path / data_dir}"], capsys)
        assert str(tmp_path / "file") in line and "--data_dir" in line


@pytest.mark.parametrize("failure", [OSError("No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_failure_while_writing_leaves_nothing(cifar, tmp_path, monkeypatch, capsys, failure):
    from robustjax.data import prepare

    def fail(image):
        raise failure

    monkeypatch.setattr(prepare, "_png", fail)
    if isinstance(failure, OSError):
        assert command.main(cifar[1]) == 2
        assert "No space left on device" in capsys.readouterr().err
    else:
        with pytest.raises(KeyboardInterrupt):
            command.main(cifar[1])
    assert list((tmp_path / "out").iterdir()) == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves tmp_path/in, and lets the table of data sets point there."""
    handler = functools.partial(Quiet, directory=tmp_path / "in")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        yield
        server.shutdown()


def _point_to(address, monkeypatch):
    for name, known in KNOWN.items():
        archives = tuple(archive._replace(url=f"{address}/{archive.filename}") for archive in known.archives)
        monkeypatch.setitem(KNOWN, name, known._replace(archives=archives))


@pytest.mark.usefixtures("server")
def test_archives_are_fetched(tmp_path, capsys):
    archives, expected = make("mnist")
    flag = save(archives, tmp_path / "in")
    assert command.main(["prepare", "mnist", f"--data_dir={tmp_path}", flag]) == 0
    assert "fetching train-images-idx3-ubyte.gz" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "mnist"]
    assert len(data.load("mnist", "train", data_dir=tmp_path).labels) == len(expected["train"]["label"])


@pytest.mark.usefixtures("server")
def test_what_is_fetched_is_verified_too(tmp_path, capsys):
    save(make("cifar10")[0], tmp_path / "in")
    assert command.main(["prepare", "cifar10", f"--data_dir={tmp_path / 'out'}"]) == 2
    assert "must have SHA-256" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_without_a_network_the_archives_to_fetch_are_named(tmp_path, monkeypatch, capsys):
    _point_to("http://127.0.0.1:9", monkeypatch)  # the port "discard": nobody answers
    line = refused(["prepare", "mnist", f"--data_dir={tmp_path / 'out'}"], capsys)
    assert all(archive.url in line for archive in KNOWN["mnist"].archives) and "--archive=" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(cifar, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o500)
    assert "can be written" in refused(cifar[1], capsys)
