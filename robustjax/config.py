"""Every key of a run, with its default and meaning; and ``validate``, which finds every mistake before anything starts.

A config file in ``configs/`` calls ``base()`` and assigns what differs. The result is locked: an unknown key is an
error that names the nearest one, and a value keeps its type.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict

from robustjax import defenses, models, registry
from robustjax.types import Config, InputError


def base() -> Config:
    """PGD adversarial training of ``small_cnn`` on scikit-learn's handwritten digits."""
    config: Config = ConfigDict()
    config.seed = 0  # of initialisation, order, augmentation and attack; data splits do not depend on it

    config.init_from = config_dict.placeholder(str)  # workdir of a run whose weights this one begins with; None: anew

    config.data = ConfigDict()
    config.data.name = "digits"  # "digits" (embedded) or any prepared tfds image-classification data set
    config.data.data_dir = config_dict.placeholder(
        str
    )  # where tfds data sets lie; None: TFDS_DATA_DIR or tfds's default
    config.data.validation_examples = 200  # carved from the training split, never from the test split
    config.data.train_examples = config_dict.placeholder(int)  # use only the first so many; None: all
    config.data.pipeline = "memory"  # "memory", on the devices, or "stream", read from disk while the run trains
    config.data.image_size = config_dict.placeholder(int)  # side to which images of any size are scaled and cropped
    config.data.random_resized_crop = False  # in training: of 8 to 100 % of the area (Szegedy et al. 2015); stream only
    config.data.crop_padding = 0  # random crop after zero padding by so many pixels; 0: off
    config.data.flip = False  # random left-right flip
    config.data.cutout = 0  # side of a random square set to 0; 0: off

    config.model = ConfigDict()
    config.model.name = "small_cnn"  # one of robustjax.models.NAMES
    config.model.depth = config_dict.placeholder(int)  # wide_resnet only: 6n + 4
    config.model.width = config_dict.placeholder(int)  # wide_resnet only: widening factor
    config.model.final_norm = config_dict.placeholder(bool)  # preact_resnet18 only: False as Wong et al. 2020
    config.model.classifier_widths = config_dict.placeholder(tuple)  # vgg16 only: dense layers before the linear one
    config.model.classifier_norm = config_dict.placeholder(bool)  # vgg16 only: BatchNorm in those layers
    config.model.mean = (0.0,)  # subtracted from pixels in [0, 1] by the first layer: one number, or one per channel
    config.model.std = (1.0,)  # divided by
    config.model.dtype = "float32"  # of the computation: "float32" or "bfloat16"; weights and logits stay float32

    # None leaves an option at the defense's own default, and closed at defenses that do not have it.
    config.defense = ConfigDict()
    config.defense.name = config_dict.placeholder(str)  # "cas", "cifs", "fsr", "kwta", "sap", "sns"; None: none
    config.defense.beta = config_dict.placeholder(float)  # cas, cifs: weight of the heads, in training and its attack
    config.defense.top_k = config_dict.placeholder(int)  # cifs: classes whose logits make a channel relevant
    config.defense.importance = config_dict.placeholder(str)  # cifs: "softmax" (with BatchNorm), "sigmoid", "softplus"
    config.defense.hidden = config_dict.placeholder(int)  # cifs: width of the probes' hidden layer
    config.defense.temperature = config_dict.placeholder(float)  # fsr: of the mask
    config.defense.separation_weight = config_dict.placeholder(float)  # fsr: of its loss
    config.defense.recalibration_weight = config_dict.placeholder(float)  # fsr: of its loss
    config.defense.width = config_dict.placeholder(int)  # fsr: channels of its networks
    config.defense.fraction = config_dict.placeholder(float)  # kwta: kept; sap: drawn; sns: held still
    config.defense.sampler = config_dict.placeholder(str)  # sap: "multinomial" or "bernoulli"
    config.defense.weight = config_dict.placeholder(float)  # sns: of the sensitive neurons' movement
    config.defense.refresh_steps = config_dict.placeholder(int)  # sns: updates between selections

    # The inner maximisation of training; its epsilon and norm are also the threat evaluated.
    config.attack = ConfigDict()
    config.attack.name = "pgd"  # "pgd", "fgsm", "rs_fgsm" (Wong 2020) or "n_fgsm" (de Jorge 2022)
    config.attack.norm = "linf"  # "linf", "l2" or "l1"
    config.attack.epsilon = 0.2  # radius in units of pixels in [0, 1]
    config.attack.step_size = 0.05  # same units; for rs_fgsm usually 1.25 epsilon; unused by fgsm and n_fgsm
    config.attack.num_steps = 10  # pgd only
    config.attack.random_start = True  # pgd only; TRADES and MART start from 0.001 N(0, 1) whatever this says
    config.attack.warmup_epochs = 0.0  # epsilon and step_size grow linearly from 0 over so many epochs

    config.objective = ConfigDict()
    config.objective.name = "adversarial"  # "standard", "adversarial" (Madry 2018), "trades" or "mart"
    config.objective.beta = 6.0  # weight of the robust term of trades (6) and mart (5)
    config.objective.label_smoothing = 0.0  # share of a label spread over all classes, in [0, 1)

    config.batch_norm = ConfigDict()  # which statistics
    config.batch_norm.devices = "global"  # of the batch however many devices share it, or "per_device": of each's part
    config.batch_norm.attack = "running"  # in the inner maximisation: "running" (inference mode) or "batch"
    config.batch_norm.training = "batch"  # in the update: "batch" or "running" (frozen, for fine-tuning)

    config.optimizer = ConfigDict()  # stochastic gradient descent
    config.optimizer.learning_rate = 0.1  # peak
    config.optimizer.schedule = "cosine"  # "constant", "piecewise", "cosine" or "cyclic" (linear up, then down to 0)
    config.optimizer.boundaries = (75.0, 90.0)  # piecewise only: epochs at which the rate is multiplied by factor
    config.optimizer.factor = 0.1  # piecewise only
    config.optimizer.warmup_epochs = 0.0  # linear from 0 (cyclic: where the peak is)
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.weight_decay = 5e-4  # added to the gradient, before momentum
    config.optimizer.decay_norms_and_biases = False  # apply weight_decay to BatchNorm and biases too

    config.train = ConfigDict()
    config.train.num_epochs = 30
    config.train.batch_size = 128  # over all devices
    config.train.accumulation = 1  # micro-batches that a batch is cut into, for memory; BatchNorm sees each by itself
    config.train.ema_decay = 0.0  # of a moving average of the weights, which is then evaluated (EMA); 0: off
    config.train.log_every_steps = 100  # a line of metrics.jsonl
    config.train.keep_checkpoints = 2  # newest ones kept, besides the best by robust validation accuracy
    config.train.on_nonfinite = "stop"  # or "halve": back to the last validated checkpoint at half the learning rate

    config.validation = ConfigDict()  # clean, FGSM and PGD accuracy on the validation split, during training
    config.validation.every_epochs = 1  # also how often a checkpoint is written
    config.validation.batch_size = 500
    config.validation.num_steps = 10  # of PGD with step epsilon / 4 and a random start
    return config.lock()


