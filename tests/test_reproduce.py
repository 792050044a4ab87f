"""benchmarks/reproduce.py and the modules beside it: the table and the cards are what the records say."""

import doctest
import importlib
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

from robustjax import config as config_lib
from robustjax.statistics import paired_difference, wilson_interval
from robustjax.types import InputError

HERE = Path(__file__).resolve().parents[1]
N = 200


@pytest.fixture(scope="module")
def cells():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE / "benchmarks")
        yield importlib.import_module("cells")


@pytest.fixture(scope="module")
def table(cells):
    return importlib.import_module("table")


@pytest.fixture(scope="module")
def cards(cells):
    return importlib.import_module("table_cards")


@pytest.mark.parametrize("name", ["cells", "table", "table_picture", "table_sentences"])
def test_the_examples_in_docstrings_hold(cells, name):
    """The suite collects those of the package only."""
    ran = doctest.testmod(importlib.import_module(name))
    assert ran.attempted and not ran.failed


def record(cells, robust, failed=(), pgd20=None, **verdict):
    """Of a cell with these images robust under the judge, and all under what is not said."""
    everything = cells.packed(np.ones(N, bool))
    attacks = dict.fromkeys(("clean", "fgsm", "cw", "pgd100", "autoattack", "transfer"), everything)
    own = {"n": N, "robust": cells.packed(robust), "failed": list(failed), "warned": [], "findings": [], **verdict}
    return {
        "training": {"epochs": 50, "best_validation_pgd": 0.83},
        "protocol": {"n": N, "robust": attacks | {"pgd20": everything if pgd20 is None else cells.packed(pgd20)}},
        "judge": own,
        "judge_with_hints": own | {"robust": everything},
    }


def written(cells, table, folder, **records):
    for name, values in records.items():
        cells.write(folder, "digits", cells.Cell(name, "", 0), values)
    text = table.write_table(folder, published=HERE / "results" / "published.json").read_text()
    return text.split("## mnist")[0], text


def test_the_table_is_what_the_records_say(cells, table, tmp_path):
    first, second = np.arange(N) < 100, np.arange(N) < 150
    at, cas = record(cells, first, pgd20=first), record(cells, second, ["shattered_gradients"])
    fsr = record(cells, second)
    del fsr["judge"]
    digits, _ = written(cells, table, tmp_path, at=at, at_cas=cas, at_sns=record(cells, ~first), at_fsr=fsr)
    lines = {line.split("`")[1]: line for line in digits.splitlines() if line.startswith("| `")}
    assert "| 1 of 3 | 200 | 100.0 |" in lines["at"] and "| 50.0 (43.1 to 56.9) | none |  |" in lines["at"]
    assert "shattered_gradients | higher: +25.0 (+18.7 to +30.8) |" in lines["at_cas"]
    assert "undecided: +0.0 (-13.8 to +13.8)" in lines["at_sns"]
    # A part that is missing is missing, and counts for neither side of a comparison; what is there is shown.
    assert "| missing | 100.0 | 100.0 (98.1 to 100.0) | none | higher: +50.0 (+" in lines["at_fsr"]
    assert "mart_fsr" not in lines and "\nMissing: `at_cifs`, `at_sap`, " in digits and "`standard_kwta`.\n" in digits
    assert len({line.count("|") for line in lines.values()}) == 1


def test_sentences_follow_from_the_intervals(cells, table, tmp_path):
    half, more = np.arange(N) < 100, np.arange(N) < 150
    at = record(cells, half, pgd20=half)
    reversed_, same = record(cells, half[::-1] & more, pgd20=more), record(cells, half, pgd20=more)
    digits, _ = written(cells, table, tmp_path, at=at, at_cas=reversed_, at_cifs=record(cells, more), at_sns=same)
    cas, cifs, sns = (line for line in digits.splitlines() if line.startswith("- `at_"))
    assert "CAS (Bai et al. 2021), against `at`, points: +25.0 (+18.7 to +30.8) under PGD-20 (n = 200), +0.0" in cas
    assert cas.endswith("More robust under PGD-20, less robust in the worst case.")
    assert cifs.endswith(", of 1 seed. More robust under PGD-20 and in the worst case.")
    # The interval ends far below what was gained under PGD-20, and nothing is added.
    assert "+0.0 (-1.0 to +1.0) in the worst case" in sns
    assert sns.endswith("What is gained under PGD-20 is not seen in the worst case.")


