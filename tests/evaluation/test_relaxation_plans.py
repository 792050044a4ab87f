"""The parts of relaxing what a program hides: which findings together, in which order, on which examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verdict_toys as toys

from robustjax.attacks.engine import inputs
from robustjax.evaluation.verdict import goals, relaxations
from robustjax.evaluation.verdict.budgets import BUDGETS
from robustjax.evaluation.verdict.trial import Trial
from robustjax.transforms import Finding
from robustjax.transforms._relax import has_replacements, relaxed


def finding(kind, primitive="round", where="net.py:3 (f)"):
    return Finding(kind, primitive, where, 1, "")


def test_findings_are_relaxed_alone_and_of_many_by_their_kind():
    kinds = ["step", "selection", "step", "detached"]
    assert relaxations._groups([finding(kind) for kind in kinds]) == [[0], [1], [2], [3]]
    eight, nine = (kinds * 3)[:8], (kinds * 3)[:9]
    assert relaxations._groups([finding(kind) for kind in eight]) == [[i] for i in range(8)]
    assert relaxations._groups([finding(kind) for kind in nine]) == [[0, 2, 4, 6, 8], [1, 5], [3, 7]]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["step"], [("step", [1], 1.0, "through")]),
        (["selection"], [("selection", [1], 1.0, "through"), *[("all", [1], t, "through") for t in (0.3, 3.0)]]),
        (
            ["step", "detached"],
            [("step", [1, 0], 1.0, "through"), ("detached", [0, 1], 1.0, "through"), ("all", [1, 1], 1.0, "through")],
        ),
        (
            ["inner_optimisation"],
            [
                ("inner_optimisation", [1], 1.0, "through"),
                ("all", [1], 1.0, "around"),
                ("all", [1], 1.0, "without"),
            ],
        ),
        (["random"], [("random", [1], 1.0, "through"), ("means", [1], 1.0, "through")]),
    ],
)
def test_each_finding_alone_comes_before_all_together_at_each_temperature_and_way_through_loops(kinds, expected):
    findings = [finding(kind) for kind in kinds]
    plans = list(relaxations._plans(findings, relaxations._groups(findings), replaces="random" in kinds))
    assert [(plan.name, plan.strengths.tolist(), plan.temperature, plan.loops) for plan in plans] == expected


def test_a_sign_is_relaxed_at_every_temperature_too():
    findings = [finding("step", "sign")]
    assert [plan.temperature for plan in relaxations._plans(findings, [[0]], replaces=False)] == [1.0, 0.3, 3.0]


def test_a_mask_that_can_be_left_out_is_left_out_last():
    *_, last = relaxations._plans([finding("selection")], [[0]], replaces=True)
    assert last.name == "unmasked" and last.replace


def winners(images):
    """The three brightest pixels by their bits, of which nothing says how near the others are."""
    rows = images.reshape(images.shape[0], -1)
    bits = jax.lax.bitcast_convert_type(rows, jnp.int32)
    kept = bits >= jnp.sort(bits, axis=1)[:, -3:-2]
    return jnp.where(kept, rows, 0.0) @ jnp.ones((rows.shape[1], 2))


@pytest.mark.parametrize(
    ("network", "replaces"),
    [(winners, True), (lambda x: jax.nn.relu(x - 0.5), False), (lambda x: jnp.where(x > 0.5, x, 0.0), False)],
)
def test_values_are_replaced_where_a_mask_says_nothing_of_how_near_it_is(network, replaces):
    images = jax.random.uniform(toys.KEY, (2, 3, 3, 1))
    findings = relaxations.find(network, images, ())
    assert has_replacements(findings, network, images) == replaces
    strength_of = lambda key: 1.0  # noqa: E731
    values = relaxed(network, strength_of, 1.0, "through", False, False, True, images)
    expected = images.reshape(2, -1).sum(1)[:, None] * jnp.ones((2, 2)) if replaces else network(images)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_what_was_relaxed_is_said_in_three_lines_at_most():
    findings = [finding("step", "round", f"net.py:{i} (f)") for i in (1, 2, 2, 3, 4, 5)]
    plan = relaxations._Plan("all", np.array([1, 1, 1, 0, 0, 0]), 1.0, "through")
    assert relaxations._words(plan, findings) == "round at net.py:1 (f), round at net.py:2 (f)"
    plan = plan._replace(strengths=np.ones(6))
    lines = ", ".join(f"round at net.py:{i} (f)" for i in (1, 2, 3))
    assert relaxations._words(plan, findings) == f"{lines} and 2 more"


def test_a_gradient_has_turned_by_more_than_sixty_degrees_or_is_there_on_one_side_only():
    angles = np.deg2rad([0, 59, 61, 180])
    one = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3.0
    np.testing.assert_array_equal(relaxations._turned(one, np.array([[2.0, 0.0]])), [False, False, True, True])
    nothing, something = np.zeros((1, 2)), np.ones((1, 2))
    assert relaxations._turned(nothing, something) and relaxations._turned(something, nothing)
    assert not relaxations._turned(nothing, nothing)


@jax.custom_jvp
def raising(images):
    return jnp.square(images)


@raising.defjvp
def _raising_jvp(primals, tangents):
    raise RuntimeError("no gradient of this")


def test_a_rule_that_raises_is_no_error_of_a_verdict():
    images, labels, _ = toys.linear_examples(2, "linf")
    assert inputs.gradient_trouble(lambda images: toys.linear(raising(images)), images) == "no gradient of this"
    network = goals.as_logits_fn(lambda images: toys.linear(raising(jnp.round(images))))
    trial = Trial(
        goals.Networks(network), toys.KEY, images, labels, epsilon=0.05, norm="linf", bounds=(0.0, 1.0),
        stochastic=False, budget=BUDGETS["quick"], batch_size=2, report=print,
    )  # fmt: skip
    findings = relaxations.find(network, images, ())
    assert {finding.kind for finding in findings} == {"custom_rule", "step"}
    found = relaxations.attack(trial, network, findings, np.arange(2), np.arange(2), before=np.zeros(2), quicken=True)
    assert found.share is None


@pytest.mark.parametrize("num_found", [0, 1])
def test_what_found_most_on_a_sample_is_run_on_all_that_is_left(num_found, monkeypatch):
    images, labels, _ = toys.linear_examples(16, "linf")
    hiding = goals.as_logits_fn(lambda images: toys.linear(jax.lax.stop_gradient(jnp.round(3.0 * images) / 3.0)))
    trial = Trial(
        goals.Networks(hiding), toys.KEY, images, labels, epsilon=0.05, norm="linf", bounds=(0.0, 1.0),
        stochastic=False, budget=BUDGETS["quick"]._replace(num_tried=8), batch_size=8, report=print,
    )  # fmt: skip
    findings = relaxations.find(hiding, images[:2], ())
    assert {finding.kind for finding in findings} == {"step", "detached"}
    run, rows = [], np.arange(16)
    last = f"relaxed:{findings[1].kind}"

    def apgd(name, rows, *, loss, target, **options):
        assert options["view"] == "direct"
        shares = np.zeros(16, np.float32)
        if name == last and not any(before[0] == name for before in run):
            shares[rows[:num_found]] = 1.0
        run.append((name, rows.tolist(), loss, target))
        return shares

    monkeypatch.setattr(trial, "apgd", apgd)
    found = relaxations.attack(trial, hiding, findings, rows, rows, before=np.zeros(16), quicken=False)
    first = f"relaxed:{findings[0].kind}"
    sample, rest = list(range(8)), list(range(8, 16))
    expected = [(name, sample, "ce", 0) for name in (first, last, "relaxed:all")]
    if num_found:  # the best three, each on the rest and then aimed at classes
        left = list(range(1, 16))
        for name in (last, first, "relaxed:all"):
            expected += [(name, rest, "ce", 0), *[(name, left, "targeted", target) for target in range(3)]]
        # Once more from another start, which finds nothing.
        expected += [(last, left, "ce", 0), *[(last, left, "targeted", target) for target in range(3)]]
    else:  # everything relaxed, and no more than the sample
        expected += [("relaxed:all", [], "ce", 0), *[("relaxed:all", sample, "targeted", t) for t in range(3)]]
    assert run == expected
    assert [remedy.misclassified for remedy in found.remedies] == [0, num_found]
    assert [(remedy.tried, remedy.num_images, remedy.hidden) for remedy in found.remedies] == [(8, 8, 8)] * 2
    np.testing.assert_array_equal(found.share, rows < num_found)
    assert found.helped == (f"{findings[1].primitive} at {findings[1].where}" if num_found else "")


def rounding(num_examples):
    """A linear network of rounded images, a trial of it whose sample is eight examples, and the findings."""
    images, labels, _ = toys.linear_examples(num_examples, "linf")
    hiding = goals.as_logits_fn(lambda images: toys.linear(jnp.round(3.0 * images) / 3.0))
    trial = Trial(
        goals.Networks(hiding), toys.KEY, images, labels, epsilon=0.05, norm="linf", bounds=(0.0, 1.0),
        stochastic=False, budget=BUDGETS["quick"]._replace(num_tried=8), batch_size=8, report=print,
    )  # fmt: skip
    return hiding, trial, relaxations.find(hiding, images[:2], ())


def test_what_only_aiming_at_a_class_finds_on_the_sample_is_looked_for_on_all_that_is_left(monkeypatch):
    hiding, trial, findings = rounding(16)
    run, rows = [], np.arange(16)

    def apgd(name, rows, *, loss, target, **options):
        run.append((loss, len(rows)))
        shares = np.zeros(16, np.float32)
        shares[rows[:1]] = len(run) == 3 or (loss == "ce" and len(rows) == 15)  # the first at a class, and of the rest
        return shares

    monkeypatch.setattr(trial, "apgd", apgd)
    found = relaxations.attack(trial, hiding, findings, rows, rows, before=np.zeros(16), quicken=False)
    assert run[:5] == [("ce", 8), ("ce", 0), ("targeted", 8), ("targeted", 7), ("targeted", 7)]
    assert [count for loss, count in run[5:] if loss == "ce"] == [15, 14]
    assert found.helped and found.share.sum() == 2 and found.remedies[0].misclassified == 0


@pytest.mark.parametrize(("finds", "passes"), [(0, 1), (2, 3), (99, 5)])
def test_a_remedy_starts_anew_as_long_as_that_finds_more(finds, passes, monkeypatch):
    hiding, trial, findings = rounding(32)
    run, rows = [], np.arange(32)

    def apgd(name, rows, *, loss, target, **options):
        run.append((loss, len(rows)))
        starts = [each for each in run if each[0] == "ce"]
        shares = np.zeros(32, np.float32)
        # The first on the sample, then each new start one more.
        shares[rows[: 1 if len(run) == 1 or (2 < len(starts) <= 2 + finds and loss == "ce") else 0]] = 1.0
        return shares

    monkeypatch.setattr(trial, "apgd", apgd)
    relaxations.attack(trial, hiding, findings, rows, rows, before=np.zeros(32), quicken=False)
    # On the sample, on the rest, and the new starts.
    assert sum(loss == "ce" for loss, _ in run) == 2 + passes
    assert [count for loss, count in run if loss == "ce"][2:] == [31 - i for i in range(passes)]


def test_a_network_of_means_takes_one_draw_and_is_aimed_at_classes_beside_the_best(monkeypatch):
    images, labels, _ = toys.linear_examples(16, "linf")

    def masked(images, key):
        kept = jax.random.bernoulli(key, 0.5, images.shape)
        return toys.linear(jnp.round(30.0 * jnp.where(kept, images / 0.5, 0.0)) / 30.0)

    network = goals.as_logits_fn(masked)
    trial = Trial(
        goals.Networks(network), toys.KEY, images, labels, epsilon=0.05, norm="linf", bounds=(0.0, 1.0),
        stochastic=True, budget=BUDGETS["quick"]._replace(num_tried=8), batch_size=8, report=print,
    )  # fmt: skip
    findings = relaxations.find(network, images[:2], (toys.KEY,))
    assert {finding.kind for finding in findings} == {"step", "random"}
    run, rows, seen = [], np.arange(16), []
    before = np.full(16, 0.3, np.float32)

    def apgd(name, rows, *, loss, target, networks, num_draws, **options):
        run.append((name, len(rows), loss, target, num_draws))
        seen.append(np.asarray(networks.direct(trial.images[:2], toys.KEY)))
        shares = np.full(16, 0.3, np.float32)
        # A majority of draws on one image, or nearer to it on all, and neither beyond doubt.
        shares[rows[:1]] = 0.55
        shares[rows] += 0.1 if name == "relaxed:all" else 0.0
        return shares

    monkeypatch.setattr(trial, "apgd", apgd)
    found = relaxations.attack(trial, network, findings, rows, rows[:8], before=before, quicken=False)
    draws = relaxations.draws_of(trial)
    kinds = [f"relaxed:{finding.kind}" for finding in findings]
    assert [one[:1] + one[2:] for one in run] == [
        *[(name, "ce", 0, draws) for name in (*kinds, "relaxed:all")], ("relaxed:means", "ce", 0, 1),
        ("relaxed:means", "ce", 0, 1), *[("relaxed:means", "targeted", target, 1) for target in range(3)],
        ("relaxed:all", "ce", 0, draws), ("relaxed:all", "dlr", 0, draws),
    ]  # fmt: skip
    # The means change values; everything else has the network's own.
    own = np.asarray(network(trial.images[:2], toys.KEY))
    for (name, *_), logits in zip(run, seen, strict=True):
        assert np.array_equal(logits, own) == (name != "relaxed:means")
    np.testing.assert_array_equal(np.asarray(found.networks.direct(trial.images[:2], toys.KEY)), own)
    assert found.helped and [remedy.misclassified for remedy in found.remedies] == [1, 1]
    # Where no majority turns, the rest is left alone: nearer is not enough.
    run.clear()
    found = relaxations.attack(trial, network, findings, rows, rows[:8], before=np.full(16, 0.6), quicken=False)
    assert not found.helped and [one[:2] for one in run[4:]] == [("relaxed:all", 0), ("relaxed:all", 8)]
    # Where none is correct by majority, those under attack are looked at.
    found = relaxations.attack(trial, network, findings, rows, rows[:0], before=np.full(16, 0.6), quicken=False)
    assert [(remedy.num_images, remedy.hidden) for remedy in found.remedies] == [(8, 0), (8, 8)]
