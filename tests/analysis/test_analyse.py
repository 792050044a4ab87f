"""The command ``python -m robustjax.analysis``, on small networks that were hardly trained."""

import json

import pytest

from robustjax import analysis, config, runs
from robustjax.analysis import __main__ as command
from robustjax.types import InputError


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Runs of a plain network and of one with FSR."""
    made = {}
    for name, defense in (("plain", None), ("fsr", "fsr")):
        settings = config.digits()
        settings.data.train_examples, settings.data.validation_examples = 128, 50
        settings.train.num_epochs, settings.train.batch_size, settings.attack.num_steps = 1, 64, 1
        settings.attack.warmup_epochs, settings.validation.every_epochs, settings.validation.num_steps = 0.0, 1, 1
        settings.defense.name = defense
        if defense:
            settings.defense.width = 4
        made[name] = tmp_path_factory.mktemp("runs") / name
        runs.train(settings, made[name])
    return made


@pytest.mark.slow
def test_every_figure_and_scalar_of_two_runs(workdirs, tmp_path, capsys):
    arguments = [
        f"--workdir={workdirs['plain']}",
        f"--against={workdirs['fsr']}",
        f"--output={tmp_path}",
        "--num_examples=20",
    ]
    assert command.main(arguments) == 0
    found = json.loads((tmp_path / "analysis.json").read_text())
    figures = {figure["name"]: figure for figure in found["figures"]}
    assert set(found["networks"]) == {"plain", "fsr"} and found["num_examples"] == 20
    assert {"channels", "sensitivity", "restoration", "separation", "calibration", "by_class", "curves"} <= set(figures)
    # small_cnn's classifier sees a dense layer's units, which are a site.
    assert set(figures["relevance"]["estimates"]) == {"plain", "fsr"}
    assert figures["separation"]["skipped"] == {"plain": "it has no FSR guard"}
    for figure in figures.values():
        assert (tmp_path / figure["file"]).read_bytes().startswith(b"\x89PNG")
        for scalars in figure["estimates"].values():
            for scalar in scalars.values():
                low, high = scalar["interval_95"]
                assert scalar["value"] is None or low <= scalar["value"] <= high
                assert scalar["n"] == 20 and scalar["meaning"]
    assert {"plain", "plain, SAP, single draw", "fsr"} <= set(figures["calibration"]["estimates"])
    output = capsys.readouterr().out
    assert "over_activation_gap" in output and f"figures: {tmp_path}" in output


@pytest.mark.slow
def test_what_is_no_run_or_on_other_data_is_refused(workdirs, tmp_path, capsys):
    assert command.main([f"--workdir={tmp_path}"]) == 2
    assert "workdir must be the folder of a run" in capsys.readouterr().err
    assert command.main([f"--workdir={workdirs['plain']}", f"--against={workdirs['plain']}"]) == 2
    assert "got one twice" in capsys.readouterr().err
    with pytest.raises(InputError, match="2 examples"):
        analysis.analyse([workdirs["plain"]], num_examples=1)


def test_a_comma_too_many_does_not_mean_the_working_folder(capsys):
    assert command.main(["--workdir=somewhere", "--against=elsewhere,"]) == 2
    assert "--against must be folders separated by commas, got 'elsewhere,'" in capsys.readouterr().err