def test_one_sentence_on_each_abstract_has_every_complete_cell_by_its_outcome(cells, table, tmp_path):
    half, more = np.arange(N) < 100, np.arange(N) < 150
    incomplete = record(cells, more)
    del incomplete["judge_with_hints"]
    names = {"at": record(cells, half, pgd20=half), "at_cas": record(cells, half[::-1] & more, pgd20=more)}
    _, text = written(cells, table, tmp_path, **names, at_cifs=incomplete, trades=record(cells, half),
                      trades_cas=record(cells, more), mart_cas=record(cells, more))  # fmt: skip
    told = text.split("## What this says of each abstract")[1].split("\n## ")[0]
    (cas,) = (line for line in told.splitlines() if line.startswith("- "))  # of CIFS no cell is complete
    assert "CAS (Bai et al. 2021) says that suppressing redundant channels makes" in cas and "mart" not in cas
    assert "without an attack no significant difference on digits (`at_cas` +0.0, `trades_cas` +0.0); " in cas
    assert "; under PGD-20 higher on digits (`at_cas` +25.0), no significant difference on digits (`trades_cas`" in cas
    assert cas.endswith("; in the worst case higher on digits (`trades_cas` +25.0), lower on digits (`at_cas` -25.0).")
    assert set(importlib.import_module("table_sentences").ABSTRACTS) == {"sap", "cas", "cifs", "fsr", "sns"}
    untrained = record(cells, more)
    untrained["protocol"]["robust"]["clean"] = cells.packed(np.arange(N) < 99)
    digits, text = written(cells, table, tmp_path, at_fsr=untrained)
    told = text.split("## What this says of each abstract")[1].split("\n## ")[0]
    assert "- FSR" not in told and "\nLeft out: `at_fsr` on digits.\n" in told
    (fsr,) = (line for line in digits.splitlines() if line.startswith("- `at_fsr`"))
    assert fsr.endswith("it is right on 49.5 % of the images, its baseline on 100.0 %. This compares no defenses.")


def test_networks_that_are_both_at_0_are_not_compared(cells, table, tmp_path):
    none = record(cells, np.zeros(N, bool), pgd20=np.zeros(N, bool))
    digits, text = written(cells, table, tmp_path, standard=none, standard_sap=none, at=none, at_cas=none)
    rows = [line for line in digits.splitlines() if line.startswith(("| `standard_sap`", "| `at_cas`"))]
    assert len(rows) == 2 and all(row.endswith("| not compared: both at 0 |") for row in rows)
    told = [line for line in digits.splitlines() if line.startswith("- `")]
    floor = "of 1 seed. Both are right on fewer than 1 % in the worst case, where nothing can be compared."
    assert len(told) == 2 and all(line.endswith(floor) for line in told)
    assert "\nLeft out: `at_cas` on digits, `standard_sap` on digits.\n" in text
    one = record(cells, np.arange(N) < 2)
    assert "undecided" in written(cells, table, tmp_path, at_cas=one)[0]  # 1 % is a figure


