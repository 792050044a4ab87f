"""What `load` promises of every data set, seen on the embedded one, and of prepared tfds data sets, good and bad."""

import hashlib
import io
import json
import os
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from robustjax import build, config, data
from robustjax.data.scaling import NUM_DRAWS
from robustjax.types import InputError

DIGESTS = {
    "train": "4392769c780ccac9aa4f21b7d776c5cb980fade2b6d35749d6641b0ae5fa668c",
    "validation": "e7568d1434d85ed91e5ad7d4a3c55f2a9c46c5bb5932298baa4ad77fceba49c1",
    "test": "200839e6a3ca244a4e0a83226cfcb3fbd4b41b53c1b57dc5c7c7b186f79a7d58",
}


def encode(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image if image.ndim == 3 and image.shape[-1] > 1 else image.reshape(image.shape[:2])).save(
        buffer, **({"format": "PNG"} | options)
    )
    return buffer.getvalue()


def write(folder, features, splits, supervised=("image", "label"), file_format="array_record"):
    """A prepared tfds data set from encoded examples; `folder` is data_dir/name[/config]/version."""
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    features.save_config(folder)
    name = folder.relative_to(folder.parents[1]).parts[0]
    infos = []
    for split, examples in splits.items():
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.{file_format}-00000-of-00001"), "group_size:1")
        for example in examples:
            writer.write(features.serialize_example(example))
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append({"name": split, "filepathTemplate": template, "shardLengths": [str(len(examples))]})
    info = {"name": name, "version": folder.name, "fileFormat": file_format, "splits": infos}
    if supervised:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in supervised]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def classification(shape, num_classes=3):
    return {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=num_classes)}


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


@pytest.fixture
def shapes(tmp_path, pixels):
    """The data set "shapes": eight training images of 6 x 5 and four test images."""
    examples = [{"image": encode(image), "label": index % 3} for index, image in enumerate(pixels)]
    write(tmp_path / "shapes/1.0.0", classification((6, 5, 3)), {"train": examples[:8], "test": examples[8:]})
    return tmp_path


# The embedded digits


def test_digits_are_pinned():
    """They must never change: neither the pixels nor the split."""
    for split, digest in DIGESTS.items():
        dataset = data.load("digits", split, validation_examples=200)
        assert hashlib.sha256(dataset.images.tobytes() + dataset.labels.tobytes()).hexdigest() == digest, split


def test_digits_are_all_of_scikit_learns_digits_rescaled_and_stratified():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    expected = np.array([[round(value * 255 / 16) for value in row] for row in pixels], np.uint8)
    parts = [data.load("digits", split) for split in ("train", "test")]
    assert [len(part.labels) for part in parts] == [1437, 360]
    for part in parts:
        assert part.images.shape[1:] == (8, 8, 1) and part.images.dtype == np.uint8 and part.labels.dtype == np.int32
        assert (part.num_classes, part.label_names) == (10, tuple("0123456789"))
    rows = np.concatenate([np.c_[part.images.reshape(-1, 64), part.labels] for part in parts])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, np.c_[expected, labels]))
    counts = np.bincount(parts[1].labels) / np.bincount(labels)
    assert np.all(np.abs(counts - 0.2) < 0.01)


def test_validation_is_cut_from_train_and_from_nothing_else():
    def rows(split, size):
        return [image.tobytes() for image in data.load("digits", split, validation_examples=size).images]

    whole, test = rows("train", 0), rows("test", 0)
    train, validation = rows("train", 200), rows("validation", 200)
    assert len(validation) == 200 and sorted(train + validation) == sorted(whole)
    places = iter(whole)
    assert all(row in places for row in train)  # in the order of the data set
    assert rows("test", 200) == test
    assert set(rows("validation", 50)) < set(validation)  # a longer validation set keeps the shorter one
    share = np.bincount(data.load("digits", "validation", validation_examples=200).labels, minlength=10)
    assert share.min() > 8  # random, so about 20 of each class