def digits() -> Config:
    """A small network on 8 x 8 scans of handwritten digits under linf 0.2: trains in half a minute on two cores."""
    config = base()
    config.attack.epsilon = 0.2
    config.attack.step_size = 0.05
    config.attack.num_steps = 10
    config.attack.warmup_epochs = 20.0  # at full epsilon from the start, the small network learns nothing for a while
    config.train.num_epochs = 100
    config.train.batch_size = 64
    config.validation.every_epochs = 5
    return config


def cifar10() -> Config:
    """ResNet-18 on CIFAR-10 under linf 8/255, in the setting that the CAS, CIFS and TRADES papers share."""
    config = base()
    config.data.name = "cifar10"
    config.data.validation_examples = 1000
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.name = "resnet18"
    config.attack.epsilon = 8 / 255
    config.attack.step_size = 2 / 255
    config.attack.num_steps = 10
    config.optimizer.learning_rate = 0.1
    config.optimizer.schedule = "piecewise"
    config.optimizer.boundaries = (75.0, 90.0)
    config.optimizer.weight_decay = 2e-4
    config.train.num_epochs = 120
    return config


def speedrun() -> Config:
    """What robust training in minutes on one GPU shares: bfloat16, large batches, one cycle, averaged weights."""
    config = cifar10()
    config.model.name = "preact_resnet18"
    config.model.mean = (0.4914, 0.4822, 0.4465)
    config.model.std = (0.2471, 0.2435, 0.2616)
    config.model.dtype = "bfloat16"
    config.objective.label_smoothing = 0.1
    config.optimizer.schedule = "cyclic"
    config.optimizer.learning_rate = 0.4
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4
    config.train.batch_size = 512
    config.train.ema_decay = 0.995  # over about two epochs
    config.validation.every_epochs = 10
    return config


