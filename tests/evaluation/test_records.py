"""Records: intervals against SciPy, worst case per example, draws of a stochastic network, settings in full."""

import json
import re
import shutil
import subprocess
from functools import partial

import numpy as np
import pytest
from scipy import stats

from robustjax import attacks
from robustjax.attacks import losses
from robustjax.evaluation.protocol import protocols, records, specs
from robustjax.evaluation.protocol.outcome import Outcome
from robustjax.evaluation.protocol.protocols import Protocol, Threat
from robustjax.statistics import wilson_interval


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (0, 1000), (10, 10), (3, 10), (500, 1000), (1, 10000)])
def test_wilson_interval_matches_scipy(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(successes, total)
    np.testing.assert_allclose((low, high), expected, atol=1e-6)
    assert 0 <= low <= successes / total <= high <= 1


def test_the_interval_of_a_stochastic_network_covers_the_truth():
    """Examples drawn from a population, each with its own probability, and ten draws of each."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        right = rng.binomial(10, rng.beta(0.5, 0.3, 50))
        low, high = records.figures(right, 10)["interval_95"]
        covered += low <= 0.5 / 0.8 <= high
    assert covered >= 0.95 * 400
    low, high = records.figures(right, 10)["interval_95"]
    narrow = wilson_interval(int(right.sum()), 500)  # as if draws were examples
    assert high - low > 2 * (narrow[1] - narrow[0])


def _record(attack, right, steps, num_draws=1, by_attack=None):
    right = np.array(right, int)
    none = np.zeros(len(right), int)
    return records.record(
        attack,
        Protocol(lambda logits_fn, key, images, labels: images, num_steps=steps, num_restarts=1),
        Outcome(right, num_draws, none, none, np.zeros((0, 1, 1, 1)), by_attack or {}, 1.5),
        norm="linf",
        epsilon=0.1,
        conditions={"seed": 0},
        labels=none,
        num_classes=2,
    )


def test_the_worst_case_is_per_example_and_not_the_worst_mean():
    first = _record("a", [1, 1, 0, 0], 1, by_attack={"x": np.array([True, True, True, False])})
    second = _record("b", [1, 0, 1, 0], 9)
    worst = records.worst_case([first, second])
    assert worst["robust"] == [True, False, False, False]
    assert (worst["accuracy"], first["accuracy"], second["accuracy"]) == (0.25, 0.5, 0.5)
    assert worst["attacks"] == ["a", "b"] and worst["seconds"] == 3.0 and worst["num_steps"] == 9
    assert worst["interval_95"] == wilson_interval(1, 4)
    assert first["by_attack"] == {"x": 0.75} and "by_attack" not in worst and "settings" not in worst
    assert "majority_vote" not in first


def test_a_stochastic_record_names_each_way_of_counting():
    first, second = _record("a", [4, 3, 1, 0], 1, 4), _record("b", [4, 4, 3, 2], 1, 4)
    assert (first["accuracy"], first["majority_vote"], first["worst_of_draws"]) == (0.5, 0.5, 0.25)
    assert second["robust"] == [True, True, True, False]  # half of the draws is no majority
    worst = records.worst_case([first, second])
    assert worst["right_draws"] == [4, 3, 1, 0] and worst["num_draws"] == 4
    assert worst["accuracy"] == 0.5


def test_records_are_replaced_whole(tmp_path):
    records.write(tmp_path / "evaluation", "a", _record("a", [1], 1))
    records.write(tmp_path / "evaluation", "a", _record("a", [0], 1))
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "evaluation" / "a.json").read_text())["robust"] == [False]


def test_settings_are_resolved_down_to_the_defaults():
    pgd = partial(attacks.pgd, norm="l2", loss=partial(losses.margin, confidence=5.0))
    settings = records.resolved(Protocol(pgd, {"epsilon": 0.5, "step_size": 0.1, "num_steps": 3}))
    assert settings["attack"] == "pgd" and settings["norm"] == "l2" and settings["num_steps"] == 3
    assert settings["num_restarts"] == 1 and settings["bounds"] == (0.0, 1.0) and settings["random_start"] is True
    assert settings["loss"]["function"] == "margin" and settings["loss"]["confidence"] == 5.0


def test_every_attack_of_an_evaluation_has_settings_of_its_own():
    found = set()
    for eot_samples in (0, 20):
        for epsilon in (0.1, 0.2):
            network = {"num_classes": 10, "eot_samples": eot_samples}
            chosen = protocols.of_specs(specs.parse(list(protocols.PROTOCOLS)), Threat("linf", epsilon), **network)
            found |= {json.dumps(records.resolved(protocol)) for protocol in chosen.values()}
            assert chosen["pgd20"].attack is chosen["pgd100"].attack is not chosen["cw"].attack
            assert all(protocol.options.get("epsilon", epsilon) == epsilon for protocol in chosen.values())
    assert len(found) == 1 + 4 * (len(protocols.PROTOCOLS) - 1)  # clean is clean


def test_conditions_name_versions_source_and_hardware():
    conditions = records.conditions()
    assert conditions["versions"]["jax"] and conditions["hardware"]["platform"] == "cpu"
    assert len(conditions["source"]) == 16


def test_the_source_is_that_of_the_whole_package_and_the_commit_that_of_the_checkout(tmp_path, monkeypatch):
    shutil.copytree(records.PACKAGE, tmp_path / "robustjax", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "robustjax")
    digest = records.source_digest.__wrapped__
    before = digest()
    for room in ("attacks/_apgd.py", "layers/convolution.py", "ops.py"):
        path = tmp_path / "robustjax" / room
        path.write_text(path.read_text() + "# changed\n")
        assert digest() != before
        before = digest()
    assert records._commit() is None  # not a checkout
    record = tmp_path / "results/table.json"
    record.parent.mkdir()
    record.write_text("{}")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}", records._commit())
    record.write_text("[]")
    assert re.fullmatch("[0-9a-f]{40}", records._commit())
    path.write_text("")
    assert records._commit().endswith("+changes")