def test_num_examples_keeps_the_first():
    some, all_ = (data.load("digits", "train", validation_examples=200, num_examples=number) for number in (30, None))
    assert np.array_equal(some.images, all_.images[:30]) and np.array_equal(some.labels, all_.labels[:30])


@pytest.mark.parametrize(
    ("split", "options", "message"),
    [
        ("tset", {}, r"split must be one of train, test of 'digits', got 'tset' \(nearest: 'test'\)"),
        ("validation", {}, "to cut it from the training split, give validation_examples"),
        ("train", {"validation_examples": -1}, "validation_examples"),
        ("train", {"validation_examples": 1437}, "1437"),
        ("train", {"num_examples": 1438}, "1 to 1437"),
        ("train", {"num_examples": 1400, "validation_examples": 100}, "1 to 1337"),
        ("test", {"num_examples": 0}, "1 to 360"),
    ],
)
def test_impossible_splits_are_refused(split, options, message):
    with pytest.raises(InputError, match=message):
        data.load("digits", split, **options)


# Prepared tfds data sets


class NoTensorFlow:
    """A finder that makes importing TensorFlow a failure, installed or not."""

    @staticmethod
    def find_spec(name, *_):
        assert name.split(".")[0] != "tensorflow"


def test_a_prepared_data_set_gives_its_pixels_without_tensorflow(shapes, pixels, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [NoTensorFlow, *sys.meta_path])
    for split, part in (("train", slice(0, 8)), ("test", slice(8, 12))):
        dataset = data.load("shapes", split, data_dir=shapes)
        assert np.array_equal(dataset.images, pixels[part])
        assert dataset.labels.tolist() == [index % 3 for index in range(12)][part]
        assert (dataset.num_classes, dataset.label_names) == (3, ("0", "1", "2"))
    train, validation = (
        data.load("shapes", split, data_dir=shapes, validation_examples=3).images for split in ("train", "validation")
    )
    assert sorted(map(bytes, [*train, *validation])) == sorted(map(bytes, pixels[:8]))


def test_the_data_dir_is_found_as_tfds_finds_it(shapes, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(shapes))
    assert len(data.load("shapes", "train").labels) == 8
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(shapes.parent))
    os.rename(shapes, shapes.parent / "tensorflow_datasets")
    assert len(data.load("shapes", "train").labels) == 8


def test_names_may_carry_a_config_and_a_version(tmp_path, pixels):
    for number, folder in enumerate(["kinds/small/2.9.0", "kinds/small/2.10.0"]):
        examples = [{"image": encode(pixels[number]), "label": number}]
        write(tmp_path / folder, classification((6, 5, 3)), {"train": examples})
    for name, label in (("kinds/small", 1), ("kinds/small:2.10.0", 1), ("kinds/small:2.9.0", 0)):
        assert data.load(name, "train", data_dir=tmp_path).labels.tolist() == [label]


def test_the_declared_supervised_features_are_used_and_channels_converted(tmp_path, pixels):
    features = {
        "picture": tfds.features.Image(shape=(None, None, 3)),
        "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
        "image": tfds.features.Text(),
    }
    grey, palette = pixels[0, ..., 0], Image.fromarray(pixels[1]).convert("P")
    buffer = io.BytesIO()
    palette.save(buffer, "PNG")
    examples = [
        {"picture": encode(grey), "kind": 1, "image": "no image"},
        {"picture": buffer.getvalue(), "kind": 0, "image": "neither"},
    ]
    write(tmp_path / "pets/1.0.0", features, {"train": examples}, supervised=("picture", "kind"))
    dataset = data.load("pets", "train", data_dir=tmp_path)
    assert np.array_equal(dataset.images, [np.repeat(grey[..., None], 3, -1), np.asarray(palette.convert("RGB"))])
    assert dataset.labels.tolist() == [1, 0] and dataset.label_names == ("cat", "dog")


