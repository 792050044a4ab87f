"""Configs: every mistake is found at once, and every shipped config is right."""

import importlib.util
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from robustjax import build, config, defenses, models, runs
from robustjax.runs import config_file
from robustjax.runs.claim import claim
from robustjax.types import InputError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid_and_say_how_to_run_them(path):
    module = load(path)
    config.validate(module.get_config())
    assert f"--config=configs/{path.name}" in module.__doc__


def test_every_problem_is_listed_at_once():
    wrong = config.base()
    wrong.attack.epsilon = 8.0
    wrong.attack.name = "pdg"
    wrong.objective.label_smoothing = 1.0
    wrong.train.batch_size = 0
    wrong.model.mean = (0.5, 0.5)
    with pytest.raises(InputError) as caught:
        config.validate(wrong)
    message = str(caught.value)
    assert message.startswith("config has 5 problems: ") and "\n" not in message
    for part in ("8/255 is 0.0313725", "(nearest: 'pgd')", "label_smoothing", "batch_size must be >= 1", "2 and 1"):
        assert part in message
    # Also beside keys that are unknown, missing or of another type, in a config of another origin or in config.json.
    values = config.plain(wrong) | {"epochs": 3, "seed": "one"}
    with pytest.raises(InputError) as caught:
        config.from_plain(values, source="config.json")
    for part in ("epochs is unknown", "seed must be of type int", *message.partition(": ")[2].split("; ")):
        assert part in str(caught.value)
    foreign = ConfigDict({**wrong.to_dict(), "epochs": 3, "seed": "one"})
    del foreign.train.num_epochs
    assert set(config.problems(foreign)[:3]) == {
        "train.num_epochs is missing",
        "seed must be of type int, got 'one'",
        "epochs is unknown (nearest: train.num_epochs)",
    }
    assert len(config.problems(foreign)) == 8


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("attack.epsilon", 0.0, "attack.epsilon must be in (0, 1]"),
        ("attack.epsilon", float("nan"), "attack.epsilon"),
        ("attack.norm", "l0", "attack.norm must be one of l1, l2, linf"),
        ("attack.step_size", 0.0, "attack.step_size must be > 0"),
        ("attack.num_steps", 0, "attack.num_steps must be >= 1"),
        ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate"),
        ("optimizer.schedule", "linear", "optimizer.schedule must be one of"),
        ("optimizer.boundaries", (90.0, 75.0), "optimizer.boundaries must be positive and rising"),
        ("optimizer.warmup_epochs", 30.0, "optimizer.warmup_epochs must be less than train.num_epochs"),
        ("model.name", "wide_resnet", "model.depth must be set for wide_resnet"),
        ("model.depth", 28, "model.depth must be left None for small_cnn"),
        ("model.final_norm", False, "model.final_norm must be left None for small_cnn"),
        ("model.classifier_widths", (512, 512), "model.classifier_widths must be left None for small_cnn"),
        ("model.std", (0.0,), "model.std must be positive"),
        ("objective.name", "madry", "objective.name must be one of"),
        ("train.ema_decay", 1.0, "train.ema_decay must be in [0, 1)"),
        ("seed", -1, "seed must be >= 0"),
        ("defense.name", "cass", "defense.name must be one of cas, cifs, dropout, fsr, kwta, meansparse, noise, sap, "),
        ("defense.name", "cas+cifs", "defenses must have heads of their own, got cas and cifs"),
        ("defense.name", "cas+sap:alpha=1.0", "defense.name=sap: options look like fraction=..., sampler=..., sites="),
        ("defense.beta", 1.0, "defense.beta set without a defense.name"),
        ("data.validation_examples", 0, "data.validation_examples must be >= 1"),
        ("data.cutmix", 1.5, "data.cutmix must be >= 0 and <= 1, got 1.5"),
        ("data.extra", "", "data.extra must be an .npz file, a prepared data set, or None, got ''"),
        ("data.extra_ratio", 1.0, "data.extra_ratio must be in (0, 1), got 1.0"),
        ("objective.awp_gamma", -0.1, "objective.awp_gamma must be >= 0"),
        ("objective.natural_share", 1.0, "objective.natural_share must be in [0, 1), got 1.0"),
        ("objective.name", "pgi", "attack.name must be fgsm_pgi for objective.name pgi"),
        ("optimizer.name", "adamz", "optimizer.name must be one of adam, adamw, lamb, lion, nadamw, rmsprop, sgd, got"),
        ("model.name", "deepmind_wide_resnet", "model.depth must be set for deepmind_wide_resnet"),
    ],
)
def test_each_wrong_value_is_named(path, value, message):
    wrong = config.base()
    section, _, key = path.rpartition(".")
    (wrong[section] if section else wrong)[key] = value
    with pytest.raises(InputError) as caught:
        config.validate(wrong)
    assert message in str(caught.value)