def test_what_seeds_alone_make_is_counted_and_said_of_each_difference_of_one_seed(cells, table, tmp_path):
    """Two of `at`, 20 points apart in the worst case; `at_cas` of one seed, 10 above its baseline; and 30."""
    first, second, third, fourth = (record(cells, np.arange(N) < count) for count in (100, 140, 120, 160))
    for cell, values in {("at", 0): first, ("at", 1): second, ("at_cas", 0): third, ("at_cifs", 0): fourth}.items():
        cells.write(tmp_path, "digits", cells.Cell(cell[0], "", cell[1]), values)
    cells.write(tmp_path, "digits", cells.Cell("at", "sap", 0), third)  # the same network, with SAP switched on
    digits, _ = written(cells, table, tmp_path)
    cas, cifs, sap = (line for line in digits.splitlines() if line.startswith("- `at_"))
    assert cas.endswith(" PGD-20 does not show. Two seeds of one baseline differ as much in the worst case.")
    assert "seeds of one baseline" not in cifs + sap
    assert (
        "are higher or lower than each other in 1 of 3 comparisons without an attack, under PGD-20 and in the worst "
        "case, there by up to 20.0 points." in digits
    )


def test_a_network_that_diverged_is_said_to_have_another_learning_rate(cells, table, cards, tmp_path):
    half = np.arange(N) < 100
    slower = record(cells, half)
    slower["training"]["rate_factor"] = 0.25
    digits, _ = written(cells, table, tmp_path, at=record(cells, half), at_fsr=slower)
    assert "of 1 seed. It diverged, and was trained at 0.25 of the config's learning rate from there. No diff" in digits
    card = cards.text(cells.SCALES["digits"], cells.Cell("at_fsr", "", 0), slower)
    assert "- learning rate: 0.25 of the config's at the end, as training diverged\n" in card
    assert "learning rate" not in cards.text(cells.SCALES["digits"], cells.Cell("at", "", 0), record(cells, half))


def test_of_several_seeds_each_figure_says_of_how_many_and_each_difference_has_all(cells, table, tmp_path):
    """Three of `at`, of which one has no verdicts; two of `at_cas`, of which one gains and the other loses."""
    half, more, fewer = (np.arange(N) < count for count in (100, 160, 90))
    begun = record(cells, half, pgd20=half)
    del begun["judge"], begun["judge_with_hints"]
    first, second = record(cells, more, ["zero_gradients"], pgd20=more), record(cells, fewer, pgd20=half)
    seeds = {"at": [record(cells, half, pgd20=half)] * 2 + [begun], "at_cas": [first, second]}
    for name, records in seeds.items():
        for seed, values in enumerate(records):
            cells.write(tmp_path, "digits", cells.Cell(name, "", seed), values)
    digits, text = written(cells, table, tmp_path)
    at, cas = (line for line in digits.splitlines() if line.startswith("| `"))
    assert at.startswith("| `at` | 3 of 3 | 200 | 100.0 ± 0.0 | 100.0 ± 0.0 | 50.0 ± 0.0 |")
    assert "| 50.0 ± 0.0, 2 seeds | 100.0 ± 0.0, 2 seeds | 50.0 ± 0.0 (43.1 to 56.9), 2 seeds | none |" in at
    assert "| 62.5 ± 24.7 | 100.0 ± 0.0 | 62.5 ± 24.7 (55.6 to 68.9) | zero_gradients (1 of 2) |" in cas
    # Means of +1/2 on 60 images and -1/2 on 10: (25 +- 1.96 sqrt(1 + 17.5 - 25^2 / 202)) / 202 is above 0, but one of
    # the two seeds loses.
    assert cas.endswith("| undecided: +12.5 (+8.6 to +16.2; by seed +30.0, -5.0) |")
    (told,) = (line for line in digits.splitlines() if line.startswith("- `at_cas`"))
    assert "+15.0 (+11.6 to +18.1; by seed +30.0, +0.0) under PGD-20" in told
    assert told.endswith(
        ", of 2 seeds. What is gained under PGD-20 is not seen in the worst case. A difference as large as under "
        "PGD-20 is inside the interval of the worst case. Seeds differ in sign in the worst case."
    )
    assert "; under PGD-20 higher on digits (`at_cas` +15.0 of 2 seeds); under AutoAttack" in text
    # A third seed without the protocol is in no figure, and one without verdicts in no difference.
    cells.write(tmp_path, "digits", cells.Cell("at_cas", "", 2), {"judge": first["judge"]})
    assert cas in written(cells, table, tmp_path)[0]
    cells.write(tmp_path, "digits", cells.Cell("at_cas", "", 2), begun)
    (cas,) = (line for line in written(cells, table, tmp_path)[0].splitlines() if line.startswith("| `at_cas`"))
    assert cas.endswith("by seed +30.0, -5.0), 2 seeds |") and "| 3 of 3 |" in cas


