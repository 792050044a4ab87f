"""A run ends the same however often it is stopped, damaged or sent back."""

import contextlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import build, config
from robustjax.runs._train import run
from robustjax.runs.claim import claim
from robustjax.training import loop, validation
from robustjax.training import pace as pace_lib
from robustjax.types import InputError


def make_experiment(**train):
    c = config.base()
    c.data.train_examples = 64
    c.train.batch_size = 16
    c.train.num_epochs = 3
    c.train.log_every_steps = 3
    c.train.keep_checkpoints = 2
    c.train.ema_decay = 0.5
    c.objective.name = "standard"  # no attack to compile
    c.validation.batch_size = 200
    c.train.update(train)
    return build.experiment(c)


@pytest.fixture(scope="module", autouse=True)
def cheap_validation():
    """Accuracies that depend on the weights, without attacks to compile."""

    def make_validation(*args, **kwargs):
        def validate(variables, key):
            value = 0.5 + float(jnp.abs(jax.tree.leaves(variables)[0]).mean())
            return {"clean_accuracy": value, "fgsm_accuracy": value, "pgd_accuracy": value}

        return validate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "make_validation", make_validation)
        yield


@pytest.fixture
def stop_after(monkeypatch):
    """Makes a run believe that a signal came after so many dispatches."""

    def arrange(dispatches):
        asked = iter(range(10**6))
        monkeypatch.setattr(loop, "stop_signals", lambda: contextlib.nullcontext(lambda: next(asked) >= dispatches))

    return arrange


def ending(workdir):
    """metrics.jsonl, and the checksums of every array of the last checkpoint."""
    last = max((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))
    return (workdir / "metrics.jsonl").read_text(), (last / "manifest" / "metadata").read_text()


@pytest.fixture(scope="module")
def experiment():
    return make_experiment()