def test_cifs_without_batch_norm_is_refused_where_it_would_not_learn():
    made = config.digits()
    made.defense.name = "cifs"
    with pytest.raises(InputError, match=r"model\.name must be a network with BatchNorm .* got 'small_cnn'"):
        config.validate(made)
    for importance in ("sigmoid", "softplus"):
        made.defense.importance = importance
        config.validate(made)
    made.defense.importance, made.defense.scale = None, 16.0  # as many as there are channels
    config.validate(made)


def test_keys_are_of_the_defenses_that_have_them():
    made = config.base()
    made.defense.name = "cas:sites=conv2+sns:fraction=0.5,weight=3+kwta"
    made.defense.beta, made.defense.fraction = 1.0, 0.25
    assert config.defense_options(made) == [
        ("cas", {"beta": 1.0, "sites": "conv2"}),
        ("sns", {"fraction": 0.5, "weight": 3.0}),
        ("kwta", {"fraction": 0.25}),
    ]
    config.validate(made)
    made.defense.alpha = 0.1
    with pytest.raises(InputError, match=r"defense\.alpha must be left None for defense\.name cas \(beta, .* or sns"):
        config.validate(made)
    made.defense.alpha, made.batch_norm.devices = None, "per_device"
    with pytest.raises(InputError, match=r"batch_norm\.devices must be global with defense\.name sns"):
        config.validate(made)


def test_what_training_options_need_of_each_other_is_said():
    wrong = config.base()
    wrong.attack.name = "fgsm_pgi"
    wrong.train.accumulation, wrong.batch_norm.devices, wrong.data.cutmix = 2, "per_device", 0.5
    wrong.optimizer.name, wrong.optimizer.nesterov = "adamw", True
    with pytest.raises(InputError) as caught:
        config.validate(wrong)
    for path in ("train.accumulation must be 1", "batch_norm.devices must be 'global'", "data.cutmix must be 0.0"):
        assert f"{path} for attack.name fgsm_pgi" in str(caught.value)
    assert "optimizer.nesterov needs optimizer.name sgd or rmsprop, got 'adamw'" in str(caught.value)
    wrong = config.base()
    wrong.attack.norm, wrong.objective.gradalign = "l2", 0.2
    with pytest.raises(InputError, match=r"objective\.gradalign is defined for attack\.norm 'linf' only, got 'l2'"):
        config.validate(wrong)
    wrong = config.base()
    wrong.objective.update({"name": "standard", "awp_gamma": 0.01, "natural_share": 0.2})
    with pytest.raises(InputError, match=r"natural_share must be 0 for objective\.name standard.*awp_gamma must be 0"):
        config.validate(wrong)


NAMED = [
    (path, name)
    for path in CONFIGS
    if "apply_recipe" in path.read_text()
    for name in ("at", "trades", "mart", "at_cas", "trades_cifs", "mart_fsr", "at_sns")
]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: getattr(value, "stem", value))
def test_a_name_after_the_colon_sets_objective_and_defense(path, name):
    made = load(path).get_config(name)
    config.validate(made)
    objective, _, defense = name.partition("_")
    assert made.objective.name == {"at": "adversarial"}.get(objective, objective)
    assert (made.defense.name or "") == defense
    with pytest.raises(InputError, match=rf"^configs/{path.stem}\.py has .*; got 'at_ciffs' \(nearest: 'at_cifs'\)$"):
        load(path).get_config("at_ciffs")


def test_config_files_of_an_earlier_version_are_still_named():
    assert config.renamed("cifar10_mart_cas") == config.renamed("configs/cifar10_mart_cas.py") == "cifar10:mart_cas"
    assert config.renamed("elsewhere/cifar10_mart_cas.py") == "elsewhere/cifar10_mart_cas.py"
    assert config.renamed("cifar10_at") == "cifar10_at"
    of_mart = load(Path(CONFIGS[0]).parent / "cifar10.py").get_config("mart_fsr")
    assert (of_mart.optimizer.weight_decay, of_mart.train.num_epochs) == (3.5e-3, 100)


def test_n_fgsm_is_refused_outside_linf():
    wrong = config.base()
    wrong.attack.name, wrong.attack.norm = "n_fgsm", "l2"
    with pytest.raises(InputError, match="linf"):
        config.validate(wrong)


def test_unknown_keys_are_refused_with_the_nearest():
    with pytest.raises(AttributeError, match="num_steps"):
        config.base().attack.num_step = 3


