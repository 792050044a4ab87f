"""Files beside the records that are damaged, or of another program: each is named, and of earlier versions shown."""

import json

import numpy as np
import pytest
from made_runs import evaluated

from robustjax.analysis import page, summary
from robustjax.types import InputError

FLAG = {"name": "a", "status": "fail", "value": 1.0, "threshold": None, "n": 3, "explanation": "x"}
TRUST = {"verdict": "v", "flags": {"a": FLAG}}
POINT = {"attack": "fgsm", "epsilon": 0.1, "accuracy": 0.5, "interval_95": [0.4, 0.6]}
FIGURE = {"file": "x.png", "name": "x", "title": "t"}
WRONG = [
    ("evaluation/trust.json", {**TRUST, "flags": [FLAG]}, "flags"),
    ("evaluation/trust.json", {**TRUST, "flags": {"a": {**FLAG, "value": "high"}}}, "flags"),
    ("evaluation/trust.json", {**TRUST, "flags": {"a": {**FLAG, "n": None}}}, "flags"),
    ("evaluation/trust.json", {**TRUST, "findings": {"a": 1}}, "findings"),
    ("evaluation/trust.json", {"flags": {}}, "verdict"),
    ("evaluation/sweep_epsilon.json", {"points": None}, "points"),
    ("evaluation/sweep_epsilon.json", {"points": [{**POINT, "interval_95": [0.4]}]}, "points"),
    ("analysis/analysis.json", {"num_examples": 3, "figures": [1]}, "figures"),
    ("analysis/analysis.json", {"num_examples": "3", "figures": []}, "num_examples"),
    ("analysis/analysis.json", {"num_examples": 3, "figures": [{**FIGURE, "estimates": 3}]}, "estimates"),
    ("analysis/analysis.json", {"num_examples": 3, "figures": [FIGURE]}, "x.png"),
]


def shown(run):
    return page.page(summary.summarise([run]))


@pytest.fixture
def run(tmp_path):
    made = evaluated(tmp_path / "run")
    (made / "analysis").mkdir()
    (made / "analysis" / "x.png").write_bytes(b"no picture")
    return made


@pytest.mark.parametrize(("file", "content", "cause"), WRONG, ids=str)
def test_a_file_of_another_form_is_named(run, file, content, cause):
    (run / file).write_text(json.dumps(content))
    with pytest.raises(InputError, match="is damaged") as caught:
        shown(run)
    assert cause in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_this_form_are_shown(run):
    (run / "evaluation" / "trust.json").write_text(json.dumps(TRUST))
    (run / "evaluation" / "sweep_epsilon.json").write_text(json.dumps({"points": [POINT]}))
    assert "Accuracy under fgsm" in shown(run)


@pytest.mark.parametrize("field", ["per_class", "versions", "hardware", "commit", "attacks", "split", "dataset"])
def test_records_that_lack_a_field_are_shown(run, field):
    for value in ("absent", None):
        for path in (run / "evaluation").glob("*.json"):
            record = json.loads(path.read_text())
            record.pop(field, None) if value else record.update({field: None})
            path.write_text(json.dumps(record))
        assert "60.0" in shown(run)


@pytest.mark.parametrize(("field", "value"), [("per_class", "x"), ("versions", []), ("hardware", 3), ("attacks", "x")])
def test_records_with_a_field_of_another_form_are_named(run, field, value):
    path = run / "evaluation" / "clean.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InputError, match=f"clean.json is damaged, in {field}"):
        shown(run)


def test_a_gallery_whose_arrays_do_not_fit_is_named(run):
    images, labels = np.zeros((4, 2, 2, 1), np.float32), np.arange(4)
    names = ("labels", "predictions", "clean_predictions", "robust")
    whole = {"images": images, "clean_images": images} | dict.fromkeys(names, labels)
    changes = {"images": images[:2]}, {"predictions": labels[:1]}, {"images": images * np.nan}, {"labels": images}
    for change in changes:
        np.savez(run / "evaluation" / "images.npz", **(whole | change))
        with pytest.raises(InputError, match=r"images\.npz is damaged: its arrays do not fit each other"):
            shown(run)
    (run / "evaluation" / "images.npz").write_bytes(b"")
    with pytest.raises(InputError, match=r"images\.npz is damaged: No data left in file"):
        shown(run)


def test_figures_say_which_network_is_which(run):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(run / "analysis" / "x.png")
    networks = {"run": {"workdir": "elsewhere/run"}, "<b>": {"workdir": "elsewhere/<b>"}}
    stored = {"num_examples": 3, "figures": [FIGURE], "networks": networks}
    (run / "analysis" / "analysis.json").write_text(json.dumps(stored))
    text = shown(run)
    assert "In these figures run is small_cnn, adversarial." in text and "<b> is" not in text
    (run / "analysis" / "analysis.json").write_text(json.dumps(stored | {"networks": None}))
    assert "In these figures" not in shown(run)