def test_a_difference_has_the_decimals_that_show_its_sign(cells):
    made = lambda *figures: str(cells.Difference(*figures[:3], 10_000, figures[3:]))  # noqa: E731
    assert made(0.0015, 0.00003, 0.00297, 0.0015) == "+0.150 (+0.003 to +0.297)"
    assert made(-0.003, -0.0065, 0.00047, -0.003) == "-0.30 (-0.65 to +0.05)"
    assert made(0.0, -0.0388, 0.0388, 0.0) == "+0.0 (-3.9 to +3.9)"
    assert made(-0.02, -0.03, -0.01, -0.04, 0.0) == "-2.0 (-3.0 to -1.0; by seed -4.0, +0.0)"


def test_differences_that_attacks_which_failed_may_have_made_are_marked(cells, table, tmp_path):
    half, more = np.arange(N) < 100, np.arange(N) < 150
    failed = ["more_restarts_help"]
    for own, base, doubtful, mark in (
        (
            record(cells, more, failed),
            record(cells, half),
            "`at_cas`: better attacks may leave less of this difference.",
            "+25.0\\*",
        ),
        (
            record(cells, half),
            record(cells, more, failed),
            "`at`: better attacks may leave less of this difference.",
            "-25.0\\*",
        ),
        (record(cells, more), record(cells, half, failed), "", "+25.0"),
        (record(cells, half, failed), record(cells, more), "", "-25.0"),
        (
            record(cells, half, failed),
            record(cells, more, failed),
            "Flags failed on both: better attacks may leave less or more of this difference.",
            "-25.0\\*",
        ),
    ):
        digits, text = written(cells, table, tmp_path, at=base, at_cas=own)
        (told,) = (line for line in digits.splitlines() if line.startswith("- `at_cas`"))
        assert told.endswith(doubtful) and ("Flags failed on" in told) == bool(doubtful)
        assert f"digits (`at_cas` {mark})." in text


def test_a_stochastic_network_is_compared_over_the_verdict_that_decides_of_it(cells, tmp_path):
    """Its baseline is not held against attacks that do not count for it."""
    half = np.arange(N) < 100
    for cell, values in {
        cells.Cell("at", "", 0): record(cells, half, pgd20=half),
        cells.Cell("at", "sap", 0): record(cells, half, pgd20=half, stochastic=True),
    }.items():
        cells.write(tmp_path, "digits", cell, values)
    ((own, base),) = cells.pairs(tmp_path, "digits", [cells.Cell("at", "sap", 0)])
    assert own.all() and base.all()


def test_the_page_and_the_cards_are_made_of_the_records_that_lie_beside_them(cells, cards, table, tmp_path):
    results = HERE / "results"
    shutil.copytree(results / "table", tmp_path / "table")
    made = table.write_table(tmp_path, published=results / "published.json").read_text()
    assert made == (results / "TABLE.md").read_text()  # benchmarks/reproduce.py --table makes both
    for name, scale in cells.SCALES.items():
        for cell in cells.cells(scale):
            record = cells.place(results, name, cell)
            if record.exists():
                card = cards.text(scale, cell, cells.read(results, name, cell))
                assert card == record.with_suffix(".md").read_text()