def test_a_config_survives_its_json_file(tmp_path):
    original = config.cifar10()
    original.model.mean = (0.1, 0.2, 0.3)
    original.model.std = (1.0, 2.0, 3.0)
    (tmp_path / "config.json").write_text(json.dumps(config.plain(original)))
    assert config_file.read(tmp_path).to_dict() == original.to_dict()


def old(change):
    """What an earlier version would have stored of the CIFAR-10 config: `change` takes out what it did not have."""
    content = config.plain(config.cifar10())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["train"].pop("on_nonfinite"),
        lambda content: [content["data"].pop(key) for key in ("pipeline", "image_size", "random_resized_crop")],
        lambda content: content.pop("batch_norm"),
        lambda content: content.pop("init_from"),
        lambda content: [
            content[section].pop(key)
            for section, key in (
                ("objective", "awp_gamma"), ("objective", "awp_from_epoch"), ("objective", "gradalign"),
                ("objective", "natural_share"), ("data", "cutmix"), ("data", "extra"), ("data", "extra_ratio"),
                ("attack", "tau"), ("optimizer", "name"), ("model", "remat"),
            )
        ],
    ],
)  # fmt: skip
def test_a_config_of_an_earlier_version_has_the_defaults_of_newer_keys(tmp_path, change):
    (tmp_path / "config.json").write_text(old(change))
    assert config_file.read(tmp_path).to_dict() == config.cifar10().to_dict()
    with claim(tmp_path, config.plain(config.cifar10())):
        pass
    assert (tmp_path / "config.json").read_text() == old(change)


def test_only_a_differing_value_refuses_a_config_of_an_earlier_version(tmp_path):
    (tmp_path / "config.json").write_text(old(lambda content: content.pop("batch_norm")))
    other = config.cifar10()
    other.batch_norm.attack = "batch"  # the earlier version knew no other value than the default
    other.seed = 1
    with (
        pytest.raises(InputError, match=r"another config, differing in batch_norm\.attack, seed; "),
        claim(tmp_path, config.plain(other)),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["train"].update(epochs=3), r"train\.epochs is unknown \(nearest: train\.num_epochs\)"),
        (lambda content: content.update(optimiser={"momentum": 0.9}), r"optimiser is unknown \(nearest: optimizer\)"),
        (lambda content: content.update(epsilon=0.1), r"epsilon is unknown \(nearest: attack\.epsilon\)"),
    ],
)
def test_a_stored_key_that_is_not_known_is_refused_with_the_nearest(tmp_path, change, message):
    (tmp_path / "config.json").write_text(old(change))
    for use in (lambda: config_file.read(tmp_path), lambda: claim(tmp_path, {}).__enter__()):
        with pytest.raises(InputError, match=message):
            use()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("attack.num_stepz", "attack.num_steps"),
        ("atack.num_steps", "attack.num_steps"),
        ("epochs", "train.num_epochs"),
        ("epsilon", "attack.epsilon"),
        ("batch_size", "train.batch_size"),
        ("model.epsilon", "attack.epsilon"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("dataset.name", "data.name"),
    ],
)
def test_the_nearest_of_a_key_that_is_far_off(wrong, right):
    with pytest.raises(InputError, match=rf"--config\.{wrong} is unknown \(nearest: --config\.{right}\)$"):
        config.check_overrides(["train", f"--config.{wrong}=1"])


def test_all_wrong_keys_and_types_of_a_command_line_are_listed_at_once():
    arguments = [
        "--config=configs/quickstart.py", "--config.foo=1", "--config.attack.num_stepz=3", "-config.epochs", "5",
        "--config.seed=one", "--config.attack.epsilon", "large", "--config.data.flip=maybe",
        # What is right:
        "--config.train.num_epochs", "5", "--noconfig.data.flip", "--config.data.flip", "--config.model.mean=(0.5,)",
        "--config.optimizer.momentum=0", "--config.defense.name=cas", "--workdir=x",
    ]  # fmt: skip
    with pytest.raises(InputError) as caught:
        config.check_overrides(arguments)
    message = str(caught.value)
    assert message.startswith("command line has 6 problems: --config.foo is unknown (nearest: --config.")
    assert message.endswith(
        "; --config.attack.num_stepz is unknown (nearest: --config.attack.num_steps)"
        "; --config.epochs is unknown (nearest: --config.train.num_epochs)"
        "; --config.seed must be of type int, got 'one'"
        "; --config.attack.epsilon must be of type float, got 'large'"
        "; --config.data.flip must be of type bool, got 'maybe'"
    )
    right = ["train", "--config=configs/quickstart.py", *arguments[arguments.index("--config.train.num_epochs") :]]
    config.check_overrides(right)
    # What is right is checked further, without the wrong ones and what was their value.
    rest = []
    with pytest.raises(InputError, match=r"7 problems: .*; and this$"):
        config.check_overrides(arguments, lambda others: rest.extend(others) or ["and this"])
    assert rest == [arguments[0], *right[2:]]
    rest.clear()  # a misspelt switch has no value: what follows it is a flag of its own
    with pytest.raises(InputError, match=r"--config\.data\.flp is unknown"):
        config.check_overrides(
            ["train", "--config.data.flp", "--config.seed=2"], lambda others: rest.extend(others) or []
        )
    assert rest == ["train", "--config.seed=2"]


