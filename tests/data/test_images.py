"""Images to evaluate on: from data sets, from folders of class folders and from .npz files."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sources import classification, encode, write

from robustjax import data
from robustjax.data import decoded
from robustjax.types import InputError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([2, 0, 1, 1, 0, 2])
PINNED = [94, 199, 662, 921, 947]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


@pytest.fixture
def photos(tmp_path):
    """Three classes of two images each, 5 x 4, of different kinds of file; and what does not count."""
    folder = tmp_path / "photos"
    for name, first in (("cat", 0), ("Bee", 2), ("dog", 4)):
        (folder / name).mkdir(parents=True)
        for index in (1, 0):
            Image.fromarray(PIXELS[first + index]).save(folder / name / f"{index}.{'png' if first else 'PNG'}")
    (folder / "dog" / ".DS_Store").write_bytes(b"?")
    (folder / "README.txt").write_text("of mine")
    (folder / ".hidden").mkdir()
    return folder


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


# Data sets


def test_a_data_set_is_what_load_gives():
    read = data.read_images("digits", split="train", num_examples=7)
    loaded = data.load("digits", "train", num_examples=7)
    assert np.array_equal(read.images, loaded.images) and np.array_equal(read.labels, loaded.labels)
    assert read.class_names == loaded.label_names and read.about["split"] == "train"


def test_a_config_of_a_prepared_data_set(tmp_path):
    """As the corrupted sets are named."""
    examples = [{"image": encode(image), "label": label} for image, label in zip(PIXELS, LABELS, strict=True)]
    write(tmp_path / "noisy/gauss_1/1.0.0", classification((5, 4, 3)), {"test": examples})
    read = data.read_images("noisy/gauss_1", data_dir=tmp_path)
    assert np.array_equal(read.images, PIXELS) and np.array_equal(read.labels, LABELS)
    whole = data.read_images("noisy/gauss_1", size=(10, 8), data_dir=tmp_path).images
    assert np.array_equal(whole[0], Image.fromarray(PIXELS[0]).resize((8, 10), Image.Resampling.BILINEAR))
    middle = data.read_images("noisy/gauss_1", size=3, data_dir=tmp_path).images
    assert np.array_equal(middle, data.load("noisy/gauss_1", "test", image_size=3, data_dir=tmp_path).images)


def test_a_name_is_a_data_set_before_it_is_a_folder(tmp_path, monkeypatch, photos):
    photos.rename(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert data.read_images("digits").images.shape == (360, 8, 8, 1)
    assert data.read_images("./digits").images.shape == data.read_images(Path("digits")).images.shape == (6, 5, 4, 3)


# Subsets


def test_the_first_or_a_random_subset():
    every = data.read_images("digits")
    first = data.read_images("digits", num_examples=50)
    assert np.array_equal(first.images, every.images[:50]) and first.about["subset"] == {"of": 360, "seed": None}
    small, large, other = (
        {image.tobytes() for image in data.read_images("digits", num_examples=n, subset_seed=seed).images}
        for n, seed in ((20, 1), (50, 1), (50, 2))
    )
    assert len(small) == 20 and small < large and large != other
    labels = data.read_images("digits", num_examples=100, subset_seed=0).labels
    assert np.bincount(labels, minlength=10).min() >= 3


def test_random_subsets_are_pinned_and_in_stored_order(tmp_path):
    """They must be the same everywhere and for ever, and no epoch's order nor the validation examples."""
    numbers = np.arange(1000, dtype=np.int32)
    path = npz(tmp_path / "numbers.npz", images=np.zeros((1000, 1, 1, 1), np.uint8), labels=numbers)
    chosen = data.read_images(path, num_examples=5, subset_seed=7).labels
    assert chosen.tolist() == PINNED
    assert not np.array_equal(np.sort(data.epoch_order(7, 0, 1000)[:5]), chosen)


# Folders


def test_a_folder_is_read_in_the_order_of_torchvision(photos):
    read = data.read_images(photos)
    assert read.class_names == ("Bee", "cat", "dog")  # as Python sorts strings
    assert np.array_equal(read.images, PIXELS[[2, 3, 0, 1, 4, 5]]) and read.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert read.images.dtype == np.uint8 and read.labels.dtype == np.int32
    assert read.about == {
        "spec": str(photos),
        "split": None,
        "size": None,
        "channels": None,
        "n": 6,
        "subset": {"of": 6, "seed": None},
        "sha256": hashlib.sha256(read.images.tobytes()).hexdigest(),
        "labels_sha256": hashlib.sha256(read.labels.tobytes()).hexdigest(),
    }
    assert json.loads(json.dumps(read.about)) == read.about


def test_only_the_chosen_files_are_opened(photos):
    (photos / "dog" / "1.png").write_bytes(b"broken")
    assert data.read_images(photos, num_examples=5).labels.tolist() == [0, 0, 1, 1, 2]


def test_jpegs_are_decoded_as_pillow_does_it(tmp_path):
    (tmp_path / "one").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "one/a.JPEG", quality=95)
    Image.fromarray(PIXELS[1]).save(tmp_path / "one/b.jpg", quality=50)
    expected = [np.asarray(Image.open(tmp_path / "one" / name)) for name in ("a.JPEG", "b.jpg")]
    assert np.array_equal(data.read_images(tmp_path).images, expected)


