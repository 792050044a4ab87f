"""metrics.jsonl keeps whole lines, and forgets what is computed again."""

from robustjax.training import metrics


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
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2]


def test_no_file_is_no_lines(tmp_path):
    assert metrics.read(tmp_path) == []
