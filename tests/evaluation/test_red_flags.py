"""Every flag fires on what it is for and stays silent on what it is not for; numbers written down by hand."""

import math
from functools import partial

import numpy as np
import pytest

from robustjax.evaluation.verdict import comparisons, red_flags
from robustjax.evaluation.verdict.red_flags import Flag

RNG = np.random.default_rng(0)
NONE, ALL = np.zeros(100, bool), np.ones(100, bool)
RISING = np.linspace(0.0, 1.0, 20)[:, None].repeat(100, 1)
LOGITS = RNG.normal(size=(100, 4))
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)


def some(count):
    return np.arange(100) < count


# name -> (arguments of a positive, status) and (arguments of a negative)
CASES = {
    "invalid_perturbation": [(~some(1),), "fail", (ALL,)],
    "nonfinite_logits": [(some(2),), "fail", (NONE,)],
    "probabilities": [(SOFTMAX,), "fail", (LOGITS,)],
    "randomness": [(RNG.normal(size=(3, 100, 4)),), "fail", (np.stack([LOGITS] * 3),)],
    "batch_dependent": [(RNG.normal(size=(3, 100, 4)),), "fail", (np.stack([LOGITS] * 3),)],
    "zero_gradients": [(some(2),), "fail", (NONE,)],
    "nonfinite_gradients": [(some(2),), "fail", (NONE,)],
    "shattered_gradients": [(np.full(100, 0.4),), "fail", (np.full(100, 0.95),)],
    "one_step_beats_many": [(ALL, some(90)), "fail", (some(90), ALL)],
    "more_steps_help": [(np.stack([NONE, some(6)]), np.zeros(0)), "fail", (np.stack([NONE, some(1)]), np.zeros(99))],
    "more_restarts_help": [(some(50), some(60)), "fail", (some(50), some(52))],
    "step_size_sensitive": [({"0.1": some(9), "0.5": NONE},), "warn", ({"0.1": some(9), "0.5": some(9)},)],
    "accuracy_rises_with_epsilon": [(np.stack([some(9), some(2)]),), "fail", (np.stack([some(2), some(9)]),)],
    "unbounded_attack_fails": [(some(90),), "fail", (some(99),)],
    "black_box_beats_white_box": [(some(50), some(40)), "fail", (some(40), some(50))],
    "label_only_beats_white_box": [(some(50), some(40)), "fail", (some(40), some(50))],
    "unstable_predictions": [(np.full(100, 0.6),), "warn", (np.where(some(40), 1.0, 0.4),)],
    "transfer_beats_white_box": [(~some(40), some(40)), "fail", (some(10), some(40))],
    "random_search_succeeds": [(some(50), some(40)), "fail", (some(3), NONE)],
    "auxiliary_attack_helps": [(some(50), some(40)), "fail", (some(43), some(40))],
    "surrogate_helps": [(some(50), NONE), "fail", (NONE, NONE)],
    "relaxation_helps": [(some(50), some(40)), "fail", (some(40), some(43))],
    "loss_and_margin_disagree": [(RISING, -(RISING - 0.4) ** 2), "warn", (RISING, RISING**3)],
    "silent_success": [(some(50), some(40)), "fail", (some(40), some(50))],
    "planted_examples_missed": [(some(89),), "fail", (some(90),)],
    "eot_not_converged": [(np.stack([NONE, NONE, some(9)]),), "fail", (np.stack([NONE, some(9), some(9)]),)],
    "frozen_key_resists": [(some(20), some(50)), "fail", (some(50), some(20))],
    "bfloat16_disagrees": [(some(50), some(51)), "warn", (some(50), some(50))],
}  # fmt: skip


def call(name, arguments):
    options = {"declared": False} if name == "randomness" else {}
    return getattr(comparisons if hasattr(comparisons, name) else red_flags, name)(*arguments, **options)


def test_a_tie_that_the_last_bit_decides_is_no_other_prediction():
    outputs = np.zeros((2, 1, 4)) - [0.0, 0.0, 2.0, 2.0]  # of size 2 around their mean
    outputs[1, 0, 1] = 2e-6
    assert red_flags._variation(outputs) == 1e-6
    outputs[1, 0, 1] = 3e-6
    assert red_flags._variation(outputs) == 1.0


@pytest.mark.parametrize(("robust", "status"), [(20, "pass"), (21, "warn"), (50, "warn"), (51, "fail")])
def test_how_many_may_stay_robust_where_everything_may_be_changed(robust, status):
    assert red_flags.unbounded_attack_fails(np.arange(1000) >= robust).status == status