def from_plain(stored: Any, *, source: object) -> Config:
    """A config from what JSON holds of it. Keys and sections that are not there have their defaults.

    That way the runs of an earlier version, which lack newer keys, go on and are evaluated.

    Args:
        stored: nested dicts, as :func:`plain` returns them.
        source: where they come from, for the message.

    Raises:
        InputError: one line that lists every problem.
    """
    config = base()
    problems = list(_fill(config, stored))
    if problems:
        raise InputError(f"{source} is not a config of this version: {'; '.join(problems)}")
    validate(config)
    return config


def plain(config: Config) -> dict[str, Any]:
    """A config as JSON can hold it: dicts, lists, numbers, strings, None."""
    return json.loads(config.to_json_best_effort())


def check_overrides(arguments: Sequence[str]) -> None:
    """Checks every ``--config.KEY=VALUE`` of a command line, before any of them is used.

    ml_collections would name only the first wrong one.

    Args:
        arguments: the whole command line.

    Raises:
        InputError: one line that lists every unknown key, with the nearest, and every value of a wrong type.

    Example:
        >>> check_overrides(["--config.attack.num_stepz=3", "--config.epochs=5", "--config.seed=one"])
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: command line has 3 problems: --config.attack.num_stepz is unknown (nearest:
        --config.attack.num_steps); --config.epochs is unknown (nearest: --config.train.num_epochs); --config.seed must
        be of type int, got 'one'
    """
    problems = list(_override_problems(list(arguments)))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"command line has {count}: {'; '.join(problems)}")


def _override_problems(arguments: list[str]) -> Iterator[str]:
    parsers = {int: flags.IntegerParser(), float: flags.FloatParser(), bool: flags.BooleanParser()}
    types = dict(_keys(base()))
    sections = {path.rpartition(".")[0] for path in types}
    for i, argument in enumerate(arguments):
        override = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if override is None:
            continue
        negated, path, value = override.groups()
        if path not in types and path not in sections:
            yield f"--config.{path} is unknown (nearest: --config.{_nearest_key(path, types)})"
            continue
        kind = types.get(path)
        if value is None and kind is not bool:  # `--config.seed 1`
            value = arguments[i + 1] if i + 1 < len(arguments) else None
        if kind is None or kind not in parsers or value is None or negated:
            continue
        try:
            parsers[kind].parse(value)
        except (TypeError, ValueError):
            yield f"--config.{path} must be of type {kind.__name__}, got {value!r}"


def _keys(config: Config, section: str = "") -> Iterator[tuple[str, type]]:
    """Every key as "section.key", with its type."""
    for key in config:
        if isinstance(config[key], ConfigDict):
            yield from _keys(config[key], f"{section}{key}.")
        else:
            yield f"{section}{key}", config.get_type(key)


def _nearest_key(path: str, keys: Iterable[str]) -> str:
    """The key that was most likely meant: the one whose last part is most alike, rather in the section that was given.

    Example:
        >>> _nearest_key("epochs", ["seed", "train.num_epochs", "validation.every_epochs"])
        'train.num_epochs'
    """
    section, _, last = path.rpartition(".")

    def likeness(key: str) -> tuple[float, float]:
        its_section, _, its_last = key.rpartition(".")
        same_section = 0.25 * (section == its_section and section != "")
        return _likeness(last, its_last) + same_section, _likeness(path, key)

    return max(keys, key=likeness)


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


def defense_options(config: Config) -> dict[str, Any]:
    """The options of a config's defense that are set.

    Raises:
        InputError: options are set, and no defense.
    """
    options = {key: value for key, value in config.defense.items() if key != "name" and value is not None}
    if options and config.defense.name is None:
        raise InputError(f"defense.{', defense.'.join(options)} set without a defense.name")
    return options


def validate(config: Config) -> None:
    """Checks every value and how values go together.

    Raises:
        InputError: one line that lists every problem.

    Example:
        >>> config = base()
        >>> config.attack.epsilon = 8.0
        >>> config.model.name = "resnet81"
        >>> validate(config)
        Traceback (most recent call last):
        ...
        robustjax.types.InputError: config has 2 problems: model.name must be one of lenet5, preact_resnet18, resnet18,
        resnet20, resnet50, small_cnn, vgg16, wide_resnet, got 'resnet81' (nearest: 'resnet18'); attack.epsilon must be
        in (0, 1] for linf on pixels in [0, 1], got 8.0 (8/255 is 0.0313725)
    """
    problems = list(_problems(config))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise InputError(f"config has {count}: " + "; ".join(problems))


