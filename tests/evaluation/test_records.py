"""Records: intervals against SciPy, worst case per example."""

import numpy as np
import pytest
from scipy import stats

from robustjax.evaluation import records


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (10, 10), (3, 10), (500, 1000), (1, 10000)])
def test_wilson_interval_matches_scipy(successes, total):
    expected = stats.binomtest(successes, total).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose(records.wilson_interval(successes, total), expected, atol=1e-6)


def _record(attack, robust, steps):
    return records.record(
        attack,
        np.array(robust),
        norm="linf",
        epsilon=0.1,
        num_steps=steps,
        num_restarts=1,
        seconds=1.5,
        conditions={"seed": 0},
    )


def test_the_worst_case_is_per_example_and_not_the_worst_mean():
    first, second = _record("a", [True, True, False, False], 1), _record("b", [True, False, True, False], 9)
    worst = records.worst_case([first, second])
    assert worst["robust"] == [True, False, False, False]
    assert (worst["accuracy"], first["accuracy"], second["accuracy"]) == (0.25, 0.5, 0.5)
    assert worst["attacks"] == ["a", "b"] and worst["seconds"] == 3.0 and worst["num_steps"] == 9
    assert worst["interval_95"] == records.wilson_interval(1, 4)


def test_records_are_replaced_whole(tmp_path):
    records.write(tmp_path, [_record("a", [True], 1)])
    records.write(tmp_path, [_record("a", [False], 1)])
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["a.json"]


def test_conditions_name_versions_and_hardware():
    conditions = records.conditions()
    assert conditions["versions"]["jax"] and conditions["hardware"]["platform"] == "cpu"
