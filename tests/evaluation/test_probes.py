"""What a verdict measures by, against NumPy: recorded PGD, goals, gradients; and which attacks run on what."""

import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verdict_toys as toys

from robustjax.evaluation.verdict import _judge, batteries, diagnostics, examples, goals, probes, relaxations
from robustjax.evaluation.verdict.budgets import BUDGETS, Budget
from robustjax.evaluation.verdict.examples import Decision
from robustjax.evaluation.verdict.goals import Goal, Networks, Plant
from robustjax.evaluation.verdict.probes import RecordedPGD
from robustjax.evaluation.verdict.trial import Trial
from robustjax.ops import straight_through

IMAGES, LABELS, DISTANCES = toys.linear_examples(16, "linf")
WEIGHTS = toys.linear_weights().astype(np.float64)
EPSILON = float(np.median(DISTANCES))
ROWS = np.arange(16)
# The first two classes alone: what gradients find of them is exact, also in one step. Half are within reach.
TWO = WEIGHTS[:, :2]
LEADS = (IMAGES.reshape(16, -1).astype(np.float64) - 0.5) @ (TWO[:, 1] - TWO[:, 0])
OF_TWO, APART = (LEADS > 0).astype(np.int32), np.abs(LEADS) / np.abs(TWO[:, 1] - TWO[:, 0]).sum()
BETWEEN = float(np.median(APART))
DOWNHILL = np.sign(TWO[:, 0] - TWO[:, 1]).reshape(1, 8, 8, 1)


def linear(weights, images):
    return (images.reshape(images.shape[0], -1) - 0.5) @ weights


def network(weights=WEIGHTS):
    return jax.tree_util.Partial(linear, jnp.asarray(weights, jnp.float32))


def trial_of(networks=None, *, stochastic=False, epsilon=EPSILON, images=IMAGES, labels=LABELS, **budget):
    return Trial(
        Networks(network()) if networks is None else networks, toys.KEY, images, labels, epsilon=epsilon, norm="linf",
        bounds=(0.0, 1.0), stochastic=stochastic, budget=BUDGETS["quick"]._replace(**budget), batch_size=8,
        report=lambda line: None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heavy", "count", "wanted"), [(False, 70, [64, 64]), (True, 70, [64, 16]), (True, 17, [64]), (True, 3, [4])]
)
def test_few_examples_of_a_heavy_network_are_computed_in_a_smaller_batch(heavy, count, wanted):
    images, labels = np.tile(IMAGES, (5, 1, 1, 1)), np.tile(OF_TWO, 5)
    trial = Trial(
        Networks(network(TWO)), toys.KEY, images, labels, epsilon=BETWEEN, norm="linf", bounds=(0.0, 1.0),
        stochastic=False, budget=BUDGETS["quick"], batch_size=64, report=print, heavy=heavy,
    )  # fmt: skip
    sizes = []

    def program(rows):
        sizes.append(len(rows))
        return images[rows].sum(axis=(1, 2, 3)), rows

    rows = np.arange(80)[-count:]
    sums, seen = trial.over(rows, program)
    np.testing.assert_array_equal(seen, rows)
    np.testing.assert_array_equal(sums, images[rows].sum(axis=(1, 2, 3)))
    assert sorted(sizes, reverse=True) == wanted
    found = trial.apgd("found", rows, view="direct", loss="ce", num_steps=20)
    np.testing.assert_array_equal(found[rows] == 1.0, np.tile(APART, 5)[rows] < BETWEEN)


def goal_of(loss, targets, *, view=0, weights=(1.0, 0.0), plant=None, num_classes=4):
    nothing = Plant(np.zeros((len(targets), num_classes), np.float32), np.zeros(len(targets), np.float32))
    return Goal(
        jnp.int32(view), jnp.int32(goals.LOSSES.index(loss)), *(jnp.float32(weight) for weight in weights),
        jnp.asarray(targets, jnp.int32), jnp.bool_(plant is not None), nothing if plant is None else plant,
    )  # fmt: skip


def scores(points):
    return (points.reshape(len(points), -1) - 0.5) @ WEIGHTS


def ce(logits, labels):
    return np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]


def margin(logits, labels):
    others = np.where(np.arange(logits.shape[1]) == labels[:, None], -np.inf, logits)
    return others.max(1) - logits[np.arange(len(labels)), labels]


def softmax_gradient(points, labels):
    logits = scores(points)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return ((shares - np.eye(4)[labels]) @ WEIGHTS.T).reshape(points.shape)


