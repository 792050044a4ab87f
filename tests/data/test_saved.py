"""Adversarial images on disk: what is saved is read again, by NumPy alone too, and by those of others."""

import json
import threading

import numpy as np
import pytest

from robustjax import data
from robustjax.runtime import files
from robustjax.runtime.files import WriteError

RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, 256, (5, 4, 3, 3), np.uint8)
FOUND = np.clip(CLEAN / np.float32(255) + RNG.uniform(-0.1, 0.1, CLEAN.shape).astype(np.float32), 0, 1)
LABELS = np.array([1, 0, 2, 2, 1], np.int32)
ROBUST = {
    "pgd20": np.array([True, False, True, False, True]),
    "square": np.array([True, True, False, False, True]),
}
ABOUT = {"norm": "linf", "epsilon": 8 / 255, "attacks": ["pgd20", "square"], "ärger": None}


def save(path, **changed):
    content = {
        "clean_images": CLEAN,
        "predictions": np.array([1, 1, 0, 0, 1]),
        "clean_predictions": LABELS,
        "robust": ROBUST,
        "about": ABOUT,
    } | changed
    data.save_images(path, content.pop("images", FOUND), LABELS, **content)
    return path


def test_numpy_alone_reads_everything_again(tmp_path):
    path = save(tmp_path / "deep" / "found.npz")
    with np.load(path, allow_pickle=False) as saved:
        held = dict(saved)
    assert held["images"].dtype == np.float32 and np.array_equal(held["images"], FOUND)
    assert held["clean_images"].dtype == np.uint8 and np.array_equal(held["clean_images"], CLEAN)
    assert np.array_equal(held["labels"], LABELS) and np.array_equal(held["predictions"], [1, 1, 0, 0, 1])
    assert held["attacks"].tolist() == ["pgd20", "square"]
    assert np.array_equal(held["robust_by_attack"], [ROBUST["pgd20"], ROBUST["square"]])
    assert held["robust"].tolist() == [True, False, False, False, True]
    assert json.loads(held["about"].item()) == ABOUT


def test_it_is_read_again_as_images_and_as_an_attack(tmp_path):
    path = save(tmp_path / "found.npz")
    assert np.array_equal(data.read_saved(path, CLEAN), FOUND)
    assert np.array_equal(data.read_saved(path, CLEAN / np.float32(255)), FOUND)
    again = data.read_images(path)
    assert np.array_equal(again.images, FOUND) and np.array_equal(again.labels, LABELS)


def test_without_attacks_every_image_is_robust(tmp_path):
    with np.load(save(tmp_path / "found.npz", robust={})) as saved:
        assert saved["robust"].all() and saved["robust_by_attack"].shape == (0, 5) and saved["attacks"].shape == (0,)


@pytest.mark.parametrize("name", ["images", "adversarial", "x_adv", "x"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
def test_arrays_of_others(name, dtype, tmp_path):
    found = np.round(FOUND * 255).astype(np.uint8) if dtype == np.uint8 else FOUND.astype(dtype)
    np.savez(tmp_path / "found.npz", **{name: found, "other": np.zeros(2)})
    np.save(tmp_path / "found.npy", found)
    expected = found / np.float32(255) if dtype == np.uint8 else found.astype(np.float32)
    for path in (tmp_path / "found.npz", tmp_path / "found.npy"):
        read = data.read_saved(path, CLEAN)
        assert read.dtype == np.float32 and np.array_equal(read, expected)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = save(tmp_path / "found.npz")
    before = path.read_bytes()

    def full(file, **content):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(WriteError, match="found\\.npz cannot be written: No space left on device"):
        save(path, images=1 - FOUND)
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["found.npz"]


def test_a_reader_never_sees_half_of_it(tmp_path):
    path = save(tmp_path / "found.npz")
    seen, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            seen.append(len(path.read_bytes()))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(20):
        save(path)
    stop.set()
    reader.join()
    assert set(seen) == {path.stat().st_size}


def test_replacing_takes_the_place_of_a_file_at_the_end(tmp_path):
    path = tmp_path / "new" / "file"
    with files.replacing(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"whole" and len(list(path.parent.iterdir())) == 1