def test_the_picture_shows_what_the_table_says(cells, tmp_path):
    picture = importlib.import_module("table_picture")
    digits = cells.SCALES["digits"]
    assert picture.write(tmp_path, "digits", digits) is None and not list(tmp_path.iterdir())
    half, most = np.arange(N) < 100, np.arange(N) < 160
    cells.write(tmp_path, "digits", cells.Cell("at", "", 0), record(cells, most, pgd20=most))
    cells.write(tmp_path, "digits", cells.Cell("at_cas", "", 0), record(cells, half, pgd20=most))
    cells.write(tmp_path, "digits", cells.Cell("at_cas", "", 1), record(cells, most, pgd20=half))
    cells.write(tmp_path, "digits", cells.Cell("at_fsr", "", 0), {"training": {"epochs": 1}})
    cells.write(tmp_path, "digits", cells.Cell("at", "sap", 0), record(cells, most, pgd20=most, stochastic=True))
    axis = picture.draw(tmp_path, "digits", digits).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["at", "at_cas", "at_sap"]
    drawn = {}
    for line in axis.lines:
        drawn.setdefault(line.get_label(), []).append((line.get_xdata()[0], line.get_ydata()[0]))
    assert drawn["worst case"] == [(80.0, 0.0), (50.0, 1.0), (100.0, 2.0)]
    assert drawn["PGD-20"] == [(80.0, 0.0), (65.0, 1.0), (80.0, 2.0)]
    assert drawn["no attack"] == drawn["AutoAttack"] == [(100.0, 0.0), (100.0, 1.0), (100.0, 2.0)]
    # As far from the dot as the table says: 30 points, and of SAP, by the verdicts with hints of both, none.
    dashed = [[line.get_xdata()[0], *line.get_ydata()] for line in axis.lines if line.get_linestyle() == "--"]
    assert dashed == [pytest.approx([80.0, 0.5, 1.5]), pytest.approx([100.0, 1.5, 2.5])]
    assert drawn["worst case of each seed"] == [(50.0, 1.33)]
    low, high = (100 * end for end in wilson_interval(100, N))
    assert [low, high] in [pytest.approx(list(line.get_xdata())) for line in axis.lines if len(line.get_xdata()) == 2]
    assert picture.write(tmp_path, "digits", digits).read_bytes().startswith(b"\x89PNG")


def test_a_seed_that_was_not_attacked_in_full_is_in_no_difference(cells, table, tmp_path):
    half, none = np.arange(N) < 100, np.zeros(N, bool)
    begun = record(cells, half, pgd20=none)
    del begun["judge"], begun["judge_with_hints"]
    cells.write(tmp_path, "digits", cells.Cell("at", "", 1), record(cells, half, pgd20=half))
    cells.write(tmp_path, "digits", cells.Cell("at_cas", "", 1), begun)
    whole = record(cells, half, pgd20=half)
    digits, text = written(cells, table, tmp_path, at=whole, at_cas=whole)
    assert "| `at_cas` | 2 of 3 |" in digits
    assert "- `at_cas`, CAS (Bai et al. 2021), against `at`, points: +0.0 (" in digits
    assert "under PGD-20 no significant difference on digits (`at_cas` +0.0)" in text


def test_the_worst_case_is_over_all_attacks_but_of_a_stochastic_network_over_one_verdict(cells):
    judged, attacked = np.arange(N) % 2 == 0, np.arange(N) < 120
    np.testing.assert_array_equal(cells.worst_case(record(cells, judged, pgd20=attacked)), judged & attacked)
    assert cells.worst_case(record(cells, judged, pgd20=attacked, stochastic=True)).all()
    fewer = record(cells, judged[:50], pgd20=attacked, n=50)
    fewer["judge_with_hints"]["robust"] = cells.packed(np.ones(50, bool))
    np.testing.assert_array_equal(cells.worst_case(fewer), judged[:50])  # the protocol has more images
    assert cells.worst_case({"protocol": {}}) is None
    alone = record(cells, judged, pgd20=attacked)
    np.testing.assert_array_equal(cells.worst_case(alone, ["protocol", "judge_with_hints"]), attacked)


