"""Folders and files of images that are empty, mixed, broken or of another kind."""

import pickle
import re

import numpy as np
import pytest
from PIL import Image

from bad_input.refusals import one_line
from robustjax import data
from robustjax.types import InputError

pytestmark = pytest.mark.bad_input
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (4, 6, 5, 3), np.uint8)
LABELS = np.array([0, 1, 2, 1])


def refused(cause, spec, **options):
    with pytest.raises(InputError) as error:
        data.read_images(spec, **options)
    one_line(str(error.value), cause)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(PIXELS[index]).save(folder / name / f"{index}.png")
    return folder


# Folders


def empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def empty_class(folder):
    (folder / "eel").mkdir()


def loose(folder):
    (folder / "cat" / "0.png").rename(folder / "lonely.PNG")


def flat(folder):
    for path in sorted(folder.rglob("*.png")):
        path.rename(folder / f"{path.parent.name}{path.name}")
    (folder / "cat").rmdir(), (folder / "dog").rmdir()


def nested(folder):
    (folder / "test").mkdir()
    (folder / "cat").rename(folder / "test" / "cat")


def other_file(folder):
    (folder / "cat" / "notes.txt").write_text("mine")


def other_format(folder):
    Image.fromarray(PIXELS[0]).save(folder / "dog" / "7.bmp")


def disguised(folder):
    Image.fromarray(PIXELS[0]).save(folder / "dog" / "7.png", format="BMP")


def truncated(folder):
    path = folder / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-40])


def truncated_jpeg(folder):
    path = folder / "dog" / "7.jpg"
    Image.fromarray(np.tile(PIXELS[0], (9, 9, 1))).save(path)
    path.write_bytes(path.read_bytes()[:400])


def no_bytes(folder):
    (folder / "dog" / "1.png").write_bytes(b"")


def no_image(folder):
    (folder / "dog" / "1.png").write_bytes(b"not an image")


def other_size(folder):
    Image.fromarray(PIXELS[0].transpose(1, 0, 2)).save(folder / "dog" / "1.png")


def grey(folder):
    Image.fromarray(PIXELS[0, ..., 0]).save(folder / "dog" / "1.png")


def numbers(folder):
    Image.fromarray(np.zeros((6, 5), np.int32)).save(folder / "dog" / "7.png", format="TIFF")


def only_text(folder):
    empty(folder)
    (folder / "labels.csv").write_text("a,b")


@pytest.mark.parametrize(
    ("damage", "causes"),
    [
        (empty, ["for each class, got an empty folder"]),
        (empty_class, ["got none in eel"]),
        (loose, ["got lonely.PNG without a class"]),
        (flat, ["got cat0.png without a class"]),
        (nested, ["got folders within folders (test/cat); give", "photos/test"]),
        (other_file, ["got cat/notes.txt"]),
        (other_format, ["got dog/7.bmp"]),
        (disguised, ["dog/7.png must be a whole JPEG or PNG"]),
        (truncated, ["dog/1.png must be a whole JPEG or PNG"]),
        (truncated_jpeg, ["dog/7.jpg must be a whole JPEG or PNG"]),
        (no_bytes, ["dog/1.png must be a whole JPEG or PNG, got an empty file"]),
        (no_image, ["dog/1.png must be a whole JPEG or PNG"]),
        (other_size, ["images must be of one size, 6 x 5 as the first, got 5 x 6 in ", "dog/1.png; give size"]),
        (grey, ["channels of the first (colour), got grey in", "dog/1.png; give channels"]),
        (numbers, ["dog/7.png must be a whole JPEG or PNG"]),
        (only_text, ["for each class, got other files"]),
    ],
)
def test_folders(damage, causes, photos):
    damage(photos)
    for cause in causes:
        refused(cause, photos)


def test_a_decompression_bomb(photos, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused("must be a whole JPEG or PNG (DecompressionBomb", photos)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"split": "train"}, "split must be left out for a folder"),
        ({"num_examples": 0}, "num_examples must be 1 to 4"),
        ({"num_examples": 5}, "num_examples must be 1 to 4"),
        ({"num_examples": 2, "subset_seed": -1}, "subset_seed must be 0 to 2^64 - 1, got -1"),
        ({"num_examples": 2, "subset_seed": 2**64}, "subset_seed must be 0 to 2^64 - 1"),
        ({"subset_seed": 1}, "subset_seed must come with num_examples"),
        ({"size": 0}, "size must be a side, or height and width"),
        ({"size": (3,) * 3}, "size must be a side, or height and width"),
        ({"size": (3, -3)}, "size must be a side, or height and width"),
        ({"size": 3.5}, "size must be a side, or height and width"),
        ({"size": "3x3"}, "size must be a side, or height and width"),
        ({"channels": 4}, "channels must be 1 (grey), 3 (colour) or None, got 4"),
    ],
)
def test_options_of_folders(options, cause, photos):
    refused(cause, photos, **options)


