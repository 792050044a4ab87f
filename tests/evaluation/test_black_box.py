"""Attacks on labels alone in a verdict, and flags of what happens near the images without any attack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verdict_toys as toys

from robustjax.evaluation.verdict import batteries, broader, comparisons, diagnostics, goals, red_flags
from robustjax.evaluation.verdict.budgets import BUDGETS
from robustjax.evaluation.verdict.goals import Networks
from robustjax.evaluation.verdict.trial import Trial

IMAGES, LABELS, DISTANCES = toys.linear_examples(16, "linf")


def trial_of(network, *, epsilon=0.05, norm="linf", stochastic=False, images=IMAGES, labels=LABELS, **budget):
    budget = BUDGETS["quick"]._replace(**budget)
    return Trial(
        Networks(goals.as_logits_fn(network)), toys.KEY, images, labels, epsilon=epsilon, norm=norm,
        bounds=(0.0, 1.0), stochastic=stochastic, budget=budget, batch_size=8, report=print,
    )  # fmt: skip


def two_classes(images):
    return toys.linear(images)[:, :2]


def test_labels_alone_find_what_a_masked_gradient_hides():
    logits = np.asarray(two_classes(jnp.asarray(IMAGES)), np.float64)
    weights = np.asarray(toys.linear_weights(), np.float64)
    distances = np.abs(logits[:, 0] - logits[:, 1]) / np.abs(weights[:, 0] - weights[:, 1]).sum()
    epsilon = float(np.median(distances))
    masked = lambda images: jax.lax.stop_gradient(two_classes(images))  # noqa: E731
    trial = trial_of(masked, epsilon=epsilon, labels=logits.argmax(1), num_decisions=1500)
    trial.apgd("apgd-ce", np.arange(16), view="direct", loss="ce")
    missed = trial.remaining()
    share = batteries.black_box(trial, trial.measured)
    assert share is not None and len(missed) > 8
    # What is within reach and was missed is found, and nothing else.
    np.testing.assert_array_equal(share[distances < 0.95 * epsilon][:], 1.0)
    assert not np.any(share[distances > epsilon])
    assert "hopskipjump" in trial.shares and (trial.candidates.strongest().attack == "hopskipjump").any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "full budget"),
        ({"norm": "l1", "num_decisions": 100}, "in l1"),
        ({"stochastic": True, "num_decisions": 100}, "stochastic network's label"),
    ],
)
def test_where_no_attack_sees_labels_only_the_report_says_why(options, reason):
    network = (lambda images, key: toys.linear(images)) if options.get("stochastic") else toys.linear
    assert reason in batteries.label_only_missing(trial_of(network, **options))


def test_the_start_is_the_next_image_of_another_class():
    labels = np.array([0, 0, 1, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    start = trial_of(toys.linear, labels=labels)._of_other_classes()
    expected = [2, 2, 4, 4, 5, 2, *[2] * 10]
    np.testing.assert_array_equal(start, IMAGES[expected])
    alone = trial_of(toys.linear, labels=np.zeros(16, int))
    np.testing.assert_array_equal(alone._of_other_classes(), IMAGES)


def test_the_flag_compares_with_attacks_by_gradient():
    both, none = np.ones(20, bool), np.zeros(20, bool)
    assert comparisons.label_only_beats_white_box(both, none).status == "fail"
    assert comparisons.label_only_beats_white_box(none, both).status == "pass"


def test_margins_that_noise_moves_are_unstable():
    """Ripples shorter than the noise is long, as large as the margin itself."""

    def rippled(images):
        logits = toys.linear(images)
        return logits + 5.0 * jnp.sin(4000.0 * images[:, 0, 0, :1]) * jnp.eye(logits.shape[1])[:1]

    flags = diagnostics.surroundings(trial_of(toys.linear, epsilon=0.02), np.arange(16))
    assert flags["unstable_predictions"].status == "pass" and flags["unstable_predictions"].n == 16
    # The same in NumPy: 100 points are enough for two digits.
    rng = np.random.default_rng(0)
    noise = rng.uniform(-0.02, 0.02, (300, *IMAGES.shape)).astype(np.float32)

    def margin(images):
        logits = np.asarray(toys.linear(jnp.asarray(images)))
        own = logits[np.arange(len(logits)), LABELS[np.arange(len(logits)) % 16]]
        others = np.where(np.arange(logits.shape[1]) == LABELS[np.arange(len(logits)) % 16][:, None], -np.inf, logits)
        return others.max(1) - own

    here = margin(IMAGES)
    there = margin(np.clip(IMAGES + noise, 0, 1).reshape(-1, *IMAGES.shape[1:])).reshape(300, 16)
    expected = np.median(np.mean(np.minimum(1.0, np.abs(there - here) / np.abs(here)), axis=0))
    assert flags["unstable_predictions"].value == pytest.approx(expected, abs=0.03)
    rough = diagnostics.surroundings(trial_of(rippled), np.arange(16))["unstable_predictions"]
    assert rough.status == "warn" and "unstable" in rough.explanation
    # No margin at all: any change is the whole of it, and none is none.
    nothing = lambda images: 0.0 * toys.linear(images)  # noqa: E731
    assert diagnostics.surroundings(trial_of(nothing), np.arange(16))["unstable_predictions"].value == 0.0


def test_other_changes_than_the_threats_are_told_and_accuse_of_nothing():
    """A bright spot that has to be at its place: what a shift or less contrast does is clear."""
    images = np.full((8, 20, 20, 1), 0.2, np.float32)
    images[:, 9:11, 6:8] = 1.0

    def bright_at_its_place(images):
        score = images[:, 9:11, 6:8, 0].mean(axis=(1, 2)) - 0.8
        return jnp.stack([score, -score], axis=1)

    trial = trial_of(bright_at_its_place, images=images, labels=np.zeros(8, np.int32))
    found = broader.accuracies(trial, np.arange(8))
    # The spot leaves its place by a shift of two pixels, and at half the contrast is no longer bright.
    assert found == {
        "Gaussian noise of 0.1": 1.0,
        "shifts by 10%": 0.0,
        "rotations by 15 degrees": found["rotations by 15 degrees"],
        "50% of the contrast": 0.0,
    }
    flag = red_flags.broader_threats(found, 8)
    assert flag.status == "pass" and flag.value == 0.0 and "0.0% under shifts by 10%" in flag.explanation


def test_changes_are_as_large_as_their_names_say():
    low, high = np.float32(0.0), np.float32(2.0)
    images = np.random.default_rng(0).uniform(0, 2, (4, 30, 20, 1)).astype(np.float32)
    changes = broader._changes(low, high, (30, 20))
    moved = {kind: [change(images) for change in changes[kind]] for kind in changes}
    (noisy,), (fainter,) = moved["Gaussian noise of 0.1"], moved["50% of the contrast"]
    noise = noisy - images
    assert abs(noise.mean()) < 0.02 and noise.std() == pytest.approx(0.1 * 2.0, rel=0.05)
    np.testing.assert_allclose(fainter - 1.0, 0.5 * (images - 1.0), atol=1e-6)
    down, up, right, left = moved["shifts by 10%"]
    np.testing.assert_allclose(down[:, 3:], images[:, :-3], atol=1e-5)
    np.testing.assert_allclose(up[:, :-3], images[:, 3:], atol=1e-5)
    np.testing.assert_allclose(right[:, :, 2:], images[:, :, :-2], atol=1e-5)
    np.testing.assert_allclose(left[:, :, :-2], images[:, :, 2:], atol=1e-5)
    # What is shifted in is the pixel at the wall.
    np.testing.assert_allclose(down[:, :3], np.repeat(images[:, :1], 3, axis=1), atol=1e-5)
    # A plane turned about the middle is the plane of the turned coordinates, away from the walls.
    row, column = np.meshgrid(np.arange(31.0) - 15, np.arange(31.0) - 15, indexing="ij")
    plane = (row + 2 * column)[None, :, :, None].astype(np.float32)
    inside = row**2 + column**2 < 14**2
    turned = [change(plane)[0, :, :, 0] for change in changes["rotations by 15 degrees"]]
    cosine, sine = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
    both = [cosine * (row + 2 * column) + sign * sine * (column - 2 * row) for sign in (1, -1)]
    for expected in both:
        assert min(np.abs(found - expected)[inside].max() for found in turned) < 1e-3


def test_no_example_is_no_measurement():
    flags = diagnostics.surroundings(trial_of(toys.linear), np.zeros(0, int))
    assert {flag.status for flag in flags.values()} == {"na"}