def test_kinds_of_png_become_grey_or_colour(tmp_path):
    grey = tmp_path / "grey" / "only"
    colour = tmp_path / "colour" / "only"
    grey.mkdir(parents=True), colour.mkdir(parents=True)
    plain = PIXELS[0, :, :, 0]
    Image.fromarray(plain).save(grey / "a.png")
    Image.merge("LA", [Image.fromarray(plain), Image.fromarray(plain // 2)]).save(grey / "b.png")
    Image.fromarray(plain.astype(np.uint16) * 256 + 9).save(grey / "c.png")
    Image.fromarray(PIXELS[0]).save(colour / "a.png")
    Image.fromarray(np.dstack([PIXELS[0], plain])).save(colour / "b.png")
    assert np.array_equal(data.read_images(grey.parent).images, [plain[..., None]] * 3)
    assert np.array_equal(data.read_images(colour.parent).images, [PIXELS[0]] * 2)


def test_images_of_any_size_and_kind_are_scaled_as_told(tmp_path):
    folder = tmp_path / "mixed" / "only"
    folder.mkdir(parents=True)
    wide, grey = Image.fromarray(np.tile(PIXELS[0], (10, 30, 1))), Image.fromarray(np.tile(PIXELS[1, :, :, 0], (9, 9)))
    wide.save(folder / "a.png"), grey.save(folder / "b.png")
    images = data.read_images(tmp_path / "mixed", size=32, channels=3).images
    assert np.array_equal(images[0], data.scaling.centre_crop(wide, 32))
    assert np.array_equal(images[1], np.repeat(data.scaling.centre_crop(grey, 32)[..., None], 3, axis=2))
    images = data.read_images(tmp_path / "mixed", size=(16, 24), channels=1).images
    assert np.array_equal(images[0, ..., 0], wide.convert("L").resize((24, 16), Image.Resampling.BILINEAR))
    assert data.read_images(tmp_path / "mixed", size=[16, 24], channels=1).about["size"] == [16, 24]


def test_what_was_decoded_is_found_again_only_for_the_same_files_and_options(photos, monkeypatch):
    monkeypatch.setattr(decoded, "SECONDS_WORTH_KEEPING", -1.0)
    for options in ({}, {"size": 4}, {"size": (4, 4)}, {"channels": 1}, {"num_examples": 3}):
        first, second = data.read_images(photos, **options), data.read_images(photos, **options)
        assert np.array_equal(first.images, second.images) and first.about == second.about
    # Another class before the others: the same files have other labels.
    (photos / "Ant").mkdir()
    Image.fromarray(PIXELS[0]).save(photos / "Ant" / "0.png")
    again = data.read_images(photos)
    assert again.labels.tolist() == [0, 1, 1, 2, 2, 3, 3]
    Image.fromarray(255 - PIXELS[2]).save(photos / "Bee" / "0.png")
    assert np.array_equal(data.read_images(photos).images[1], 255 - PIXELS[2])


# Files


@pytest.mark.parametrize(
    ("names", "split", "stated"),
    [
        (("images", "labels"), "test", None),
        (("x", "y"), "test", None),
        (("x_test", "y_test"), "test", "test"),
        (("x_train", "y_train"), "train", "train"),
        (("val_images", "val_labels"), "val", "val"),
    ],
)
def test_names_of_arrays(names, split, stated, tmp_path):
    others = {"x_other": np.zeros(3), "metadata": np.array("mine")}
    path = npz(tmp_path / "mine.npz", **dict(zip(names, (PIXELS, LABELS), strict=True)), **others)
    read = data.read_images(path, split=split)
    assert np.array_equal(read.images, PIXELS) and np.array_equal(read.labels, LABELS)
    assert (read.images.dtype, read.labels.dtype) == (np.uint8, np.int32)
    assert read.class_names is None and read.about["split"] == stated


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_float32(dtype, tmp_path):
    images = (PIXELS / 255).astype(dtype)
    read = data.read_images(npz(tmp_path / "mine.npz", images=images, labels=LABELS))
    assert read.images.dtype == np.float32 and np.array_equal(read.images, images.astype(np.float32))


def test_grey_images_columns_of_labels_and_names_of_classes(tmp_path):
    names = np.array(["ant", "bee", "cat", "dog"])
    path = npz(tmp_path / "mine.npz", x=PIXELS[..., 0], y=LABELS[:, None].astype(np.uint8), class_names=names)
    read = data.read_images(path, num_examples=4, subset_seed=1)
    assert read.images.shape == (4, 5, 4, 1) and read.class_names == ("ant", "bee", "cat", "dog")
    rows = [int(np.flatnonzero((PIXELS[..., :1] == image).all((1, 2, 3)))[0]) for image in read.images]
    assert rows == sorted(rows) and np.array_equal(read.labels, LABELS[rows])


def test_home_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    npz(tmp_path / "mine.npz", images=PIXELS, labels=LABELS)
    assert len(data.read_images("~/mine.npz").labels) == 6
    assert os.fspath("~/mine.npz") == data.read_images("~/mine.npz").about["spec"]


@pytest.mark.real_data
def test_real_data_by_name(tfds_dir):
    read = data.read_images("cifar10", num_examples=20, subset_seed=3, data_dir=tfds_dir)
    assert read.images.shape == (20, 32, 32, 3) and len(read.class_names) == 10 and read.about["subset"]["of"] == 10000


def test_errors_are_input_errors_of_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file or folder") as error:
        data.read_images(tmp_path / "absent", data_dir=tmp_path)
    assert "\n" not in str(error.value)