def test_every_flag_has_a_case():
    informative = {"broader_threats"}  # which never fires
    assert CASES.keys() | informative == set(red_flags.NAMES)
    assert len(red_flags.NAMES) == len(CASES) + len(informative)


@pytest.mark.parametrize("name", CASES)
def test_a_flag_fires_where_it_should_and_only_there(name):
    positive, status, negative = CASES[name]
    fired, silent = call(name, positive), call(name, negative)
    assert (fired.status, silent.status) == (status, "pass")
    assert fired.n == silent.n or name in ("invalid_perturbation", "loss_and_margin_disagree")
    assert fired.explanation != silent.explanation and "{" not in fired.explanation + silent.explanation
    assert math.isfinite(fired.value) and math.isfinite(fired.threshold)


@pytest.mark.parametrize(("gained", "lost", "fires"), [(5, 0, False), (6, 0, True), (10, 3, False), (12, 3, True)])
def test_a_difference_must_exceed_the_noise_of_the_examples_that_differ(gained, lost, fires):
    """By SciPy 1.17's ``binomtest(gained, gained + lost).pvalue``: 0.0625, 0.0313, 0.0923 and 0.0352."""
    first, second = some(gained), (np.arange(100) >= 90) & (np.arange(100) < 90 + lost)
    flag = comparisons.one_step_beats_many(first, second)
    assert flag.value == (gained - lost) / 100 and (flag.status == "fail") == fires


# What passes for its noise, as (gained 3 of 100), and as nothing gained.
PASSES = {
    "one_step_beats_many": [(some(3), NONE), (NONE, NONE)],
    "more_steps_help": [(np.stack([NONE, some(3)]), np.zeros(0)), (np.stack([NONE, NONE]), np.zeros(0))],
    "more_restarts_help": [(NONE, some(3)), (NONE, NONE)],
    "step_size_sensitive": [({"0.1": some(3), "0.5": NONE},), ({"0.1": NONE, "0.5": NONE},)],
    "accuracy_rises_with_epsilon": [(np.stack([some(3), NONE]),), (np.stack([NONE, NONE]),)],
    "eot_not_converged": [(np.stack([NONE, some(3)]),), (np.stack([NONE, NONE]),)],
    "frozen_key_resists": [(NONE, some(3)), (NONE, NONE)],
} | {
    name: [(some(3), NONE), (NONE, NONE)]
    for name in (
        "black_box_beats_white_box", "label_only_beats_white_box", "transfer_beats_white_box",
        "random_search_succeeds", "auxiliary_attack_helps", "surrogate_helps", "relaxation_helps", "silent_success",
    )
}  # fmt: skip


@pytest.mark.parametrize("name", PASSES)
def test_a_comparison_that_passes_says_how_much_was_gained(name):
    gained, equal = (call(name, arguments) for arguments in PASSES[name])
    assert gained.status == equal.status == "pass" and gained.value == 0.03 and equal.value == 0.0
    assert "3 of 100 examples more, which is not significant (McNemar)" in gained.explanation
    assert "gains nothing" not in gained.explanation and "of 100" not in equal.explanation


def test_a_comparison_says_what_was_lost_and_which_threshold_holds():
    n = 10000
    first, second = np.arange(n) < 20, (np.arange(n) >= 50) & (np.arange(n) < 53)
    explanation = comparisons.one_step_beats_many(first, second).explanation
    assert "20 of 10000 examples more and 3 fewer, within the threshold of 0.20%" in explanation
    fired = comparisons.surrogate_helps(some(50), some(10)).explanation
    assert fired.startswith("the surrogate's gradient finds 40 of 100 examples more than the network's own")
    fired = comparisons.relaxation_helps(some(50), some(10), helped="round at net.py:3 (cut)").explanation
    assert fired.startswith("relaxing what the network's program hides (round at net.py:3 (cut)) finds 40 of 100")
    assert fired.endswith("examples more than its own gradient: it hides them")
    assert comparisons.relaxation_helps(some(10), some(50)).explanation.endswith("(1 finding)")


def test_probabilities_of_half_precision_are_recognised():
    rounded = SOFTMAX.astype(np.float16).astype(np.float32) * 1.004
    assert red_flags.probabilities(rounded).status == "pass"
    assert red_flags.probabilities(rounded, tolerance=1e-2).status == "fail"


