"""SNS against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from robustjax.defenses import sns
from robustjax.types import InputError, Outputs

RNG = np.random.default_rng(0)
BENIGN, ADVERSARIAL = RNG.normal(size=(2, 4, 3, 2, 6)).astype(np.float32)


def test_equal_inputs_have_no_sensitivity():
    np.testing.assert_array_equal(sns.sensitivity(jnp.asarray(BENIGN), jnp.asarray(BENIGN)), np.zeros(6))


@pytest.mark.parametrize("index", [np.s_[:], np.s_[:, 0, 0]], ids=["maps", "dense"])
def test_matches_numpy_and_opposite_movements_do_not_cancel(index):
    benign, adversarial = BENIGN[index], ADVERSARIAL[index]
    difference = np.abs(benign.astype(np.float64) - adversarial)
    expected = difference.reshape(4, -1, 6).mean(1).mean(0)
    np.testing.assert_allclose(sns.sensitivity(jnp.asarray(benign), jnp.asarray(adversarial)), expected, rtol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_other_norms_match_numpy_and_are_one_for_dense_layers(norm):
    difference = (BENIGN.astype(np.float64) - ADVERSARIAL).reshape(4, -1, 6)
    expected = {"l2": np.sqrt((difference**2).mean(1)), "linf": np.abs(difference).max(1)}[norm].mean(0)
    found = sns.sensitivity(jnp.asarray(BENIGN), jnp.asarray(ADVERSARIAL), norm=norm)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    dense = [jnp.asarray(array[:, 0, 0]) for array in (BENIGN, ADVERSARIAL)]
    np.testing.assert_allclose(sns.sensitivity(*dense, norm=norm), sns.sensitivity(*dense), rtol=1e-6)
    # Far beyond what a square can hold, at both ends.
    for scale in (1e-30, 1e30):
        scaled = sns.sensitivity(jnp.asarray(BENIGN) * scale, jnp.asarray(ADVERSARIAL) * scale, norm=norm)
        np.testing.assert_allclose(scaled, scale * expected, rtol=1e-5)


def test_the_euclidean_movement_has_a_gradient_also_where_nothing_moves():
    adversarial = jnp.asarray(ADVERSARIAL).at[..., 0].set(jnp.asarray(BENIGN)[..., 0])  # one neuron stands still
    value = lambda a: jnp.sum(sns.sensitivity(jnp.asarray(BENIGN), a, norm="l2"))  # noqa: E731
    gradient = jax.grad(value)(adversarial)
    difference = np.asarray(adversarial, np.float64) - BENIGN
    norms = np.sqrt((difference**2).mean((1, 2), keepdims=True))
    expected = np.divide(difference, norms * 6 * 4, out=np.zeros_like(difference), where=norms > 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="sns: norm must be 'l1', 'l2' or 'linf', got 'l3'"):
        sns.defense(norm="l3")


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 1), (0.5, 3), (1.0, 6)])
def test_selects_exactly_the_most_sensitive(fraction, count):
    values = np.array([0.3, 0.9, 0.3, 0.9, 0.1, 0.3], np.float32)
    chosen = np.asarray(sns.select_sensitive(jnp.asarray(values), fraction=fraction))
    expected = np.zeros(6, bool)
    expected[np.argsort(-values, kind="stable")[:count]] = True
    np.testing.assert_array_equal(chosen, expected)


def test_loss_matches_numpy_over_layers_of_different_width():
    benign = {"conv": BENIGN, "dense": BENIGN[:, 0, 0, :3]}
    adversarial = {"conv": ADVERSARIAL, "dense": ADVERSARIAL[:, 0, 0, :3]}
    sensitive = {"conv": np.array([1, 0, 1, 0, 0, 1], bool), "dense": np.array([0, 1, 0], bool)}
    conv = np.abs(BENIGN - ADVERSARIAL).mean((0, 1, 2))[[0, 2, 5]].mean()
    dense = np.abs(benign["dense"] - adversarial["dense"]).mean(0)[1]
    to_jax = {"benign": benign, "adversarial": adversarial, "sensitive": sensitive}
    value = sns.stabilizing_loss(**jax.tree.map(jnp.asarray, to_jax))
    np.testing.assert_allclose(value, (conv + dense) / 2, rtol=1e-5)


def test_gradients_match_finite_differences_in_both_branches():
    sensitive = {"conv": jnp.array([True, False, True, False, False, True])}
    check_grads(
        lambda a, b: sns.stabilizing_loss({"conv": a}, {"conv": b}, sensitive),
        (jnp.asarray(BENIGN), jnp.asarray(BENIGN + np.sign(ADVERSARIAL))),  # all differences well away from 0
        order=1,
        modes=["rev"],
        eps=1e-2,
        rtol=1e-2,
    )
    both = jax.grad(lambda a, b: sns.stabilizing_loss({"conv": a}, {"conv": b}, sensitive), argnums=(0, 1))(
        jnp.asarray(BENIGN), jnp.asarray(ADVERSARIAL)
    )
    np.testing.assert_array_equal(both[0], -both[1])
    assert np.all(np.asarray(both[0])[..., [1, 3, 4]] == 0) and np.all(np.asarray(both[0])[..., [0, 2, 5]] != 0)


def test_bad_input_is_named():
    features = jnp.asarray(BENIGN)
    with pytest.raises(InputError, match="differ in shape"):
        sns.sensitivity(features, features[:2])
    with pytest.raises(InputError, match=r"fraction must be in \(0, 1\], got 0"):
        sns.select_sensitive(jnp.ones(3), fraction=0)
    with pytest.raises(InputError, match=r"fraction must be in \(0, 1\], got 1.01"):
        sns.select_sensitive(jnp.ones(3), fraction=1.01)
    with pytest.raises(InputError, match="missing late"):
        sns.stabilizing_loss({"conv": features}, {"conv": features}, {"late": jnp.ones(6, bool)})
    with pytest.raises(InputError, match="missing any site"):
        sns.stabilizing_loss({}, {}, {})


def _outputs(scale, sites=("conv1", "dense")):
    features = {"conv1": BENIGN, "dense": BENIGN[:, 0, 0]}
    return Outputs(jnp.zeros((4, 2)), {}, {site: jnp.asarray(scale * features[site]) for site in sites})


VIEWS = {"natural": _outputs(1.0), "adversarial": _outputs(0.5)}


def test_the_mean_of_the_loss_is_the_objective_and_the_stabilizing_loss_of_the_batch():
    chosen = {"conv1": jnp.arange(6) < 2, "dense": jnp.arange(6) == 3}
    value = sns.loss(VIEWS, jnp.zeros(4, int), term=lambda *_: jnp.arange(4.0), carried=chosen, weight=0.7)
    stabilizing = sns.stabilizing_loss(VIEWS["natural"].features, VIEWS["adversarial"].features, chosen)
    assert value.shape == (4,) and len(set(value.tolist())) == 4
    np.testing.assert_allclose(value.mean(), 1.5 + 0.7 * stabilizing, rtol=1e-6)


def test_the_selection_is_renewed_when_due_and_kept_otherwise():
    tracker = sns.defense(fraction=0.34, refresh_steps=3).tracker
    fresh = tracker.initial(VIEWS["natural"].features)
    assert not any(np.any(chosen) for chosen in fresh.values())
    for step, due in ((0, True), (1, False), (2, False), (3, True)):
        after = jax.jit(tracker.update)(VIEWS, fresh, jnp.asarray(step))
        for site, chosen in after.items():
            wanted = np.abs(0.5 * np.asarray(VIEWS["natural"].features[site])).reshape(-1, 6).mean(0).argsort()[-2:]
            np.testing.assert_array_equal(np.flatnonzero(chosen), sorted(wanted) if due else [])


def test_the_selection_is_constant_for_the_gradient():
    tracker = sns.defense(fraction=0.5, refresh_steps=1).tracker

    def total(scale):
        views = {"natural": _outputs(1.0), "adversarial": Outputs(jnp.zeros((4, 2)), {}, {"conv1": scale * BENIGN})}
        views["natural"] = Outputs(jnp.zeros((4, 2)), {}, {"conv1": jnp.asarray(BENIGN)})
        carried = tracker.update(views, {"conv1": jnp.zeros(6, bool)}, jnp.asarray(0))
        return jnp.mean(sns.loss(views, None, term=lambda *_: jnp.zeros(4), carried=carried, weight=1.0))

    # Every movement is (1 - s)|F|: the term falls as s grows towards 1, by the mean magnitude of the chosen neurons.
    magnitudes = np.sort(np.abs(BENIGN).reshape(-1, 6).mean(0))[-3:]
    np.testing.assert_allclose(jax.grad(total)(0.5), -magnitudes.mean(), rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"fraction": 0.0}, {"refresh_steps": 0}])
def test_wrong_options_are_named(wrong):
    with pytest.raises(InputError, match="sns: "):
        sns.defense(**wrong)
