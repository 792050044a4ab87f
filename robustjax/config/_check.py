"""Checks the ranges of a config's values, and their combinations, before anything starts.

``_given.py`` checks names and types of keys, where a command line or a file is read; here those of a config that was
made in Python. The ranges of a defense's options are checked by the defense itself (``robustjax/defenses/NAME.py``),
which :func:`validate` builds for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from robustjax import defenses, models, registry
from robustjax.config._keys import keys, nearest_key
from robustjax.config._presets import base
from robustjax.training import optim
from robustjax.types import Config, InputError, nearest


def defense_options(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """Name and options of each defense of a config: those that ``defense.name`` spells, and the keys that are set.

    A key is of every defense that has such an option, unless ``defense.name`` says otherwise.

    Raises:
        InputError: options are set, and no defense, or none that has them.

    Example:
        >>> made = base()
        >>> made.defense.name, made.defense.beta = "cas+sap:fraction=0.5", 1.0
        >>> defense_options(made)
        [('cas', {'beta': 1.0}), ('sap', {'fraction': 0.5})]
    """
    given = {key: value for key, value in config.defense.items() if key != "name" and value is not None}
    if config.defense.name is None:
        if given:
            raise InputError(f"defense.{', defense.'.join(given)} set without a defense.name")
        return []
    parts = defenses.read_spec(config.defense.name, source="defense.name")
    taken = [set(defenses.options_of(name)) for name, _ in parts]
    unknown = sorted(set(given).difference(*taken))
    if unknown:
        known = " or ".join(f"{name} ({', '.join(defenses.options_of(name))})" for name, _ in parts)
        raise InputError(f"defense.{', defense.'.join(unknown)} must be left None for defense.name {known}")
    return [
        (name, {key: value for key, value in given.items() if key in options} | own)
        for (name, own), options in zip(parts, taken, strict=True)
    ]


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
        robustjax.types.InputError: config has 2 problems: model.name must be one of deepmind_preact_resnet18,
        deepmind_wide_resnet, lenet5, preact_resnet18, resnet10, resnet18, resnet20, resnet34, resnet50, small_cnn,
        vgg16, vit_b16, vit_s16, wide_resnet, got 'resnet81' (nearest: 'resnet18'); attack.epsilon must be
        in (0, 1] for linf on pixels in [0, 1], got 8.0 (8/255 is 0.0313725)
    """
    InputError.raise_if("config", problems(config))


def problems(config: Config) -> list[str]:
    """All that :func:`validate` would raise, an item each.

    Raises:
        InputError: it is no ConfigDict.

    Example:
        >>> config = base()
        >>> config.train.batch_size = 0
        >>> problems(config)
        ['train.batch_size must be >= 1 and finite, got 0']
    """
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"config must be a ConfigDict such as config.base() returns, got {type(config).__name__} {config!r:.60}; "
            "change what config.base() or another function of robustjax.config returns"
        )
    foreign = dict(_foreign_keys(config))
    if not foreign:
        return list(_problems(config))
    # What has another key or type, as the default: the rest is checked all the same.
    known = base()
    fitting = {path: _get(config, path) for path, _ in keys(config) if path not in foreign}
    known.update_from_flattened_dict(fitting)
    found = [*foreign.values(), *_problems(known)]
    found[-1] += "; begin with config.base() and change what differs"
    return found


def _foreign_keys(config: Config) -> Iterator[tuple[str, str]]:
    """What a config has, or lacks, that did not begin as ``base()``, which is locked: the key, and what is wrong."""
    defaults = base()
    expected, there = dict(keys(defaults)), dict(keys(config))
    yield from ((path, f"{path} is missing") for path in expected if path not in there)
    for path, kind in there.items():
        value = _get(config, path)
        if path not in expected:
            yield path, f"{path} is unknown (nearest: {nearest_key(path, expected)})"
        elif value is None and _get(defaults, path) is None:
            continue
        elif kind is not expected[path] and (kind, expected[path]) != (int, float):
            yield path, f"{path} must be of type {expected[path].__name__}, got {value!r}"


