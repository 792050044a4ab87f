"""Intervals against the equations that define them, and at their ends."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from robustjax.statistics import mcnemar, paired_difference, wilson_interval
from robustjax.types import InputError


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilsons_ends_are_the_shares_from_which_the_observed_one_is_z_deviations_away(level):
    z = norm.ppf(0.5 + level / 2)
    for total in (1, 2, 7, 500):
        for successes in (0, total // 3, total):
            share = successes / total
            for end in wilson_interval(successes, total, z=z):
                np.testing.assert_allclose(abs(share - end), z * math.sqrt(end * (1 - end) / total), atol=1e-9)


def test_wilsons_interval_is_in_0_and_1_and_around_the_share_whatever_is_rounded():
    for total in range(1, 1000):
        for successes in (0, 1, total - 1, total):
            low, high = wilson_interval(successes, total)
            assert 0.0 <= low <= successes / total <= high <= 1.0
        assert wilson_interval(0, total)[0] == 0.0 and wilson_interval(total, total)[1] == 1.0


@pytest.mark.parametrize(("successes", "total"), [(0, 0), (-1, 3), (4, 3), (math.nan, 3), (1, math.nan)])
def test_a_share_of_nothing_or_beyond_everything_is_refused(successes, total):
    with pytest.raises(InputError, match=r"^total must be at least 1 and successes from 0 to it, got "):
        wilson_interval(successes, total)


def test_a_difference_is_that_of_agresti_and_min():
    """With half an image more in each of the four kinds of pairs; of several seeds an image's mean counts."""
    rng = np.random.default_rng(0)
    first, second = rng.random((3, 40)) < 0.7, rng.random((3, 40)) < 0.4
    for rows in (slice(0, 1), slice(0, 3)):
        change = np.mean(first[rows].astype(float) - second[rows], axis=0)
        weighted = np.concatenate([change, [0.0, 0.0, 1.0, -1.0]])
        weights = np.concatenate([np.ones(40), np.full(4, 0.5)])
        mean = np.average(weighted, weights=weights)
        variance = np.average((weighted - mean) ** 2, weights=weights)
        difference, ends = paired_difference(first[rows], second[rows], z=1.5)
        np.testing.assert_allclose(difference, change.mean())
        np.testing.assert_allclose(ends, [mean - 1.5 * math.sqrt(variance / 42), mean + 1.5 * math.sqrt(variance / 42)])


def test_the_interval_of_a_difference_ends_at_1():
    won, lost = np.ones(3, bool), np.zeros(3, bool)
    for first, second, wanted in ((won, lost, 1.0), (lost, won, -1.0)):
        difference, (low, high) = paired_difference(first, second, z=9.0)
        assert difference == wanted and low == -1.0 and high == 1.0
    assert paired_difference(won, won)[0] == 0.0


def test_one_image_has_a_difference():
    difference, (low, high) = paired_difference(np.array([True]), np.array([False]))
    assert difference == 1.0 and low < 0.0 < high <= 1.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.ones(0, bool), np.ones(0, bool)),
        (np.ones((2, 0), bool), np.ones((2, 0), bool)),
        (np.ones((1, 2, 3), bool), np.ones((1, 2, 3), bool)),
        (np.ones(3, bool), np.ones(4, bool)),
        (np.ones(3, bool), np.array([0, 1, 2])),
    ],
)
def test_what_cannot_be_paired_is_refused(first, second):
    with pytest.raises(InputError, match=r"^first and second must be bool \[n\] or \[seeds, n\] of one shape, got "):
        paired_difference(first, second)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 5), (6, 0), (3, 12), (40, 22), (700, 800)])
def test_mcnemars_test_is_scipys_of_a_fair_coin(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
    # NumPy's counts, such as sums of booleans, whose powers of two overflow.
    assert mcnemar(np.int16(first), np.int64(second)) == mcnemar(first, second)


def test_mcnemars_test_of_many_examples_takes_no_time():
    """Each binomial coefficient made anew takes minutes."""
    assert mcnemar(10_200, 9_800) == pytest.approx(binomtest(10_200, 20_000).pvalue, rel=1e-9)
