"""What an update may have beside attack and loss, each against the same computed by hand."""

import contextlib
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import assert_equal, make_config, run_steps

from robustjax import attacks, build, config, data, registry, runs
from robustjax.data import augment
from robustjax.runs._train import run
from robustjax.runs.warm_start import warm_start
from robustjax.training import alignment, awp, loop, validation
from robustjax.training import attacks as training_attacks
from robustjax.types import InputError, Outputs

# One step of FGSM from the image itself and plain gradient descent: all that happens can be computed by hand.
BY_HAND = {
    "attack__name": "fgsm", "attack__warmup_epochs": 0.0, "optimizer__momentum": 0.0, "optimizer__schedule": "constant",
    "optimizer__weight_decay": 0.01,
}  # fmt: skip


def first_batch(experiment):
    chosen = data.epoch_order(0, 0, 64)[:16]
    return data.to_float(experiment.train.images[chosen]), jnp.asarray(experiment.train.labels[chosen])


def by_hand(experiment):
    """The parameters before the first step, its batch, its adversarial images, and (params, images) -> loss."""
    images, labels = first_batch(experiment)
    params = experiment.create_state().variables["params"]

    def loss(params, points, labels=labels):
        return attacks.losses.cross_entropy(experiment.module.apply({"params": params}, points).logits, labels)

    slope = jax.grad(lambda points: loss(params, points).sum())(images)
    return params, images, labels, jnp.clip(images + 0.2 * jnp.sign(slope), 0.0, 1.0), loss


def updated(params, gradient):
    """Gradient descent at rate 0.1, with weight decay of what has more than one axis."""
    decay = jax.tree.map(lambda p: 0.01 * p if p.ndim > 1 else 0.0 * p, params)
    return jax.tree.map(lambda p, g, d: p - 0.1 * (g + d), params, gradient, decay)


def test_awp_takes_the_gradient_at_weights_moved_up_the_loss():
    experiment = build.experiment(make_config(objective__awp_gamma=0.05, **BY_HAND))
    params, _, _, adversarial, loss = by_hand(experiment)
    mean = lambda params: loss(params, adversarial).mean()  # noqa: E731
    moved = {}
    for layer, gradients in jax.grad(mean)(params).items():
        moved[layer] = {}
        for name, gradient in gradients.items():
            w, g = np.array(params[layer][name], np.float64), np.array(gradient, np.float64)
            up = 0.05 * np.sqrt((w**2).sum()) * g / np.sqrt((g**2).sum()) if name == "kernel" else 0.0
            moved[layer][name] = jnp.asarray(w + up, jnp.float32)
    (state,), _ = run_steps(experiment, [1])
    assert_equal(state.variables["params"], updated(params, jax.grad(mean)(moved)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.sums["loss"], mean(moved), rtol=1e-5)
    assert mean(moved) > 1.05 * mean(params)


def test_awp_begins_at_its_epoch_and_changes_nothing_before():
    plain, _ = run_steps(build.experiment(make_config(**BY_HAND)), [4, 1])
    late, _ = run_steps(build.experiment(make_config(objective__awp_gamma=0.05, objective__awp_from_epoch=1.0,
                                                     **BY_HAND)), [4, 1])  # fmt: skip
    assert_equal(plain[0].variables, late[0].variables)
    assert plain[1].sums["loss"] < late[1].sums["loss"]


def test_a_layer_moves_by_a_share_of_its_size_however_small_its_gradient():
    params = {"kernel": jnp.full((2, 2), 2.0), "other": jnp.ones((1, 2))}
    gradient = {"kernel": jnp.full((2, 2), 1e-30), "other": jnp.zeros((1, 2))}
    moved = awp.move(params, gradient, gamma=0.5)
    np.testing.assert_allclose(moved["kernel"], np.full((2, 2), 3.0), rtol=1e-6)
    np.testing.assert_array_equal(moved["other"], params["other"])


def test_natural_images_take_their_share_of_a_batch():
    experiment = build.experiment(make_config(objective__natural_share=0.25, **BY_HAND))
    params, images, _, adversarial, loss = by_hand(experiment)
    natural = np.isin(np.arange(16), [3, 7, 11, 15])
    expected = np.where(natural, loss(params, images), loss(params, adversarial)).mean()
    (state,), _ = run_steps(experiment, [1])
    np.testing.assert_allclose(state.sums["loss"], expected, rtol=1e-5)


def test_cutmix_weighs_both_labels_by_their_pixels_in_attack_and_loss():
    experiment = build.experiment(make_config(data__cutmix=0.75, **BY_HAND))
    params, images, labels, _, loss = by_hand(experiment)
    state = experiment.create_state()
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), 3)
    mixed, own = augment.cutmix(key, images, share=0.75)
    assert 0.3 < own.mean() < 0.95 and (own == 1).any()

    def weighed(points):
        return own * loss(params, points) + (1 - own) * loss(params, points, np.roll(labels, 1))

    def climbed(loss_fn):
        return jnp.clip(mixed + 0.2 * jnp.sign(jax.grad(lambda points: loss_fn(points).sum())(mixed)), 0.0, 1.0)

    adversarial = climbed(weighed)
    larger = jnp.where(own >= 0.5, labels, np.roll(labels, 1))
    assert (adversarial != climbed(lambda points: loss(params, points, larger))).any()  # one label climbs elsewhere
    (after,), _ = run_steps(experiment, [1])
    np.testing.assert_allclose(after.sums["loss"], weighed(adversarial).mean(), rtol=1e-5)


