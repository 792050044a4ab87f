"""A run loaded in a Python prompt is the network whose accuracy was recorded."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import config, data, evaluation, runs
from robustjax.types import InputError


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    made = config.digits()
    made.data.train_examples = 512
    made.train.num_epochs, made.train.batch_size, made.attack.num_steps = 2, 64, 2
    made.validation.every_epochs, made.validation.num_steps, made.validation.batch_size = 1, 1, 200
    folder = tmp_path_factory.mktemp("run")
    assert runs.train(made, folder).complete
    return folder


def test_logits_have_the_recorded_accuracy(workdir):
    evaluation.evaluate_run(evaluation.Options(str(workdir), attacks=["clean"], batch_size=200))
    recorded = json.loads((workdir / "evaluation" / "clean.json").read_text())
    run = runs.load(workdir)
    test = run.test_data()
    right = np.asarray(run.logits_fn(data.to_float(test.images))).argmax(axis=1) == test.labels
    np.testing.assert_array_equal(right, recorded["robust"])
    assert right.mean() == recorded["accuracy"] and run.step == recorded["checkpoint_step"]


def test_checkpoints_are_chosen_by_name_or_step(workdir):
    last = runs.load(workdir, checkpoint="last")
    assert last.step == 16 and runs.load(workdir, checkpoint=16).step == 16
    with pytest.raises(InputError, match="got '7'"):
        runs.load(workdir, checkpoint=7)
    with pytest.raises(InputError, match="workdir must be the folder of a run"):
        runs.load(workdir / "nowhere")


def test_a_defense_without_parameters_is_switched_on(workdir):
    plain, pruned = runs.load(workdir), runs.load(workdir, defense="kwta:fraction=0.2")
    images = data.to_float(plain.test_data(4).images)
    assert pruned.spelling == "kwta:fraction=0.2" and not pruned.stochastic
    assert not jnp.array_equal(plain.logits_fn(images), pruned.logits_fn(images))
    assert runs.load(workdir, defense="sap").stochastic
    sparse = runs.load(workdir, defense="meansparse:alpha=0.2")
    assert not sparse.stochastic and not jnp.array_equal(plain.logits_fn(images), sparse.logits_fn(images))
    with pytest.raises(InputError, match="has trained parameters"):
        runs.load(workdir, defense="cas")


def test_nothing_is_said_while_a_run_is_loaded(workdir, caplog, capfd):
    runs.load(workdir)
    assert caplog.text == "" and capfd.readouterr().err == ""
