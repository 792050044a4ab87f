"""Every key of a config with every kind of wrong value, on the command line and in config.json."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict

from bad_input.refusals import one_line
from robustjax import cli, config, models, train
from robustjax.runs import config_file
from robustjax.types import InputError

pytestmark = pytest.mark.bad_input
ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


def leaves(tree, prefix=""):
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, tree.get_type(key), value


KEYS = {path: (kind, value) for path, kind, value in leaves(config.base())}
NUMBERS = {path: kind for path, (kind, _) in KEYS.items() if kind in (int, float)}
# Where 0 means "none" or "off".
ZERO_ALLOWED = {
    "attack.tau", "attack.warmup_epochs", "data.crop_padding", "data.cutmix", "data.cutout", "defense.alpha",
    "defense.attack_beta", "defense.beta", "defense.class_mix", "defense.deviation", "defense.rate",
    "defense.recalibration_weight", "defense.separation_weight", "defense.weight",
    "objective.awp_from_epoch", "objective.awp_gamma", "objective.beta", "objective.gradalign",
    "objective.label_smoothing", "objective.natural_share", "optimizer.momentum", "optimizer.warmup_epochs",
    "optimizer.weight_decay", "seed", "train.ema_decay",
}  # fmt: skip
# What has to be chosen for a key to have a meaning.
OWNERS = {
    "defense.alpha": ("defense.name", "meansparse"),
    "defense.attack_beta": ("defense.name", "cas"),
    "defense.beta": ("defense.name", "cas"),
    "defense.class_mix": ("defense.name", "cifs"),
    "defense.deviation": ("defense.name", "noise"),
    "defense.fraction": ("defense.name", "kwta"),
    "defense.hidden": ("defense.name", "cifs"),
    "defense.importance": ("defense.name", "cifs"),
    "defense.norm": ("defense.name", "sns"),
    "defense.parts": ("defense.name", "fsr"),
    "defense.rate": ("defense.name", "dropout"),
    "defense.recalibration_weight": ("defense.name", "fsr"),
    "defense.refresh_steps": ("defense.name", "sns"),
    "defense.sampler": ("defense.name", "sap"),
    "defense.scale": ("defense.name", "cifs"),
    "defense.separation_weight": ("defense.name", "fsr"),
    "defense.temperature": ("defense.name", "fsr"),
    "defense.top_k": ("defense.name", "cifs"),
    "defense.weight": ("defense.name", "sns"),
    "defense.width": ("defense.name", "fsr"),
    **{f"model.{key}": ("model.name", name) for name, keys in models.OWN_OPTIONS.items() for key in keys},
}


def wrong_numbers():
    for path, kind in NUMBERS.items():
        values = ["-1", "nan", "inf", "-inf", "many", "", "[1]"] if kind is float else ["-1", "nan", "1.5", "many", ""]
        for value in values if path in ZERO_ALLOWED else [*values, "0"]:
            yield path, value


def wrong_choices():
    for path in (
        "data.pipeline", "model.name", "model.dtype", "defense.name", "attack.name", "attack.norm", "objective.name",
        "batch_norm.attack", "batch_norm.training", "optimizer.schedule", "defense.importance", "defense.sampler",
        "defense.norm", "defense.parts",
    ):  # fmt: skip
        value = KEYS[path][1] or {
            "defense.name": "cas", "defense.importance": "softmax", "defense.norm": "linf", "defense.parts": "both",
        }.get(path, "bernoulli")  # fmt: skip
        yield from ((path, wrong) for wrong in (value[:-1], value.upper(), value + "s", "None "))


WRONG_TUPLES = [
    ("model.mean", "(float('nan'),)"),
    *((path, value) for path in ("model.mean", "model.std") for value in ("('a',)", "(1e999,)", "(0.5")),
    *((path, "()") for path in ("model.mean", "model.std")),
    ("model.std", "(0.0,)"),
    ("model.std", "(-1.0,)"),
    *(("optimizer.boundaries", value) for value in ("('a',)", "(1e999,)", "(-1.0,)", "(2.0, 1.0)", "(1.0, 1.0)", "x")),
    *(("model.classifier_widths", value) for value in ("('a',)", "(0,)", "(-8,)", "(1.5,)")),
]
WRONG_FLAGS = [
    *((path, value) for path, kind in KEYS.items() if kind[0] is bool for value in ("maybe", "2", "")),
    *wrong_numbers(),
    *wrong_choices(),
    *WRONG_TUPLES,
]


@pytest.mark.parametrize(("path", "value"), WRONG_FLAGS)
def test_a_wrong_value_on_the_command_line(refused, tmp_path, path, value):
    owner = [f"--config.{'='.join(OWNERS[path])}"] if path in OWNERS else []
    if OWNERS.get(path, ())[1:] == ("wide_resnet",):
        other = {"model.depth": "width=1", "model.width": "depth=10"}[path]
        owner.append(f"--config.model.{other}")
    refused(
        train, [QUICKSTART, *owner, f"--config.{path}={value}", f"--workdir={tmp_path / 'run'}"], path.split(".")[-1]
    )


CONTRADICTIONS = [
    (["attack.name=n_fgsm", "attack.norm=l2"], "n_fgsm"),
    (["attack.epsilon=8"], "8/255"),
    (["attack.epsilon=1.5", "attack.norm=linf"], "attack.epsilon"),
    (["model.mean=(0.1,)", "model.std=(1.0, 1.0)"], "1 and 2"),
    (["model.mean=(0.1, 0.2, 0.3)", "model.std=(1.0, 1.0, 1.0)"], "channels, got 3"),
    (["model.name=wide_resnet", "model.depth=28"], "model.width"),
    (["model.name=wide_resnet", "model.depth=29", "model.width=1"], "got 29"),
    (["model.depth=28"], "model.depth"),
    (["model.width=10"], "model.width"),
    (["model.final_norm=True"], "model.final_norm"),
    (["model.name=lenet5", "data.name=digits", "model.batch_norm=True"], "model.batch_norm"),
    (["model.classifier_norm=True"], "model.classifier_norm"),
    (["model.name=lenet5"], "LeNet5"),
    (["defense.beta=2.0"], "defense.beta"),
    (["defense.name=sap", "defense.beta=2.0"], "beta"),
    (["defense.name=cas", "defense.fraction=0.5"], "fraction"),
    (["defense.name=kwta", "defense.fraction=1.5"], "1.5"),
    (["model.name=wide_resnet", "model.depth=10", "model.width=1", "defense.name=cifs", "defense.top_k=11"], "11"),
    (["defense.name=cas", "defense.sites=stage1"], "sites must be some of conv1, "),
    (["defense.name=sap", "defense.sites=conv9"], "sites must be some of conv1, "),
    (["defense.name=cas+meansparse:sites=weights"], "sites must be those of features"),
    (["defense.name=sns", "defense.sites=conv1_input"], "whose features are compared"),
    (["defense.name=cas+cifs"], "heads of their own"),
    (["defense.name=cifs"], "a network with BatchNorm"),
    (["defense.name=cifs", "defense.importance=softmax"], "small_cnn"),
    (["defense.name=cifs", "model.name=lenet5"], "or defense.importance sigmoid"),
    (["objective.name=mart", "objective.label_smoothing=0.1"], "objective.label_smoothing"),
    (["objective.awp_gamma=0.005", "objective.awp_from_epoch=1000"], "objective.awp_from_epoch must be less than"),
    (["objective.natural_share=0.005"], "at least one of the 64 images that are attacked together natural"),
    (["objective.natural_share=0.1", "train.accumulation=16"], "at least one of the 4 images"),
    (["data.extra=digits"], "another data set than data.name"),
    (["defense.name=sap:fraction=0.5,fraction=0.7"], "fraction must be given once"),
    (["optimizer.momentum=0.0", "optimizer.nesterov=True"], "optimizer.nesterov"),
    (["optimizer.schedule=cosine", "optimizer.warmup_epochs=100"], "optimizer.warmup_epochs"),
    (["optimizer.schedule=cyclic", "optimizer.warmup_epochs=1000"], "optimizer.warmup_epochs"),
    (["data.name=digit"], "'digit'"),
    (["data.name="], "''"),
    (["data.name=../digits"], "'../digits'"),
    (["data.name=/etc"], "'/etc'"),
    (["data.name=mnist", "data.data_dir=nowhere"], "nowhere"),
    (["data.pipeline=stream"], "use 'memory'"),
    (["data.pipeline=stream", "data.name=digit"], "'digit'"),
    (["data.random_resized_crop=True"], "data.random_resized_crop"),
    (["data.random_resized_crop=True", "data.pipeline=stream"], "data.image_size"),
    (["data.image_size=8"], "image_size"),
    (["data.validation_examples=1437"], "1437"),
    (["data.train_examples=1400"], "1400"),
    (["train.batch_size=5000"], "5000"),
    (["train.batch_size=2000"], "at most the 1237 training examples"),
    (["train.batch_size=6"], "divisible by the 4 devices, got 6"),
    (["validation.batch_size=6"], "divisible by the 4 devices, got 6"),
    (["init_from=nowhere"], "nowhere"),
    (["init_from="], "init_from"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "cause"), CONTRADICTIONS, ids=[",".join(case[0]) for case in CONTRADICTIONS])
def test_values_that_do_not_go_together(refused, tmp_path, settings, cause):
    overrides = [f"--config.{setting}" for setting in settings]
    refused(train, [QUICKSTART, *overrides, f"--workdir={tmp_path / 'run'}"], cause)


@pytest.mark.parametrize("path", [path for path in KEYS if "." in path])
def test_a_misspelt_key_on_the_command_line(refused, tmp_path, path):
    section, _, key = path.rpartition(".")
    wrong = key[:-1] if len(key) > 3 else key + "x"
    refused(train, [QUICKSTART, f"--config.{section}.{wrong}=1", f"--workdir={tmp_path / 'run'}"], wrong)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([QUICKSTART, "quickstart"], "unexpected argument 'quickstart'"),
        ([QUICKSTART, "--confg.seed=1"], "confg"),
        (["--config=configs/nowhere.py"], "nowhere.py"),
        (["--config=configs/digits.py:at_caas"], "error: configs/digits.py has standard, at, trades"),
        (["--config=configs/mnist_at.py", "--config.data.data_dir=nowhere"], "nowhere"),
    ],
    ids=str,
)
def test_a_wrong_argument_of_a_training(refused, tmp_path, arguments, cause):
    refused(train, [*arguments, f"--workdir={tmp_path / 'run'}"], cause)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("import sys\nsys.exit(0)\n", "must be a file that leaves Python running, got 'mine.py' with sys.exit(0)"),
        ("def get_config(): raise SystemExit\n", "with sys.exit(None)"),
        ("def get_config(): pass\n", "must be a ConfigDict such as config.base() returns, got None from 'mine.py'"),
        ("def get_config(: pass\n", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("def get_config(): raise RuntimeError('not today')\n", "RuntimeError: not today"),
        ("def get_config(): return get_config()\n", "RecursionError"),
        ("x = '\xff'\n", "SyntaxError"),
    ],
    ids=str,
)
def test_a_config_file_that_gives_no_config(refused, tmp_path, text, cause):
    (tmp_path / "mine.py").write_bytes(text.encode("latin-1"))
    refused(train, ["--config=mine.py", f"--workdir={tmp_path / 'run'}"], cause)


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_an_interrupt_while_a_config_file_is_read_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.setattr(sys, "argv", ["train", f"--config={tmp_path / 'mine.py'}"])
    monkeypatch.setattr(os, "_exit", sys.exit)
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        cli.run(train.main)
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


HOSTS = ["--coordinator=localhost:1234", "--num_processes=2", "--process_id=2"]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (HOSTS[:1], "missing: --num_processes, --process_id"),
        (["--coordinator=localhost", *HOSTS[1:]], "must be HOST:PORT"),
        (HOSTS, "--process_id must be in 0..1"),
        (["--distributed=auto", "--process_id=1"], "give it alone"),
        (["--distributed=maybe"], "distributed"),
    ],
    ids=str,
)
def test_processes_that_cannot_find_each_other(refused, tmp_path, arguments, cause):
    refused(train, [QUICKSTART, *arguments, f"--workdir={tmp_path / 'run'}"], cause)


def test_every_misspelt_key_on_the_command_line_is_listed(refused, tmp_path):
    wrong = ["--config.foo=1", "--config.attack.num_stepz=3", "--config.epochs=5", "--config.seed=one"]
    for cause in ("--config.foo", "attack.num_steps", "--config.train.num_epochs", "got 'one'"):
        refused(train, [QUICKSTART, *wrong, f"--workdir={tmp_path / 'run'}"], cause)


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        ("--config.model.name=resnet81", "command line has 2 problems: --config.foo is unknown"),
        ("--config.model.name=resnet81", "(nearest: 'resnet18')"),
        ("--config.attack.epsilon=8", "8/255"),
        ("--confg.seed=1", "confg"),
        ("--config=quikstart", "nearest: quickstart"),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_beside_a_misspelt_key(refused, tmp_path, other, cause):
    refused(train, [QUICKSTART, "--config.foo=1", other, f"--workdir={tmp_path / 'run'}"], cause)


def stored(change):
    """A config.json in which `change` was made."""
    content = config.plain(config.base())
    change(content)
    return json.dumps(content)


def setting(path, value):
    def change(content):
        *sections, key = path.split(".")
        for section in sections:
            content = content[section]
        content[key] = value

    return change


def wrong_entries():
    """(text of config.json, what the refusal names)"""
    for path, (kind, value) in KEYS.items():
        key = path.split(".")[-1]
        for wrong in ({"a": 1}, [None], True if kind is not bool else "yes", None if value is not None else {}):
            yield f"{path}={json.dumps(wrong)}", stored(setting(path, wrong)), key
        if kind in (int, float):
            yield f"{path}=text", stored(setting(path, "1")), key
        if kind is float:
            yield f"{path}=NaN", stored(setting(path, math.nan)), key
    for section in sorted({path.split(".")[0] for path in KEYS if "." in path}):
        for wrong in (1, None, "text", [1]):
            yield f"{section}={json.dumps(wrong)}", stored(setting(section, wrong)), section
        yield f"{section}.surplus", stored(setting(f"{section}.surplus", 1)), "surplus"
    whole = stored(lambda content: None)
    for fraction in (0.0, 0.1, 0.5, 0.9):
        yield f"cut at {fraction}", whole[: int(fraction * len(whole))], "config.json"
    yield "cut at the last brace", whole.rstrip()[:-1], "config.json"
    for text in ("[]", "1", "null", '"text"', "{" * 5000, "[" * 100000, "\0" * 100, "NaN"):
        yield f"text {text[:9]!r}", text, "config.json"


ENTRIES = list(wrong_entries())


@pytest.mark.parametrize(("text", "cause"), [entry[1:] for entry in ENTRIES], ids=[entry[0] for entry in ENTRIES])
def test_a_config_of_a_run_that_was_tampered_with(tmp_path, text, cause):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        config_file.read(tmp_path)
    one_line(str(caught.value), cause)


def test_a_config_of_a_run_that_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"config\.json"):
        config_file.read(tmp_path)


def test_a_config_of_a_run_that_is_a_folder(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        config_file.read(tmp_path)