def smooth(weights):
    """A network with curvature, of four pixels."""
    first, second = weights

    def logits_fn(points):
        hidden = jnp.sin(3.0 * points.reshape(points.shape[0], -1) @ first)
        return hidden @ second

    return logits_fn


def test_misalignment_is_one_minus_the_cosine_of_finite_differences():
    rng = np.random.default_rng(0)
    weights = tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 6), (6, 3)))
    images, labels = jnp.asarray(rng.uniform(size=(5, 2, 2, 1)), jnp.float32), jnp.array([0, 1, 2, 0, 1])
    key = jax.random.key(3)
    found = alignment.misalignment(smooth(weights), key, images, labels, epsilon=0.3)
    noise = 0.3 * np.asarray(jax.random.uniform(key, images.shape, jnp.float32, -1.0, 1.0), np.float64)

    def loss(points):  # in float64, written anew
        z = np.sin(3.0 * points.reshape(5, 4) @ np.asarray(weights[0], np.float64)) @ np.asarray(weights[1], np.float64)
        return np.log(np.exp(z).sum(1)) - z[np.arange(5), np.asarray(labels)]

    def slope(points):
        gradient = np.zeros((5, 4))
        for i in range(4):
            step = np.zeros(4)
            step[i] = 1e-6
            step = step.reshape(1, 2, 2, 1)
            gradient[:, i] = (loss(points + step) - loss(points - step)) / 2e-6
        return gradient

    here, there = slope(np.asarray(images, np.float64)), slope(np.asarray(images, np.float64) + noise)
    cosine = (here * there).sum(1) / np.sqrt((here**2).sum(1) * (there**2).sum(1))
    np.testing.assert_allclose(found, 1 - cosine, atol=2e-4)
    assert cosine.min() < 0.9  # the network is curved enough for the test to see something

    gradient = jax.grad(lambda w: alignment.misalignment(smooth(w), key, images, labels, epsilon=0.3).sum())(weights)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 1e-3 for g in gradient)


def test_flat_losses_count_as_aligned_and_have_finite_gradients():
    flat = lambda w: lambda points: w * jnp.zeros((points.shape[0], 2)) + 0.0 * points.sum()  # noqa: E731
    images, labels = jnp.ones((2, 2, 2, 1)), jnp.array([0, 1])

    def total(w):
        return alignment.misalignment(flat(w), jax.random.key(0), images, labels, epsilon=0.1).sum()

    assert jax.value_and_grad(total)(jnp.float32(1.0)) == (0.0, 0.0)