def test_a_missing_data_set_is_named_with_what_is_there_and_how_to_get_it(shapes, tmp_path):
    cases = [
        ("mnist", shapes, ["mnist", str(shapes), "shapes", f"data prepare mnist --data_dir={shapes}"]),
        ("mnist", tmp_path / "nowhere", ["no such folder", str(tmp_path / "nowhere")]),
        ("shape", shapes, ["nearest: 'shapes'"]),
        ("minst", shapes, ["nearest: 'mnist'"]),
        ("shapes:2.0.0", shapes, ["shapes:1.0.0"]),
        ("../shapes", shapes, ["not found"]),
        ("imagenet2012", shapes, ["array_record"]),
    ]
    for name, directory, expected in cases:
        with pytest.raises(InputError) as caught:
            data.load(name, "train", data_dir=directory)
        assert all(text in str(caught.value) for text in expected), str(caught.value)


def _truncate(folder):
    os.truncate(folder / "shapes-train.array_record-00000-of-00001", 66000)


def _empty(folder):
    os.truncate(folder / "shapes-train.array_record-00000-of-00001", 0)


def _remove(folder):
    os.remove(folder / "shapes-train.array_record-00000-of-00001")


def _flip(folder):
    path = folder / "shapes-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[200:240] = bytes(40)
    path.write_bytes(content)


def _promise_more(folder):
    path = folder / "dataset_info.json"
    path.write_text(path.read_text().replace('"8"', '"9"'))


def _break_info(folder):
    (folder / "dataset_info.json").write_text("{")


def _break_features(folder):
    (folder / "features.json").write_text("{")


@pytest.mark.parametrize("damage", [_truncate, _empty, _remove, _flip, _promise_more, _break_info, _break_features])
def test_damaged_files_are_reported_in_one_line(shapes, damage):
    folder = shapes / "shapes/1.0.0"
    damage(folder)
    with pytest.raises(InputError) as caught:
        data.load("shapes", "train", data_dir=shapes)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def _bad(name, pixels):
    """A data set that cannot be used, by what is wrong: (features, examples of "train", other arguments, message)."""
    good = [{"image": encode(image), "label": 0} for image in pixels[:3]]
    text = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
    any_size = classification((None, None, 3))
    return {
        "no image": (text, [{"text": "a", "label": 0}], {"supervised": ("text", "label")}, "text (Text)"),
        "no label": ({"image": any_size["image"]}, [{"image": good[0]["image"]}], {"supervised": None}, "class label"),
        "sizes": (any_size, [*good, {"image": encode(pixels[0, :4]), "label": 0}], {}, "(4, 5) in record 3"),
        "not an image": (any_size, [*good, {"image": b"GIF no", "label": 0}], {}, "record 3"),
        "cut image": (any_size, [*good, {"image": good[0]["image"][:60], "label": 0}], {}, "record 3"),
        "unlabelled": (any_size, [*good, {"image": good[0]["image"], "label": -1}], {}, "-1..0"),
        "nothing": (any_size, [], {}, "with examples"),
        "tfrecord": (any_size, good, {"file_format": "tfrecord"}, "ArrayRecord"),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["no image", "no label", "sizes", "not an image", "cut image", "unlabelled", "nothing", "tfrecord"],
)
def test_data_sets_that_cannot_be_used_are_refused_with_the_reason(tmp_path, pixels, name):
    features, examples, options, message = _bad(name, pixels)
    write(tmp_path / "odd/1.0.0", features, {"train": examples}, **options)
    with pytest.raises(InputError) as caught:
        data.load("odd", "train", data_dir=tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_images_of_floats_are_refused(shapes):
    path = shapes / "shapes/1.0.0/features.json"
    described = json.loads(path.read_text())
    image = described["featuresDict"]["features"]["image"]["image"]
    image["dtype"], image["shape"]["dimensions"] = "float32", ["6", "5", "1"]
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match="must be image classification, with an 8-bit or 16-bit image of"):
        data.load("shapes", "train", data_dir=shapes)


