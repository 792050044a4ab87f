"""Files are there whole or not at all."""

import os

from robustjax.runtime import files


def test_content_reaches_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda path, target: (events.append("rename"), replace(path, target))[1]
    )
    files.write(tmp_path / "deep" / "file", b"content")
    assert events == ["fsync", "rename", "fsync"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["file"]


def test_two_processes_that_write_one_file_leave_one_of_them_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    with files.replacing(path) as slow:
        slow.write(b"sl")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            files.write(path, b"quick")
        assert path.read_bytes() == b"quick"
        slow.write(b"ow")
    assert path.read_bytes() == b"slow" and list(tmp_path.iterdir()) == [path]
