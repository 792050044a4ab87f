"""The folder of an evaluation: one set of conditions at a time, nothing lost, and the worst case over all of it."""

import json

import numpy as np
import pytest

from robustjax.evaluation.protocol import folder
from robustjax.evaluation.protocol.threats import Threat

CONDITIONS = {"split": "test", "seed": 0, "weights": "abc", "source": "1", "commit": "c", "versions": {"jax": "1"}}
THREATS = [Threat("linf", 0.1)]


def mark(num_examples=10, threats=THREATS, **changed):
    return folder.mark(CONDITIONS | changed, threats, num_examples)


def test_other_conditions_have_another_name_and_other_code_has_not():
    assert mark() == mark(source="2", commit="d", versions={}, hardware={}, config={})
    others = {
        mark(11),
        mark(threats=[Threat("linf", 0.2)]),
        mark(threats=[Threat("linf", 0.1, (0.0, 0.5))]),
        mark(threats=[*THREATS, Threat("l2", 0.5)]),
        mark(seed=1),
        mark(split="train"),
        mark(weights="abd"),
        mark(data={"subset": {"seed": 1}}),
    }
    assert mark() not in others and len(others) == 8
    assert mark(split="a/b").startswith("a_b-10-linf-0.1-")


def record(name, own, accuracy=0.5, **fields):
    return {
        "attack": name, "norm": "linf", "epsilon": 0.1, "num_steps": 1, "num_restarts": 1, "seconds": 1.0,
        "accuracy": accuracy, "interval_95": (0.4, 0.6), "num_examples": 10, "robust": [True], folder.MARK: own,
        **fields,
    }  # fmt: skip


def there(path):
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def test_records_of_other_conditions_are_put_aside_and_come_back(tmp_path):
    first, second = mark(10), mark(20)
    folder.settle(tmp_path, first)
    folder.write(tmp_path, [record("clean", first), record("pgd20", first)], several=False)
    (tmp_path / "examples.png").write_bytes(b"picture")
    (tmp_path / "batches").mkdir()
    (tmp_path / "batches" / "settings.json").write_text("{}")
    before = there(tmp_path)
    folder.settle(tmp_path, first)
    assert there(tmp_path) == before
    folder.settle(tmp_path, second)
    assert there(tmp_path) == {"batches/settings.json"} | {
        f"earlier/{first}/{name}" for name in ("clean.json", "pgd20.json", "examples.png", "results.csv")
    }
    folder.write(tmp_path, [record("clean", second)], several=False)
    assert [found["attack"] for found in folder.read(tmp_path, second)] == ["clean"]
    folder.settle(tmp_path, first)
    assert before <= there(tmp_path) and (tmp_path / "earlier" / second / "clean.json").exists()
    assert [found["attack"] for found in folder.read(tmp_path, first)] == ["clean", "pgd20"]


def test_records_of_older_versions_are_put_aside(tmp_path):
    (tmp_path / "clean.json").write_text('{"attack": "clean", "accuracy": 0.5}')
    folder.settle(tmp_path, mark())
    assert there(tmp_path) == {"earlier/unmarked/clean.json"}


def test_files_of_the_users_own_stay_where_they_are(tmp_path):
    """--output may be the folder that model and data lie in."""
    own = {"mine.py": "x = 1", "package.json": '{"name": "x"}', "ts.json": "{ // x", "plot.png": "p", "a.npz": "?"}
    for name, text in own.items():
        (tmp_path / name).write_text(text)
    np.savez(tmp_path / "test.npz", images=np.zeros((1, 2, 2, 1)), labels=np.zeros(1, int))
    np.savez(tmp_path / "found.npz", images=np.zeros(1), about=json.dumps({folder.MARK: mark(20)}))
    (tmp_path / "results.csv").write_text("mine")  # a name that an evaluation writes: put aside, and not lost
    (tmp_path / "pgd20-l2-0.5.json").write_text("{")  # a damaged record
    before = there(tmp_path)
    folder.settle(tmp_path, mark())
    moved = {"results.csv", "found.npz", "pgd20-l2-0.5.json"}
    assert there(tmp_path) == (before - moved) | {f"earlier/unmarked/{name}" for name in moved}


def test_records_of_a_network_that_may_have_changed_are_put_aside_for_good(tmp_path):
    own = mark()
    folder.write(tmp_path, [record("autoattack", own)], several=False)
    (tmp_path / "sweep_epsilon.json").write_text(json.dumps({"sweep": "epsilon", folder.MARK: own}))
    for _ in range(2):
        folder.settle(tmp_path, own, anew=True)
        assert there(tmp_path) == {"sweep_epsilon.json"} | {
            f"earlier/{own}-before/{name}" for name in ("autoattack.json", "results.csv")
        }


def test_nothing_is_made_of_an_empty_folder(tmp_path):
    folder.settle(tmp_path / "new", mark())
    assert not (tmp_path / "new").exists()


def test_worst_cases_damaged_files_and_other_data_are_not_read_as_attacks(tmp_path):
    own = mark()
    entries = [
        record("pgd20", own), record("worst_case", own), record("fgsm", "other"),
        record("corruption:set", own, norm="none", epsilon=0.0),
    ]  # fmt: skip
    folder.write(tmp_path, entries, several=False)
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "sweep_epsilon.json").write_text(json.dumps({"sweep": "epsilon", folder.MARK: own}))
    assert [found["attack"] for found in folder.read(tmp_path, own)] == ["pgd20"]


@pytest.mark.parametrize(
    ("entry", "several", "name"),
    [
        (record("pgd20", ""), False, "pgd20"),
        (record("pgd20", ""), True, "pgd20-linf-0.1"),
        (record("clean", ""), True, "clean"),
        (record("worst_case", ""), True, "worst_case-linf-0.1"),
        (record("worst_case", "", norm="union", epsilon=None, threats=[{}, {}]), True, "worst_case"),
        (record("corruption:a/b", "", norm="none", epsilon=0.0), True, "corruption:a_b"),
        (record("saved:../../x.npz", ""), False, "saved:.._.._x.npz"),
        (record("../x", ""), False, "_x"),
    ],
)
def test_a_record_has_one_file_whatever_its_name(entry, several, name):
    assert folder.record_name(entry, several=several) == name


def test_a_long_name_is_cut_and_stays_its_own():
    for letter in ("x", "猫"):  # of one byte, and of three: disks count bytes
        names = {folder.file_name("saved:" + letter * 300 + end) for end in "ab"}
        assert len(names) == 2 and max(len(name.encode()) for name in names) < 130
