"""Runs side by side: who shares a row, what a cell says, and what cannot be compared."""

import json

import pytest
from made_runs import evaluated

from robustjax.analysis import page, summary
from robustjax.evaluation.protocol import records
from robustjax.statistics import wilson_interval
from robustjax.types import InputError


def test_seeds_share_a_row_and_configs_do_not(tmp_path):
    workdirs = [evaluated(tmp_path / f"{seed}", seed=seed, robust=60 + seed) for seed in (0, 3, 6)]
    workdirs.append(evaluated(tmp_path / "cas", robust=50, defense__name="cas", defense__beta=1.0))
    plainly, guarded = summary.summarise([*workdirs, workdirs[0]])  # the last is named twice
    assert plainly.seeds == (0, 3, 6) and guarded.seeds == (0,)
    assert (plainly.label, guarded.label) == ("no defense", "defense cas, defense.beta=1.0")
    cell = plainly.cells["pgd20"]
    assert cell.mean == pytest.approx(0.63) and cell.spread == pytest.approx(0.03)
    # The runs were evaluated on the same images: three of them say no more about other images than one does.
    assert cell.interval == wilson_interval(63, 100)


def test_the_page_holds_every_figure_and_loads_nothing(tmp_path):
    rows = summary.summarise([evaluated(tmp_path / "a"), evaluated(tmp_path / "b", robust=41, model__name="lenet5")])
    text = page.page(rows)
    for part in ("60.0", "41.0", "worst case", "linf epsilon 0.2", "model lenet5"):
        assert part in text
    assert "://" not in text and "src=" not in text.replace('src="data:', "")
    header, _, first, second = page.markdown(rows).splitlines()
    assert header == "| | seeds | clean | pgd20 | worst case |"
    assert first.startswith("| model small_cnn | 0 | 60.0 (50.2 to 69.1) |") and "41.0" in second


def test_attacks_stand_in_the_order_of_their_strength_and_as_they_are_spelled(tmp_path):
    names = ("adaptive", "autoattack:version=fast", "clean", "cw", "fgsm", "pgd100", "pgd20", "transfer:apgd@at_0")
    (row,) = summary.summarise([evaluated(tmp_path / "run", attacks=names)])
    header = page.markdown([row]).splitlines()[0]
    assert header == (
        "| | seeds | clean | fgsm | pgd20 | pgd100 | cw | transfer:apgd@at_0 | autoattack:version=fast | adaptive "
        "| worst case |"
    )
    text = page.page([row])
    assert "transfer:<wbr>apgd@<wbr>at_<wbr>0" in text and "<small>version=<wbr>fast</small>" in text
    assert "on 100 images of digits, test split" in text and "Accuracies are in per cent" in text


def test_a_defense_that_was_switched_on_stands_last_in_the_label(tmp_path):
    run = evaluated(tmp_path / "run")
    for path in (run / "evaluation").glob("*.json"):
        records.write(run / "evaluation" / "sap:fraction=0.5", path.stem, json.loads(path.read_text()))
    other = evaluated(tmp_path / "other", model__name="lenet5")
    labels = [row.label for row in summary.summarise([run, other])]
    assert labels == ["model small_cnn", "model small_cnn, evaluated with sap:fraction=0.5", "model lenet5"]


def test_a_record_of_an_earlier_version_has_the_defaults_of_newer_keys(tmp_path):
    new, old = evaluated(tmp_path / "new"), evaluated(tmp_path / "old", seed=1)
    for path in (old / "evaluation").glob("*.json"):
        record = json.loads(path.read_text())
        if "config" in record:
            del record["config"]["attack"]["random_start"], record["config"]["batch_norm"]
            path.write_text(json.dumps(record))
    (row,) = summary.summarise([new, old])
    assert row.seeds == (0, 1)


def test_what_was_not_evaluated_alike_is_not_averaged(tmp_path):
    workdirs = [evaluated(tmp_path / "a"), evaluated(tmp_path / "b", seed=1, total=90)]
    with pytest.raises(InputError, match="90 and 100 images"):
        summary.summarise(workdirs)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"epsilon": 0.1}, "got it under linf epsilon 0.1 and linf epsilon 0.2; evaluate the runs with the same flags"),
        ({"norm": "l2"}, "got it under l2 epsilon 0.2 and linf epsilon 0.2"),
        ({"dataset": "mnist"}, "got it on mnist, test split and digits, test split"),
        ({"data": {"subset": {"seed": 1}}}, "got it on the images of subset_seed 1 and None"),
        ({"attacks": ["clean"]}, "worst_case must be alike in the runs of one row, got it over clean and clean, pgd20"),
    ],
    ids=str,
)
def test_seeds_under_other_conditions_are_not_averaged(tmp_path, change, cause):
    workdirs = [evaluated(tmp_path / "a"), evaluated(tmp_path / "b", seed=1)]
    for path in (workdirs[1] / "evaluation").glob("*.json"):
        entry = json.loads(path.read_text())
        path.write_text(json.dumps(entry | {name: change[name] for name in change if name in entry or name == "data"}))
    with pytest.raises(InputError) as caught:
        summary.summarise(workdirs)
    assert cause in str(caught.value)


def test_rows_of_other_threats_say_so(tmp_path):
    workdirs = [evaluated(tmp_path / "a"), evaluated(tmp_path / "b", model__name="lenet5")]
    for path in (workdirs[1] / "evaluation").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"epsilon": 0.1}))
    labels = [row.label for row in summary.summarise(workdirs)]
    assert labels == ["model small_cnn (linf epsilon 0.2)", "model lenet5 (linf epsilon 0.1)"]