# Files


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({}, "got nothing; save them with numpy.savez"),
        ({"a": PIXELS, "b": LABELS}, "must hold images and labels, or x and y, or x_test and y_test, or test_images"),
        ({"a": PIXELS, "b": LABELS}, "got a, b;"),
        ({"images": PIXELS}, "got images;"),
        ({"x_train": PIXELS, "y_train": LABELS}, "got x_train, y_train;"),
        ({"images": PIXELS, "labels": LABELS, "x": PIXELS, "y": LABELS}, "keep one pair"),
        ({"images": PIXELS, "labels": LABELS[:3]}, "labels must be integers [4]"),
        ({"images": PIXELS, "labels": LABELS[:, None, None]}, "labels must be integers [4]"),
        ({"images": PIXELS, "labels": LABELS - 1}, "got -1 to 1; number the classes from 0"),
        ({"images": PIXELS, "labels": LABELS + 2**40}, "number the classes from 0"),
        ({"images": PIXELS, "labels": LABELS / 1}, "got float64 [4]; convert them"),
        ({"images": PIXELS, "labels": np.array(["a", "b", "c", "d"])}, "labels must be integers [4]"),
        ({"images": PIXELS, "labels": np.eye(4)}, "of one-hot labels save their argmax(axis=1)"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "got no image"),
        ({"images": PIXELS.reshape(4, -1), "labels": LABELS}, "of [N, H, W, C], got uint8 [4, 90]"),
        ({"images": PIXELS[:, :0], "labels": LABELS}, "got uint8 [4, 0, 5, 3]"),
        ({"images": PIXELS.astype(np.int64), "labels": LABELS}, "got int64 [4, 6, 5, 3]; convert them"),
        ({"images": PIXELS > 9, "labels": LABELS}, "got bool [4, 6, 5, 3]; convert them"),
        ({"images": PIXELS.transpose(0, 3, 1, 2), "labels": LABELS}, "channels first; save images.transpose("),
        ({"images": PIXELS.astype(np.float32), "labels": LABELS}, "divide by 255, or save uint8"),
        ({"images": PIXELS / 255 - 0.5, "labels": LABELS}, "before any normalisation, which belongs to the network"),
        ({"images": PIXELS * np.float32("nan"), "labels": LABELS}, "got values from nan to nan; scale them"),
        ({"images": PIXELS / 1e-9, "labels": LABELS}, "scale them"),
        ({"images": PIXELS, "labels": LABELS, "class_names": np.array(["a", "b"])}, "labels must be 0 to 1, as"),
        ({"images": PIXELS, "labels": LABELS, "class_names": np.arange(3)}, "class_names must be strings [K]"),
        ({"images": PIXELS, "labels": LABELS, "class_names": np.array("abc")}, "class_names must be strings [K]"),
    ],
)
def test_arrays(arrays, cause, tmp_path):
    refused(cause, save(tmp_path / "mine.npz", **arrays))


class Canary:
    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, capsys):
    refused("never unpickled", save(tmp_path / "mine.npz", images=np.array([Canary()], object), labels=LABELS))
    (tmp_path / "mine.npz").write_bytes(pickle.dumps(Canary()))
    refused("never unpickled", tmp_path / "mine.npz")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("part", [0, 10, 100, 300, -30])
def test_damaged_files(part, tmp_path):
    path = save(tmp_path / "mine.npz", images=PIXELS, labels=LABELS)
    path.write_bytes(path.read_bytes()[:part])
    refused("mine.npz must be a whole .npz or .npy file", path)


def test_a_flipped_bit(tmp_path):
    path = save(tmp_path / "mine.npz", images=PIXELS, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[content.index(PIXELS.tobytes()) + 7] ^= 1
    path.write_bytes(content)
    refused("mine.npz must be a whole .npz or .npy file", path)


def test_files_of_another_kind(tmp_path):
    np.save(tmp_path / "mine.npy", PIXELS)
    refused("got the file", tmp_path / "mine.npy")
    (tmp_path / "mine.npy").rename(tmp_path / "mine.npz")
    refused("got a single array", tmp_path / "mine.npz")
    (tmp_path / "mine.csv").write_text("a,b")
    refused("must be a data set, a folder of class folders or an .npz file, got the file", tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"split": "train"}, "split must be left out for"),
        ({"size": 32}, "size must be left out for an .npz file"),
        ({"channels": 3}, "channels must be left out for an .npz file"),
        ({"num_examples": 5}, "num_examples must be 1 to 4"),
    ],
)
def test_options_of_files(options, cause, tmp_path):
    refused(cause, save(tmp_path / "mine.npz", images=PIXELS, labels=LABELS), **options)


