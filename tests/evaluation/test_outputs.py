"""What an evaluation gives to others: requirements, leaderboard cards, lines of CSV, tables."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from robustjax.evaluation.protocol import card, records, requirements, tables
from robustjax.evaluation.protocol.outcome import Outcome
from robustjax.evaluation.protocol.protocols import CLEAN, Protocol
from robustjax.evaluation.protocol.threats import Threat
from robustjax.types import InputError

LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 2])


def record(name, predictions, *, norm="linf", epsilon=8 / 255, **conditions):
    predictions = np.array(predictions)
    outcome = Outcome(
        (predictions == LABELS).astype(int), 1, LABELS, predictions, np.zeros((0, 1, 1, 1)), {}, 1.5,
    )  # fmt: skip
    protocol = CLEAN if name == "clean" else Protocol(lambda *arguments: None, num_steps=10, num_restarts=1)
    return records.record(
        name, protocol, outcome, norm=norm, epsilon=epsilon, conditions=conditions, labels=LABELS, num_classes=3,
        class_names=("cat", "dog", "eel"),
    )  # fmt: skip


CLEAN_RECORD = record("clean", [0, 0, 1, 1, 2, 2, 2, 0])
ATTACKED = record("autoattack", [0, 1, 1, 0, 2, 0, 0, 0])
OTHER = record("apgd:loss=dlr,num_steps=5", [1, 0, 1, 1, 2, 2, 2, 0])


# Requirements


@pytest.mark.parametrize("expression", ["autoattack>=0.375", "autoattack > 37%", "autoattack<=3/8", "worst_case<0.5"])
def test_a_requirement_that_holds_says_nothing(expression):
    entries = [CLEAN_RECORD, ATTACKED, records.worst_case([CLEAN_RECORD, ATTACKED])]
    (requirement,) = requirements.parse([expression], ["clean", "autoattack"])
    assert requirement.unmet(entries) == []


@pytest.mark.parametrize(
    ("expression", "bound", "points", "direction"),
    [
        ("autoattack>=0.5", 0.5, "12.50", "low"),
        ("autoattack>0.375", 0.375, "0.00", "low"),
        ("autoattack<10%", 0.1, "27.50", "high"),
    ],
)
def test_one_that_does_not_says_by_how_much_and_gives_the_interval(expression, bound, points, direction):
    (requirement,) = requirements.parse([expression], ["clean", "autoattack"])
    (line,) = requirement.unmet([CLEAN_RECORD, ATTACKED])
    low, high = ATTACKED["interval_95"]
    assert f"accuracy is 37.50%, {points} points too {direction}" in line and line.startswith(expression)
    assert f"{low:.2%} to {high:.2%} for 8 images" in line
    assert ("the bound is inside it" in line) == (low <= bound <= high)


def test_a_name_with_options_and_several_threats():
    name = "apgd:loss=dlr,num_steps=5"
    (requirement,) = requirements.parse([f"{name}>=0.8"], [name])
    assert (requirement.attack, requirement.bound) == (name, 0.8)
    other = record(name, LABELS, norm="l2", epsilon=0.5)
    (line,) = requirement.unmet([OTHER, other])
    assert "does not hold under linf epsilon 0.03137" in line


@pytest.mark.parametrize(
    ("expression", "cause"),
    [
        ("autoatack>=0.5", "nearest: 'autoattack'"),
        ("autoattack=0.5", "as in autoattack>=0.5"),
        ("autoattack>=", "as in autoattack>=0.5"),
        ("autoattack>=50", "a share in [0, 1] or a percentage"),
        ("autoattack>=nan", "a share in [0, 1]"),
        (">=0.5", "nothing being no attack"),
        ("", "as in autoattack>=0.5"),
    ],
)
def test_a_wrong_expression_is_refused(expression, cause):
    with pytest.raises(InputError) as caught:
        requirements.parse([expression, "clean>=2"], ["clean", "autoattack"])
    assert cause in str(caught.value) and "'clean>=2'" in str(caught.value) and "\n" not in str(caught.value)


# Cards


def test_a_card_has_the_leaderboards_fields_in_its_form(tmp_path):
    """Against a file of RobustBench's model_info, whose fields and formats these are."""
    theirs = json.loads(
        """{"link": "https://arxiv.org/abs/2404.09349", "name": "Adversarial Robustness Limits", "authors": "Brian",
        "additional_data": false, "number_forward_passes": 1, "dataset": "cifar10", "venue": "ICML 2024",
        "architecture": "WideResNet-94-16", "eps": "8/255", "clean_acc": "93.68", "reported": "73.71",
        "autoattack_acc": "73.71", "footnote": "It uses additional 500M synthetic images in training."}"""
    )
    about = {"dataset": "cifar10", "network": {"model": "mine.py:network"}}
    entries = [
        record("clean", [0, 0, 1, 1, 2, 2, 2, 0], **about),
        record("autoattack", [0, 1, 1, 0, 2, 0, 0, 0], **about),
    ]
    worst = records.worst_case([*entries, record("adaptive", [1, 1, 1, 0, 2, 0, 0, 0], **about)])
    made = card.of_records(entries, worst)
    assert list(made) == list(theirs) and {name for name in made if not made[name]} == set(card.TO_FILL_IN)
    assert (made["eps"], made["clean_acc"], made["autoattack_acc"]) == ("8/255", "87.50", "37.50")
    assert (made["dataset"], made["architecture"]) == ("cifar10", "mine.py:network")
    assert made["footnote"].startswith("8 images, 95 % interval ") and "25.00 over adaptive as well" in made["footnote"]
    card.write(tmp_path / "deep" / "card.json", made)
    assert json.loads((tmp_path / "deep" / "card.json").read_text()) == made


