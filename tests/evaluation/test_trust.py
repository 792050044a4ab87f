"""The report of a verdict: figures where a reader looks for them, and nothing half written."""

import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from robustjax import version
from robustjax.evaluation.verdict import trust
from robustjax.evaluation.verdict._judge import Acceptance, Verdict
from robustjax.evaluation.verdict.red_flags import Flag
from robustjax.evaluation.verdict.relaxations import Remedy
from robustjax.transforms import Finding, Findings

PROTOCOL = [{"attack": "pgd20", "accuracy": 0.75, "seconds": 1.25}]


def verdict(**flags):
    robust = np.array([True, True, False, False])
    return Verdict(
        clean=0.75,
        autoattack=0.75,
        worst_case=0.5,
        robust=robust,
        won_by=[None, None, "surrogate:apgd-ce", "clean"],
        flags={"probabilities": Flag("pass", 0.0, 1.0, 4, "the outputs are | not [bold]")} | flags,
        adversarial=np.zeros((4, 2, 2, 1), np.float32),
        misclassified_by={"apgd-ce": np.zeros(4, bool), "surrogate:apgd-ce": np.array([False, False, True, False])},
        acceptance={"clean": Acceptance(20, 0.7, (0.2, 0.9), 0.75, 0.5, (0.3, 0.95), (0.1, 0.85))},
        seconds={
            "clean": 1.0,
            "autoattack": 2.0,
            "red flags": 3.0,
            "adaptive": 4.0,
            "verification": 0.5,
            "total": 10.5,
        },
        seconds_by_attack={"apgd-ce": 2.0},
        threat={"epsilon": 8 / 255, "norm": "linf", "bounds": (0.0, 1.0), "budget": "quick"},
    )


FAILED = {"zero_gradients": Flag("fail", 0.5, 0.01, 4, "cannot move")}
WARNED = {"shattered_gradients": Flag("warn", 0.8, 0.9, 4, "only 0.8")}
SKIPPED = {"surrogate_helps": Flag.not_applicable("no surrogate_fn declared")}


@pytest.mark.parametrize(
    ("flags", "start", "end"),
    [
        ({}, "50.00% of 4 examples", "and no red flag was raised."),
        (WARNED, "Take this figure with care", "with warnings (shattered_gradients)."),
        (FAILED | WARNED, "Do not trust this figure", "but attacks failed on the way (zero_gradients)."),
    ],
)
def test_the_sentence_says_whether_to_trust(flags, start, end):
    sentence = trust.sentence(verdict(**flags))
    assert sentence.startswith(start) and sentence.endswith(end) and "linf epsilon 0.03137" in sentence


def test_json_holds_everything_and_is_written_whole(tmp_path):
    path = trust.write(tmp_path / "evaluation", verdict(**FAILED, **SKIPPED), protocol=PROTOCOL, commit="abc")
    assert sorted(file.name for file in path.parent.iterdir()) == ["trust.json", "trust.md"]
    read = json.loads(path.read_text())
    assert (read["clean"], read["autoattack"], read["worst_case"], read["commit"]) == (0.75, 0.75, 0.5, "abc")
    assert read["robust"] == [True, True, False, False] and read["won_by"] == [None, None, "surrogate:apgd-ce", "clean"]
    assert read["attacks"]["surrogate:apgd-ce"] == {"misclassified": 1, "won": 1, "seconds": 0.0}
    assert read["flags"]["zero_gradients"] == {"name": "zero_gradients", **FAILED["zero_gradients"]._asdict()}
    assert read["flags"]["zero_gradients"]["status"] == "fail"
    assert read["flags"]["surrogate_helps"]["value"] is None
    assert read["protocol"] == {"pgd20": 0.75} and read["acceptance"]["clean"]["majority"] == 0.75
    assert read["seconds"]["total"] == 10.5 and read["interval_95"][0] < 0.5 < read["interval_95"][1]