def _problems(config: Config) -> Iterator[str]:
    choices = {
        "data.pipeline": ("memory", "stream"),
        "model.name": registry.MODELS,
        "model.dtype": ("float32", "bfloat16"),
        "defense.name": registry.DEFENSES,
        "attack.name": registry.TRAINING_ATTACKS,
        "attack.norm": ("linf", "l2", "l1"),
        "objective.name": registry.OBJECTIVES,
        "batch_norm.attack": ("running", "batch"),
        "batch_norm.training": ("batch", "running"),
        "batch_norm.devices": ("global", "per_device"),
        "optimizer.schedule": registry.SCHEDULES,
        "train.on_nonfinite": ("stop", "halve"),
    }
    for path, valid in choices.items():
        value = _get(config, path)
        if value not in valid and not (path == "defense.name" and value is None):
            yield f"{path} must be one of {', '.join(sorted(valid))}, got {value!r}{_nearest(value, valid)}"

    # path: (least, most, whether the least itself is allowed)
    inf = math.inf
    ranges = {
        "seed": (0, 2**31 - 1, True),
        "data.validation_examples": (1, inf, True),
        "data.train_examples": (1, inf, True),
        "data.image_size": (1, inf, True),
        "data.crop_padding": (0, inf, True),
        "data.cutout": (0, inf, True),
        "attack.step_size": (0, inf, False),
        "attack.num_steps": (1, inf, True),
        "attack.warmup_epochs": (0, inf, True),
        "objective.beta": (0, inf, True),
        "optimizer.learning_rate": (0, inf, False),
        "optimizer.factor": (0, 1, False),
        "optimizer.warmup_epochs": (0, inf, True),
        "optimizer.momentum": (0, 1, True),
        "optimizer.weight_decay": (0, inf, True),
        "train.num_epochs": (1, inf, True),
        "train.batch_size": (1, inf, True),
        "train.log_every_steps": (1, inf, True),
        "train.keep_checkpoints": (1, inf, True),
        "train.accumulation": (1, inf, True),
        "validation.every_epochs": (1, inf, True),
        "validation.batch_size": (1, inf, True),
        "validation.num_steps": (1, inf, True),
    }
    for path, (least, most, closed) in ranges.items():
        value = _get(config, path)
        if value is None:
            continue  # a placeholder left open
        if not (least <= value if closed else least < value) or not value <= most or math.isinf(value):
            upper = f"<= {most}" if most < inf else "finite"
            yield f"{path} must be {'>=' if closed else '>'} {least} and {upper}, got {value}"
    for path in ("objective.label_smoothing", "train.ema_decay"):
        value = _get(config, path)
        if not 0 <= value < 1:
            yield f"{path} must be in [0, 1), got {value}"

    yield from _threat_problems(config.attack)
    if config.defense.name in (None, *registry.DEFENSES):
        try:
            options = defense_options(config)
            if config.defense.name is not None:
                defenses.create(config.defense.name, **options)
        except InputError as error:
            yield str(error)
    yield from _tuple_problems(config)
    for name, options in models.OWN_OPTIONS.items():
        for option in options:
            given, chosen = config.model[option] is not None, config.model.name == name
            if given and not chosen:
                yield f"model.{option} must be left None for {config.model.name}"
            elif chosen and not given and name == "wide_resnet":
                yield f"model.{option} must be set for {name}"
    if config.train.accumulation > 0 and config.train.batch_size % config.train.accumulation:
        yield (
            f"train.accumulation must divide train.batch_size ({config.train.batch_size}), "
            f"got {config.train.accumulation}"
        )
    if config.batch_norm.devices == "per_device" and config.defense.name == "sns":
        yield "batch_norm.devices must be global with defense.name sns, which selects neurons by the whole batch"
    softmax = config.defense.importance in (None, "softmax")
    if config.defense.name == "cifs" and softmax and config.model.name in models.WITHOUT_BATCH_NORM:
        # Measured on the digits: 7.5 % with softmax, 82 % clean with sigmoid.
        yield (
            "model.name must be a network with BatchNorm for defense.name cifs with defense.importance softmax, whose "
            f"weights add up to 1 over the channels, got {config.model.name!r}, which would not learn; choose another "
            "model.name (such as wide_resnet with model.depth 10 and model.width 1), or defense.importance sigmoid"
        )
    if config.optimizer.schedule in ("cosine", "cyclic") and config.optimizer.warmup_epochs >= config.train.num_epochs:
        yield (
            f"optimizer.warmup_epochs must be less than train.num_epochs ({config.train.num_epochs}), "
            f"got {config.optimizer.warmup_epochs}"
        )
    if config.data.random_resized_crop and (config.data.pipeline != "stream" or config.data.image_size is None):
        yield "data.random_resized_crop needs data.pipeline 'stream' and a data.image_size"
    if config.init_from == "":
        yield "init_from must be the folder of a run, or None, got ''"
    if config.optimizer.nesterov and config.optimizer.momentum == 0:
        yield "optimizer.nesterov needs an optimizer.momentum above 0, got 0.0"
    if config.objective.name == "mart" and config.objective.label_smoothing > 0:
        yield f"objective.label_smoothing is not part of mart, got {config.objective.label_smoothing}"