def test_a_difference_must_exceed_its_threshold_too():
    n = 10000
    few, more = np.arange(n) < 20, np.arange(n) < 21
    assert comparisons.black_box_beats_white_box(few, np.zeros(n, bool)).status == "pass"  # 0.2 %
    assert comparisons.black_box_beats_white_box(more, np.zeros(n, bool)).status == "fail"


def test_gradients_warn_below_one_in_a_hundred_and_cosines_below_nine_tenths():
    assert red_flags.zero_gradients(np.arange(1000) < 10).status == "warn"
    assert red_flags.zero_gradients(np.arange(1000) < 11).status == "fail"
    assert red_flags.shattered_gradients(np.array([0.8, 0.85, 1.0])) == Flag(
        "warn", 0.85, 0.9, 3, red_flags.shattered_gradients(np.array([0.85] * 3)).explanation
    )


def test_planted_examples_may_be_missed_one_in_ten_and_one_in_any_case():
    for n, missed, status in ((50, 5, "pass"), (50, 6, "fail"), (8, 1, "pass"), (8, 2, "fail")):
        assert red_flags.planted_examples_missed(np.arange(n) >= missed).status == status


@pytest.mark.parametrize(
    ("check", "empty"),
    [
        (red_flags.invalid_perturbation, (np.ones(0, bool),)),
        (red_flags.nonfinite_logits, (np.ones(0, bool),)),
        (red_flags.probabilities, (np.ones((0, 3)),)),
        (partial(red_flags.randomness, declared=False), (np.ones((2, 0, 3)),)),
        (red_flags.batch_dependent, (np.ones((2, 0, 3)),)),
        (red_flags.zero_gradients, (np.ones(0, bool),)),
        (red_flags.nonfinite_gradients, (np.ones(0, bool),)),
        (red_flags.shattered_gradients, (np.ones(0),)),
        (red_flags.unstable_predictions, (np.ones(0),)),
        (red_flags.broader_threats, ({}, 0)),
        (red_flags.unbounded_attack_fails, (np.ones(0, bool),)),
        (red_flags.planted_examples_missed, (np.ones(0, bool),)),
        (red_flags.loss_and_margin_disagree, (np.ones((3, 0)), np.ones((3, 0)))),
        (red_flags.bfloat16_disagrees, (np.ones(0, bool), np.ones(0, bool))),
    ],
)
def test_a_check_of_no_examples_neither_passes_nor_fails(check, empty):
    assert check(*empty).status == "na"


@pytest.mark.parametrize("name", PASSES)
def test_a_comparison_of_no_examples_neither_passes_nor_fails(name):
    none = {np.ndarray: lambda some: some[..., :0], dict: lambda some: {size: hit[:0] for size, hit in some.items()}}
    assert call(name, [none[type(some)](some) for some in PASSES[name][0]]).status == "na"


def test_a_flag_counts_examples_and_grades_cosines():
    outputs = np.ones((2, 5, 3))
    assert red_flags.batch_dependent(outputs).n == 5 == red_flags.randomness(outputs, declared=False).n
    status = [red_flags.shattered_gradients(np.full(3, cosine)).status for cosine in (0.9, 0.89, 0.6, 0.5, 0.49)]
    assert status == ["pass", "warn", "warn", "warn", "fail"]


def test_randomness_is_declared_or_hidden_behind_one_key():
    same, other = np.stack([LOGITS] * 3), np.stack([LOGITS, LOGITS + 0.1 * RNG.normal(size=LOGITS.shape)])
    assert red_flags.randomness(other, declared=True, same_key=same).status == "pass"
    assert red_flags.randomness(other, declared=True, same_key=other).status == "fail"
    # The last bits of a float32 sum may differ from call to call on an accelerator, and break a tie either way.
    tie = np.array([[[1.0, 1.0 + 1e-7, 0.0]], [[1.0 + 1e-7, 1.0, 0.0]]])
    assert red_flags.randomness(tie, declared=False).status == "pass"


