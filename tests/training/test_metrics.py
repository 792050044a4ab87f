"""metrics.jsonl keeps whole lines, and forgets what is computed again."""

import pytest

from robustjax.training import event_file, metrics
from robustjax.types import InputError


def test_lines_come_back_and_later_ones_are_dropped_on_resume(tmp_path):
    with metrics.MetricsWriter(tmp_path, after_step=0) as writer:
        for step in (10, 20, 30):
            writer.write("train", step, step / 10, {"loss": 1 / step})
    assert [line["step"] for line in metrics.read(tmp_path)] == [10, 20, 30]
    with metrics.MetricsWriter(tmp_path, after_step=20) as writer:
        writer.write("train", 30, 3.0, {"loss": 0.5})
    lines = metrics.read(tmp_path)
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 0.1), (20, 0.05), (30, 0.5)]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_line_cut_short_is_left_out(tmp_path):
    lines = "".join(f'{{"step": {step}, "epoch": 1, "split": "train"}}\n' for step in (1, 2))
    (tmp_path / "metrics.jsonl").write_text(lines + '{"ste')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


def test_no_file_is_no_lines(tmp_path):
    assert metrics.read(tmp_path) == []


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"{\n", b"[1]\n", b'{"step": 1}\n', b"[" * 100000 + b"\n"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged \(.*; restore it, or move it away"):
        metrics.MetricsWriter(tmp_path, after_step=0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_a_folder_in_its_place_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged \(.*Is a directory"):
        metrics.read(tmp_path)


def test_where_the_second_file_cannot_be_opened_the_first_is_closed(tmp_path, monkeypatch):
    opened = []

    class Full:
        def __init__(self, *_, **__):
            raise OSError("No space left on device")

    def recorded(*arguments, **options):
        opened.append(open(*arguments, **options))  # noqa: SIM115 - the writer has to close it
        return opened[-1]

    monkeypatch.setattr(event_file, "EventFile", Full)
    monkeypatch.setattr(metrics, "open", recorded, raising=False)
    with pytest.raises(OSError, match="No space left"):
        metrics.MetricsWriter(tmp_path, after_step=0)
    assert [file.closed for file in opened] == [True]
