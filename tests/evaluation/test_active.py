"""The active test: what is planted is there, and attacks that are crippled do not find it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verdict_toys as toys

from robustjax.evaluation.verdict import active, goals, relaxations
from robustjax.evaluation.verdict.budgets import BUDGETS
from robustjax.evaluation.verdict.goals import Networks
from robustjax.evaluation.verdict.trial import Trial

EPSILON = {"linf": 0.05, "l2": 0.3}
IMAGES, LABELS, _ = toys.linear_examples(24, "linf")
EVERY = np.arange(24)
NOTHING = relaxations.Relaxations(())


def trial_of(network, *, norm="linf", epsilon=None, stochastic=False, surrogate=None):
    return Trial(
        Networks(*(None if each is None else goals.as_logits_fn(each) for each in (network, surrogate))),
        toys.KEY, IMAGES, LABELS, epsilon=EPSILON[norm] if epsilon is None else epsilon, norm=norm, bounds=(0.0, 1.0),
        stochastic=stochastic, budget=BUDGETS["quick"]._replace(num_steps=20), batch_size=24, report=print,
    )  # fmt: skip


def following(share, images):
    """The same values, and `share` of their gradient: 1 is honest, 0 detached, -1 leads away from everything."""
    return toys.linear((1.0 - share) * jax.lax.stop_gradient(images) + share * images)


# One program, so that one compilation serves them.
HONEST, DETACHED, BACKWARDS = (jax.tree_util.Partial(following, jnp.float32(share)) for share in (1, 0, -1))


def noisy(images, key):
    return toys.linear(images + 0.02 * jax.random.normal(key, images.shape))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_planted_is_there_and_an_honest_gradient_finds_it(norm):
    trial = trial_of(HONEST, norm=norm)
    planted = active.plant(trial, EVERY)
    assert planted.num_tried == 24 and len(planted.rows) > 20
    # In NumPy, apart from everything: inside ball and box, beyond the boundary, and the image is at -1.
    weights, rows = toys.linear_weights().astype(np.float64), planted.rows

    def height(images):
        logits = (images.reshape(len(images), -1).astype(np.float64) - 0.5) @ weights
        return np.sum(planted.plant.weights[rows] * logits, axis=1) - planted.plant.threshold[rows]

    order = {"linf": np.inf, "l2": 2}[norm]
    delta = (planted.points - IMAGES[rows]).reshape(len(rows), -1)
    assert np.all(np.linalg.norm(delta, order, axis=1) <= EPSILON[norm] * (1 + 1e-5))
    assert planted.points.min() >= 0 and planted.points.max() <= 1
    np.testing.assert_allclose(height(IMAGES[rows]), -1.0, atol=1e-3)
    assert np.all(height(planted.points) > 0)
    # So rare that of as many random points as it took, hardly any is beyond.
    rng = np.random.default_rng(5)
    corners = EPSILON[norm] * np.sign(rng.normal(size=(200, len(rows), *IMAGES.shape[1:])))
    if norm == "linf":
        beyond = np.stack([height(IMAGES[rows] + each) > 0 for each in corners])
        assert beyond.any(axis=0).mean() < 0.3
        found = active.test(trial, planted, NOTHING)
        assert found.shape == rows.shape and found.all()
        assert active.flag(trial, EVERY, NOTHING).status == "pass"


def test_what_an_attack_returns_is_counted_by_value_and_validity():
    trial = trial_of(HONEST)
    planted = active.plant(trial, EVERY)
    rows = planted.rows
    assert planted.found(trial, rows, planted.points).all()
    assert not planted.found(trial, rows, IMAGES[rows]).any()
    # Beyond the boundary and outside the ball: no success.
    assert not planted.found(trial, rows, IMAGES[rows] + 1.5 * (planted.points - IMAGES[rows])).any()


@pytest.mark.parametrize("crippled", [DETACHED, BACKWARDS])
def test_a_crippled_attack_is_raised_and_a_surrogate_or_relaxation_mends_it(crippled):
    flag = active.flag(trial_of(crippled), EVERY, NOTHING)
    assert flag.status == "fail" and flag.value < 0.5 and "would not have noticed" in flag.explanation
    assert active.flag(trial_of(crippled, surrogate=HONEST), EVERY, NOTHING).status == "pass"
    relaxed = NOTHING._replace(networks=Networks(goals.as_logits_fn(HONEST)))
    assert active.flag(trial_of(crippled), EVERY, relaxed).status == "pass"


def test_attacks_without_steps_are_raised():
    trial = trial_of(HONEST)
    trial.planted_apgd = lambda rows, plant, **way: IMAGES[rows]
    assert active.flag(trial, EVERY, NOTHING)[:2] == ("fail", 0.0)


def test_a_random_network_is_tested_over_its_draws():
    flag = active.flag(trial_of(noisy, stochastic=True), EVERY, NOTHING)
    assert flag.status == "pass" and flag.n > 12


def test_where_nothing_can_be_planted_nothing_is_said():
    constant = lambda images: toys.linear(jnp.full_like(images, 0.25))  # noqa: E731
    assert active.flag(trial_of(constant), EVERY, NOTHING).status == "na"
    assert active.flag(trial_of(HONEST, epsilon=0.0), EVERY, NOTHING).status == "na"
    assert active.flag(trial_of(HONEST), EVERY[:0], NOTHING).status == "na"
    # Logits that are not finite plant nothing, and hide no others.
    some = lambda images: toys.linear(images).at[:5].set(jnp.inf)  # noqa: E731
    planted = active.plant(trial_of(some), EVERY)
    assert planted.rows.min() == 5 and not planted.plant.weights[:5].any()
    # Nor are they at the image alone, where h has to be -1.
    hole = lambda images: jnp.where(  # noqa: E731
        jnp.all(images == IMAGES, axis=(1, 2, 3))[:, None] & (EVERY < 5)[:, None], jnp.nan, toys.linear(images)
    )
    assert active.plant(trial_of(hole), EVERY).rows.min() == 5