def test_gradalign_adds_its_weight_times_the_mean():
    losses = []
    for weight in (0.0, 0.5):
        (state,), _ = run_steps(build.experiment(make_config(objective__gradalign=weight, **BY_HAND)), [1])
        losses.append(state.sums["loss"])
    experiment = build.experiment(make_config(**BY_HAND))
    params, images, labels, _, _ = by_hand(experiment)
    keys = jax.random.fold_in(experiment.create_state().key, 0)
    logits_fn = lambda points: experiment.module.apply({"params": params}, points).logits  # noqa: E731
    turned = alignment.misalignment(logits_fn, jax.random.fold_in(keys, 4), images, labels, epsilon=0.2)
    np.testing.assert_allclose(losses[1] - losses[0], 0.5 * turned.mean(), rtol=1e-3)


def test_friendly_pgd_stops_where_numpy_says():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(4, 3))
    images, labels = rng.uniform(0.3, 0.7, size=(8, 2, 2, 1)), rng.integers(0, 3, 8)

    def outputs_fn(points):
        return Outputs(points.reshape(points.shape[0], -1) @ jnp.asarray(w, jnp.float32), {}, {})

    def climb(outputs, labels):
        return attacks.losses.cross_entropy(outputs.logits, labels)

    given = jnp.asarray(images, jnp.float32), jnp.asarray(labels)
    options = {"epsilon": 0.2, "step_size": 0.03, "num_steps": 8, "random_start": False}
    for tau in (0, 2, 8):
        found = training_attacks.friendly_pgd(outputs_fn, jax.random.key(0), *given, loss=climb, tau=tau, **options)
        for x, y, got in zip(images.reshape(8, 4), labels, np.asarray(found).reshape(8, 4), strict=True):
            point, left = x.copy(), tau
            for _ in range(8):
                z = point @ w
                if z.argmax() != y:
                    if left == 0:
                        break
                    left -= 1
                p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
                point = np.clip(point + 0.03 * np.sign(w @ (p - np.eye(3)[y])), x - 0.2, x + 0.2)
            np.testing.assert_allclose(got, point, atol=1e-5)
    same = attacks.pgd(lambda points: outputs_fn(points).logits, jax.random.key(0), *given, **options)
    np.testing.assert_allclose(found, same, atol=1e-6)


def test_bernoulli_fgsm_steps_from_a_corner_of_half_the_ball():
    up = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, (16,)), 1.0, -1.0)
    outputs_fn = lambda points: Outputs(points.reshape(points.shape[0], -1), {}, {})  # noqa: E731
    climb = lambda outputs, labels: outputs.logits @ up  # noqa: E731
    images, labels = jnp.full((8, 4, 4, 1), 0.5), jnp.zeros(8, jnp.int32)
    found = training_attacks.bernoulli_fgsm(outputs_fn, jax.random.key(0), images, labels, loss=climb, epsilon=0.1)
    # From 0.05 the right way, a step of 0.1 ends at the border of the ball; from 0.05 the wrong way, halfway to it.
    climbed = np.asarray(found - images).reshape(8, 16) * np.asarray(up)
    at_border = np.isclose(climbed, 0.1, atol=1e-6)
    assert (at_border | np.isclose(climbed, 0.05, atol=1e-6)).all()
    assert 40 < at_border.sum() < 88  # of 128, within 4.2 standard deviations of half


def carrying(**changes):
    return make_config(
        **{**BY_HAND, "attack__name": "fgsm_pgi", "attack__step_size": 0.25, "objective__name": "pgi",
           "objective__beta": 3.0, **changes}
    )  # fmt: skip