def test_recorded_pgd_is_that_of_numpy_and_repeats_its_last_iterate():
    steps, columns = 6, probes.MAX_STEPS + 1
    goal = trial_of().goal(ROWS, view="direct", loss="ce")
    record = probes.recorded_pgd(
        Networks(network()), toys.KEY, IMAGES, LABELS, goal, np.float32(EPSILON), np.float32(0.25 * EPSILON),
        np.int32(steps), np.int32(1), np.bool_(False), stochastic=False, norm="linf", bounds=(0.0, 1.0),
    )  # fmt: skip
    points, best, ranks = IMAGES.astype(np.float64), IMAGES.copy(), [(-1.0, -np.inf)] * 16
    misclassified, loss, margins = np.zeros((3, columns, 16))
    for i in range(columns):
        logits = scores(points)
        loss[i], margins[i] = ce(logits, LABELS), margin(logits, LABELS)
        for j, rank in enumerate(zip(margins[i] >= 0, loss[i], strict=True)):
            if rank > ranks[j]:
                ranks[j], best[j] = rank, points[j]
        misclassified[i] = [share for share, _ in ranks]
        if i < steps:
            points = points + 0.25 * EPSILON * np.sign(softmax_gradient(points, LABELS))
            points = np.clip(points, np.maximum(IMAGES - EPSILON, 0), np.minimum(IMAGES + EPSILON, 1))
    assert 2 < misclassified[-1].sum() < 14 and np.all(misclassified[0] == 0)
    np.testing.assert_array_equal(record.misclassified, misclassified.T)
    np.testing.assert_allclose(record.loss, loss.T, atol=1e-4)
    np.testing.assert_allclose(record.margin, margins.T, atol=1e-4)
    np.testing.assert_allclose(record.images, best, atol=1e-5)


def test_a_pixel_whose_gradient_is_not_a_number_stays_where_it_is():
    def rooted(weights, images):
        return linear(weights, images) + jnp.sqrt(0.0 * images[:, :1, 0, 0])

    goal = trial_of().goal(ROWS, view="direct", loss="ce")
    record = probes.recorded_pgd(
        Networks(jax.tree_util.Partial(rooted, network().args[0])), toys.KEY, IMAGES, LABELS, goal,
        np.float32(EPSILON), np.float32(EPSILON), np.int32(1), np.int32(1), np.bool_(False), stochastic=False,
        norm="linf", bounds=(0.0, 1.0),
    )  # fmt: skip
    assert np.isnan(record.gradient[:, 0, 0, 0]).all()
    np.testing.assert_array_equal(record.images[:, 0, 0, 0], IMAGES[:, 0, 0, 0])
    assert np.mean(record.images != IMAGES) > 0.9


def test_of_random_points_every_other_one_is_on_the_ball():
    trial = trial_of()
    trial.norm = "l2"
    found = trial.random_points(ROWS, 40)
    lengths = np.linalg.norm((found.strongest - IMAGES).reshape(16, -1).astype(np.float64), axis=1)
    # Uniform in a ball of 64 dimensions hardly any is so near the end.
    assert lengths.max() < EPSILON * (1 + 1e-5) and np.sum(lengths > EPSILON * (1 - 1e-5)) > 4
    # Of one point: by how much of itself the margin changes there, at most by all of it.
    one = trial.random_points(ROWS, 1)
    here, there = (margin(scores(images.astype(np.float64)), LABELS) for images in (IMAGES, one.strongest))
    np.testing.assert_allclose(one.change, np.minimum(np.abs(there - here) / np.abs(here), 1.0), rtol=1e-2, atol=1e-4)
    assert np.median(one.change) < 0.9


def test_predictions_are_to_be_stable_under_8_of_255_in_units_of_the_box(monkeypatch):
    asked, trial = [], trial_of()
    trial.bounds = (-1.0, 1.0)
    trial.random_points = lambda rows, count, *, key, most: (
        asked.append((count, most)) or SimpleNamespace(change=np.zeros(len(rows)))
    )
    monkeypatch.setattr(diagnostics.broader, "accuracies", lambda trial, rows: {})
    monkeypatch.setattr(diagnostics.red_flags, "broader_threats", lambda *_: None)
    assert diagnostics.surroundings(trial, ROWS)["unstable_predictions"].status == "pass"
    assert asked == [(100, 16 / 255)]


