"""Measurements of what happens inside networks, against loops over small arrays, SciPy and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from robustjax import analysis, defenses, models
from robustjax.analysis import estimate, plots
from robustjax.defenses import sns
from robustjax.types import InputError, Outputs


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_bootstrap_agrees_with_scipy_and_covers(rng):
    values = rng.exponential(size=40)
    ours = analysis.bootstrap(lambda chosen: {"mean": values[chosen].mean()}, 40, num_resamples=4000)["mean"]
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=rng)
    assert ours.interval == pytest.approx(theirs.confidence_interval, rel=0.04)
    assert ours.value == values.mean() and ours.n == 40
    hits = 0
    for _ in range(150):
        sample = rng.normal(size=30)
        mean = analysis.bootstrap(lambda chosen, s=sample: {"m": s[chosen].mean()}, 30, num_resamples=200)["m"]
        hits += mean.interval[0] <= 0 <= mean.interval[1]
    assert 0.88 <= hits / 150 <= 0.99


def test_the_interval_of_a_mean_is_no_accident_of_the_draws(rng):
    values, drawn = rng.normal(size=60), []

    def statistic(chosen):
        drawn.append(values[chosen].mean())
        return {"mean": drawn[-1]}

    lows = [analysis.bootstrap(statistic, 60, seed=seed)["mean"].interval[0] for seed in range(30)]
    means = np.reshape(drawn, (30, -1))[:, 1:].mean(axis=1)
    assert means == pytest.approx(np.full(30, values.mean()), abs=1e-12)  # so that nothing is taken for a bias
    assert np.std(lows) < 0.08 * values.std() / np.sqrt(60)


def test_the_interval_covers_a_scalar_that_grows_when_resampled(rng):
    # The mean of eight absolute gaps of 0.15 with standard errors of 0.13. Percentiles as they are cover 84 % of such
    # gaps, basic intervals 84 %, bias-corrected percentiles (BC, which BCa extends) 83 %, these 92 %.
    hits = 0
    for _ in range(150):
        gaps = rng.normal(0.15, 1.0, (60, 8))
        found = analysis.bootstrap(
            lambda chosen, gaps=gaps: {"gap": np.abs(gaps[chosen].mean(axis=0)).mean()}, 60, num_resamples=200
        )["gap"]
        hits += found.interval[0] <= 0.15 <= found.interval[1]
    assert 0.88 <= hits / 150 <= 0.99


def test_an_undefined_scalar_is_nan_and_none_in_json():
    found = analysis.bootstrap(lambda chosen: {"ratio": np.nan}, 3)["ratio"]
    assert math.isnan(found.value) and found.plain()["value"] is None and found.plain()["interval_95"] == [None, None]
    with pytest.raises(InputError, match="2 examples"):
        analysis.bootstrap(lambda chosen: {"mean": 0.0}, 1)


def test_the_interval_of_a_biased_scalar_holds_its_value(rng):
    # A mean of absolute gaps that are all 0 in truth: resampling makes every one larger.
    gaps = rng.normal(size=(60, 40))
    found = analysis.bootstrap(lambda chosen: {"gap": np.abs(gaps[chosen].mean(axis=0)).mean()}, 60)["gap"]
    drawn = [np.abs(gaps[rng.integers(60, size=60)].mean(axis=0)).mean() for _ in range(500)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.value < low  # so that plain percentiles would leave it out
    assert found.interval[0] < found.value < found.interval[1]
    assert found.interval[1] - found.interval[0] == pytest.approx(high - low, rel=0.2)


def test_channels_class_by_class(rng):
    natural, adversarial = (rng.exponential(size=(12, 5)) * (rng.uniform(size=(12, 5)) < 0.6) for _ in range(2))
    labels = np.arange(12) % 3
    seen = analysis.channels(natural, adversarial, labels)
    for k in range(3):
        for which, values in enumerate((natural, adversarial)):
            rows = [row for row, label in zip(values, labels, strict=True) if label == k]
            frequency = [sum(row[c] > 0.01 * max(row) for row in rows) / 4 for c in range(5)]
            assert seen.frequency[which, k] == pytest.approx(frequency)
            assert seen.magnitude[which, k] == pytest.approx(np.mean(rows, axis=0))
    gap = np.mean([np.abs(seen.frequency[0, k] - seen.frequency[1, k]).mean() for k in range(3)])
    assert seen.estimates["l1_gap"].value == pytest.approx(gap)
    ratio = np.mean([seen.magnitude[1, k].mean() / seen.magnitude[0, k].mean() for k in range(3)])
    assert seen.estimates["magnitude_ratio"].value == pytest.approx(ratio)
    shares = seen.frequency[0] / seen.frequency[0].sum(axis=1, keepdims=True)
    expected = np.mean([scipy.stats.entropy(row) / math.log(5) for row in shares])
    assert seen.estimates["entropy_natural"].value == pytest.approx(expected)
    pairs = [np.abs(row[:, None] - row[None, :]).sum() / (2 * 25 * row.mean()) for row in seen.frequency[1]]
    assert seen.estimates["gini_adversarial"].value == pytest.approx(np.mean(pairs))
    for found in seen.estimates.values():
        assert found.interval[0] <= found.value <= found.interval[1]


def test_channels_that_are_all_dead_count_for_nothing():
    seen = analysis.channels(np.zeros((4, 3)), np.ones((4, 3)), np.zeros(4, int))
    assert seen.frequency[0].sum() == 0 and seen.estimates["gini_natural"].value == 0
    assert math.isnan(seen.estimates["magnitude_ratio"].value)
    with pytest.raises(InputError, match="labels"):
        analysis.channels(np.zeros((4, 3)), np.ones((4, 3)), np.zeros(3, int))


def test_relevance_against_spearman_and_a_loop(rng):
    natural, adversarial = rng.exponential(size=(2, 15, 6))
    labels, weights, robust = np.arange(15) % 3, rng.normal(size=(6, 3)), rng.uniform(size=15) < 0.5
    seen = analysis.relevance(natural, adversarial, labels, weights, robust)
    for k in range(3):
        rows = labels == k
        for which, values in enumerate((natural, adversarial)):
            expected = scipy.stats.spearmanr(weights[:, k], values[rows].mean(axis=0)).statistic
            assert seen.rank_correlation[which, k] == pytest.approx(expected)
        negative = weights[:, k] < 0
        rise = (adversarial[rows] - natural[rows]).mean(axis=0)[negative].mean() / natural[rows].mean()
        assert seen.over_activation[k] == pytest.approx(rise)
        assert seen.robust_accuracy[k] == pytest.approx(robust[rows].mean())
    order = np.argsort(seen.robust_accuracy, kind="stable")
    gap = seen.over_activation[order[0]] - seen.over_activation[order[1:]].mean()
    assert seen.estimates["over_activation_gap"].value == pytest.approx(gap)
    gap = seen.rank_correlation[1, order[0]] - seen.rank_correlation[1, order[1:]].mean()
    assert seen.estimates["rank_correlation_gap"].value == pytest.approx(gap)


def test_over_activation_is_relative_to_magnitudes_where_activations_have_signs():
    natural, adversarial = np.array([[1.0, -1.0], [1.0, -1.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    seen = analysis.relevance(natural, adversarial, np.zeros(2, int), np.array([[1.0], [-1.0]]), np.ones(2, bool))
    assert seen.over_activation.tolist() == [1.0]  # of a mean activation of 0 it would be nothing


def test_sensitivity_is_that_of_the_defense_and_relative_does_not_scale(rng):
    benign, moved = (rng.normal(size=(6, 2, 2, 4)).astype(np.float32) for _ in range(2))
    movement, magnitude = np.abs(benign - moved).mean(axis=(1, 2)), np.abs(benign).mean(axis=(1, 2))
    seen = analysis.sensitivity({"a": movement}, {"a": magnitude})
    assert seen.by_site["a"] == pytest.approx(np.asarray(sns.sensitivity(jnp.asarray(benign), jnp.asarray(moved))))
    scaled = analysis.sensitivity({"a": 7 * movement}, {"a": 7 * magnitude})
    relative = [found.estimates["relative_sensitivity"].value for found in (seen, scaled)]
    assert relative[0] == pytest.approx(relative[1])
    assert seen.relative["a"] == pytest.approx(scaled.relative["a"])
    assert seen.relative["a"].mean() == pytest.approx(relative[0])
    assert analysis.sensitivity({"a": 0 * movement}, {"a": 0 * magnitude}).relative["a"].tolist() == [0.0] * 4
    assert scaled.estimates["sensitivity"].value == pytest.approx(7 * seen.estimates["sensitivity"].value)


@pytest.fixture(scope="module")
def network():
    """A network without training, natural images and moved ones."""
    rng = np.random.default_rng(1)
    module = models.create("small_cnn")
    images = rng.uniform(size=(6, 8, 8, 1)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), images)
    changed = np.clip(images + rng.uniform(-0.3, 0.3, images.shape), 0, 1).astype(np.float32)
    return module, variables, images, changed


def test_observe_gives_what_the_network_does_in_batches_that_do_not_divide(network):
    module, variables, images, changed = network
    labels = np.arange(6)
    seen = analysis.observe(jax.tree_util.Partial(module.apply, variables), images, changed, labels, batch_size=4)
    outputs = module.apply(variables, images)
    assert seen.logits[0] == pytest.approx(np.asarray(outputs.logits), abs=1e-5)
    features = np.asarray(outputs.features["conv2"])
    assert seen.pooled["conv2"][0] == pytest.approx(features.mean(axis=(1, 2)), abs=1e-5)
    moved = np.asarray(module.apply(variables, changed).features["conv2"])
    assert seen.movement["conv2"] == pytest.approx(np.abs(features - moved).mean(axis=(1, 2)), abs=1e-5)
    assert seen.right.shape == (2, 6) and seen.probabilities.sum(axis=-1) == pytest.approx(np.ones((2, 6)), abs=1e-5)
    with pytest.raises(InputError, match="same examples"):
        analysis.observe(lambda x: Outputs(x, {}, {}), images, changed[:2], labels)


def test_all_neurons_of_a_layer_restored_are_the_natural_image(network):
    module, variables, images, changed = network
    logits = np.asarray(module.apply(variables, images).logits)
    labels = logits.argmax(axis=1)
    found = analysis.restoration(
        module, variables, images, changed, labels, sites=["conv1"], fraction=1.0, num_draws=1, batch_size=4
    )
    # Everything after the layer sees what the natural image gives.
    assert found.sensitive["conv1"].all() and found.random["conv1"].all()
    attacked = np.asarray(module.apply(variables, changed).logits).argmax(axis=1) == labels
    assert found.attacked.tolist() == attacked.tolist()
    guarded = models.create("small_cnn", defense=defenses.create("kwta"))
    with pytest.raises(InputError, match="no guard"):
        analysis.restoration(guarded, variables, images, changed, labels)


def test_separation_counts_and_masks_are_those_of_the_guard(network):
    _, _, images, _ = network
    module = models.create("small_cnn", defense=defenses.create("fsr", width=2))
    keys = {"params": jax.random.key(0), "defense": jax.random.key(1)}
    variables = jax.jit(module.init)(keys, images)
    mask = analysis.fsr_masks(module, variables, images)["conv2"]
    # The head on the robust features: the mask times what the network without the guard passes on there.
    outputs = module.apply(variables, images)
    plain = module.clone(guards=None).apply({"params": variables["params"]}, images).features["conv2"]
    head = variables["params"]["guards_conv2"]["auxiliary"]
    robust = (mask * np.asarray(plain)).mean(axis=(1, 2)) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    assert robust == pytest.approx(np.asarray(outputs.auxiliary["robust"][0]), abs=1e-4)
    labels = np.asarray(outputs.auxiliary["robust"][0]).argmax(axis=1)
    seen = analysis.separation(outputs.auxiliary, labels)
    nonrobust = (np.asarray(outputs.auxiliary["nonrobust"][0]).argmax(axis=1) == labels).mean()
    assert seen.estimates["robust"].value == 1 and seen.estimates["robust_gap"].value == pytest.approx(1 - nonrobust)
    assert analysis.fsr_masks(network[0], network[1], images) == {}
    with pytest.raises(InputError, match="nonrobust"):
        analysis.separation({"robust": np.zeros((2, 2))}, np.zeros(2, int))


def test_calibration_by_hand_and_at_the_ends_of_bins(rng):
    probabilities = rng.dirichlet(np.ones(4), size=50)
    probabilities[0] = (1.0, 0.0, 0.0, 0.0)
    labels = rng.integers(4, size=50)
    found = analysis.calibration(probabilities, labels, num_bins=5)
    ece = brier = 0.0
    for b in range(5):
        rows = [i for i, row in enumerate(probabilities) if b / 5 < row.max() <= (b + 1) / 5]
        if rows:
            right = np.mean([probabilities[i].argmax() == labels[i] for i in rows])
            ece += len(rows) / 50 * abs(np.mean([probabilities[i].max() for i in rows]) - right)
        assert found.count[b] == len(rows)
    for row, label in zip(probabilities, labels, strict=True):
        brier += sum((p - (k == label)) ** 2 for k, p in enumerate(row)) / 50
    assert found.estimates["ece"].value == pytest.approx(ece) and found.estimates["brier"].value == pytest.approx(brier)
    assert math.isnan(found.accuracy[0]) and found.count.sum() == 50
    with pytest.raises(InputError, match="sum up to 1"):
        analysis.calibration(np.ones((2, 2)), np.zeros(2, int))


def test_classes_and_curves():
    labels = np.array([0, 0, 0, 1, 1, 2])
    found = analysis.by_class(np.array([0, 0, 1, 1, 1, 0]), labels, num_classes=3)
    assert [round(accuracy.value, 3) for accuracy in found.accuracies] == [0.667, 1.0, 0.0]
    assert found.confusion[2].tolist() == [1.0, 0.0, 0.0] and found.estimates["worst_class"].value == 0
    # Of the classes with two images and more: (2/3, 1), and what chance adds is (2/9 / 2 + 0) / 2.
    assert found.estimates["class_variance"].value == pytest.approx(1 / 18 - 1 / 18)
    curve = analysis.curve([0.0, 1.0, 2.0], np.array([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]], bool))
    assert curve.estimates["half_at"].value == pytest.approx(1 + 1 / 3) and curve.estimates["last_loss"].value == 0.75
    assert math.isnan(analysis.curve([0.0, 1.0], np.ones((2, 4), bool)).estimates["half_at"].value)
    with pytest.raises(InputError, match="rising"):
        analysis.curve([1.0, 1.0], np.ones((2, 4), bool))


def test_the_variance_of_classes_is_that_of_their_true_accuracies(rng):
    labels = np.repeat(np.arange(10), 30)

    def measured(accuracies):
        right = [rng.uniform(size=300) < np.repeat(accuracies, 30) for _ in range(10)]
        found = [analysis.by_class(np.where(r, labels, (labels + 1) % 10), labels, num_classes=10) for r in right]
        return [one.estimates["class_variance"] for one in found]

    alike, unlike = measured(np.full(10, 0.7)), measured(np.linspace(0.3, 0.9, 10))
    assert np.mean([one.value for one in alike]) == pytest.approx(0, abs=0.003)
    assert sum(one.interval[0] > 0 for one in alike) <= 2  # of 10, of which a quarter is expected
    assert np.mean([one.value for one in unlike]) == pytest.approx(np.linspace(0.3, 0.9, 10).var(ddof=1), abs=0.005)
    assert all(one.interval[0] > 0 for one in unlike)


def test_the_loss_of_a_linear_margin_is_as_linear_as_softplus(rng):
    # Two logits of which one is 0: cross-entropy is softplus of minus the other one, with a known derivative.
    weights = rng.normal(size=9).astype(np.float32)
    linear = lambda x: jnp.stack([x.reshape(len(x), -1) @ weights, jnp.zeros(len(x))], axis=1)  # noqa: E731
    images = rng.uniform(size=(3, 3, 3, 1)).astype(np.float32)
    step = -0.2 * np.sign(weights).reshape(1, 3, 3, 1)
    found = analysis.surface(linear, images, np.zeros(3, int), (images + step).astype(np.float32), epsilon=0.2, size=5)
    logit = images.reshape(3, -1).astype(np.float64) @ weights
    change = float(step.ravel() @ weights)
    loss = lambda t: np.log1p(np.exp(-(logit + t * change)))  # noqa: E731
    assert found.loss[:, 2] == pytest.approx([loss(t).mean() for t in (-1, -0.5, 0, 0.5, 1)], abs=1e-4)
    slope = -change / (1 + np.exp(logit))
    errors = np.max([np.abs(loss(t) - loss(0) - t * slope) for t in (0, 0.5, 1)], axis=0)
    assert found.estimates["linearity_error"].value == pytest.approx(errors.mean(), abs=1e-4)
    assert found.estimates["loss_rise"].value == pytest.approx((loss(1) - loss(0)).mean(), abs=1e-4)


def test_input_gradients_of_a_linear_network_are_its_weights(rng):
    weights = rng.normal(size=(4, 3)).astype(np.float32)
    images = rng.uniform(size=(2, 2, 2, 1)).astype(np.float32)
    found = analysis.input_gradients(lambda x: x.reshape(len(x), -1) @ weights, images, np.array([0, 0]))
    for image, gradient in zip(images, found.gradients, strict=True):
        other = 1 + int((image.ravel() @ weights)[1:].argmax())
        assert gradient.ravel() == pytest.approx(weights[:, 0] - weights[:, other], abs=1e-6)
    flat = analysis.input_gradients(lambda x: jnp.zeros((len(x), 2)), images, np.array([0, 0]))
    assert flat.estimates["alignment"].value == 0


def test_a_figure_is_a_png(tmp_path, rng):
    seen = analysis.channels(rng.uniform(size=(4, 3)), rng.uniform(size=(4, 3)), np.zeros(4, int))
    figure = plots.channels({"at <b>": seen}, of_class=0, name="0")
    plots.save(figure, tmp_path / "deep" / "channels.png")
    assert figure._repr_png_().startswith(b"\x89PNG")  # what notebooks show
    assert (tmp_path / "deep" / "channels.png").read_bytes().startswith(b"\x89PNG")
    assert "0.5" in str(estimate.Estimate(0.5, (0.4, 0.6), 3))


def test_a_figure_of_many_networks_wraps_and_tells_them_apart():
    curve = analysis.curve([0.1, 0.2], np.array([[True, True], [True, False]]))
    many = {f"n{i}": curve for i in range(12)}
    figure = plots.curves(many, many, marked=0.1, chance=0.1)
    lines = [line for line in figure.axes[0].lines if line.get_label().startswith("n")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(many)
    figure.draw_without_rendering()
    below = legend.get_window_extent().y1
    assert all(below <= axis.get_tightbbox().y0 + 1 for axis in figure.axes)  # it covers nothing

    seen = analysis.channels(np.eye(3), np.ones((3, 3)), np.zeros(3, int))
    for count, rows in ((3, 1), (4, 2)):
        figure = plots.channels({f"n{i}": seen for i in range(count)}, of_class=0)
        assert len(figure.axes) == 2 * count
        assert figure.axes[0].get_gridspec().nrows == 2 * rows


IMAGES, LABELS = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 2, 4, 1), np.array([0, 1, 0, 1])


def of_sums(images):
    return jnp.stack([images.sum(axis=(1, 2, 3)), jnp.full(len(images), 4.0)], axis=1)


@pytest.mark.parametrize(
    ("measure", "cause"),
    [
        (
            lambda: analysis.attacked(of_sums, jax.random.key(0), IMAGES, LABELS, epsilon=-0.1),
            "epsilon must be a number >= 0",
        ),
        (
            lambda: analysis.attacked(of_sums, jax.random.key(0), IMAGES, LABELS + 1, epsilon=0.1),
            "labels must be classes 0 to 1",
        ),
        (
            lambda: analysis.attacked(of_sums, jax.random.key(0), 255 * IMAGES, LABELS, epsilon=0.1),
            "images must be finite pixels",
        ),
        (
            lambda: analysis.attacked(of_sums, jax.random.key(0), IMAGES, LABELS, epsilon=0.1, step_size=-1.0),
            "step_size must be",
        ),
        (lambda: analysis.input_gradients(of_sums, IMAGES, LABELS[:2]), r"labels must be integers \[4\]"),
        (lambda: analysis.input_gradients(of_sums, np.uint8(255 * IMAGES), LABELS), "images must be floats"),
        (
            lambda: analysis.surface(of_sums, IMAGES, LABELS, IMAGES[:2], epsilon=0.1),
            "adversarial must be an image",
        ),
        (lambda: analysis.surface(of_sums, IMAGES, LABELS, IMAGES, epsilon=0.1, size=4), "size must be an odd number"),
        (
            lambda: analysis.calibration(np.full((4, 2), 0.5), LABELS + 1),
            "labels must be classes 0 to 1",
        ),
        (lambda: analysis.by_class(LABELS[:0], LABELS[:0], num_classes=2), "N >= 1"),
        (lambda: analysis.sensitivity({"a": np.ones(3)}, {"a": np.ones(3)}), r"must be \[N, C\] of each site"),
        (lambda: analysis.proportion(np.array([0.5, 2.0])), "hits must be bool"),
        (lambda: analysis.analyse("runs/at"), r"workdirs must be a sequence of folders, .* give \['runs/at'\]"),
    ],
)
def test_what_would_give_a_wrong_figure_is_refused(measure, cause):
    with pytest.raises(InputError, match=cause) as refused:
        measure()
    assert "\n" not in str(refused.value)
