"""benchmarks/claims.py: when a claim is confirmed, refuted or undecided."""

import importlib
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE / "benchmarks")
        yield importlib.import_module("claims")


def test_a_claim_is_decided_by_the_side_on_which_its_interval_lies(program):
    above, below, both = ((0.2, 0.1, 0.3), (-0.2, -0.3, -0.1), (0.0, -0.1, 0.1))
    made = lambda found, **options: program.Claim("", "", program.Scalar(*found, 10), **options).outcome  # noqa: E731
    assert [made(found) for found in (above, below, both)] == ["confirmed", "refuted", "undecided"]
    assert [made(found, above=False) for found in (above, below, both)] == ["refuted", "confirmed", "undecided"]
    assert made((1.2, 1.1, 1.3), no_effect=1.0) == "confirmed" and made(above, no_effect=1.0) == "refuted"
    assert program.Claim("", "", None).outcome == "not measured"


def test_the_interval_of_a_difference_is_newcombes(program):
    # His example (1998, table II): 56/70 against 48/80, whose interval by method 10 is 0.0524 to 0.3339.
    first = program.Scalar(56 / 70, 0.6918, 0.8769, 70)
    second = program.Scalar(48 / 80, 0.4906, 0.7000, 80)
    found = program.difference(first, second)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=2e-3)
    assert program.difference(first, None) is None and found.n == 70


def test_every_claim_is_on_the_page_measured_or_not(program):
    scalar = {"value": 1.5, "interval_95": [1.4, 1.6], "n": 360}
    networks = {f"{name}_0": {"magnitude_ratio": scalar} for name in ("at", "standard")}
    figure = {"name": "channels", "estimates": networks}
    about = {"epsilon": 0.2, "norm": "linf", "dataset": "digits", "num_examples": 360, "commit": "0123456789+changes"}
    analysis = {"figures": [figure], **about}
    gains = {"at_cas": {"pgd20": program.Scalar(0.14, 0.1, 0.18, 360)},
             "at_fsr": {"pgd20": program.Scalar(-0.1, -0.15, -0.05, 360)}}  # fmt: skip
    found = program.claims(analysis, gains, seed=0)
    page = program.markdown(found, analysis)
    assert "commit 0123456 with changes." in page
    assert len(found) == 5 and page.count(" | **") == sum(map(len, found.values()))
    assert "| 1.5 | 1.4 to 1.6 | 360 | **confirmed** |" in page  # magnitude ratio, against 1
    outcomes = {(paper, claim.measured): claim.outcome for paper, own in found.items() for claim in own}
    assert outcomes["CAS (Bai et al. 2021)", "accuracy under PGD-20, minus that of `at`"] == "confirmed"
    assert outcomes["FSR (Kim et al. 2023)", "accuracy under PGD-20, minus that of `at`"] == "refuted"
    assert (
        outcomes["CAS (Bai et al. 2021)", "distance of the magnitude ratio from 1, `at` minus `standard`"]
        == "undecided"
    )
    assert np.isclose(program.difference(*([program.Scalar(1.5, 1.4, 1.6, 9)] * 2)).high, np.hypot(0.1, 0.1))
    # A claim is read in the sentence as well, without the table: it names what it is about.
    assert not [claim.says for own in found.values() for claim in own if " them " in claim.says]
    # Each paper's sentence counts its claims, and each figure stands under one paper.
    assert "**: refuted: FSR makes adversarial training more robust (under PGD-20). Not measured: under attack" in page
    assert [name for name in program.SHOWN if f"(claims/{name}.png)" in page] == ["channels"]  # what was drawn


def test_gains_are_those_of_the_tables_records(program, tmp_path):
    cells = importlib.import_module("cells")
    bits = {"at": np.arange(100) < 50, "at_cas": np.arange(100) < 80}
    for name, robust in bits.items():
        record = {"protocol": {"n": 100, "robust": {"pgd20": cells.packed(robust)}}}
        cells.write(tmp_path, "digits", cells.Cell(name, "", 0), record)
    found = program.gains(tmp_path, 0)
    assert found["at_cas"]["pgd20"].value == pytest.approx(0.3) and found["at_cas"]["pgd20"].low > 0.2
    assert list(found) == ["at_cas"] and "worst_case" not in found["at_cas"]  # which no verdict has measured


def test_what_fsr_adds_is_what_its_paper_says(program):
    # As Kim et al. 2023 report: 3.6 % of the multiply-adds of ResNet-18.
    assert program.added_by_fsr().value == pytest.approx(0.036, abs=5e-4)


def test_fsr_is_compared_with_what_deactivates(program, tmp_path):
    bits = {"at_fsr": [True] * 40, "at_kwta": [False] * 40, "at_cas": [True] * 40}
    for name, robust in bits.items():
        packed = program.cells.packed(robust)
        record = {"protocol": {"n": 40, "robust": {"pgd20": packed}}, "judge_with_hints": {"n": 40, "robust": packed}}
        program.cells.write(tmp_path, "digits", program.cells.Cell(name, "", 0), record)
    gains = program.gains(tmp_path, 0)["at_fsr"]
    assert gains["worst_case over at_kwta"].value == 1.0 and gains["worst_case over at_cas"].value == 0.0
    assert "worst_case" not in gains  # `at` has no record
