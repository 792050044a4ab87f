"""benchmarks/reproduce.py: the table of defenses is made from records, and says what is missing."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from robustjax.statistics import paired_difference

HERE = Path(__file__).resolve().parents[1]
N = 200


@pytest.fixture(scope="module")
def reproduce():
    spec = importlib.util.spec_from_file_location("reproduce", HERE / "benchmarks" / "reproduce.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module
    spec.loader.exec_module(module)
    return module


def record(reproduce, robust, failed=()):
    """Of a cell with these images robust under the judge, and all under everything else."""
    everything = reproduce.packed(np.ones(N, bool))
    verdict = {"n": N, "worst_case": float(robust.mean()), "robust": reproduce.packed(robust), "failed": list(failed)}
    return {
        "training": {},
        "protocol": {"n": N, "robust": dict.fromkeys(reproduce.COLUMNS, everything)},
        "judge": verdict,
        "judge_with_hints": verdict | {"worst_case": 1.0, "robust": everything},
    }


def test_the_table_is_what_the_records_say(reproduce, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "RESULTS", types.SimpleNamespace(value=str(tmp_path)))
    first, second = np.arange(N) < 100, np.arange(N) < 150
    for name, bits, failed in (("at", first, ()), ("at_cas", second, ["shattered_gradients"]), ("at_sns", ~first, ())):
        reproduce.write("digits", reproduce.Cell(name, "", 0), record(reproduce, bits, failed))
    reproduce.write_table()
    text, _ = (tmp_path / "TABLE.md").read_text().split("## mnist")
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert "| 1 of 3 | 100.0 |" in lines["at"] and "| 50.0 (43.1 to 56.9) | none |  |" in lines["at"]
    assert "shattered_gradients | gains: +25.0 (+18.7 to +30.8) |" in lines["at_cas"]
    assert "undecided: +0.0 (-13.8 to +13.8)" in lines["at_sns"]
    assert "missing" in lines["mart_fsr"]


def test_bits_are_kept_whole(reproduce):
    bits = np.random.default_rng(0).random(1001) < 0.5
    text = json.loads(json.dumps(reproduce.packed(bits)))
    assert len(text) < 180
    np.testing.assert_array_equal(reproduce.unpacked(text, 1001), bits)


def test_cells_are_compared_with_the_network_without_the_defense(reproduce):
    cells = list(reproduce.cells(reproduce.SCALES["digits"]))
    assert len(cells) == len(set(cells)) == 32
    for cell in cells:
        assert (cell.base is None) == (cell.name in ("at", "standard", "trades", "mart"))
        assert cell.base is None or (cell.base in cells and cell.name.startswith(cell.base.name))


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