def test_16_bit_images_are_scaled_to_8_whatever_the_data_set_declares(tmp_path):
    deep = np.array([[[0], [255], [256]], [[40000], [65280], [65535]]], np.uint16)
    for name, dtype in (("declared", np.uint16), ("undeclared", np.uint8)):
        features = classification((2, 3, 1)) | {"image": tfds.features.Image(shape=(2, 3, 1), dtype=dtype)}
        write(tmp_path / name / "1.0.0", features, {"train": [{"image": encode(deep), "label": 0}]})
        images = data.load(name, "train", data_dir=tmp_path).images
        assert images.dtype == np.uint8 and images.tolist() == [[[[0], [0], [1]], [[156], [255], [255]]]]


def test_an_alpha_channel_is_kept_only_where_the_data_set_has_four(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4), dtype=np.uint8)
    for name, channels in (("three", 3), ("four", 4)):
        examples = [{"image": encode(pixels), "label": 0}]
        write(tmp_path / name / "1.0.0", classification((2, 3, channels)), {"train": examples})
        assert np.array_equal(data.load(name, "train", data_dir=tmp_path).images[0], pixels[..., :channels])


@pytest.fixture
def four_splits(tmp_path, pixels):
    """The data set "split", whose images tell where they are stored."""
    stored = {"train": 0, "validation": 4, "extra": 6, "other": 8}
    examples = {
        split: [{"image": encode(image), "label": 0} for image in pixels[first : first + (4 if first == 0 else 2)]]
        for split, first in stored.items()
    }
    write(tmp_path / "split/1.0.0", classification((6, 5, 3)), examples)
    return tmp_path


def test_any_stored_split_is_read_by_its_name(four_splits, pixels):
    assert data.splits("split", data_dir=four_splits) == ("train", "validation", "extra", "other")
    for split, images in (("train", pixels[:4]), ("validation", pixels[4:6]), ("other", pixels[8:10])):
        assert np.array_equal(data.load("split", split, data_dir=four_splits).images, images)
    # What is trained on is cut from "train", whatever else there is.
    carved = data.load("split", "validation", data_dir=four_splits, validation_examples=1)
    left = data.load("split", "train", data_dir=four_splits, validation_examples=1)
    assert sorted([*carved.images.tolist(), *left.images.tolist()]) == sorted(pixels[:4].tolist())
    # The other splits are whole, also for a run that carves.
    other = data.load("split", "other", data_dir=four_splits, validation_examples=1)
    assert np.array_equal(other.images, pixels[8:10])


@pytest.mark.parametrize("stored", ["validation", "test"])
def test_a_run_is_evaluated_on_any_split(tmp_path, pixels, stored):
    examples = [{"image": encode(image), "label": 0} for image in pixels]
    write(tmp_path / "half/1.0.0", classification((6, 5, 3)), {"train": examples[:8], stored: examples[8:]})
    made = config.base()
    made.data.name, made.data.data_dir, made.data.validation_examples = "half", str(tmp_path), 2
    assert np.array_equal(build.test_dataset(made, split=stored).images, pixels[8:])
    trained, validated = build.datasets(made)
    assert np.array_equal(build.test_dataset(made, split="train").images, trained.images)
    if stored == "test":  # there is no other "validation" than the one the run used
        assert np.array_equal(build.test_dataset(made, split="validation").images, validated.images)
        assert np.array_equal(build.test_dataset(made).images, pixels[8:])
    else:
        with pytest.raises(InputError, match=r"split must be one of train, validation of 'half', got 'test'"):
            build.test_dataset(made)


def test_the_test_split_of_imagenet_is_its_validation_split(tmp_path, pixels):
    examples = [{"image": encode(image), "label": 0} for image in pixels]
    splits = {"train": examples[:8], "validation": examples[8:]}
    write(tmp_path / "imagenet2012/5.1.0", classification((6, 5, 3)), splits)
    assert np.array_equal(data.load("imagenet2012", "test", data_dir=tmp_path).images, pixels[8:])