def test_a_card_says_what_was_measured_and_what_the_network_is_not_for(cells, cards, tmp_path):
    values = record(cells, np.arange(N) < 100, ["zero_gradients"])
    values["network"] = {"config": "`configs/digits.py:at_cas`, seed 0", "threat": "linf 0.2"}
    values["conditions"] = {"commit": "abc", "versions": {"robustjax": "1", "jax": "2", "flax": "3"}}
    cell = cells.Cell("at_cas", "", 0)
    cells.write(tmp_path, "digits", cell, values)
    cards.write(tmp_path, "digits", cell)
    card = (tmp_path / "table" / "digits" / "at_cas_0.md").read_text()
    assert "- config: `configs/digits.py:at_cas`, seed 0\n" in card and "- threat: linf 0.2\n" in card
    assert "| judge | 200 | 50.0 % | 43.1 to 56.9 % |" in card and "| judge with hints | 200 | 100.0 % |" in card
    assert "- flags that failed, judge: zero_gradients\n" in card and "Intended use: " in card
    assert "commit abc" in card
    assert "| PGD-20 | | missing | |" in cards.text(cells.SCALES["digits"], cell, {})


def test_a_network_is_described_by_its_config(cells, table):
    reproduce = importlib.import_module("reproduce")
    scale = cells.SCALES["digits"]
    about = reproduce.described(scale, cells.Cell("at_sns", "", 1))
    assert about["config"] == "`configs/digits.py:at_sns`, seed 1" and about["threat"] == "linf 0.2"
    assert about["model"] == "wide_resnet, depth 10, width 1" and about["defense"].startswith("sns, ")
    assert "not in training" in reproduce.described(scale, cells.Cell("at", "sap", 0))["defense"]
    assert reproduce.described(scale, cells.Cell("standard", "", 0))["training_attack"] == "none"
    assert set(about) <= set(importlib.import_module("table_cards").DESCRIBED)


def test_a_training_that_was_stopped_is_no_record(cells, table, tmp_path, monkeypatch):
    reproduce = importlib.import_module("reproduce")
    monkeypatch.setattr(reproduce, "RUNS", types.SimpleNamespace(value=str(tmp_path)))
    monkeypatch.setattr(reproduce.runs, "train", lambda config, workdir: types.SimpleNamespace(complete=False))
    with pytest.raises(KeyboardInterrupt):
        reproduce.train("digits", cells.SCALES["digits"], cells.Cell("at", "", 0))


@pytest.mark.parametrize(
    ("parts", "trains"), [(["training"], True), ([], True), (["judge"], True), (["protocol"], False)]
)
def test_a_network_that_has_a_record_and_no_folder_is_trained_where_it_is_needed(
    cells, table, tmp_path, monkeypatch, parts, trains
):
    reproduce = importlib.import_module("reproduce")
    given = {"SCALE": "digits", "ONLY": ["at"], "SEEDS": ["0"], "ONLY_PARTS": parts, "RESULTS": str(tmp_path)}
    for name, value in {"LIST": False, "TABLE": False, **given}.items():
        monkeypatch.setattr(reproduce, name, types.SimpleNamespace(value=value))
    cell = cells.Cell("at", "", 0)
    measured = record(cells, np.ones(N, bool))
    del measured["judge"], measured["judge_with_hints"]
    cells.write(tmp_path, "digits", cell, measured)
    done = []
    monkeypatch.setattr(reproduce, "train", lambda name, scale, cell: done.append("training"))
    monkeypatch.setattr(reproduce, "measure", lambda name, scale, cell, part: done.append(part))
    monkeypatch.setattr(reproduce, "write_table", lambda: None)
    reproduce.main()
    missing = [part for part in ("judge", "judge_with_hints") if part in (parts or cells.PARTS)]
    assert done == (["training"] if trains else []) + missing
    assert cells.read(tmp_path, "digits", cell) == measured