def test_fgsm_pgi_starts_where_the_example_was_left():
    experiment = build.experiment(carrying())
    params, images, _, _, loss = by_hand(experiment)
    places = data.epoch_order(0, 0, 64)[:16]
    before = jax.device_get(experiment.create_state().carried["perturbations"])
    assert before.shape == (64, 8, 8, 1) and before.dtype == np.float16 and np.abs(before).max() <= 1
    prior = jnp.clip(images + 0.2 * before[places].astype(np.float32), 0.0, 1.0)
    slope = jax.grad(lambda points: loss(params, points).sum())(prior)
    low, high = jnp.maximum(images - 0.2, 0.0), jnp.minimum(images + 0.2, 1.0)
    adversarial = jnp.clip(prior + 0.25 * jnp.sign(slope), low, high)
    (state,), _ = run_steps(experiment, [1])
    after = state.carried["perturbations"]
    np.testing.assert_allclose(after[places], (adversarial - images) / 0.2, atol=2e-3)
    others = np.setdiff1d(np.arange(64), places)
    np.testing.assert_array_equal(after[others], before[others])
    logits = [experiment.module.apply({"params": params}, points).logits for points in (prior, adversarial)]
    expected = loss(params, adversarial) + 3.0 * ((logits[1] - logits[0]) ** 2).mean(1)
    np.testing.assert_allclose(state.sums["loss"], expected.mean(), rtol=1e-4)


def test_perturbations_are_carried_as_the_images_lie_in_the_data_set():
    """Crop and flip move a perturbation with its image; what is put back is where it was."""
    c = carrying(data__flip=True, data__crop_padding=2)
    moved = partial(build.augmentation(c), jax.random.key(5))
    perturbation = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1), jnp.float32, 0.5, 1.0)
    seen = moved(perturbation)
    (back,) = jax.linear_transpose(moved, perturbation)(seen)
    assert ((back == perturbation) | (back == 0)).all() and (back == perturbation).mean() > 0.5
    np.testing.assert_array_equal(moved(back), seen)
    (state,), _ = run_steps(build.experiment(c), [1])
    assert np.isfinite(state.sums["loss"])


@contextlib.contextmanager
def cheap_validation():
    with pytest.MonkeyPatch.context() as patch:
        accuracies = {"clean_accuracy": 0.9, "fgsm_accuracy": 0.5, "pgd_accuracy": 0.5}
        patch.setattr(validation, "make_validation", lambda *args, **options: lambda *_: accuracies)
        yield patch


def test_a_run_with_carried_perturbations_and_further_images_goes_on_to_the_same_bits(tmp_path):
    rng = np.random.default_rng(0)
    further = tmp_path / "more.npz"
    np.savez(further, image=rng.integers(0, 256, (40, 8, 8, 1), np.uint8), label=rng.integers(0, 10, 40))
    c = carrying(data__extra=str(further), data__extra_ratio=0.5, data__flip=True, objective__awp_gamma=0.01,
                 train__num_epochs=2, train__log_every_steps=2, train__ema_decay=0.5)  # fmt: skip
    experiment = build.experiment(c)
    assert experiment.steps_per_epoch == 4  # as without them
    assert experiment.create_state().carried["perturbations"].shape == (104, 8, 8, 1)

    def ending(workdir):
        last = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
        return (workdir / "metrics.jsonl").read_text(), (last / "manifest" / "metadata").read_text()

    with cheap_validation() as patch:
        assert run(experiment, tmp_path / "whole").complete
        asked = iter(range(10**6))
        patch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(lambda: next(asked) >= 3))
        stopped = run(experiment, tmp_path / "stopped")
        assert 0 < stopped.step < 8
        patch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(lambda: False))
        assert run(experiment, tmp_path / "stopped").complete
    assert ending(tmp_path / "stopped") == ending(tmp_path / "whole")
    # The perturbations are of the training images, and whoever has only the run can still evaluate and extend it.
    further.unlink()
    loaded = runs.load(tmp_path / "whole", checkpoint="last")
    after = make_config()
    after.init_from = str(tmp_path / "whole")
    assert_equal(warm_start(after, loaded.module, (8, 8, 1))()["params"], loaded.variables["params"])