@pytest.mark.parametrize(
    ("spec", "options", "cause"),
    [
        ("photos", {}, "no such file or folder, and data set 'photos' not found"),
        ("", {}, "got ''"),
        ("photos.npz", {}, "got 'photos.npz': no such file or folder"),
        ("~nobody/photos", {}, "no such file or folder"),
        ("cifar10", {}, "python -m robustjax.data prepare cifar10"),
        ("digits", {"split": "tset"}, "split must be one of train, test of 'digits', got 'tset' (nearest: 'test')"),
        ("digits", {"size": 32}, "image_size must be None for the digits"),
        ("digits", {"channels": 3}, "channels must be left out for the data set 'digits'"),
        ("digits", {"num_examples": 361}, "num_examples must be 1 to 360, as many as digits has, got 361"),
    ],
)
def test_names(spec, options, cause, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(cause, spec, data_dir=tmp_path / "sets", **options)


# Saved adversarial images

CLEAN = np.full((3, 4, 4, 1), 0.5, np.float32)


def saved_refused(cause, path, clean=CLEAN, **options):
    with pytest.raises(InputError) as error:
        data.read_saved(path, clean, **options)
    one_line(str(error.value), cause)


@pytest.mark.parametrize(
    ("arrays", "cause"),
    [
        ({}, "got nothing"),
        ({"found": CLEAN}, "named images, adversarial, x_adv or x, got found"),
        ({"images": CLEAN, "x": CLEAN}, "must hold one array of adversarial images"),
        ({"images": CLEAN[:2]}, "must be images [3, 4, 4, 1], got [2, 4, 4, 1]; give as many as are evaluated"),
        ({"images": CLEAN[:, :3]}, "got [3, 3, 4, 1]; give those of these clean images"),
        ({"images": CLEAN.transpose(0, 3, 1, 2)}, "save images.transpose(0, 2, 3, 1)"),
        ({"images": CLEAN[0]}, "got [4, 4, 1]"),
        ({"images": CLEAN > 0}, "must be floats, or uint8 in 0..255, got bool"),
        ({"images": CLEAN + 0.6}, "got 1.1 in image 0 and such in 3 of 3"),
        ({"images": CLEAN - np.float32([0, 0, 1]).reshape(3, 1, 1, 1)}, "got -0.5 in image 2 and such in 1 of 3"),
        ({"images": CLEAN * np.float32("nan")}, "must be finite and inside the bounds [0.0, 1.0], got nan in image 0"),
        ({"images": CLEAN * np.float32("inf")}, "got inf"),
        ({"images": CLEAN, "clean_images": CLEAN + 0.1}, "clean_images must be the images that are evaluated"),
        ({"images": CLEAN, "clean_images": CLEAN[:2]}, "clean_images must be the images that are evaluated"),
    ],
)
def test_saved_images(arrays, cause, tmp_path):
    saved_refused(cause, save(tmp_path / "found.npz", **arrays))


def test_saved_images_that_are_not_there_or_damaged(tmp_path):
    saved_refused("found.npz: no such file", tmp_path / "found.npz")
    (tmp_path / "found.pt").write_bytes(b"PK")
    saved_refused("found.pt of PyTorch; save them with numpy", tmp_path / "found.pt")
    (tmp_path / "found.npz").write_bytes(b"PK")
    saved_refused("must be a whole .npz or .npy file", tmp_path / "found.npz")
    (tmp_path / "found.npz").write_bytes(pickle.dumps(Canary()))
    saved_refused("never unpickled", tmp_path / "found.npz")


def test_saved_images_outside_other_bounds(tmp_path):
    path = save(tmp_path / "found.npz", images=np.concatenate([CLEAN, CLEAN + 0.4], axis=3))
    clean = np.concatenate([CLEAN, CLEAN], axis=3)
    assert data.read_saved(path, clean, bounds=((0.4, 0.5), (0.6, 1.0))).shape == (3, 4, 4, 2)
    saved_refused("inside the bounds [[0.0, 0.0], [1.0, ", path, clean, bounds=((0.0, 0.0), (1.0, 0.75)))


COMPLETE = {
    "images": CLEAN,
    "labels": np.arange(3),
    "clean_images": CLEAN,
    "predictions": np.arange(3),
    "clean_predictions": np.arange(3),
    "robust": {"pgd20": np.ones(3, bool)},
    "about": {},
}


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({"labels": np.arange(2)}, "images must be of shape [2, 4, 4, 1]"),
        ({"clean_images": CLEAN[:, :3]}, "clean_images must be of shape [3, 4, 4, 1]"),
        ({"predictions": np.arange(4)}, "predictions must be of shape [3]"),
        ({"clean_predictions": np.zeros((3, 1))}, "clean_predictions must be of shape [3]"),
        ({"robust": {"pgd20": np.ones(2, bool)}}, "robust['pgd20'] must be of shape [3]"),
    ],
)
def test_what_does_not_fit_is_not_saved(changed, cause, tmp_path):
    arguments = COMPLETE | changed
    with pytest.raises(InputError) as error:
        data.save_images(tmp_path / "found.npz", arguments.pop("images"), arguments.pop("labels"), **arguments)
    one_line(str(error.value), cause)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "cause"), [(name, "ends in .npz") for name in ("found.npy", "found", ".")])
def test_names_of_files_to_save(name, cause, tmp_path):
    with pytest.raises(InputError, match=re.escape(cause)):
        data.saved.checked_path(tmp_path / name)