def test_a_training_that_diverges_keeps_no_other_cell_waiting(cells, table, tmp_path, monkeypatch, capsys):
    reproduce = importlib.import_module("reproduce")
    flags = {"SCALE": "digits", "ONLY": ["at", "at_cas"], "ONLY_PARTS": ["training"]}
    for name, value in {**flags, "LIST": False, "TABLE": False, "RESULTS": str(tmp_path)}.items():
        monkeypatch.setattr(reproduce, name, types.SimpleNamespace(value=value))

    def train(name, scale, cell):
        if cell.name == "at":
            raise FloatingPointError("gradient_norm is nan in the 29 steps up to step 429")
        return {"epochs": 50, "best_validation_pgd": 0.8}

    monkeypatch.setitem(reproduce.WORK, "training", train)
    monkeypatch.setattr(reproduce, "SEEDS", types.SimpleNamespace(value=["0", "7"]))
    with pytest.raises(InputError, match="--seeds must be of 0, 1, 2, which these cells have, got 7"):
        reproduce.main()
    monkeypatch.setattr(reproduce, "SEEDS", types.SimpleNamespace(value=["0"]))
    assert reproduce.main() == 1
    assert "cell 1 of 2: at, seed 0: training diverged: gradient_norm is nan" in capsys.readouterr().err
    assert [path.name for path in sorted((tmp_path / "table" / "digits").glob("*.json"))] == ["at_cas_0.json"]


def test_what_papers_report_has_setting_and_source(cells, table):
    lines = list(table.reported(HERE / "results" / "published.json"))
    assert len(lines) == 4 + len(cells.PAPERS) and len({line.count("|") for line in lines[3:]}) == 1


def test_where_one_network_has_fewer_images_the_first_ones_are_compared(cells):
    own, base = np.arange(50) < 40, np.arange(N) < 20
    found = cells.beyond([(own, base), (None, base)])
    assert found.n == 50 and found.value == pytest.approx(0.4) and found.outcome == "higher"
    assert cells.beyond([(None, base)]) is None


def test_bits_are_kept_whole(cells):
    bits = np.random.default_rng(0).random(1001) < 0.5
    text = json.loads(json.dumps(cells.packed(bits)))
    assert len(text) < 180
    np.testing.assert_array_equal(cells.unpacked(text, 1001), bits)


def test_cells_are_compared_with_the_network_without_the_defense(cells):
    every = list(cells.cells(cells.SCALES["digits"]))
    assert len(every) == len(set(every)) == 32
    for cell in every:
        assert (cell.base is None) == (cell.name in ("at", "standard", "trades", "mart"))
        assert cell.base is None or (cell.base in every and cell.name.startswith(cell.base.name))


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "full"])
def test_every_cell_of_a_scale_can_be_trained(cells, name):
    """Each has a config that is in order, and all of a table differ in objective, defense and its options alone."""
    reproduce = importlib.import_module("reproduce")
    scale = cells.SCALES[name]
    shared = None
    for cell in cells.cells(scale):
        config = reproduce.config_of(scale, cell)
        config_lib.validate(config)
        assert config.seed == cell.seed and (config.objective.name == "adversarial") == (cell.objective == "at")
        assert (config.defense.name or "") == (cell.defense if not cell.switched_on else "")
        plain = config_lib.plain(config)
        for key in ("seed", "defense", "objective"):
            del plain[key]
        shared = shared or plain
        assert plain == shared