OBJECTIVES = ("standard", "adversarial", "trades", "mart", "nuat", "pgi")
DEFENSES = ({}, {"name": "cas"}, {"name": "cifs", "importance": "sigmoid"}, {"name": "fsr", "width": 4},
            {"name": "sns"})  # fmt: skip
OPTIONS = (
    {}, {"objective.awp_gamma": 0.01}, {"data.cutmix": 0.5}, {"objective.gradalign": 0.2},
    {"objective.natural_share": 0.25}, {"attack.name": "friendly"}, {"attack.name": "bernoulli_fgsm"},
    {"attack.name": "fgsm_pgi"}, {"optimizer.name": "adamw"}, {"train.accumulation": 2}, {"model.remat": True},
)  # fmt: skip


def combined(objective, option, defense):
    """A config of the three, or None where they do not go together (and are refused)."""
    c = make_config(attack__num_steps=1, objective__name=objective)
    c.defense.update(defense)
    if objective == "pgi":
        c.attack.name = "fgsm_pgi"
    for path, value in option.items():
        section, key = path.split(".")
        c[section][key] = value
    try:
        config.validate(c)
    except InputError as error:
        assert "must be" in str(error)
        return None
    return c


def pairwise():
    """Few combinations among which every pair that goes together stands: each combination with the most new pairs."""
    every = [each for each in product(OBJECTIVES, range(len(OPTIONS)), range(len(DEFENSES)))
             if combined(each[0], OPTIONS[each[1]], DEFENSES[each[2]]) is not None]  # fmt: skip
    pairs_of = lambda each: {(i, j, each[i], each[j]) for i in range(3) for j in range(i)}  # noqa: E731
    missing = set().union(*map(pairs_of, every))
    while missing:
        best = max(every, key=lambda each: len(pairs_of(each) & missing))
        missing -= pairs_of(best)
        yield best


@pytest.mark.slow
def test_objectives_options_and_defenses_go_together_in_pairs():
    """Traced, not compiled: states keep their structure, shapes and dtypes from step to step."""
    count = 0
    for objective, option, defense in pairwise():
        c = combined(objective, OPTIONS[option], DEFENSES[defense])
        module = build.model(c, 10)
        state = jax.eval_shape(build.initial_state(c, module, (8, 8, 1), num_examples=64))
        batch = [jax.ShapeDtypeStruct((16, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.int32)]
        if c.attack.name in registry.CARRYING and objective != "standard":
            batch.append(jax.ShapeDtypeStruct((16,), jnp.int32))
        after = jax.eval_shape(build.training_step(c, module, 4), state, *batch)
        assert jax.tree.structure(state) == jax.tree.structure(after)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), (objective, OPTIONS[option], DEFENSES[defense])
        count += 1
    assert count >= len(OBJECTIVES) * len(OPTIONS) * 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"objective__name": "nuat", "attack__name": "bernoulli_fgsm", "objective__beta": 2.0, "data__cutmix": 0.5,
         "defense__name": "fsr", "defense__width": 4},
        {"objective__name": "trades", "attack__name": "friendly", "attack__tau": 1, "objective__awp_gamma": 0.005,
         "optimizer__name": "adamw", "optimizer__learning_rate": 0.003, "defense__name": "cas"},
        {"attack__name": "fgsm_pgi", "objective__gradalign": 0.2, "objective__natural_share": 0.25},
    ],
    ids=["nuat", "friendly", "fgsm_pgi"],
)  # fmt: skip
def test_options_together_lower_the_loss(changes):
    changes = {"attack__epsilon": 0.05, "attack__step_size": 0.06, "optimizer__schedule": "constant", **changes}
    states, _ = run_steps(build.experiment(make_config(attack__warmup_epochs=0.0, **changes)), [4] * 15)
    losses = np.diff([0.0] + [state.sums["loss"] for state in states]) / 4
    assert np.all(np.isfinite(losses)) and losses[-1] < 0.9 * losses[0]
