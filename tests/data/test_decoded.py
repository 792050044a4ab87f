"""What is kept of decoded splits: the same arrays again, never others, and no trouble when it cannot be kept."""

import os

import numpy as np
import pytest

from robustjax.data import decoded


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "SECONDS_WORTH_KEEPING", -1.0)
    file = tmp_path / "records"
    file.write_bytes(b"records")
    calls = []

    def read(indices=(0, 1, 2), image_size=None):
        indices = np.array(indices)

        def decode():
            calls.append(len(indices))
            images = np.arange(len(indices) * 12, dtype=np.uint8).reshape(-1, 2, 2, 3) + np.uint8(os.stat(file).st_size)
            return images, indices.astype(np.int32)

        return decoded.remembered([file], indices, image_size, decode)

    read.file, read.calls, read.kept = file, calls, lambda: list((tmp_path / "cache/robustjax/decoded").glob("*"))
    return read


def test_the_second_time_nothing_is_decoded(case):
    first, second = case(), case()
    assert case.calls == [3]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_other_examples_sizes_or_files_are_decoded(case):
    case()
    case((0, 1))
    case(image_size=2)
    case.file.write_bytes(b"other records")
    images, _ = case()
    assert case.calls == [3, 2, 3, 3]
    assert images[0, 0, 0, 0] == len(b"other records")


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_what_is_damaged_is_decoded_and_kept_again(case, damage):
    whole = case()
    (kept,) = case.kept()
    content = bytearray(kept.read_bytes())
    at = content.index(whole[0].tobytes())
    content[at] ^= 1
    kept.write_bytes({"empty": b"", "cut": content[: at + 5], "flipped": content}[damage])
    np.testing.assert_array_equal(case()[0], whole[0])
    np.testing.assert_array_equal(case()[0], whole[0])
    assert case.calls == [3, 3]


def test_what_cannot_be_kept_is_given_all_the_same(case, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    images, labels = case()
    assert images.shape == (3, 2, 2, 3) and labels.tolist() == [0, 1, 2]


def test_what_is_quickly_decoded_is_not_kept(case, monkeypatch):
    monkeypatch.setattr(decoded, "SECONDS_WORTH_KEEPING", 60.0)
    case()
    assert not case.kept()


def test_files_that_are_gone_are_the_readers_to_report(case):
    case.file.unlink()
    with pytest.raises(FileNotFoundError):
        case()
