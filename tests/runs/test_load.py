"""A run loaded in a Python prompt is the network whose accuracy was recorded."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from robustjax import build, cli, config, data, evaluation, runs
from robustjax.analysis import summary
from robustjax.defenses.composition import trained as trained_part
from robustjax.runs import config_file
from robustjax.runs.checkpoint import Checkpoints, DamagedError
from robustjax.runs.claim import claim
from robustjax.runtime import files
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
    assert run.logits_fn is run.logits_fn  # so that nothing is compiled again for it


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
    beside = runs.load(workdir, defense="+kwta:fraction=0.2")  # of a network without a defense, the same
    np.testing.assert_array_equal(beside.logits_fn(images), pruned.logits_fn(images))
    with pytest.raises(InputError, match=r"--defense must have a defense after \+, got '\+none'"):
        runs.load(workdir, defense="+none")
    sparse = runs.load(workdir, defense="meansparse:alpha=0.2")
    assert not sparse.stochastic and not jnp.array_equal(plain.logits_fn(images), sparse.logits_fn(images))
    with pytest.raises(InputError, match="has trained parameters"):
        runs.load(workdir, defense="cas")


def test_defenses_at_chosen_sites_are_loaded_and_joined_by_others(tmp_path):
    made = config.digits()
    made.defense.name, made.defense.beta = "sap:sampler=bernoulli,sites=conv1+cas:sites=conv2", 1.0
    start = build.initial_state(made, build.model(made, 10), (8, 8, 1))
    with claim(tmp_path, config.plain(made)), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, jax.jit(start)())
    run = runs.load(tmp_path)
    assert run.stochastic and run.defense.heads == ("probe",) and list(run.module.guards) == ["conv2", "conv1"]
    assert {layer for layer in run.variables["params"] if layer.startswith("guards_")} == {"guards_conv2"}
    images, key = data.to_float(run.test_data(8).images), jax.random.key(0)
    trained = run.with_defense(trained_part(run.defense)).apply(run.variables, images)
    assert trained.auxiliary["probe"].shape == (1, 8, 10)
    assert jnp.any(run.logits_fn(images, key) != trained.logits)

    both = runs.load(tmp_path, defense="+kwta:fraction=0.2,sites=conv2")
    assert both.spelling == "sap:sampler=bernoulli,sites=conv1+cas:sites=conv2+kwta:fraction=0.2,sites=conv2"
    assert sorted(both.module.guards) == ["conv1", "conv2", "conv2+1"]
    # The same weights under other guards, CAS before kWTA, which leaves a fifth of what CAS made.
    features = both.module.apply(run.variables, images, rngs={"defense": key}).features["conv2"]
    assert np.count_nonzero(features) <= 8 * round(0.2 * 128)
    with pytest.raises(InputError, match="one of the two has trained parameters"):
        runs.load(tmp_path, defense="sap")
    with pytest.raises(InputError, match=r"cas: sites must be some of conv1, .*, got 'stage1'"):
        runs.load(tmp_path, defense="cas:sites=stage1")

    # A run of before there were these keys: its config has the name alone.
    stored = json.loads((tmp_path / "config.json").read_text())
    stored["defense"] = {"name": "cas"}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    old = config_file.read(tmp_path)
    assert old.defense.sites is None and config.defense_options(old) == [("cas", {})]


def test_nothing_is_said_while_a_run_is_loaded(workdir, caplog, capfd):
    runs.load(workdir)
    assert caplog.text == "" and capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [FileNotFoundError("checkpoints/8"), DamagedError("no manifest")], ids=str)
def test_a_checkpoint_that_a_run_deletes_meanwhile_is_looked_for_again(workdir, monkeypatch, error):
    find, calls = Checkpoints.find, []

    def deleted_once(self, name):
        calls.append(name)
        if len(calls) == 1:
            raise error
        return find(self, name)

    monkeypatch.setattr(Checkpoints, "find", deleted_once)
    assert runs.load(workdir, checkpoint="last").step == 16 and calls == ["last", "last"]
    calls.clear()
    monkeypatch.setattr("robustjax.runs._load.ATTEMPTS", 1)
    with pytest.raises(type(error)):
        runs.load(workdir, checkpoint="last")


def test_a_leading_tilde_is_the_home_wherever_a_place_is_given(workdir, tmp_path, monkeypatch):
    """Shells expand it in `--workdir ~/run`, and leave it in `--workdir=~/run`."""
    home = tmp_path / "home"
    (home / "images" / "test" / "one").mkdir(parents=True)
    (home / "run").symlink_to(workdir)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(home))
    digits = data.load("digits", "test", num_examples=20)
    np.savez(home / "digits.npz", images=digits.images, labels=digits.labels)
    Image.fromarray(digits.images[0, ..., 0]).save(home / "images" / "test" / "one" / "0.png")
    (home / "mine.py").write_text(
        "import os\n"
        "def network(weights):\n"
        "    assert os.path.isabs(weights)\n"
        "    return lambda images: images.reshape(len(images), -1)[:, 20:30]\n"
    )

    run = runs.load("~/run")
    assert run.step == runs.load(workdir).step
    assert runs.train(run.config, "~/run").complete
    assert data.load("~/images", "test").num_examples == 1
    options = {"data": "~/digits.npz", "attacks": ["clean"], "batch_size": 20}
    evaluation.evaluate_run(evaluation.Options("~/run", save_images="~/kept.npz", transfer_from="~/run", **options))
    assert data.read_saved("~/kept.npz", digits.images).shape == digits.images.shape
    network = {"model": "~/mine.py:network", "weights": "~/digits.npz", "output": "~/results", "epsilon": 0.1}
    found = evaluation.evaluate_run(evaluation.Options(**network, **options))
    found.save("~/saved")
    assert {path.name for path in home.iterdir()} >= {"kept.npz", "results", "saved"}
    assert [row.seeds for row in summary.summarise(["~/results", "~/saved"])] == [(), ()]
    (home / "config.py").write_text("")
    assert cli.find_config("~/config.py").is_file()
    assert files.place("~nobody-of-this-name/run") == Path("~nobody-of-this-name/run")  # as a shell leaves it
    with pytest.raises(InputError, match="nobody"):
        runs.load("~nobody-of-this-name/run")
    assert list(elsewhere.iterdir()) == []