def _tuple_problems(config: Config) -> Iterator[str]:
    wrong = False
    for path in ("model.mean", "model.std", "optimizer.boundaries"):
        values = _get(config, path)
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            wrong = True
            yield f"{path} must hold finite numbers, got {tuple(values)}"
    widths = config.model.classifier_widths or ()
    if not all(type(width) is int and width > 0 for width in widths):
        yield f"model.classifier_widths must hold integers from 1 on, got {tuple(widths)}"
    if wrong:
        return
    if len(config.model.mean) != len(config.model.std):
        lengths = f"{len(config.model.mean)} and {len(config.model.std)}"
        yield f"model.mean and model.std must be of one length, got {lengths}"
    if not all(value > 0 for value in config.model.std):
        yield f"model.std must be positive, got {tuple(config.model.std)}"
    boundaries = tuple(config.optimizer.boundaries)
    if list(boundaries) != sorted(set(boundaries)) or not all(epoch > 0 for epoch in boundaries):
        yield f"optimizer.boundaries must be positive and rising, got {boundaries}"


def _threat_problems(attack: Config) -> Iterator[str]:
    most = 1.0 if attack.norm == "linf" else math.inf
    if not 0 < attack.epsilon <= most or math.isinf(attack.epsilon):
        interval = "(0, 1] for linf on pixels in [0, 1]" if attack.norm == "linf" else "(0, inf)"
        hint = f" ({attack.epsilon:g}/255 is {attack.epsilon / 255:g})" if 1 < attack.epsilon <= 255 else ""
        yield f"attack.epsilon must be in {interval}, got {attack.epsilon}{hint}"
    if attack.norm != "linf" and attack.name == "n_fgsm":
        yield f"attack.name 'n_fgsm' is defined for attack.norm 'linf' only, got {attack.norm!r}"


def _fill(config: Config, stored: Any, section: str = "") -> Iterator[str]:
    """Puts what JSON holds in its places; yields what has none, or is of another type."""
    if not isinstance(stored, dict):
        yield f"{section or 'it'} must be an object, got {_short(stored)}"
        return
    for key, value in stored.items():
        path = f"{section}.{key}" if section else key
        if key not in config:
            known = [name for name, _ in _keys(base())]
            # A whole section that is unknown may be a misspelt one.
            near = _nearest_key(path, {name.partition(".")[0] for name in known} if type(value) is dict else known)
            yield f"{path} is unknown (nearest: {near})"
        elif isinstance(config[key], ConfigDict):
            yield from _fill(config[key], value, path)
        else:
            kind = config.get_type(key)
            if isinstance(value, list) and kind is tuple:
                value = tuple(value)  # which JSON does not have
            elif type(value) is int and kind is float:
                value = float(value)
            if type(value) is kind or (value is None and config[key] is None):
                config[key] = value
            else:
                yield f"{path} must be of type {kind.__name__}, got {_short(value)}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _get(config: Config, path: str):
    for part in path.split("."):
        config = config[part]
    return config


def _nearest(value: object, valid) -> str:
    near = difflib.get_close_matches(str(value), list(valid), n=1)
    return f" (nearest: {near[0]!r})" if near else ""