def test_a_goal_is_a_weighted_sum_of_losses_of_the_view_that_it_names():
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(64, 4)) for name in ("direct", "surrogate", "undefended", "trained", "1", "2")}
    made = {name: network(value) for name, value in weights.items()}
    heads = lambda images: jnp.stack([made["1"](images), made["2"](images)])  # noqa: E731
    networks = Networks(made["direct"], made["surrogate"], heads, made["undefended"], made["trained"])
    expected = {name: linear(value, IMAGES.astype(np.float64)) for name, value in weights.items()}
    targets = ((LABELS + 1 + np.arange(16) % 3) % 4).astype(np.int32)
    rows = np.arange(16)

    def dlr(z):
        ordered = np.sort(z, axis=1)
        return margin(z, LABELS) / (ordered[:, -1] - ordered[:, -3])

    def targeted(z):
        ordered = np.sort(z, axis=1)
        scale = ordered[:, -1] - 0.5 * (ordered[:, -3] + ordered[:, -4])
        return (z[rows, targets] - z[rows, LABELS]) / scale

    of = dict(zip(goals.LOSSES, (lambda z: ce(z, LABELS), lambda z: margin(z, LABELS), dlr, targeted), strict=True))
    assert networks.views() == ("direct", "surrogate", "auxiliary", "undefended", "trained")
    outputs_of = jax.jit(lambda goal: goals.view_outputs(networks, goal, jnp.asarray(IMAGES)))
    loss_of = jax.jit(goals.goal_loss)
    for view, name in enumerate(networks.views()):
        for loss, function in of.items():
            goal = goal_of(loss, targets, view=view, weights=(0.7, 3.0))
            outputs = outputs_of(goal)
            logits = expected["surrogate" if name == "auxiliary" else name]
            np.testing.assert_allclose(outputs.logits, logits, atol=1e-4)
            others = [expected["1"], expected["2"]] if name == "auxiliary" else [np.zeros((16, 4))] * 2
            np.testing.assert_allclose(outputs.heads, others, atol=1e-4)
            if name == "auxiliary":
                total = 0.7 * function(logits) + 3.0 * np.mean([function(z) for z in others], axis=0)
                np.testing.assert_allclose(loss_of(outputs, LABELS), total, rtol=1e-4, atol=1e-4)
    # A plant's head in place of the network's logits, of which class 2 is behind both of its own.
    plant = Plant(np.float32(rng.normal(size=(16, 4))), np.float32(rng.normal(size=16)))
    height = np.sum(plant.weights * expected["direct"], axis=1) - plant.threshold
    planted = outputs_of(goal_of("ce", targets, plant=plant)).logits
    np.testing.assert_allclose(planted[:, :2], np.stack([-height, height], axis=1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(planted[:, 2:], np.stack([-np.abs(height) - 1.0] * 2, axis=1), rtol=1e-4, atol=1e-4)
    alone = goals.ViewOutputs(jnp.asarray(expected["direct"], jnp.float32), jnp.zeros((0, 0, 0)), goal)
    np.testing.assert_allclose(loss_of(alone, LABELS), 0.7 * targeted(expected["direct"]), rtol=1e-4)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_with_too_few_classes_the_margin_takes_the_place_of_dlr(num_classes):
    logits = np.random.default_rng(1).normal(size=(8, num_classes)).astype(np.float32)
    labels, targets = logits.argmax(1), (logits.argmax(1) + 1) % num_classes
    goal = lambda loss: goal_of(loss, targets, num_classes=num_classes)  # noqa: E731
    found = {
        loss: goals.goal_loss(goals.ViewOutputs(jnp.asarray(logits), jnp.zeros((0, 0, 0)), goal(loss)), labels)
        for loss in ("dlr", "targeted")
    }
    rows, ordered = np.arange(8), np.sort(logits, axis=1)
    scale = ordered[:, -1] - ordered[:, -3] if num_classes == 3 else 1.0
    np.testing.assert_allclose(found["dlr"], margin(logits, labels) / scale, rtol=1e-4)
    np.testing.assert_allclose(found["targeted"], logits[rows, targets] - logits[rows, labels], rtol=1e-4)


def test_derivatives_agree_with_differences_as_the_cosine_of_both_says():
    value, slope = np.random.default_rng(2).normal(size=(2, 64, 2))
    slope, length = value + slope, 0.1 * 0.02

    def straight(value, slope, images):
        return straight_through(linear(value, images), linear(slope, images))

    def agreement(value, slope):
        known = jax.tree_util.Partial(straight, *(jnp.asarray(w, jnp.float32) for w in (value, slope)))
        trial = trial_of(Networks(known), epsilon=0.02, labels=labels)
        key = jax.random.fold_in(toys.KEY, 7)
        gradient = trial.gradient_at(ROWS, IMAGES, "margin")[1]
        along = [diagnostics._along(trial, ROWS, gradient, length, jax.random.fold_in(key, i), ()) for i in range(16)]
        points = [trial.random_points(ROWS, 1, key=jax.random.fold_in(key, i), epsilon=length) for i in range(16)]
        return diagnostics.agreement(*np.swapaxes(along, 0, 1)), [found.strongest - IMAGES for found in points]

    labels = np.arange(16, dtype=np.int32) % 2
    found, deltas = agreement(value, slope)
    sign = np.where(labels == 0, 1.0, -1.0)
    derivatives, differences = (
        np.stack([sign * (delta.reshape(16, -1) @ (w[:, 1] - w[:, 0])) for delta in deltas]) for w in (slope, value)
    )
    size = lambda values: np.sqrt(np.sum(values**2, axis=0))  # noqa: E731
    expected = np.sum(derivatives * differences, axis=0) / (size(derivatives) * size(differences))
    assert np.all(expected < 0.99) and np.abs(deltas).max() <= length * 1.001 and np.abs(deltas).mean() > 0.3 * length
    np.testing.assert_allclose(found, expected, atol=2e-2)
    np.testing.assert_allclose(agreement(value, value)[0], 1.0, atol=1e-3)
    np.testing.assert_array_equal(agreement(value, 0 * slope)[0], 0.0)
    np.testing.assert_array_equal(agreement(0 * value, 0 * slope)[0], 1.0)
    np.testing.assert_array_equal(agreement(value, np.nan * slope)[0], 0.0)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_derivatives_and_differences_are_compared_at_any_scale(scale):
    one, other = (
        np.float32(scale) * np.array([[3.0, 1.0, 0.0], [4.0, 0.0, 0.0]], np.float32),
        np.ones((2, 3), np.float32),
    )
    for pair in ((one, other), (other, one)):
        np.testing.assert_allclose(diagnostics.agreement(*pair), [1.4 / 2**0.5, 1.0 / 2**0.5, 0.0], rtol=1e-6)
        np.testing.assert_allclose(
            diagnostics.agreement(-pair[0], pair[1])[:2], [-1.4 / 2**0.5, -1.0 / 2**0.5], rtol=1e-6
        )


def test_gradients_that_vanish_or_are_not_finite_are_found_example_by_example():
    images = IMAGES.copy()
    images[:, 0, 0, 0] = np.where(ROWS % 2 == 0, 0.3, 0.7)
    images[:, 0, 1, 0] = np.where(ROWS % 4 < 2, 0.3, 0.7)

    def partly(weights, images):
        live = (images[:, 0, 0, :] > 0.5).astype(jnp.float32)
        broken = jnp.where(images[:, 0, 1, :] > 0.5, jnp.nan, 0.0)
        return live * linear(weights, images) + broken * images[:, 0, 2, :] * jnp.arange(4.0)[None]

    known = Networks(jax.tree_util.Partial(partly, jnp.asarray(WEIGHTS, jnp.float32)))
    trial = trial_of(known, epsilon=0.1)
    loss, gradient = trial.gradient_at(ROWS[2:], images[2:], "ce")
    pixels = gradient.reshape(14, -1)
    np.testing.assert_array_equal(~np.isfinite(pixels).all(1), ROWS[2:] % 4 >= 2)
    np.testing.assert_array_equal((pixels == 0).all(1), (ROWS[2:] % 2 == 0) & (ROWS[2:] % 4 < 2))
    usual = ROWS[2:] % 4 == 1
    np.testing.assert_allclose(gradient[usual], softmax_gradient(images[2:], LABELS[2:])[usual], atol=1e-4)
    np.testing.assert_allclose(loss[usual], ce(scores(images[2:]), LABELS[2:])[usual], atol=1e-4)
    flags = diagnostics.gradients(trial_of(known, images=images, epsilon=0.01), ROWS[1::4], "")
    assert flags["nonfinite_gradients"].status == "pass" and flags["zero_gradients"].status == "pass"
    flags = diagnostics.gradients(trial_of(known, images=images, epsilon=0.01), ROWS, "")
    assert flags["nonfinite_gradients"].value == 0.5 and flags["zero_gradients"].value == 0.25


def test_a_network_with_a_rule_for_its_gradient_alone_can_be_looked_at():
    @jax.custom_vjp  # which jax.jvp refuses
    def doubled(x):
        return 2.0 * x

    doubled.defvjp(lambda x: (2.0 * x, None), lambda _, cotangent: (2.0 * cotangent,))
    known = jax.tree_util.Partial(lambda weights, images: doubled(linear(weights, images)), network().args[0])
    flags = diagnostics.gradients(trial_of(Networks(known), epsilon=0.01), ROWS, "")
    assert {flag.status for flag in flags.values()} == {"pass"}


def test_the_examples_of_a_trial_and_their_likeliest_wrong_classes():
    labels = np.where(ROWS < 3, (LABELS + 1) % 4, LABELS)
    trial = trial_of(labels=labels, num_measured=5, num_measured_by_draws=2)
    np.testing.assert_array_equal(trial.correct, ROWS >= 3)
    np.testing.assert_array_equal(trial.measured, [3, 4, 5, 6, 7])
    order = np.argsort(-scores(IMAGES), axis=1)
    for rank in range(3):
        targets = [[k for k in row if k != label][rank] for row, label in zip(order, labels, strict=True)]
        np.testing.assert_array_equal(trial.goal(ROWS, view="direct", loss="targeted", target=rank).targets, targets)
    last, beyond = (trial.goal(ROWS, view="direct", loss="targeted", target=rank).targets for rank in (2, 5))
    np.testing.assert_array_equal(last, beyond)
    assert trial.whole_box() == 1.0 and trial.num_classes == 4
    shares = trial.submit("nothing", ROWS[:0], IMAGES[:0])
    assert shares.shape == (16,) and not shares.any()
    np.testing.assert_array_equal(trial.strongest_share(), np.zeros(16))
    drawing = jax.tree_util.Partial(lambda weights, images, key: linear(weights, images), network().args[0])
    drawn = trial_of(Networks(drawing), stochastic=True, num_measured=5, num_measured_by_draws=2, num_draws=3)
    np.testing.assert_array_equal(drawn.measured, [0, 1])


def test_margins_are_those_of_the_strongest_other_class_and_what_is_undefined_is_the_most():
    np.testing.assert_allclose(examples.margin(scores(IMAGES), LABELS), margin(scores(IMAGES), LABELS))
    logits = np.array([[np.inf, np.inf], [0.0, -np.inf], [np.nan, 0.0]])
    assert examples.margin(logits, np.zeros(3, np.int32)).tolist()[::2] == [np.inf, np.inf]
    assert examples.margin(logits, np.zeros(3, np.int32))[1] < -1e300


def test_the_whole_box_is_a_ball_around_every_image_of_it():
    for norm, radius in (("linf", 1.5), ("l2", 12.0), ("l1", 96.0)):
        trial = trial_of()
        trial.norm, trial.bounds = norm, (-0.5, 1.0)
        assert trial.whole_box() == radius


def test_seconds_add_up_and_misclassified_examples_are_counted():
    lines = []
    trial = trial_of()
    trial.report = lines.append
    for _ in range(2):
        trial.timed("pgd", ROWS[:4], time.perf_counter() - 100.0, np.where(ROWS < 3, 1.0, 0.25))
    assert 200.0 <= trial.seconds["pgd"] < 260.0
    assert lines[1].startswith("pgd: 3 of 4 examples misclassified, 100.")


def test_of_no_examples_a_planted_attack_returns_no_images():
    trial = trial_of()
    plant = Plant(np.zeros((16, 4), np.float32), np.zeros(16, np.float32))
    found = trial.planted_apgd(ROWS[:0], plant, view="direct", loss="ce")
    assert found.shape == (0, *IMAGES.shape[1:])


def test_pgd_with_its_options_varied_breaks_what_is_in_reach():
    trial = trial_of(Networks(network(TWO)), epsilon=BETWEEN, labels=OF_TWO, pgd_steps=40)
    rows = ROWS[2:]  # what is not measured stays as it is
    grid = batteries.pgd_grid(trial, rows)
    for radius, share in zip(batteries.RADII, grid.by_radius, strict=True):
        clear = np.abs(APART - radius * BETWEEN) > 0.01 * BETWEEN
        np.testing.assert_array_equal(share[clear], ((radius * BETWEEN > APART) & (ROWS >= 2))[clear])
    np.testing.assert_array_equal(grid.one_step, (BETWEEN > APART) & (ROWS >= 2))
    np.testing.assert_array_equal(grid.unbounded, ROWS >= 2)
    assert set(grid.by_step_size) == {0.1, 0.25, 0.5}
    np.testing.assert_array_equal(grid.by_steps[-1], grid.by_step_size[0.25])
    np.testing.assert_array_equal(grid.by_steps[:, rows], grid.record.misclassified[:, [10, 20, 40]].T)
    assert grid.record.loss.shape == (14, 41)
    # A larger ball than the verdict's counts for no verdict.
    assert not any("radius-2" in name or name == "unbounded" for name in trial.shares)
    assert {"fgsm", "pgd-40:0.1", "pgd-40:0.25", "pgd-40:0.5", "pgd-40:radius-0.25"} <= set(trial.shares)
    inside = np.max([grid.one_step, *grid.by_step_size.values(), *grid.by_radius[:3]], axis=0)
    np.testing.assert_array_equal(grid.from_the_image(), inside)
    np.testing.assert_array_equal(batteries.by_gradient(trial), inside)


def test_of_a_stochastic_network_a_quarter_and_half_of_the_steps_are_runs_of_their_own():
    drawing = jax.tree_util.Partial(lambda weights, images, key: linear(weights, images), network(TWO).args[0])
    options = {"pgd_steps": 40, "eot_samples": 2, "num_draws": 3}
    trial = trial_of(Networks(drawing), stochastic=True, epsilon=BETWEEN, labels=OF_TWO, **options)
    grid = batteries.pgd_grid(trial, ROWS[2:])
    assert {"pgd-5:0.25", "pgd-10:0.25", "pgd-20:0.25"} <= set(trial.shares)
    np.testing.assert_array_equal(grid.by_steps, np.tile((BETWEEN > APART) & (ROWS >= 2), (3, 1)))
    assert grid.late_rise.size == 0  # a loss that rises by chance rises to the end


def test_the_rise_of_the_last_tenth_of_the_steps_is_that_of_the_examples_that_hold():
    steps = np.arange(21.0)
    loss = np.stack([steps, np.minimum(steps, 10.0), 0.0 * steps, steps**2, np.where(steps == 10, 5.0, 0.1 * steps)])
    misclassified = np.zeros((5, 21), bool)
    misclassified[3, 15:] = True
    record = RecordedPGD(None, None, misclassified, loss, loss)
    # Of 20 steps the last two: 2 of 20, none, no rise at all, broken, and no more than was reached before.
    np.testing.assert_allclose(batteries._late_rise(record), [0.1, 0.0, 0.0])


def test_attacks_go_on_with_what_the_former_left():
    given = Networks(network(), surrogate=network(), undefended=network(-WEIGHTS))
    trial = trial_of(given, epsilon=3.0 * float(DISTANCES.max()), num_steps=5, num_targets=2)
    trial.shares["apgd-ce"] = (ROWS % 2).astype(np.float32)
    np.testing.assert_array_equal(batteries.restart(trial), ROWS % 2 == 0)
    trial.shares = {"apgd-ce": (ROWS % 4 != 0).astype(np.float32)}
    found = batteries.adaptive(trial, trial.measured)
    np.testing.assert_array_equal(found.surrogate, ROWS % 4 == 0)
    assert list(trial.shares) == [
        *("apgd-ce", "surrogate:apgd-ce", "surrogate:apgd-t", "transfer:undefended:ce", "transfer:undefended:dlr")
    ]
    assert found.auxiliary is found.control is found.frozen is found.curve is None
    assert found.transfer.shape == (16,) and not found.transfer[ROWS % 4 != 0].any()


def test_what_the_heads_find_is_held_against_the_same_attack_without_them(monkeypatch):
    trial = trial_of(Networks(network(), auxiliary=network()))
    shares = {
        name: np.full(16, i / 100, np.float32) for i, name in enumerate(("0", "0.1", "2", "10", "100", "only", "1"))
    }
    halved = {"ce": 1.0, "margin": 0.5}

    def apgd(name, rows, **options):
        _, loss, weight = name.split(":")
        return halved[loss] * (shares[weight] + 0.5)

    monkeypatch.setattr(trial, "apgd", apgd)
    found = batteries.adaptive(trial, trial.measured)
    np.testing.assert_array_equal(found.control, shares["0"] + 0.5)
    np.testing.assert_array_equal(found.auxiliary, shares["1"] + 0.5)


@pytest.mark.parametrize(("stochastic", "version"), [(False, "standard"), (True, "rand")])
def test_with_the_full_budget_the_ensemble_is_autoattack_and_each_attack_has_what_it_found(
    stochastic, version, monkeypatch
):
    asked = {}
    # Away from the label's class by more than is needed; the last two as they are.
    moved = np.clip(IMAGES + 3.0 * APART.max() * np.sign(OF_TWO - 0.5)[:, None, None, None] * DOWNHILL, 0.0, 1.0)
    robust = {"apgd-ce": ROWS >= 5, "square": ROWS >= 14}
    images = np.where((ROWS < 14)[:, None, None, None], moved, IMAGES).astype(np.float32)

    def autoattack(network, key, images_given, labels, **options):
        asked.update(options)
        return SimpleNamespace(by_attack=robust, images=images)

    monkeypatch.setattr(batteries.attacks, "autoattack", autoattack)
    drawing = jax.tree_util.Partial(lambda weights, images, *key: linear(weights, images), network(TWO).args[0])
    epsilon = float(3.0 * APART.max())
    trial = trial_of(Networks(drawing), stochastic=stochastic, epsilon=epsilon, labels=OF_TWO, autoattack=True)
    batteries.ensemble(trial)
    assert asked == {"epsilon": epsilon, "norm": "linf", "version": version, "bounds": (0.0, 1.0)}
    np.testing.assert_array_equal(trial.shares["apgd-ce"], ROWS < 5)
    np.testing.assert_array_equal(trial.shares["square"], (ROWS >= 5) & (ROWS < 14))
    assert list(trial.shares) == ["apgd-ce", "square"] and "autoattack" in trial.seconds
    np.testing.assert_array_equal(trial.remaining(), [14, 15])


def test_of_a_stochastic_network_the_draws_in_a_gradient_are_swept():
    drawing = jax.tree_util.Partial(lambda weights, images, key: linear(weights, images), network(TWO).args[0])
    options = {"num_steps": 2, "pgd_steps": 20, "eot_samples": 2, "num_draws": 3, "curve": (1, 3)}
    given = Networks(drawing, surrogate=drawing)
    trial = trial_of(given, stochastic=True, epsilon=BETWEEN, labels=OF_TWO, **options)
    found = batteries.adaptive(trial, ROWS[4:])
    assert list(trial.shares) == ["surrogate:apgd-ce", "surrogate:apgd-dlr", "eot-1", "eot-3", "eot-frozen"]
    for share in (*found.curve, found.frozen):
        np.testing.assert_array_equal(share, (BETWEEN > APART) & (ROWS >= 4))
    assert found.curve.shape == (2, 16) and found.frozen.dtype == bool


def test_where_the_majority_is_close_more_steps_and_draws_are_taken():
    share = np.float32([0.0, 0.2, 0.25, 0.45, 0.6, 0.65, 1.0, 0.5])
    asked = []

    def apgd(name, rows, **options):
        asked.append((name, rows.tolist(), options.pop("networks", None), options))
        return np.where(np.isin(np.arange(8), rows[-1:]), 0.9, 0.0).astype(np.float32)

    trial = SimpleNamespace(
        budget=BUDGETS["quick"], attacked=np.arange(8) < 7, networks=Networks(1, surrogate=2), apgd=apgd,
        strongest_share=lambda: share,
    )  # fmt: skip
    batteries.close(trial, Networks(3))
    # What is found is attacked no more.
    assert [each[:3] for each in asked] == [
        ("relaxed:close:ce", [2, 3, 4], Networks(3)), ("relaxed:close:dlr", [2, 3], Networks(3)),
        ("surrogate:close:ce", [2], None), ("surrogate:close:dlr", [], None),
    ]  # fmt: skip
    trial.networks = Networks(1)
    batteries.close(trial, None)
    # The network's own gradient is followed where no better one is known.
    assert [each[:3] for each in asked[4:]] == [
        ("apgd:close:ce", [2, 3, 4], None), ("apgd:close:dlr", [2, 3], None)
    ]  # fmt: skip
    for name, _, _, options in asked:
        view = "surrogate" if name.startswith("surrogate") else "direct"
        assert options == {"view": view, "loss": name.split(":")[-1], "num_draws": 10, "num_steps": 100}


def test_what_costs_most_of_a_stochastic_network_is_run_on_measured_examples_alone():
    drawing = jax.tree_util.Partial(lambda weights, images, key: linear(weights, images), network(TWO).args[0])
    options = {"num_steps": 1, "num_queries": 2, "eot_samples": 1, "num_draws": 3, "num_measured_by_draws": 12}
    trial = trial_of(Networks(drawing), stochastic=True, epsilon=0.01 * BETWEEN, labels=OF_TWO, **options)
    asked, attacks = [], {"apgd": trial.apgd, "square": trial.square}
    for name, attack in attacks.items():

        def recorded(given, rows, attack=attack, **options):
            asked.append((given, rows.tolist()))
            return attack(given, rows, **options)

        setattr(trial, name, recorded)  # fmt: skip
    trial.shares["apgd-ce"] = (ROWS % 3 == 0).astype(np.float32)
    measured = trial.measured
    batteries.restart(trial)
    assert batteries.black_box(trial, measured) is None
    left = [i for i in range(12) if i % 3]
    assert asked == [("apgd-ce:restart", left), ("apgd-dlr:restart", left), ("square", left[:8])]


@pytest.mark.parametrize(("finds", "passes"), [(0, 1), (2, 3), (99, 5)])
def test_attacks_start_anew_on_what_all_left_as_long_as_that_finds_more(finds, passes, monkeypatch):
    trial, run = trial_of(), []
    trial.shares["square"] = (ROWS % 2).astype(np.float32)
    left = trial.remaining()
    assert 5 < len(left) < len(ROWS)

    def apgd(name, rows, *, view, loss, target=0):
        run.append((name, loss, target, rows.tolist()))
        found = np.zeros(len(ROWS), np.float32)
        # Each round finds one more: the odd ones by cross-entropy, the others by the second class that is aimed at.
        starts = sum(each[1] == "ce" for each in run)
        if starts <= finds and (loss == "ce" if starts % 2 else target == 1):
            found[rows[0]] = 1.0
        trial.shares[name] = np.maximum(trial.shares.get(name, 0.0), found)
        return found

    monkeypatch.setattr(trial, "apgd", apgd)
    batteries.persist(trial)
    starts = [rows for name, loss, _, rows in run if (name, loss) == ("again:apgd-ce", "ce")]
    assert starts == [left[i:].tolist() for i in range(passes)]
    aimed = [(target, rows) for name, loss, target, rows in run if (name, loss) == ("again:apgd-t", "targeted")]
    assert [target for target, _ in aimed] == [0, 1, 2] * passes
    assert aimed[0][1] == left[1 if finds else 0 :].tolist() and len(run) == 4 * passes


def test_nothing_is_attacked_again_where_nothing_is_left():
    trial = trial_of()
    trial.shares["square"] = np.ones(len(ROWS), np.float32)
    batteries.persist(trial)
    assert [*trial.shares] == ["square"]


def test_the_strongest_candidate_is_chosen_by_more_draws_than_decide(monkeypatch):
    drawing = jax.tree_util.Partial(lambda weights, images, key: linear(weights, images), network(TWO).args[0])
    trial = trial_of(Networks(drawing), stochastic=True, labels=OF_TWO, num_draws=3, num_choosing=7)
    keys = []
    classified = trial.classified

    def recorded(rows, points, *, key):
        keys.append(jax.random.key_data(key).tolist())
        return classified(rows, points, key=key)

    monkeypatch.setattr(trial, "classified", recorded)
    trial.decide()
    # Three sets of three draws for each of three candidates, and others that decide, the same for all.
    choosing, deciding = keys[:9], keys[9:]
    assert choosing == 3 * choosing[:3] and len({str(key) for key in choosing}) == 3
    assert len(deciding) == 3 and len({str(key) for key in deciding}) == 1 and deciding[0] not in choosing


def test_images_beside_which_a_network_is_asked_are_valid():
    seen = []

    def known(images):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
        return linear(jnp.asarray(WEIGHTS, jnp.float32), images)

    flag = diagnostics.batch_dependence(jax.tree_util.Partial(known), IMAGES, (0.25, 0.75), ())
    jax.effects_barrier()
    assert flag.status == "pass" and len(seen) == 3
    for images in seen:
        np.testing.assert_array_equal(images[:16], IMAGES)
        assert np.all(images[16:] >= 0.25) and np.all(images[16:] <= 0.75)
    brightness = [images[16:].mean() for images in seen]
    # The images themselves, noise all over the box, and noise in its darkest tenth.
    np.testing.assert_allclose(brightness, [IMAGES.mean(), 0.5, 0.275], atol=0.01)


def test_an_attack_is_said_to_misclassify_what_the_decision_confirms():
    bits = lambda text: np.array([digit == "1" for digit in text])  # noqa: E731
    trial = SimpleNamespace(shares={"a": np.array([0.9, 0.9, 0.0, 0.0, 0.2]), "b": np.array([0.0, 0.9, 0.9, 0.6, 0.1])})
    decision = Decision(
        bits("11011"), bits("11011"), bits("01000"), ["a", None, "clean", "b", "a"], None, np.zeros(5), np.zeros(5)
    )
    found = _judge._misclassified_by(trial, decision)
    np.testing.assert_array_equal(found["a"], bits("10001"))
    np.testing.assert_array_equal(found["b"], bits("00010"))


@pytest.mark.parametrize(
    ("groups", "turning", "hidden"),
    [
        # Alone the first group turns the gradient, left out of all the second does, and the third does neither.
        ([[0], [1, 3], [2]], {(1, 0, 0, 0), (1, 0, 1, 0)}, [True, True, False]),
        ([[0], [1, 3], [2]], {(1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 1, 0)}, [False, False, True]),
        ([[0, 1]], {(1, 1)}, [True]),
        ([[0, 1]], set(), [False]),
    ],
)
def test_a_finding_hides_what_turns_alone_or_beside_all_others(groups, turning, hidden, monkeypatch):
    """Networks are the strengths that they were made of, and so is the gradient: along one axis or another."""

    def gradient(strengths, images, labels, goal):
        axis = tuple(strengths.astype(int).tolist()) in turning
        return np.broadcast_to(np.eye(2, dtype=np.float32)[int(axis)], (len(images), 2))

    monkeypatch.setattr(relaxations, "_gradient", gradient)
    found = relaxations._hidden(trial_of(num_tried=8), lambda strengths: strengths, groups, ROWS)
    np.testing.assert_array_equal(found, np.broadcast_to(np.array(hidden)[:, None], (len(groups), 8)))


def test_budgets_are_those_that_are_documented():
    """AutoAttack's own sizes in the full one: 100 steps, 9 targets, 5000 queries, 20 draws."""
    assert {
        "quick": Budget(
            autoattack=False, num_steps=50, num_targets=3, num_queries=1000, num_decisions=0, num_random=200,
            pgd_steps=80, num_measured=512, num_measured_by_draws=128, num_tried=64, eot_samples=4, num_draws=20,
            curve=(1, 2, 4, 8, 16), close_steps=100, close_draws=10, num_choosing=100,
        ),
        "full": Budget(
            autoattack=True, num_steps=100, num_targets=9, num_queries=5000, num_decisions=5000, num_random=10000,
            pgd_steps=160, num_measured=512, num_measured_by_draws=256, num_tried=64, eot_samples=20, num_draws=100,
            curve=(1, 2, 4, 8, 16, 32, 64), close_steps=100, close_draws=40, num_choosing=300,
        ),
    } == BUDGETS  # fmt: skip
    assert max(budget.pgd_steps for budget in BUDGETS.values()) <= probes.MAX_STEPS


@pytest.mark.parametrize(("budget", "expected"), [("quick", 16), ("full", 16)])
def test_a_mean_over_draws_takes_fewer_images_at_a_time(budget, expected, monkeypatch):
    assert _judge._batch_size(BUDGETS[budget], stochastic=False) == 64  # on a CPU
    assert _judge._batch_size(BUDGETS[budget], stochastic=True) == expected
    monkeypatch.setattr(_judge, "default_batch_size", lambda: 512)  # as on other devices
    assert _judge._batch_size(BUDGETS[budget], stochastic=True) == {"quick": 128, "full": 25}[budget]