@pytest.fixture(scope="module")
def uninterrupted(experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    assert run(experiment, workdir).complete
    return ending(workdir)


def test_stopped_anywhere_and_damaged_a_run_ends_the_same(experiment, uninterrupted, stop_after, tmp_path):
    stop_after(0)
    assert run(experiment, tmp_path)[:2] == (0, 12)
    stop_after(5)  # in the second epoch
    stopped = run(experiment, tmp_path)
    assert 4 < stopped.step < 12 and not stopped.complete
    newest = tmp_path / "checkpoints" / str(stopped.step) / "manifest" / "metadata"
    newest.write_text(newest.read_text()[:-40])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "epo')  # a line cut short by a crash
    stop_after(10**6)
    assert run(experiment, tmp_path).complete
    assert ending(tmp_path) == uninterrupted
    assert [path.name for path in (tmp_path / "damaged_checkpoints").iterdir()] == [str(stopped.step)]


@pytest.mark.parametrize("accuracy", [0.08, 0.5])
def test_a_run_at_chance_says_so_once_and_at_its_end(monkeypatch, tmp_path, capsys, accuracy):
    accuracies = {"clean_accuracy": accuracy, "fgsm_accuracy": 0.05, "pgd_accuracy": 0.05}
    monkeypatch.setattr(validation, "make_validation", lambda *args, **kwargs: lambda *_: accuracies)
    stopped = run(make_experiment(num_epochs=20), tmp_path)
    output = capsys.readouterr().out
    lines = output.splitlines()
    warned = [i for i, line in enumerate(lines) if line.startswith("warning: ")]
    assert len(warned) == (accuracy == 0.08) and bool(stopped.warning) == (accuracy == 0.08)
    if warned:
        # After a tenth of the epochs, and not before.
        assert lines[warned[0] - 1].startswith("epoch 2/20: ")
        assert "after epoch 2 of 20 the clean validation accuracy is 8.0%, which is at chance" in lines[warned[0]]
        assert "after epoch 20 of 20 the clean validation accuracy is 8.0%, which is at chance" in stopped.warning
        assert run(make_experiment(num_epochs=20), tmp_path) == stopped  # a finished run says it again


def test_epoch_lines_say_what_is_left(tmp_path, capsys):
    run(make_experiment(), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert all(re.search(r"images/s; about \d+ (s|min \d+ s) to go$", line) for line in lines[:2])
    assert "to go" not in lines[2]


def test_what_is_left_goes_by_all_that_was_done_since_compilation(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace_lib.time, "monotonic", lambda: now[0])
    pace = pace_lib.Pace(most=100)
    assert pace.seconds(10) == 0.0
    pace.record(1, 60.0)  # compiles
    assert pace.seconds(10) == 0.0
    now[0] += 4.0  # two of them in validation
    pace.record(4, 2.0)
    assert pace.seconds(10) == 10.0 and pace.steps_per_second == 2.0


def failing(experiment, *, above):
    """The experiment with weights that are not finite after step 10, while `rate_factor` is above so much."""

    def step(state, images, labels):
        after = experiment.step(state, images, labels)
        fails = (after.step == 10) & (after.rate_factor > above)
        params = jax.tree.map(lambda p: jnp.where(fails, jnp.nan, p), after.variables["params"])
        return after._replace(variables={**after.variables, "params": params})

    return experiment._replace(step=step)


def test_a_run_goes_back_from_what_is_not_finite_at_half_the_learning_rate(stop_after, tmp_path, capsys):
    experiment = failing(make_experiment(on_nonfinite="halve"), above=0.3)
    assert run(experiment, tmp_path / "whole").complete
    text = capsys.readouterr().out
    assert text.count("warning: ") == 2 and "back to step 8, with the learning rate times 0.25" in text
    whole = ending(tmp_path / "whole")
    lines = [json.loads(line) for line in whole[0].splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [3, 4, 7, 8, 11, 12]
    for line in lines:
        if line["split"] == "train":
            factor = 1.0 if line["step"] <= 8 else 0.25
            assert line["learning_rate"] == float(experiment.schedule(line["step"] - 1)) * factor

    # A signal's checkpoint between the last validation and the fault is passed over, or the ends would differ.
    for dispatches in (6, 1):
        stop_after(dispatches)
        stopped = run(experiment, tmp_path / "stopped")
    assert stopped.step == 9
    stop_after(10**6)
    assert run(experiment, tmp_path / "stopped").complete
    assert ending(tmp_path / "stopped") == whole


def test_a_run_that_halving_does_not_help_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "MOST_HALVINGS", 2)
    experiment = failing(make_experiment(on_nonfinite="halve"), above=0.0)
    with pytest.raises(FloatingPointError, match=r"step 11, although .* halved 2 times; the checkpoint of step 8 is"):
        run(experiment, tmp_path)
    experiment = failing(make_experiment(), above=0.0)
    with pytest.raises(FloatingPointError, match=r"is nan in the 3 steps up to step 11; the checkpoint of step 8 is"):
        run(experiment, tmp_path / "stop")


def test_a_workdir_belongs_to_one_live_run(experiment, tmp_path):
    with (
        claim(tmp_path, experiment.config),
        pytest.raises(InputError, match=r"is in use by a run that is still going on \(process \d+ on "),
    ):
        run(experiment, tmp_path)
    with claim(tmp_path, experiment.config):
        pass
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_goes_on_with_the_data_that_it_began_with(experiment, uninterrupted, stop_after, tmp_path):
    stop_after(5)
    run(experiment, tmp_path)
    about = (tmp_path / "data.json").read_text()
    fewer, labels = experiment.train.num_examples - 1, experiment.train.labels
    others = [
        (experiment.train._replace(images=experiment.train.images[:-1], labels=labels[:-1]), f'"examples": {fewer}'),
        (experiment.train._replace(labels=np.roll(labels, 1)), '"labels": '),
    ]
    before = ending(tmp_path)
    for train, cause in others:
        with pytest.raises(InputError, match="holds a run on other data") as refused:
            run(experiment._replace(train=train), tmp_path)
        assert cause in str(refused.value) and '"validation"' not in str(refused.value)
    (tmp_path / "data.json").write_text(about[:-9])
    with pytest.raises(InputError, match=r"data\.json cannot be read"):
        run(experiment, tmp_path)
    assert ending(tmp_path) == before
    (tmp_path / "data.json").unlink()  # as a run of an earlier version lacks it
    stop_after(10**6)
    assert run(experiment, tmp_path).complete
    assert ending(tmp_path) == uninterrupted and (tmp_path / "data.json").read_text() == about


def test_a_workdir_has_a_name_that_checkpoints_can_have(experiment, tmp_path):
    with pytest.raises(InputError, match=r"workdir must have a name in UTF-8, got '.*\\udcff'; give another"):
        run(experiment, f"{tmp_path}/\udcff")
    assert not list(tmp_path.iterdir())
