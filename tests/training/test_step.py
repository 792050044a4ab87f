"""The step by what it must not depend on (devices, dispatches) and what it must (seed, policy)."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import QUICKLY

from robustjax import build, config, data, defenses, models, runs
from robustjax.models.resnet import PreActResNet
from robustjax.runs.checkpoint import Checkpoints
from robustjax.runs.warm_start import warm_start
from robustjax.runtime import sharding
from robustjax.training import step, validation
from robustjax.training.pace import Pace
from robustjax.types import InputError

HERE = Path(__file__).parent
SIZE = 16


def make_config(**changes):
    c = config.base()
    c.data.train_examples = 64
    c.train.batch_size = SIZE
    c.attack.num_steps = 2
    c.attack.warmup_epochs = 1.0
    c.model.name = "small_cnn"
    for path, value in changes.items():
        section, key = path.split("__")
        c[section][key] = value
    return c


def run_steps(experiment, counts, *, devices=1):
    """The states after dispatches of the given numbers of steps."""
    layout = sharding.layout(jax.devices()[:devices])
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    dispatch = step.make_dispatch(experiment.step, layout)
    images, labels = layout.replicate((experiment.train.images, experiment.train.labels))
    order = data.epoch_order(0, 0, 64).reshape(4, SIZE)
    done, states = 0, []
    for count in counts:
        rows = np.concatenate([order[done:], order[:done]])  # as many rows every time, so nothing is compiled again
        state = dispatch(state, images, labels, rows, count)
        done = (done + count) % 4
        states.append(jax.device_get(state._replace(key=jax.random.key_data(state.key))))
    return states, dispatch


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_equal(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance) if tolerance else np.testing.assert_array_equal(x, y)


def test_how_steps_are_dispatched_changes_nothing_and_compiles_nothing():
    experiment = build.experiment(make_config())
    (once,), _ = run_steps(experiment, [4])
    (*_, several), dispatch = run_steps(experiment, [1, 2, 1])
    assert_equal(once, several)
    assert once.step == 4 and once.sums["steps"] == 4
    assert dispatch._cache_size() == 1


def compare_devices(*numbers):
    experiment = build.experiment(make_config(train__ema_decay=0.5))
    (one,), _ = run_steps(experiment, [2])
    for devices in numbers:
        (many,), _ = run_steps(experiment, [2], devices=devices)
        assert_equal(one, many, rtol=2e-4, atol=2e-5)


def test_several_devices_compute_what_one_does():
    compare_devices(2, 4)


def go_on(devices, folder):
    """Steps on one device, on several and on one again, with a checkpoint between, are those of one device."""
    experiment = build.experiment(make_config(train__ema_decay=0.5))
    abstract = jax.eval_shape(experiment.create_state)
    layouts = {count: sharding.layout(jax.devices()[:count]) for count in (1, devices)}
    dispatches = {count: step.make_dispatch(experiment.step, layout) for count, layout in layouts.items()}
    order = data.epoch_order(0, 0, 64).reshape(4, SIZE)

    def run(state, on, done, count):
        arrays = layouts[on].replicate((experiment.train.images, experiment.train.labels))
        return dispatches[on](state, *arrays, np.roll(order, -done, axis=0), count)

    def begin():
        return jax.jit(experiment.create_state, out_shardings=layouts[1].replicated)()

    whole, state = run(begin(), 1, 0, 4), run(begin(), 1, 0, 2)
    for done, before, on in ((2, 1, devices), (3, devices, 1)):
        assert len(state.step.devices()) == before
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(done, state)
        with Checkpoints(folder) as checkpoints:
            state = run(checkpoints.restore(done, abstract, layouts[on]), on, done, 1)
    whole, state = (jax.device_get(one._replace(key=jax.random.key_data(one.key))) for one in (whole, state))
    assert state.step == 4
    assert_equal(whole, state, rtol=1e-3, atol=5e-5)


def test_a_checkpoint_of_one_device_goes_on_with_eight_and_back(tmp_path):
    # In a process of its own: the devices of this one are counted.
    path = f"{HERE}:{HERE.parent}:{HERE.parents[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": path} | QUICKLY
    code = f"import test_step; test_step.go_on(8, {str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


DETERMINISTIC = {"attack__random_start": False, "attack__warmup_epochs": 0.0, "attack__num_steps": 1}


def test_micro_batches_give_the_gradient_of_the_batch():
    """Without BatchNorm and draws, cutting the batch is a matter of memory only; on several devices too."""
    (whole,), _ = run_steps(build.experiment(make_config(**DETERMINISTIC)), [3])
    cut = build.experiment(make_config(train__accumulation=4, **DETERMINISTIC))
    for devices in (1, 4):
        (state,), _ = run_steps(cut, [3], devices=devices)
        assert_equal(whole, state, rtol=2e-4, atol=2e-5)


def test_batch_norm_sees_one_micro_batch_after_another(monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet20", partial(PreActResNet, blocks=(1,), widths=(4,), stem_width=4))
    policy = {"model__name": "resnet20", "objective__name": "standard", "attack__num_steps": 1}
    experiment = build.experiment(make_config(train__accumulation=2, **policy))
    (state,), _ = run_steps(experiment, [1])
    images = data.to_float(experiment.train.images[data.epoch_order(0, 0, 64)[:SIZE]])
    variables = experiment.create_state().variables
    for part in (images[0::2], images[1::2]):
        _, updated = experiment.module.apply(variables, part, train=True, mutable=["batch_stats"])
        variables = {**variables, **updated}
    np.testing.assert_allclose(flat(state.variables["batch_stats"]), flat(variables["batch_stats"]), rtol=1e-5)


def test_shard_map_and_pmap_compute_what_jit_does():
    settings = {**DETERMINISTIC, "objective__awp_gamma": 0.05}  # by the gradient of all devices
    (whole,), _ = run_steps(build.experiment(make_config(**settings)), [1])
    experiment = build.experiment(make_config(batch_norm__devices="per_device", **settings))
    layout = sharding.layout()
    state = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    chosen = data.epoch_order(0, 0, 64)[:SIZE]
    batch = data.to_float(experiment.train.images[chosen]), jnp.asarray(experiment.train.labels[chosen])
    mapped = jax.jit(step.per_device(experiment.step, layout))(state, *layout.split_batch(batch))
    parts = jax.tree.map(lambda array: array.reshape(4, -1, *array.shape[1:]), batch)
    old = jax.pmap(experiment.step, axis_name="data", in_axes=(None, 0, 0), out_axes=None)(state, *parts)
    for other in (mapped, old):
        other = other._replace(key=jax.random.key_data(other.key))
        assert_equal(whole, jax.device_get(other), rtol=2e-4, atol=2e-5)


def test_batch_norm_per_device_sees_the_part_of_a_device(monkeypatch):
    monkeypatch.setitem(models.MODELS, "resnet20", partial(PreActResNet, blocks=(1,), widths=(4,), stem_width=4))
    policy = {"model__name": "resnet20", "objective__name": "standard", "batch_norm__devices": "per_device"}
    experiment = build.experiment(make_config(**policy))
    layout = sharding.layout(jax.devices()[:2])
    start = jax.jit(experiment.create_state, out_shardings=layout.replicated)()
    images, labels = data.to_float(experiment.train.images[:SIZE]), jnp.asarray(experiment.train.labels[:SIZE])
    state = jax.jit(step.per_device(experiment.step, layout))(start, *layout.split_batch((images, labels)))
    variables = experiment.create_state().variables
    halves = [
        flat(experiment.module.apply(variables, part, train=True, mutable=["batch_stats"])[1])
        for part in (images[: SIZE // 2], images[SIZE // 2 :])
    ]
    np.testing.assert_allclose(flat(state.variables["batch_stats"]), np.mean(halves, axis=0), rtol=1e-5)


def test_the_average_lags_behind_the_weights():
    experiment = build.experiment(make_config(train__ema_decay=0.999))
    (state,), _ = run_steps(experiment, [1])
    start = jax.device_get(experiment.create_state())
    for a, w, v in zip(*(jax.tree.leaves(s) for s in (state.average, start.variables, state.variables)), strict=True):
        np.testing.assert_allclose(a, 0.1 * w + 0.9 * v, rtol=1e-5, atol=1e-6)  # (1 + 0) / (10 + 0) of the start
    assert state.evaluated is state.average


@pytest.mark.parametrize(
    "changes",
    [
        {"objective__name": "standard"},
        {"objective__name": "trades", "attack__name": "fgsm"},
        {"attack__name": "rs_fgsm", "attack__step_size": 0.25},
        {"attack__name": "n_fgsm", "attack__epsilon": 0.03, "objective__label_smoothing": 0.1},
        {"defense__name": "cas", "objective__name": "mart", "attack__epsilon": 0.05},
        {"defense__name": "cifs", "defense__importance": "sigmoid", "attack__epsilon": 0.05},
        {"defense__name": "fsr", "objective__name": "trades", "defense__width": 4},
        # Several defenses at chosen sites; one of them stands aside until the network is evaluated.
        {"defense__name": "cas:sites=conv2,attack_beta=0.0+sns:sites=conv1,norm=l2+sap", "objective__name": "standard",
         "attack__epsilon": 0.05},
        {"attack__norm": "l2", "attack__epsilon": 1.0, "data__flip": True, "data__crop_padding": 1, "data__cutout": 2},
    ],
    ids=str,
)  # fmt: skip
def test_every_objective_and_attack_lowers_its_loss(changes):
    experiment = build.experiment(make_config(attack__warmup_epochs=0.0, optimizer__schedule="constant", **changes))
    # The same four batches again and again: whatever the objective, its loss on them falls.
    states, _ = run_steps(experiment, [4] * 15)
    sums = [0.0] + [state.sums["loss"] for state in states]
    losses = np.diff(sums) / 4
    assert np.all(np.isfinite(losses)) and losses[-1] < 0.95 * losses[0]


def test_sns_holds_the_neurons_still_that_it_selected():
    """The same batches with and without the term: with it, the selected neurons move less, and the selection is due."""
    movement = {}
    for weight in (0.0, 20.0):
        changes = {"defense__name": "sns", "defense__weight": weight, "defense__refresh_steps": 8}
        experiment = build.experiment(make_config(optimizer__learning_rate=0.02, **changes))
        (first, seventh, ninth, last), _ = run_steps(experiment, [1, 6, 2, 31])
        for site, chosen in first.carried.items():
            assert np.sum(chosen) == max(1, round(0.1 * len(chosen)))
            np.testing.assert_array_equal(chosen, seventh.carried[site])
        assert any(np.any(first.carried[site] != ninth.carried[site]) for site in first.carried)
        module, images = experiment.module, data.to_float(experiment.train.images)
        noise = 0.2 * jnp.sign(jax.random.normal(jax.random.key(0), images.shape))
        before, after = (module.apply(last.variables, points).features for points in (images, images + noise))
        movement[weight] = float(defenses.sns.stabilizing_loss(before, after, last.carried))
    assert movement[20.0] < 0.5 * movement[0.0]


def test_a_run_begins_with_the_weights_of_another(tmp_path, monkeypatch):
    accuracies = {"clean_accuracy": 0.9, "fgsm_accuracy": 0.5, "pgd_accuracy": 0.5}
    monkeypatch.setattr(validation, "make_validation", lambda *args, **options: lambda *_: accuracies)
    plain = make_config(train__num_epochs=1)
    runs.train(plain, tmp_path / "plain")
    guarded = make_config(defense__name="cifs")
    guarded.init_from = str(tmp_path / "plain")
    guarded.train.ema_decay = 0.9
    experiment = build.experiment(guarded)
    with Checkpoints(tmp_path / "plain", read_only=True) as checkpoints:
        source = jax.eval_shape(build.experiment(plain).create_state)
        wanted = checkpoints.restore(checkpoints.find("last"), source, sharding.layout()).variables["params"]
    fresh = experiment.create_state().variables["params"]
    warm = warm_start(guarded, experiment.module, experiment.train.image_shape)()["params"]
    for layer, entries in warm.items():
        assert_equal(entries, fresh[layer] if layer.startswith("guards_") else wanted[layer])
    assert any(layer.startswith("guards_") for layer in warm)

    # What does not fit is refused before anything is written.
    guarded.model.name = "resnet20"
    with pytest.raises(InputError, match=r"init_from .* missing: .*params/final_norm/bias"):
        runs.train(guarded, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_batch_norm_policies_differ_where_they_should(monkeypatch):
    tiny = partial(PreActResNet, blocks=(1,), widths=(4,), stem_width=4)
    monkeypatch.setitem(models.MODELS, "resnet20", tiny)
    statistics = {}
    for attack, training in (("running", "running"), ("running", "batch"), ("batch", "batch")):
        policy = {"batch_norm__attack": attack, "batch_norm__training": training}
        experiment = build.experiment(make_config(model__name="resnet20", attack__num_steps=1, **policy))
        (state,), _ = run_steps(experiment, [1])
        statistics[attack, training] = flat(state.variables["batch_stats"])
    fresh = flat(jax.device_get(experiment.create_state()).variables["batch_stats"])
    np.testing.assert_array_equal(statistics["running", "running"], fresh)
    assert not np.array_equal(statistics["running", "batch"], fresh)
    # An attack on batch statistics finds other images, from which other statistics follow.
    assert not np.array_equal(statistics["running", "batch"], statistics["batch", "batch"])


def test_pace_grows_to_a_dispatch_of_a_second_and_no_further_than_a_line():
    pace = Pace(most=50)
    assert pace.steps() == 1
    pace.record(1, 30.0)  # compilation
    assert pace.steps() == 1
    pace.record(1, 0.1)
    assert pace.steps() == 10
    pace.record(10, 0.01)
    assert pace.steps() == 50
    pace.record(50, 5000.0)
    assert pace.steps() == 1