def test_markdown_has_a_table_of_each_part():
    text = trust.markdown(verdict(**FAILED, **SKIPPED), protocol=PROTOCOL)
    lines = text.splitlines()
    assert "| pgd20 | 75.00% | 1.2 |" in lines
    assert "| worst case, adaptive attacks and checks included | 50.00% | 7.0 |" in lines
    assert "| surrogate:apgd-ce | 1 | 1 |  |" in lines
    assert "| zero_gradients | fail | 0.5 | 0.01 | 4 | cannot move |" in lines
    assert r"| probabilities | pass | 0 | 1 | 4 | the outputs are \| not [bold] |" in lines
    assert "| clean | 70.00% (20.00% to 90.00%) | 75.00% (30.00% to 95.00%) | 50.00% (10.00% to 85.00%) | 20 |" in lines
    assert trust.sentence(verdict(**FAILED, **SKIPPED)) in text and trust.CAVEAT in text
    assert all(line.count(" | ") == lines[i - 1].count(" | ") for i, line in enumerate(lines) if "---" in line)


def test_a_finding_is_told_with_how_often_it_is_there_and_what_relaxing_it_did():
    once, often = (Finding("step", "round", f"net.py:{count} (f)", count, "the identity") for count in (1, 2))
    page = verdict()._replace(findings=Findings((once, often)), remedies=(Remedy(once, 30, 40, 5, 60),))
    lines = trust.markdown(page).splitlines()
    assert "| step: round | net.py:1 (f) | 30 of 40 images | 5 of 60 that were left | the identity |" in lines
    assert "| step: round (2 times) | net.py:2 (f) |  |  | the identity |" in lines


def test_the_terminal_shows_the_same():
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(trust.table(verdict(**FAILED, **SKIPPED), protocol=PROTOCOL))
    text = console.export_text()
    for part in ("pgd20", "zero_gradients", "fail", "not [bold]", "10.5", "Do not trust this figure"):
        assert part in text


def test_a_notebook_shows_figures_and_flags_and_no_markup_of_theirs():
    page = verdict(surrogate_helps=Flag("fail", 0.25, 0.05, 4, "BPDA <b>wins</b>"))._repr_html_()
    assert "<td>worst case</td><td>50.00%</td><td>15.00% to 85.00%</td>" in page
    assert "<td>surrogate:apgd-ce</td><td>1</td>" in page
    assert "BPDA &lt;b&gt;wins&lt;/b&gt;" in page and "probabilities" not in page
    assert "No flag was raised" in verdict()._repr_html_()


def test_a_notebook_names_the_attack_that_succeeded_most_first():
    found = verdict()
    found = found._replace(won_by=["apgd-ce", "surrogate:apgd-ce", None, "surrogate:apgd-ce"])
    page = found._repr_html_()
    assert page.index("<td>surrogate:apgd-ce</td><td>2</td>") < page.index("<td>apgd-ce</td><td>1</td>")


def test_a_verdict_writes_its_own_report(tmp_path):
    found = verdict(**FAILED)
    found.save(tmp_path / "new")
    text = (tmp_path / "new" / "trust.md").read_text()
    assert text == found.report() and text.startswith("# Trust report\n\nEvaluated: network on 4 images, linf eps")
    assert f"robustjax {version.__version__}, jax {jax.__version__}" in text.splitlines()[2]
    assert json.loads((tmp_path / "new" / "trust.json").read_text())["verdict"] == str(found) == trust.sentence(found)


def test_the_page_says_of_which_network_and_images_it_is():
    told = {"network": {"model": "mine.py:network"}, "dataset": "test.npz", "commit": "0123456789+changes"}
    line = trust.markdown(verdict(), conditions=told).splitlines()[2]
    assert line.startswith("Evaluated: mine.py:network on 4 images of test.npz, linf epsilon 0.03137, pixels in [0.0, ")
    assert line.endswith("; commit 0123456 with changes.")


def test_in_a_prompt_a_verdict_is_a_line():
    assert repr(verdict()) == f"<Verdict: {trust.sentence(verdict())}>"


def test_clean_accuracy_is_said_once_unless_it_is_two_figures():
    clean = {"attack": "clean", "accuracy": 0.75, "seconds": 1.0}
    assert trust.markdown(verdict(), protocol=[clean]).count("| clean | 75.00%") == 1
    # Of a stochastic network a record has the expected accuracy, a verdict that of the majority.
    assert "| clean | 70.00%" in trust.markdown(verdict(), protocol=[clean | {"accuracy": 0.7}])