def _problems(config: Config) -> Iterator[str]:
    choices = {
        "data.pipeline": ("memory", "stream"),
        "model.name": registry.MODELS,
        "model.dtype": ("float32", "bfloat16"),
        "attack.name": registry.TRAINING_ATTACKS,
        "attack.norm": ("linf", "l2", "l1"),
        "objective.name": registry.OBJECTIVES,
        "batch_norm.attack": ("running", "batch"),
        "batch_norm.training": ("batch", "running"),
        "batch_norm.devices": ("global", "per_device"),
        "optimizer.name": registry.OPTIMIZERS,
        "optimizer.schedule": registry.SCHEDULES,
        "train.on_nonfinite": ("stop", "halve"),
    }
    for path, valid in choices.items():
        value = _get(config, path)
        if value not in valid:
            yield f"{path} must be one of {', '.join(sorted(valid))}, got {value!r}{nearest(value, valid)}"

    # path: (least, most, whether the least itself is allowed)
    inf = math.inf
    ranges = {
        "seed": (0, 2**31 - 1, True),
        "data.validation_examples": (1, inf, True),
        "data.train_examples": (1, inf, True),
        "data.image_size": (1, inf, True),
        "data.crop_padding": (0, inf, True),
        "data.cutout": (0, inf, True),
        "data.cutmix": (0, 1, True),
        "attack.step_size": (0, inf, False),
        "attack.num_steps": (1, inf, True),
        "attack.tau": (0, inf, True),
        "attack.warmup_epochs": (0, inf, True),
        "objective.beta": (0, inf, True),
        "objective.awp_gamma": (0, inf, True),
        "objective.awp_from_epoch": (0, inf, True),
        "objective.gradalign": (0, inf, True),
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
    for path in ("objective.label_smoothing", "objective.natural_share", "train.ema_decay"):
        value = _get(config, path)
        if not 0 <= value < 1:
            yield f"{path} must be in [0, 1), got {value}"

    if not 0 < config.data.extra_ratio < 1:
        yield f"data.extra_ratio must be in (0, 1), got {config.data.extra_ratio}"

    yield from _threat_problems(config.attack)
    yield from _option_problems(config)
    guards: dict[str, dict[str, Any]] = {}
    try:
        parts = defense_options(config)
        guards = dict(parts)
        if parts:
            defenses.compose(*(defenses.create(name, **options) for name, options in parts))
    except InputError as error:
        yield str(error)
    yield from _tuple_problems(config)
    name = config.model.name
    for option in dict.fromkeys(option for options in models.OWN_OPTIONS.values() for option in options):
        given, taken = config.model[option] is not None, option in models.OWN_OPTIONS.get(name, ())
        if given and not taken:
            yield f"model.{option} must be left None for {name}"
        elif taken and not given and option in ("depth", "width"):
            yield f"model.{option} must be set for {name}"
    if config.train.accumulation > 0 and config.train.batch_size % config.train.accumulation:
        yield (
            f"train.accumulation must divide train.batch_size ({config.train.batch_size}), "
            f"got {config.train.accumulation}"
        )
    if config.batch_norm.devices == "per_device" and "sns" in guards:
        yield "batch_norm.devices must be global with defense.name sns, which selects neurons by the whole batch"
    cifs = {"importance": "softmax", "scale": 1.0} | guards.get("cifs", {})
    normed = config.model.batch_norm or config.model.name not in models.WITHOUT_BATCH_NORM
    if "cifs" in guards and (cifs["importance"], cifs["scale"]) == ("softmax", 1.0) and not normed:
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
    if config.optimizer.nesterov and config.optimizer.name not in optim.WITH_MOMENTUM:
        with_momentum = " or ".join(optim.WITH_MOMENTUM)
        yield f"optimizer.nesterov needs optimizer.name {with_momentum}, got {config.optimizer.name!r}"
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
    if attack.norm != "linf" and attack.name in registry.LINF_ONLY:
        yield f"attack.name {attack.name!r} is defined for attack.norm 'linf' only, got {attack.norm!r}"


def _option_problems(config: Config) -> Iterator[str]:
    """What training options need of each other."""
    objective, carrying = config.objective, config.attack.name in registry.CARRYING
    if objective.name == "pgi" and not carrying:
        yield (
            f"attack.name must be {' or '.join(registry.CARRYING)} for objective.name pgi, which reads where the "
            f"attack started, got {config.attack.name!r}"
        )
    if carrying:
        needed = {
            "data.pipeline": "memory", "train.accumulation": 1, "batch_norm.devices": "global", "data.cutmix": 0.0,
            "data.random_resized_crop": False,
        }  # fmt: skip
        for path, value in needed.items():
            if _get(config, path) != value:
                yield (
                    f"{path} must be {value!r} for attack.name {config.attack.name}, which carries a perturbation for "
                    f"each example, got {_get(config, path)!r}"
                )
    if objective.gradalign > 0 and config.attack.norm != "linf":
        yield f"objective.gradalign is defined for attack.norm 'linf' only, got {config.attack.norm!r}"
    if objective.name == "standard":
        for key in ("natural_share", "awp_gamma"):
            if objective[key] > 0:
                yield f"objective.{key} must be 0 for objective.name standard, got {objective[key]}"
    if objective.awp_gamma > 0 and objective.awp_from_epoch >= config.train.num_epochs:
        yield (
            f"objective.awp_from_epoch must be less than train.num_epochs ({config.train.num_epochs}) where "
            f"objective.awp_gamma is above 0, got {objective.awp_from_epoch}"
        )
    if config.data.extra == "":
        yield "data.extra must be an .npz file, a prepared data set, or None, got ''"


def _get(config: Config, path: str):
    for part in path.split("."):
        config = config[part]
    return config