def test_a_folder_without_an_evaluation_or_with_a_damaged_one_is_named(tmp_path):
    with pytest.raises(InputError, match="holds no evaluation"):
        summary.summarise([tmp_path])
    folder = evaluated(tmp_path / "a")
    (folder / "evaluation" / "clean.json").write_text(json.dumps({"attack": "clean"})[:-3])
    with pytest.raises(InputError, match=r"clean\.json is damaged"):
        summary.summarise([folder])


def test_several_threats_have_a_column_each_and_what_is_put_aside_is_left_out(tmp_path):
    folder = evaluated(tmp_path / "run") / "evaluation"
    entry = json.loads((folder / "pgd20.json").read_text())
    records.write(folder, "pgd20-l2-0.5", entry | {"norm": "l2", "epsilon": 0.5, "accuracy": 0.25})
    threats = [{"norm": "linf", "epsilon": 0.2}, {"norm": "l2", "epsilon": 0.5}]
    union = entry | {"attack": "worst_case", "norm": "union", "epsilon": None, "threats": threats}
    records.write(folder, "worst_case", union)
    records.write(folder / "earlier" / "test-50", "fgsm", entry | {"attack": "fgsm", "num_examples": 50})
    (row,) = summary.summarise([tmp_path / "run"])
    (folder / "data=mine.npz").mkdir()  # where records of other images lie
    assert "pgd20 (l2 0.5)" in page.page([row])
    assert row.cells.keys() == {"clean", "pgd20 (linf 0.2)", "pgd20 (l2 0.5)", "worst_case"}
    assert row.cells["pgd20 (l2 0.5)"].mean == 0.25
    assert row.threats == ["linf epsilon 0.2", "l2 epsilon 0.5"]
    assert "under linf epsilon 0.2 and l2 epsilon 0.5" in page.page([row])
    for damaged in (None, [], [{"norm": "linf"}]):
        records.write(folder, "worst_case", union | {"threats": damaged})
        with pytest.raises(InputError, match="damaged, in epsilon"):
            summary.summarise([tmp_path / "run"])


def _of_model(folder, run, **about):
    """The folder of an evaluation of somebody's network, from that of a run."""
    for path in (run / "evaluation").glob("*.json"):
        records.write(folder, path.stem, json.loads(path.read_text()) | {"config": None} | about)
    return folder


def test_networks_that_are_no_runs_stand_beside_runs(tmp_path):
    run = evaluated(tmp_path / "run")
    network = {"model": "mine.py:network", "weights": "net.pt", "weights_sha256": "12ab"}
    named = _of_model(tmp_path / "named", run, network=network, dataset="test.npz", split=None)
    other = _of_model(tmp_path / "other", run, network=network | {"weights": "other.pt"})
    saved = _of_model(tmp_path / "saved|in Python", run)  # as `Evaluation.save` writes them
    for path in saved.glob("*.json"):
        entry = json.loads(path.read_text())
        path.write_text(json.dumps({name: entry[name] for name in entry if name not in ("dataset", "split")}))
    rows = summary.summarise([run, named, other, saved])
    assert [row.seeds for row in rows] == [(0,), (), (), ()]
    assert [row.label for row in rows] == [
        "small_cnn, adversarial", f"mine.py:network ({named})", f"mine.py:network ({other})", "saved|in Python",
    ]  # fmt: skip
    assert rows[1].folder == named and rows[1].cells["pgd20"].mean == 0.6
    text = page.page(rows)
    for part in ("1 run, 4 networks", "test.npz, 100 images", "images given from Python", "12ab"):
        assert part in text
    assert 'id="configs"' not in text  # nothing to compare the one config with
    assert "| saved\\|in Python |  | 60.0" in page.markdown(rows)
    (alone,) = summary.summarise([named])
    assert alone.label == "mine.py:network" and "<p>1 network, on 100 images of test.npz, under" in page.page([alone])


def test_a_verdict_saved_from_python_has_a_page(tmp_path):
    robust = [True] * 60 + [False] * 40
    flag = {"name": "surrogate_helps", "status": "fail", "value": 0.2, "threshold": 0.05, "n": 100, "explanation": "so"}
    trust = {
        "verdict": "Do not trust it.", "flags": {"surrogate_helps": flag}, "clean": 0.9, "worst_case": 0.6,
        "num_examples": 100, "norm": "linf", "epsilon": 0.1, "robust": robust, **records.conditions(),
    }  # fmt: skip
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "trust.json").write_text(json.dumps(trust))
    (row,) = summary.summarise([folder])
    assert (row.label, row.seeds, row.threats) == ("mine", (), ["linf epsilon 0.1"])
    assert {name: cell.mean for name, cell in row.cells.items()} == {"clean": 0.9, "adaptive": 0.6, "worst_case": 0.6}
    text = page.page([row])
    assert "Do not trust it." in text and "images given from Python, 100 images" in text and "1 failed" in text
    for name, damaged in (("clean", 1.5), ("worst_case", None), ("robust", "all")):
        (folder / "trust.json").write_text(json.dumps(trust | {name: damaged}))
        with pytest.raises(InputError, match=r"trust\.json is damaged, in"):
            summary.summarise([folder])