@pytest.mark.parametrize(
    "flag", [red_flags.batch_dependent, lambda outputs: red_flags.randomness(outputs, declared=False)]
)
def test_logits_that_are_not_finite_hide_no_change_of_the_others(flag):
    """With classes masked by -inf, and where NaN comes and goes."""
    masked = np.concatenate([LOGITS, np.full((len(LOGITS), 1), -np.inf)], axis=1)
    lost = np.where(np.arange(len(LOGITS))[:, None] == 3, np.nan, LOGITS)
    for same in (masked, lost):
        assert flag(np.stack([same, same])).status == "pass"
        assert flag(np.stack([same, same + 0.01 * RNG.normal(size=same.shape)])).status == "fail"
    for first, second in ((LOGITS, lost), (lost, LOGITS), (masked, np.abs(masked)), (masked, np.nan_to_num(masked))):
        assert flag(np.stack([first, second])).status == "fail"


def test_a_loss_that_still_rises_warns_of_too_few_steps():
    never = np.stack([NONE, NONE])
    assert comparisons.more_steps_help(never, np.full(10, 0.2)).status == "warn"
    assert comparisons.more_steps_help(never, np.full(10, 0.01)).status == "pass"


def test_rank_correlation_is_that_of_scipy():
    from scipy import stats

    loss, margin = RNG.normal(size=(2, 12, 30)) * 1000  # no two within a thousandth of the range, or hardly
    expected = np.median([stats.spearmanr(loss[:, i], margin[:, i]).statistic for i in range(30)])
    assert red_flags.loss_and_margin_disagree(loss, margin).value == pytest.approx(expected, abs=0.02)
    still = np.zeros((12, 30))
    assert red_flags.loss_and_margin_disagree(still, still).status == "na"


# Flag -> the value from which it fires, or below which where attacks should succeed or measures agree.
THRESHOLDS = {
    "invalid_perturbation": 0.0,
    "nonfinite_logits": 0.01,
    "probabilities": 1.0,
    "randomness": 1e-4,
    "batch_dependent": 1e-4,
    "zero_gradients": 0.01,
    "nonfinite_gradients": 0.01,
    "shattered_gradients": 0.9,
    "one_step_beats_many": 0.002,
    "more_steps_help": 0.003,
    "more_restarts_help": 0.003,
    "step_size_sensitive": 0.03,
    "accuracy_rises_with_epsilon": 0.0,
    "unbounded_attack_fails": 0.02,
    "black_box_beats_white_box": 0.002,
    "label_only_beats_white_box": 0.002,
    "unstable_predictions": 0.5,
    "transfer_beats_white_box": 0.002,
    "random_search_succeeds": 0.0,
    "planted_examples_missed": 0.9,
    "auxiliary_attack_helps": 0.002,
    "surrogate_helps": 0.002,
    "relaxation_helps": 0.002,
    "loss_and_margin_disagree": 0.8,
    "silent_success": 0.0,
    "eot_not_converged": 0.005,
    "frozen_key_resists": 0.002,
    "bfloat16_disagrees": 0.002,
}


def test_thresholds_are_those_that_verdicts_have_been_compared_by():
    """A verdict of today means what one of last year meant: whoever moves a threshold moves it here too."""
    assert {name: call(name, CASES[name][0]).threshold for name in CASES} == THRESHOLDS


def test_outputs_vary_by_the_largest_distance_in_units_of_their_size():
    outputs = np.random.default_rng(3).normal(size=(3, 7, 5))
    outputs[1:] = outputs[0] + 0.01 * outputs[1:]
    outputs[:, :, 0] += 9.0  # no other class comes ahead
    first = outputs[0] - outputs[0].mean(axis=1, keepdims=True)
    away = np.sqrt([[np.sum((other[i] - outputs[0, i]) ** 2) for i in range(7)] for other in outputs])
    expected = np.max(away / np.sqrt(np.sum(first**2, axis=1)))
    assert 1e-3 < expected < 0.1
    np.testing.assert_allclose(red_flags.randomness(outputs, declared=False).value, expected, rtol=1e-6)


def test_steps_below_a_thousandth_of_the_range_above_the_least_are_ties():
    loss, margin = (np.array([first, 0.3, 1000.3, 500.0])[:, None] for first in (0.7, 0.1))
    # A hair up and a hair down: both series have the ranks 0, 1, 3, 2 of their order.
    assert red_flags._rank_correlation(loss, margin) == pytest.approx([1.0])
    margin[1] = 1.0 + margin[0]  # now a step
    assert red_flags._rank_correlation(loss, margin) == pytest.approx([1.0])
    margin[0] = 2.0 + margin[1]
    assert red_flags._rank_correlation(loss, margin) == pytest.approx([0.8])  # 1 - 6 (1 + 1) / (4 (16 - 1))