def test_fractions_on_a_command_line_are_numbers_where_numbers_are_wanted():
    given = ["train", "--config.attack.epsilon=8/255", "-config.attack.step_size=.5/2", "--workdir=8/255"]
    assert config.check_overrides(given) == [
        "train", f"--config.attack.epsilon={8 / 255!r}", "-config.attack.step_size=0.25", "--workdir=8/255",
    ]  # fmt: skip
    for wrong in ("attack.epsilon=1/0", "attack.epsilon=8/", "attack.epsilon=1.2.3/4", "seed=4/2"):
        with pytest.raises(InputError, match="must be of type"):
            config.check_overrides([f"--config.{wrong}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "workdir must be the folder of a run"), ("{", "cannot be read"), ('{"attack": {"epsilom": 1}}', "epsilom")],
)
def test_a_folder_without_a_readable_config_is_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        config_file.read(tmp_path)


def test_the_models_without_batch_norm_are_named():
    for name in models.NAMES:
        options = {"depth": 10, "width": 1} if "wide_resnet" in name else {}
        images = jnp.zeros((1, 32, 32, 3))
        variables = jax.eval_shape(models.create(name, **options).init, jax.random.key(0), images)
        assert ("batch_stats" in variables) == (name not in models.WITHOUT_BATCH_NORM)


@pytest.mark.parametrize("objective", ["standard", "at", "trades", "mart"])
@pytest.mark.parametrize("defense", ["", "_cas", "_cifs", "_fsr", "_sns", "_kwta", "_meansparse", "_sap"])
def test_the_digits_config_has_every_objective_with_every_defense(objective, defense):
    made = load(CONFIGS[0].parent / "digits.py").get_config(objective + defense)
    config.validate(made)
    assert made.defense.name == (defense[1:] or None)


def test_the_digits_config_names_what_it_has():
    with pytest.raises(InputError, match="got 'at_caas'"):
        load(CONFIGS[0].parent / "digits.py").get_config("at_caas")


def test_the_pod_config_scales_its_learning_rate_with_the_batch():
    get_config = load(CONFIGS[0].parent / "cifar10_at_pod.py").get_config
    assert get_config("128").optimizer.learning_rate == config.cifar10().optimizer.learning_rate
    assert get_config("4096").optimizer.learning_rate == pytest.approx(3.2)
    with pytest.raises(InputError, match="got '4k'"):
        get_config("4k")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("quickstart", r"config must be a ConfigDict such as config\.base\(\) returns, got str 'quickstart'; change"),
        (None, "got NoneType None"),
        (ConfigDict({"seed": 0}), r"model\.name is missing; .*; begin with config\.base\(\)"),
        (ConfigDict({**config.base().to_dict(), "epochs": 3}), r"1 problem: epochs is unknown \(nearest: train\.num"),
        (ConfigDict({**config.base().to_dict(), "seed": "one"}), r"1 problem: seed must be of type int, got 'one'"),
    ],
    ids=["name", "none", "few keys", "another key", "another type"],
)
def test_a_config_that_did_not_begin_as_base_is_refused(given, message, tmp_path):
    with pytest.raises(InputError, match=message):
        runs.train(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_papers_ablations_are_documented_and_each_is_a_run():
    root = Path(__file__).resolve().parents[1]
    benchmark = runpy.run_path(str(root / "benchmarks" / "ablations.py"))
    assert benchmark["markdown"]() in (root / "docs" / "training_options.md").read_text()
    networks = {}
    for name, ablation in benchmark["ABLATIONS"].items():
        assert ablation.against is None or ablation.against in benchmark["ABLATIONS"], name
        made = load(CONFIGS[0].parent / "digits.py").get_config(ablation.recipe)
        for path, value in ablation.changes.items():
            section, key = path.split(".")
            made[section][key] = value
        config.validate(made)
        module = build.model(made, 10)
        guards = (build.defense(made), ablation.defense and defenses.parse(ablation.defense.removeprefix("+"))[1])
        networks[name] = repr([made, *(defense and defense.guards(module.sites(), 10) for defense in guards)])
        tracker = guards[0] and guards[0].tracker_in(module.sites())
        assert (tracker is not None) == ("sns" in name)
    assert len(set(networks.values())) == len(networks)  # no two are the same setting