def test_cells_come_in_order_of_value(cells):
    names = [cell.name for cell in cells.cells(cells.SCALES["cifar10"])]
    first = ["at", "at_cas", "at_cifs", "at_fsr", "at_sns", "at_sap", "at_meansparse", "at_kwta"]
    assert names[:9] == [*first, "trades"] and len(names) == len(set(names)) == 22
    full = list(cells.cells(cells.SCALES["full"]))
    assert [cell.name for cell in full[:4]] == ["at", "at@last", "at_cas", "at_cas@last"] and len(full) == 44
    assert {cell.base.name for cell in full if cell.base is not None and cell.checkpoint == "last"} == {
        "at@last", "trades@last", "mart@last", "standard@last"
    }  # fmt: skip


def test_a_cell_of_the_last_checkpoint_evaluates_that(cells, cards, tmp_path, monkeypatch):
    reproduce = importlib.import_module("reproduce")
    asked = []

    def evaluate_run(options):
        asked.append((options.attacks[0], options.checkpoint, options.num_examples, options.defense))
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "RUNS", types.SimpleNamespace(value=str(tmp_path)))
    monkeypatch.setattr(reproduce.evaluation, "evaluate_run", evaluate_run)
    for cell in (cells.Cell("at", "", 0), cells.Cell("at", "sap", 0, "last")):
        for part in ("protocol", "judge_with_hints"):
            with pytest.raises(KeyboardInterrupt):
                reproduce.WORK[part]("full", cells.SCALES["full"], cell)
    assert asked == [
        ("clean", "best", None, None),
        ("adaptive", "best", 10_000, None),
        ("clean", "last", 1000, "sap:sampler=bernoulli"),
        ("adaptive", "last", 1000, "sap:sampler=bernoulli"),
    ]
    assert reproduce.names_of(cells.Cell("at", "sap", 0, "last")) == {"at_sap", "at_sap@last"}
    training = {"epochs": 60, "best_validation_pgd": 0.5, "last_validation_pgd": 0.4}
    card = cards.text(cells.SCALES["full"], cells.Cell("at", "", 0, "last"), {"training": training})
    assert "- checkpoint: the last of 60 epochs, 40.0 % of the validation images" in card


def test_a_part_that_another_process_adds_meanwhile_is_kept(cells, tmp_path, monkeypatch):
    reproduce = importlib.import_module("reproduce")
    cell, scale = cells.Cell("at", "", 0), cells.SCALES["digits"]
    made = record(cells, np.ones(N, bool))

    def protocol(*_):
        cells.write(tmp_path, "digits", cell, {"judge": made["judge"] | {"commit": "0fab31477"}})
        return made["protocol"]

    monkeypatch.setitem(reproduce.WORK, "protocol", protocol)
    monkeypatch.setattr(reproduce, "RESULTS", types.SimpleNamespace(value=str(tmp_path)))
    monkeypatch.setattr(reproduce.records, "conditions", lambda: {"commit": "c1e92f77", "source": "", "versions": {
        "robustjax": "1", "jax": "2", "flax": "3"}})  # fmt: skip
    reproduce.measure("digits", scale, cell, "protocol")
    kept = cells.read(tmp_path, "digits", cell)
    assert {"protocol", "judge"} <= set(kept) and cells.commits(kept) == {"0fab314", "c1e92f7"}
    assert "commit 0fab314, c1e92f7" in cells.place(tmp_path, "digits", cell).with_suffix(".md").read_text()


def test_differences_of_pairs_against_resampling():
    rng = np.random.default_rng(1)
    first = rng.random((3, 500)) < 0.7
    second = first & (rng.random((3, 500)) < 0.9)
    difference, (low, high) = paired_difference(first, second)
    change = (first.astype(float) - second).mean(axis=0)
    assert difference == pytest.approx(change.mean())
    resampled = change[rng.integers(0, 500, (4000, 500))].mean(axis=1)
    assert (low, high) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))), abs=0.004)
    assert paired_difference(first[0], first[0]) == (
        0.0,
        (pytest.approx(-0.0039, abs=1e-4), pytest.approx(0.0039, abs=1e-4)),
    )