def test_a_split_that_is_not_there_is_refused_with_those_that_are(four_splits, tmp_path, pixels):
    with pytest.raises(InputError, match=r"one of train, validation, extra, other of 'split', got 'test'$"):
        data.load("split", "test", data_dir=four_splits)
    with pytest.raises(InputError, match=r"got 'extras' \(nearest: 'extra'\)"):
        data.load("split", "extras", data_dir=four_splits)
    write(tmp_path / "tests/1.0.0", classification((6, 5, 3)), {"test": [{"image": encode(pixels[0]), "label": 0}]})
    for split in ("train", "validation"):
        with pytest.raises(InputError, match=rf"one of test of 'tests'.*, got '{split}'|got 'train'"):
            data.load("tests", split, data_dir=tmp_path, validation_examples=1)


@pytest.mark.real_data
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_real_images_are_those_that_tfds_decodes(tfds_dir, name):
    dataset = data.load(name, "test", data_dir=tfds_dir, num_examples=300)
    examples = tfds.data_source(name, split="test", data_dir=tfds_dir, download=False).__getitems__(range(300))
    assert np.array_equal(dataset.images, [example["image"] for example in examples])
    assert np.array_equal(dataset.labels, [example["label"] for example in examples])
    assert len(np.unique(dataset.labels)) == dataset.num_classes == 10


# Folders with a folder for each split


@pytest.fixture
def photos(tmp_path, pixels):
    """Six training images of three classes, and two test images of two of them."""
    for number, (split, name) in enumerate(
        [("train", "ant"), ("train", "ant"), ("train", "bee"), ("train", "bee"), ("train", "fly"), ("train", "fly"),
         ("test", "fly"), ("test", "bee")]
    ):  # fmt: skip
        (tmp_path / "photos" / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(tmp_path / "photos" / split / name / f"{number}.png")
    return tmp_path / "photos"


def test_a_folder_of_splits_is_a_data_set(photos, pixels):
    assert data.splits(str(photos)) == ("test", "train")
    train, test = (data.load(str(photos), split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.images, pixels[:6])
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2] and train.label_names == ("ant", "bee", "fly")
    np.testing.assert_array_equal(test.images, pixels[[7, 6]])
    assert test.labels.tolist() == [1, 2] and test.num_classes == 3  # numbered as those of training
    kept = data.load(str(photos), "train", validation_examples=2)
    held = data.load(str(photos), "validation", validation_examples=2)
    assert len(kept.labels) == 4 and len(held.labels) == 2
    np.testing.assert_array_equal(data.load(photos, "train").images, train.images)  # also by its Path
    assert data.splits(photos) == ("test", "train") and data.open_stream(photos).num_examples == 6
    with pytest.raises(InputError, match="data set must be a name, got ''"):
        data.load("", "train")  # which is not the working folder


def test_a_folder_of_splits_streams(photos, pixels):
    stream = data.open_stream(str(photos), validation_examples=2)
    whole = data.load(str(photos), "train", validation_examples=2)
    assert stream.num_examples == 4 and stream.image_shape == (6, 5, 3)
    for index in range(4):
        image, label = stream.read(index, np.zeros(0))
        np.testing.assert_array_equal(image, whole.images[index])
        assert label == whole.labels[index]
    cropped = data.open_stream(str(photos), image_size=4, random_resized_crop=True)
    assert cropped.read(0, np.full(NUM_DRAWS, 0.5))[0].shape == (4, 4, 3)


def test_a_folder_whose_splits_differ_in_classes_or_are_missing_is_one_line(photos):
    (photos / "test" / "wasp").mkdir()
    Image.new("RGB", (5, 6)).save(photos / "test" / "wasp" / "0.png")
    with pytest.raises(InputError, match=r"must have the classes of .*train, got wasp beside them"):
        data.load(str(photos), "test")
    with pytest.raises(InputError, match=r"split must be one of test, train of .*, got 'val'"):
        data.load(str(photos), "val")
    with pytest.raises(InputError, match=r"got 'train'; put the folders of the classes into a folder for each split"):
        data.load(str(photos / "train"), "train")  # whose folders are classes
    with pytest.raises(InputError, match="not found in"):
        data.load(str(photos / "none"), "train")