@pytest.mark.parametrize(
    ("names", "threats", "cause"),
    [
        (["clean", "autoattack:version=plus"], [Threat("linf", 0.1)], "without autoattack"),
        (["pgd20"], [Threat("linf", 0.1)], "without clean and autoattack"),
        (["clean", "autoattack"], [Threat("l1", 12)], "one threat in linf or l2, got l1:12"),
        (["clean", "autoattack"], [Threat("linf", 0.1), Threat("l2", 1)], "got linf:0.1, l2:1"),
    ],
)
def test_what_makes_no_card_is_refused(names, threats, cause):
    with pytest.raises(InputError, match="card must be") as caught:
        card.check(names, threats)
    assert cause in str(caught.value)


# CSV and tables


def test_csv_has_a_line_for_each_record():
    entries = [CLEAN_RECORD, OTHER, records.worst_case([CLEAN_RECORD, OTHER, record("pgd20", LABELS, norm="l2")])]
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(entries))))
    assert [row["attack"] for row in rows] == ["clean", "apgd:loss=dlr,num_steps=5", "worst_case"]
    assert float(rows[0]["accuracy"]) == CLEAN_RECORD["accuracy"] and rows[0]["num_examples"] == "8"
    assert float(rows[1]["low_95"]) == OTHER["interval_95"][0] and rows[1]["norm"] == "linf"
    assert (rows[2]["norm"], rows[2]["epsilon"]) == ("union", "")


def text(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_worst_case_over_more_than_is_shown_says_so():
    worst = records.worst_case([CLEAN_RECORD, OTHER, ATTACKED])
    assert "worst case (with autoattack of earlier calls)" in text(tables.of_records([CLEAN_RECORD, OTHER, worst]))
    assert "of earlier calls" not in text(tables.of_records([CLEAN_RECORD, OTHER, ATTACKED, worst]))


def test_classes_are_shown_with_what_they_are_taken_for():
    shown = text(tables.of_classes([CLEAN_RECORD, ATTACKED]))
    lines = {line.split("│")[1].strip(): line for line in shown.splitlines() if "│" in line}
    assert "25.00%" in lines["eel"] and "75.00%" in lines["eel"] and "cat (3)" in lines["eel"]
    assert "50.00%" in lines["dog"] and "cat (1)" in lines["dog"]


def test_the_worst_case_has_the_classes_of_what_decides_it():
    worst = records.worst_case([CLEAN_RECORD, ATTACKED, OTHER])
    np.testing.assert_array_equal(worst["predictions"], [1, 1, 1, 0, 2, 0, 0, 0])
    assert [part["accuracy"] for part in worst["per_class"]] == [0.0, 0.5, 0.25]
    assert [part["name"] for part in worst["per_class"]] == ["cat", "dog", "eel"]
    assert worst["confusion"] == [[0, 2, 0], [1, 1, 0], [3, 0, 1]] and worst["labels"] == LABELS.tolist()
