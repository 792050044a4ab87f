"""Reading while training: the examples are those of the pipeline in memory, wherever reading starts and who reads."""

import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from robustjax import data
from robustjax.types import InputError

pytestmark = pytest.mark.filterwarnings("default")  # tfds warns that OpenCV would decode faster
RNG = np.random.default_rng(0)


def write(directory, name, images, *, shape, splits, form="PNG"):
    """A prepared data set with these images, labelled in turns; `splits` are names and sizes."""
    folder = directory / name / "1.0.0"
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=3)}
    )
    features.save_config(folder)
    remaining = list(enumerate(images))
    for split, size in splits.items():
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for index, pixels in remaining[:size]:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, form)
            writer.write(features.serialize_example({"image": buffer.getvalue(), "label": index % 3}))
        writer.close()
        remaining = remaining[size:]
    info = {
        "fileFormat": "array_record",
        "name": name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "shardLengths": [str(size)],
            }
            for split, size in splits.items()
        ],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        "version": "1.0.0",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """ "even": 30 images of 6 x 5, 4 of them for tests; "photos": 20 JPEGs of all sizes."""
    directory = tmp_path_factory.mktemp("prepared")
    even = RNG.integers(0, 256, (34, 6, 5, 3), dtype=np.uint8)
    write(directory, "even", even, shape=(6, 5, 3), splits={"train": 30, "test": 4})
    photos = [RNG.integers(0, 256, (*RNG.integers(20, 60, 2), 3), dtype=np.uint8) for _ in range(20)]
    write(directory, "photos", photos, shape=(None, None, 3), splits={"train": 20}, form="JPEG")
    return directory


def take(stream, count, *, seed=7, batch_size=8, rows=None, first_step=0):
    rows = np.arange(batch_size) if rows is None else rows
    found = data.stream_batches(stream, seed=seed, batch_size=batch_size, rows=rows, first_step=first_step)
    return [next(found) for _ in range(count)]


def same(ours, theirs):
    for (images, labels), (other_images, other_labels) in zip(ours, theirs, strict=True):
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize("first_step", [0, 2, 4])
def test_batches_are_those_of_the_pipeline_in_memory(directory, first_step):
    """Over two ends of epochs of three batches each, with two examples left over."""
    options = {"data_dir": directory, "validation_examples": 4}
    stream = data.open_stream("even", **options)
    train = data.load("even", "train", **options)
    assert (stream.num_examples, stream.image_shape, stream.num_classes) == (26, train.image_shape, 3)
    orders = np.concatenate([data.epoch_order(7, epoch, 26)[:24].reshape(3, 8) for epoch in range(3)])
    expected = [(train.images[order], train.labels[order]) for order in orders[first_step : first_step + 5]]
    same(take(stream, 5, first_step=first_step), expected)


def test_the_parts_of_several_processes_make_up_the_batch(directory):
    stream = data.open_stream("photos", data_dir=directory, image_size=8, random_resized_crop=True)
    whole = take(stream, 3)
    parts = [take(stream, 3, rows=rows) for rows in (np.arange(4), np.arange(4, 6), np.arange(6, 8))]
    for step, pieces in enumerate(zip(*parts, strict=True)):
        images, labels = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
        same([(images, labels)], whole[step : step + 1])


def test_reading_goes_on_where_it_was(directory):
    stream = data.open_stream("photos", data_dir=directory, image_size=8, random_resized_crop=True)
    whole = take(stream, 6)
    for first in (1, 2, 5):
        same(take(stream, 6 - first, first_step=first), whole[first:])
    with pytest.raises(AssertionError):
        same(take(stream, 6, seed=8), whole)


def test_crops_are_drawn_anew_for_each_epoch_and_example(directory):
    options = {"data_dir": directory, "image_size": 8, "num_examples": 1}
    cropped = data.open_stream("photos", **options, random_resized_crop=True)
    crops = [images[0] for images, _ in take(cropped, 5, batch_size=1)]
    assert len({crop.tobytes() for crop in crops}) == 5
    still = [images[0] for images, _ in take(data.open_stream("photos", **options), 3, batch_size=1)]
    centre = data.load("photos", "train", **options).images[0]
    assert all(np.array_equal(image, centre) for image in still)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {}, "use 'memory'"),
        ("evne", {}, "nearest: 'even'"),
        ("even", {"num_examples": 31}, "1 to 30"),
        ("even", {"validation_examples": 30}, "less than the 30"),
    ],
)
def test_what_cannot_be_streamed_is_refused(directory, name, options, message):
    with pytest.raises(InputError, match=message):
        data.open_stream(name, data_dir=directory, **options)


def test_images_of_several_sizes_are_refused_while_reading(directory):
    stream = data.open_stream("photos", data_dir=directory)
    with pytest.raises(InputError, match=r"images must be of one size.*set data\.image_size"):
        take(stream, 1)


def test_a_record_that_went_bad_is_named_while_reading(tmp_path):
    images = RNG.integers(0, 256, (8, 6, 5, 3), dtype=np.uint8)
    write(tmp_path, "even", images, shape=(6, 5, 3), splits={"train": 8})
    stream = data.open_stream("even", data_dir=tmp_path)
    path = tmp_path / "even/1.0.0/even-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[200:240] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"even/1\.0\.0, split 'train'"):
        take(stream, 1)
