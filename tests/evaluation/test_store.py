"""The store: nothing half-written, nothing of other settings or examples, nothing damaged is ever read."""

import os

import numpy as np
import pytest

from robustjax.evaluation.protocol import store
from robustjax.runtime.files import WriteError

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.integers(0, 256, (6, 4, 4, 1), np.uint8), np.arange(6, dtype=np.int32)
MARKS = store.fingerprints(IMAGES, LABELS)
ARRAYS = {"right": np.array([1, 0, 1, 1, 0, 1]), "adversarial": np.float32(RNG.uniform(size=(2, 4, 4, 1)))}


@pytest.fixture
def filled(tmp_path):
    opened = store.open_store(tmp_path, "pgd20", {"epsilon": 0.1})
    opened.write(3, MARKS, ARRAYS)
    return opened


def only_file(opened):
    (path,) = opened.folder.glob("*.batch*")
    return path


def test_what_is_written_is_read_bit_for_bit_by_the_next_process(filled, tmp_path):
    again = store.open_store(tmp_path, "pgd20", {"epsilon": 0.1}).read(3, MARKS)
    assert again.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(again[name], values)
        assert again[name].dtype == values.dtype
    assert filled.read(2, MARKS) is None


def test_other_settings_or_names_are_other_stores(filled, tmp_path):
    for name, settings in (
        ("pgd20", {"epsilon": 0.2}),
        ("pgd20", {"epsilon": 0.1, "seed": 1}),
        ("cw", {"epsilon": 0.1}),
    ):
        assert store.open_store(tmp_path, name, settings).read(3, MARKS) is None


def test_a_batch_serves_whoever_asks_for_its_first_examples_and_no_more(filled):
    assert filled.read(3, MARKS[:4]) is not None
    more = store.fingerprints(np.concatenate([IMAGES, IMAGES[:1]]), np.append(LABELS, 0))
    assert filled.read(3, more) is None


def test_other_examples_are_not_taken_for_these(filled):
    changed = IMAGES.copy()
    changed[1, 0, 0, 0] ^= 1
    for marks in (store.fingerprints(changed, LABELS), store.fingerprints(IMAGES, LABELS + 1)):
        with pytest.raises(store.DamagedBatch, match="other examples"):
            filled.read(3, marks)


def test_any_damage_is_noticed(filled):
    path = only_file(filled)
    content = path.read_bytes()
    damaged = [b"", content[:10], content[:-1], content + b"x", b"x" * len(content)]
    for at in RNG.integers(0, len(content), 40):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(RNG.integers(8))
        damaged.append(bytes(flipped))
    for wrong in damaged:
        path.write_bytes(wrong)
        with pytest.raises(store.DamagedBatch, match=r"00003\.batch is damaged"):
            filled.read(3, MARKS)
    path.write_bytes(content)
    assert filled.read(3, MARKS) is not None


def test_nothing_is_unpickled(filled):
    with pytest.raises(ValueError, match="allow_pickle"):
        filled.write(3, MARKS, {"right": np.array([print], dtype=object)})
        filled.read(3, MARKS)


def test_a_write_that_is_cut_off_leaves_what_was_there(filled, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"00003\.batch cannot be written: No space left on device"):
        filled.write(3, MARKS, {"right": np.zeros(6, int)})
    np.testing.assert_array_equal(filled.read(3, MARKS)["right"], ARRAYS["right"])
