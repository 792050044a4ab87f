"""Further images: which of them are in which batch, and files that hold them."""

from itertools import product

import numpy as np
import pytest
from PIL import Image

from robustjax import data
from robustjax.types import InputError


def own(count=20, shape=(8, 8, 1), classes=10):
    return data.Dataset("own", np.zeros((count, *shape), np.uint8), np.zeros(count, np.int32), classes, ())


def test_each_kind_is_passed_through_in_turn_whatever_is_an_epoch():
    mixture = data.Mixture(num_own=20, num_extra=9, batch_size=8, extra_per_batch=3)
    batches = np.stack([mixture.indices(5)(step) for step in range(12)])
    is_extra = batches >= 20
    assert (is_extra.sum(1) == 3).all()
    own_ones, further = batches[~is_extra].reshape(-1, 20), batches[is_extra].reshape(-1, 9)
    for passes, first, count in ((own_ones, 0, 20), (further, 20, 9)):
        for each in passes:
            assert sorted(each) == list(range(first, first + count))
    assert (own_ones[0] != own_ones[1]).any() and (further[0] != further[1]).any()


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_have_further_images_by_their_share_of_it(parts):
    """Devices take so many places in a row, micro-batches every so many, and what is left natural such again."""
    mixture = data.Mixture(num_own=4096, num_extra=4096, batch_size=64, extra_per_batch=32)
    is_extra = np.stack([mixture.indices(0)(step) for step in range(40)]) >= 4096
    per_part = 32 / parts
    for places in (*np.arange(64).reshape(parts, -1), *np.arange(64).reshape(-1, parts).T):
        counts = is_extra[:, places].sum(1)
        assert abs(counts.mean() - per_part) < 2 and counts.min() > 0 and counts.max() < 64 / parts
    shares = is_extra[:, data.spread(16, 64)].mean()
    assert 0.4 < shares < 0.6


def test_a_batch_is_a_function_of_seed_and_step():
    mixture = data.Mixture(num_own=20, num_extra=9, batch_size=8, extra_per_batch=3)
    np.testing.assert_array_equal(mixture.indices(1)(7), mixture.indices(1)(7))
    assert (mixture.indices(1)(7) != mixture.indices(2)(7)).any()


def test_places_are_spread_evenly():
    for size, count in product((1, 7, 16), (0, 1, 5, 16)):
        if count <= size:
            marked = data.spread(count, size)
            assert marked.sum() == count
            halves = marked[: size // 2].sum(), marked[size // 2 :].sum()
            assert abs(halves[1] - halves[0]) <= 1 + size % 2


@pytest.mark.parametrize(
    ("ratio", "count", "message"),
    [
        (0.01, 100, "data.extra_ratio must leave a batch of 8 at least one image of each kind, got 0.01"),
        (0.99, 100, "at least one image of each kind, got 0.99"),
        (0.7, 5, "data.extra must hold at least the 6 images that a batch takes of it, got 5"),
    ],
)
def test_mixtures_that_there_are_not_are_refused(ratio, count, message):
    with pytest.raises(InputError, match=message):
        data.Mixture.of(own(), own(count), batch_size=8, ratio=ratio)


def test_a_file_of_generated_images_is_read_in_memory_and_as_a_stream(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 8, 8, 1), np.uint8), rng.integers(0, 10, 12)
    for name, stored in (("bytes", images), ("floats", images.astype(np.float32) / 255)):
        np.savez(tmp_path / f"{name}.npz", image=stored, label=labels)
        held = data.open_extra(str(tmp_path / f"{name}.npz"), like=own(), streamed=False)
        np.testing.assert_array_equal(held.images, images)
        np.testing.assert_array_equal(held.labels, labels)
        stream = data.open_extra(str(tmp_path / f"{name}.npz"), like=own(), streamed=True)
        assert stream.num_examples == 12
        image, label = stream.read(3, np.zeros(4))
        np.testing.assert_array_equal(image, images[3])
        assert label == labels[3]


