"""The command line, from a checkpoint to a judged run."""

import json

import jax
import numpy as np
import pytest
from checkpoints import random_variables, safetensors
from processes import QUICKLY, run

from robustjax import build, config, data, defenses, interop, models
from robustjax.interop.__main__ import Options, _config, main
from robustjax.interop.convert import read
from robustjax.models import ResNet
from robustjax.runs import config_file
from robustjax.runs.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def wide():
    """A network of the FSR layout for grey images, and its state dict."""
    defense = defenses.create("fsr", width=7)
    network = models.create("wide_resnet", depth=10, width=1, defense=defense)
    return network, interop.to_torch(network, random_variables(network, 1), "fsr")


@pytest.fixture(scope="module")
def checkpoint(wide, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "weights.safetensors"
    path.write_bytes(safetensors(wide[1]))
    return path


def refusal(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ") and not captured.out
    return line


def test_a_checkpoint_becomes_a_run_that_evaluate_judges(wide, checkpoint, tmp_path, capsys):
    workdir = tmp_path / "deep" / "run"
    arguments = [str(checkpoint), "--source=fsr", f"--workdir={workdir}", "--dataset=digits", "--epsilon=0.1"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert "wide_resnet, 10 classes, " in told.out and "defense fsr" in told.out and told.err == ""
    assert "threat: linf epsilon 0.1 on digits" in told.out
    read = config_file.read(workdir)
    assert (read.model.name, read.model.depth, read.model.width) == ("wide_resnet", 10, 1)
    assert (read.defense.name, read.defense.width, read.attack.epsilon) == ("fsr", 7, 0.1)
    with Checkpoints(workdir, read_only=True) as checkpoints:
        assert checkpoints.steps() == [0]

    flags = ["--attacks=clean,fgsm", "--num_examples=8", "--batch_size=8"]
    done = run("evaluate", f"--workdir={workdir}", *flags, **QUICKLY)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    record = json.loads((workdir / "evaluation" / "clean.json").read_text())
    assert record["checkpoint_step"] == 0 and record["num_examples"] == 8 and record["epsilon"] == 0.1
    # The run's weights are the state dict's: the accuracy on these images is the one of the network read directly.
    module, variables = interop.from_torch(wide[1], "fsr")
    test = data.load("digits", "test", num_examples=8)
    images = test.images.astype(np.float32) / np.float32(255)
    predictions = np.argmax(jax.jit(module.apply)(variables, images).logits, axis=1)
    np.testing.assert_array_equal(record["robust"], predictions == test.labels)

    assert "holds a run already" in refusal(capsys, *arguments)


def test_constants_are_taken_where_the_checkpoint_holds_none(tmp_path, capsys):
    checkpoint, workdir = tmp_path / "weights.safetensors", tmp_path / "run"
    network = models.create("wide_resnet", depth=10, width=1)
    state_dict = interop.to_torch(network, random_variables(network, 1), "robustbench")
    given = ("--source=robustbench", f"--workdir={workdir}", "--dataset=digits", "--mean=0.5", "--std=0.25")
    checkpoint.write_bytes(safetensors(state_dict | {"mu": np.ones((1, 1, 1, 1)), "sigma": np.ones((1, 1, 1, 1))}))
    assert "holds mean and std already; leave out --mean and --std" in refusal(capsys, checkpoint, *given)
    twin = {f"sub_{name}": array for name, array in state_dict.items() if name.startswith("block1.")}
    checkpoint.write_bytes(safetensors(state_dict | twin))
    assert main([str(checkpoint), *given]) == 0
    assert "left out 10 entries that it never uses" in capsys.readouterr().out
    assert (config_file.read(workdir).model.mean, config_file.read(workdir).model.std) == ((0.5,), (0.25,))


def test_what_does_not_fit_is_refused_before_anything_is_written(checkpoint, tmp_path, capsys):
    workdir = tmp_path / "run"
    given = (checkpoint, "--source=fsr", f"--workdir={workdir}")
    digits = (*given, "--dataset=digits")
    assert "the following arguments are required: --source" in refusal(capsys, checkpoint, f"--workdir={workdir}")
    assert "source must be one of" in refusal(capsys, checkpoint, "--source=trades", f"--workdir={workdir}")
    assert "surplus aux.0.bias" in refusal(
        capsys, checkpoint, "--source=robustbench", f"--workdir={workdir}", "--dataset=digits"
    )
    assert "attack.epsilon must be in (0, 1]" in refusal(capsys, *digits, "--epsilon=8")
    assert "attack.norm must be one of" in refusal(capsys, *digits, "--norm=l7")
    assert "--mean and --std go together" in refusal(capsys, *digits, "--mean=0.5")
    assert "--std go together, each one number or 1" in refusal(capsys, *digits, "--mean=0.5,0.4", "--std=1,1")
    assert "model.std must be positive" in refusal(capsys, *digits, "--mean=0.5", "--std=0")
    assert "must be numbers separated by commas" in refusal(capsys, *digits, "--mean=grey", "--std=1")
    assert "must be numbers separated by commas" in refusal(capsys, *digits, "--mean=0,nan", "--std=1")
    assert "dataset" in refusal(capsys, *given, "--dataset=no_such_dataset", f"--data_dir={tmp_path}").lower()
    assert not workdir.exists()


def test_networks_without_a_name_or_for_other_images_are_refused(tmp_path, capsys):
    checkpoint, given = (
        tmp_path / "weights.safetensors",
        ("--source=robustbench", "--dataset=digits", f"--workdir={tmp_path / 'run'}"),
    )
    small = ResNet(blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4))
    checkpoint.write_bytes(safetensors(interop.to_torch(small, random_variables(small, 1), "robustbench")))
    assert "no model name of a config means a ResNet with blocks (1, 1, 1, 1)" in refusal(capsys, checkpoint, *given)
    colour = models.create("wide_resnet", depth=10, width=1, num_classes=7, mean=(0.5,), std=(0.5,))
    checkpoint.write_bytes(safetensors(interop.to_torch(colour, random_variables(colour), "robustbench")))
    message = refusal(capsys, checkpoint, *given)
    assert "has 7 classes and 3 image channels, digits has 10 and 1" in message


@pytest.mark.parametrize(
    ("name", "options", "source"),
    [
        ("resnet18", {}, "robustbench"),
        ("preact_resnet18", {"final_norm": False}, "robustbench"),
        ("preact_resnet18", {"mean": (0.5, 0.25, 0.75), "std": (0.25, 0.5, 0.5)}, "robustbench"),
        ("wide_resnet", {"depth": 22, "width": 2}, "robustbench"),
        ("vgg16", {"classifier_widths": (24, 20), "classifier_norm": True}, "cas"),
        ("vgg16", {"classifier_widths": (24, 20)}, "fsr"),
    ],
)
def test_the_config_describes_the_network(name, options, source):
    defense = None if source == "robustbench" else defenses.create(source)
    network = models.create(name, defense=defense, **options)
    state_dict = interop.to_torch(network, random_variables(network), source)
    described = _config(read(state_dict, source), Options("weights.pt", source, "run", dataset="digits"))
    config.validate(described)
    assert build.model(described, 10) == network