@pytest.mark.parametrize("streamed", [False, True])
def test_images_of_any_size_are_scaled_as_the_training_images_are(tmp_path, streamed):
    rng = np.random.default_rng(0)
    for name, sides in {"a": (9, 12), "b": (20, 10)}.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (*sides, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / name / "0.png")
    options = {"like": own(shape=(8, 8, 3)), "streamed": streamed}
    found = data.open_extra(str(tmp_path), image_size=8, **options)
    assert found.image_shape == (8, 8, 3)
    if streamed:
        assert found.read(1, np.zeros(40))[0].shape == (8, 8, 3)
        cropped = data.open_extra(str(tmp_path), image_size=8, random_resized_crop=True, **options)
        assert (cropped.read(1, np.full(40, 0.1))[0] != cropped.read(1, np.full(40, 0.6))[0]).any()
    with pytest.raises(InputError):
        data.open_extra(str(tmp_path), **options)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_training_set_under_another_name_is_no_further_one(tmp_path, streamed):
    (tmp_path / "mine" / "train" / "a").mkdir(parents=True)
    (tmp_path / "other").symlink_to(tmp_path / "mine")
    (tmp_path / "data" / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "data" / "cifar10" / "3.0.2" / "features.json").touch()
    (tmp_path / "data" / "copy").symlink_to(tmp_path / "data" / "cifar10")
    options = {"streamed": streamed, "data_dir": tmp_path / "data"}
    for name, spec in [
        (f"{tmp_path}/mine", f"{tmp_path}/mine/"), (f"{tmp_path}/mine", f"{tmp_path}/other"),
        ("cifar10", "cifar10:3.0.2"), ("cifar10:3.0.2", "cifar10"), ("digits", "digits"),
        ("cifar10", "copy:3.0.2"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=r"another data set than data\.name, .*, got"):
            data.open_extra(spec, like=own()._replace(name=name), **options)


def test_prepared_digits_are_not_the_embedded_ones(tmp_path):
    (tmp_path / "digits" / "1.0.0").mkdir(parents=True)
    (tmp_path / "digits" / "1.0.0" / "features.json").touch()
    with pytest.raises(InputError, match=r"digits/1\.0\.0 must be a readable tfds data set"):
        data.open_extra("digits:1.0.0", like=own()._replace(name="digits"), streamed=False, data_dir=tmp_path)


def test_a_stream_goes_on_with_further_images_after_its_own():
    first = data.Stream("own", 2, (1,), 3, lambda index, draws: (np.array([index]), 0))
    second = data.Stream("more", 3, (1,), 3, lambda index, draws: (np.array([100 + index]), 1))
    both = data.joined(first, second)
    assert both.num_examples == 2
    assert [int(both.read(i, np.zeros(1))[0][0]) for i in range(5)] == [0, 1, 100, 101, 102]
    batches = data.stream_batches(
        both, seed=0, batch_size=2, rows=np.arange(2), first_step=1,
        indices=lambda step: np.array([step % 2, 2 + step % 3]),
    )  # fmt: skip
    images, labels = next(batches)
    assert images.ravel().tolist() == [1, 101] and labels.tolist() == [0, 1]


def test_classes_of_the_same_names_have_the_same_numbers(tmp_path):
    digits = tuple("0123456789")
    arrays = {"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.arange(4)}
    like = own()._replace(label_names=digits)
    for names in (digits, ("zero", "one", "two", "three")):  # whose names tell nothing are believed
        np.savez(tmp_path / "more.npz", class_names=np.array(names), **arrays)
        assert data.open_extra(str(tmp_path / "more.npz"), like=like, streamed=False).num_examples == 4
    np.savez(tmp_path / "more.npz", class_names=np.array(digits[::-1]), **arrays)
    for streamed in (False, True):
        with pytest.raises(InputError, match="must number its classes as own does, where '9' is 9, got 0 in"):
            data.open_extra(str(tmp_path / "more.npz"), like=like, streamed=streamed)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((4, 9, 8, 1), np.uint8), "label": np.zeros(4, int)}, r"images of \[8, 8, 1\] as own does"),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.full(4, 11)}, "labels 0 to 9 as own does, got 11"),
    ],
)
def test_what_does_not_fit_the_training_set_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "more.npz", **arrays)
    with pytest.raises(InputError, match=message):
        data.open_extra(str(tmp_path / "more.npz"), like=own(), streamed=False)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"nowhere\.npz"):
        data.open_extra("nowhere.npz", like=own(), streamed=False)
